"""What all tests share. reglib is not imported here: the jaxtyping hook must be in place before it is."""

import os
from pathlib import Path

import pytest

# Before torch is imported: two xdist workers on two cores, and the same sums whatever the machine.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


def pytest_sessionstart():
    """Applies one fault of the bug zoo, before any test module imports names from reglib."""
    if name := os.environ.get("REGLIB_BUG"):
        import bugs

        bugs.apply(name)


@pytest.fixture
def real_data():
    """The folder of real scans (brain, prostate, retina, slices), which no clone contains."""
    folder = os.environ.get("REGLIB_REAL_DATA")
    if not folder:
        pytest.skip("REGLIB_REAL_DATA is not set: it names a folder of real scans")
    if not Path(folder).is_dir():
        pytest.fail(f"REGLIB_REAL_DATA must be a folder; got {folder}")
    return Path(folder)


@pytest.fixture
def no_jaxtyping(monkeypatch):
    """Switches jaxtyping's checks off, so that a test sees the library's own error message."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
