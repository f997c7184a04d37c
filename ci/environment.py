"""Makes or reuses .venv at the repository root; shared by start.py and test.py, standard library only."""

import sys

# This file, start.py and test.py parse on Python 3.6, so that an old Python prints this, not a SyntaxError.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write(
        "Error: Python 3.11 or newer is needed; this is Python %d.%d (%s). "  # noqa: UP031
        "Install a newer Python and start this command with it, for example: python3.11 ci/start.py\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(2)

import collections
import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED_GB = 6.0
# Threads that stay awake while they wait slow a shared machine fourfold; these do so for microseconds, then sleep.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "700"}
DISK_FULL = re.compile(r"No space left on device|not enough space on the disk|Disk quota exceeded")
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ConnectionResetError|ProxyError"
    r"|Temporary failure in name resolution|Network is unreachable|connection broken by"
)


class CommandError(Exception):
    """What went wrong, in a sentence for the person at the terminal: what, expected, got, how to mend."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


class Environment:
    """The virtual environment of one checkout, complete if and only if its stamp is valid."""

    def __init__(self, root: Path = ROOT):
        self.root = root
        self.folder = root / ".venv"
        self.stamp = self.folder / "reglib-stamp"
        self.log = root / "build" / "install.log"
        self.scripts = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / ("python.exe" if os.name == "nt" else "python")
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", base))

    def prepare(self) -> None:
        """Returns at once if the stamp is valid; otherwise installs what is missing, from whatever state."""
        if self.is_ready():
            return
        check_disk(self.root)
        print("Preparing .venv: a few minutes the first time, seconds afterwards.")
        self.stamp.unlink(missing_ok=True)
        if not self.is_usable():
            self._create()
        self._forget_half_installed()
        self._install()
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(self.digest())
        partial.replace(self.stamp)

    def digest(self) -> str:
        """SHA-256 of all that decides what is installed."""
        parts = [(self.root / name).read_bytes() for name in ("pyproject.toml", "ci/constraints.txt")]
        return hashlib.sha256(b"\0".join([*parts, platform.python_version().encode()])).hexdigest()

    def is_ready(self) -> bool:
        return self.is_usable() and self.stamp.exists() and self.stamp.read_text() == self.digest()

    def is_usable(self) -> bool:
        """Whether .venv was made in this place by this Python, and its pip was unpacked to the end."""
        config = self.folder / "pyvenv.cfg"
        if not (self.python.exists() and config.exists()):
            return False
        lines = config.read_text(encoding="utf-8").splitlines()
        settings = dict(line.split(" = ", 1) for line in lines if " = " in line)
        made_here = settings.get("command", "").endswith(" " + str(self.folder))
        same_python = settings.get("version") == platform.python_version()
        return made_here and same_python and any(self.site_packages.glob("pip-*.dist-info/INSTALLER"))

    def variables(self, **extra: str) -> dict[str, str]:
        """The environment variables of a command that runs inside .venv, without other Pythons' settings."""
        unwanted = {"PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"}
        kept = {name: value for name, value in os.environ.items() if name not in unwanted}
        path = str(self.scripts) + os.pathsep + kept.get("PATH", "")
        return {**kept, "PATH": path, "VIRTUAL_ENV": str(self.folder), "PYTHONUTF8": "1", **extra}

    def _create(self) -> None:
        # Inside an activated environment sys.executable may be the very file that --clear deletes.
        base = getattr(sys, "_base_executable", sys.executable)
        command = [base, "-m", "venv", "--clear", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise CommandError(explain_venv_failure(done.stdout + done.stderr, self.folder))

    def _forget_half_installed(self) -> None:
        # pip writes INSTALLER last; a package without it is incomplete, yet pip would call it installed.
        for info in self.site_packages.glob("*.dist-info"):
            if not (info / "INSTALLER").exists():
                shutil.rmtree(info)

    def _install(self) -> None:
        command = [self.python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        command += ["--disable-pip-version-check", "-c", "ci/constraints.txt", "-e", ".[test]"]
        # A "user = true" in someone's pip settings is an error inside a virtual environment.
        variables = self.variables(PIP_USER="0")
        status, tail = run_logged("Installing", command, self.log, cwd=self.root, env=variables)
        if status:
            raise CommandError(explain_pip_failure(tail, self.log))


def check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GB:
        raise CommandError(
            f"The disk is too full: the environment needs {NEEDED_GB:.0f} GB free at {folder}; "
            f"found {free:.1f} GB. Free some space, then run the same command again."
        )


def explain_venv_failure(output: str, folder: Path) -> str:
    if DISK_FULL.search(output):
        return f"The disk filled up while creating {folder}. Free some space, then run this again."
    if "ensurepip" in output:
        return (
            "This Python cannot create virtual environments: its module ensurepip is missing. "
            "On Debian and Ubuntu install the package python3-venv, then run the same command again."
        )
    lines = output.strip().splitlines() or ["no message"]
    return f"python -m venv could not create {folder}: {lines[-1]} Delete that folder and run this again."


def explain_pip_failure(tail: str, log: Path) -> str:
    if DISK_FULL.search(tail):
        return (
            f"The disk filled up during the installation, which needs {NEEDED_GB:.0f} GB (also where TMPDIR "
            f"points). Free some space, then run the same command again; it continues. Details: {log}"
        )
    if OFFLINE.search(tail):
        return (
            "The network is off: pip could not reach its package index. Connect this machine, or set "
            "HTTPS_PROXY if it is behind a proxy, then run the same command again; it continues. "
            f"Details: {log}"
        )
    errors = [line for line in tail.splitlines() if line.startswith("ERROR")]
    return f"pip could not install the packages: {(errors or ['no error line'])[-1]} Details: {log}"


def run_logged(label: str, command: list, log: Path, **options: object) -> tuple[int, str]:
    """Runs a command, output to a file, latest line to the terminal; returns (status, last lines)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tail = collections.deque(maxlen=60)
    live = LiveLine(label)
    options.update(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    options.update(text=True, encoding="utf-8", errors="replace")
    words = [str(part) for part in command]
    with log.open("w", encoding="utf-8", buffering=1) as file, subprocess.Popen(words, **options) as process:
        reader = threading.Thread(target=_drain, args=(process.stdout, file, tail), daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(0.3)
            live.show(tail[-1] if tail else "")
        status = process.wait()
    live.close()
    return status, "".join(tail)


def _drain(stream, file, tail) -> None:
    for line in stream:
        tail.append(line)
        # On a full disk the pipe is still read to its end: the tail holds the reason.
        with contextlib.suppress(OSError):
            file.write(line)


class LiveLine:
    """One line that is overwritten on a terminal; elsewhere a line every 15 seconds."""

    def __init__(self, label: str):
        self.label = label
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def show(self, text: str) -> None:
        now = time.monotonic()
        width = shutil.get_terminal_size().columns - 1
        line = f"{self.label} {now - self.started:4.0f} s  {' '.join(text.split())}"[:width]
        if self.terminal:
            print("\r" + line.ljust(width), end="", flush=True)
        elif now - self.shown >= 15:
            print(line, flush=True)
            self.shown = now

    def close(self) -> None:
        blank = " " * (shutil.get_terminal_size().columns - 1)
        start = f"\r{blank}\r" if self.terminal else ""
        print(f"{start}{self.label} took {time.monotonic() - self.started:.0f} s.")


def run_main(main) -> int:
    """Calls main() and turns its expected failures into one sentence and an exit status."""
    # A Windows console may lack a character of someone's progress bar.
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        return main()
    except CommandError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again; it continues where it was.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("Error: The disk is full. Free some space, then run the same command again.", file=sys.stderr)
        return 2
