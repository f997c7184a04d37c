"""Downloads that are checked, and archives that stay in their folder.

A file is downloaded under another name and takes its own once its checksum is right; what fails begins again, a few
times. Where a publisher states no checksum, the first download's is written beside the file, and later ones must agree.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .script import Source

ATTEMPTS = 3
TIMEOUT_S = 60.0  # without a byte
ROOM = 3.0  # an archive and what is in it need about so many times its size
ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")


def fetch(source: Source, unpacked: Path, archives: Path, *, timeout_s: float = TIMEOUT_S) -> None:
    """Download what the manifest lists to `archives`, check it, and unpack it to `unpacked`.

    Raises: ValueError for a download that fails, a checksum that does not agree, an archive that would write outside,
        or a disk without room; what is in `archives` already and agrees is not downloaded again.
    """
    require_room(archives, source.bytes)
    for entry in source.files:
        folder = entry.get("folder", "")
        file = download(entry["url"], archives / folder, checksum=entry["checksum"], timeout_s=timeout_s)
        unpack(file, unpacked / folder)


def gather(archives: Path, unpacked: Path) -> Path:
    """The folder of files that were downloaded by hand: as they lie, or unpacked to `unpacked` if they are archives.

    Raises: ValueError if there is none, or as `unpack`.
    """
    if not archives.is_dir() or not any(archives.iterdir()):
        raise ValueError(f"{archives} must be a folder with what was downloaded; it is empty or not there.")
    packed = [path for path in sorted(archives.iterdir()) if path.name.lower().endswith(ENDINGS)]
    for path in packed:
        unpack(path, unpacked)
    return unpacked if packed else archives


def require_room(folder: Path, size: int) -> None:
    """Raise ValueError unless the disk of a folder has room for a download of so many bytes and what is in it."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < ROOM * size:
        raise ValueError(
            f"{folder} needs {ROOM * size / 1e9:.1f} GB for the download and what is in it; {free / 1e9:.1f} GB are "
            "free; choose another disk with --out and --archives."
        )


def download(url: str, folder: Path, *, checksum: str | None, timeout_s: float = TIMEOUT_S) -> Path:
    """The file of an address in a folder, downloaded unless it is there.

    Args: checksum: "sha256:..." or "md5:..." as its publisher states; None if it states none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / url.split("?")[0].rstrip("/").rsplit("/", 1)[1]
    recorded = path.with_name(f"{path.name}.sha256")
    if checksum is None and recorded.is_file():
        checksum = f"sha256:{recorded.read_text(encoding='utf-8').split()[0]}"
    if path.is_file():
        if checksum is None or _agrees(path, checksum):
            return _recorded(path, recorded, checksum)
        raise ValueError(f"{path} is not what its publisher states ({checksum}); remove it to download it again.")
    _attempts(url, path, checksum, timeout_s)
    return _recorded(path, recorded, checksum)


def _attempts(url: str, path: Path, checksum: str | None, timeout_s: float) -> None:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    loader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout_s)
    reason, passing, attempt = "", True, 0
    while passing and attempt < ATTEMPTS:
        attempt += 1
        try:
            pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=loader)
            return
        except (OSError, ValueError) as error:  # what requests raises is an OSError
            reason, passing = str(error), _may_pass(error)
            for partial in path.parent.glob("tmp*"):
                partial.unlink(missing_ok=True)
    raise ValueError(
        f"{url} could not be downloaded after {attempt} tr{'y' if attempt == 1 else 'ies'}: {reason}. Nothing is kept; "
        "run it again, download it by hand into --archives, or --make a stand-in."
    )


def _may_pass(error: Exception) -> bool:
    """Whether to try again: not where the server says that there is no such file."""
    response: Any = getattr(error, "response", None)
    if response is None:
        return True
    response.close()
    return bool(response.status_code >= 500)


def _recorded(path: Path, recorded: Path, checksum: str | None) -> Path:
    if checksum is None:
        recorded.write_text(f"{_digest(path, 'sha256')}  {path.name}\n", encoding="utf-8")
        print(f"{path.name}: its publisher states no checksum; this one's is now in {recorded}", file=sys.stderr)
    return path


def _agrees(path: Path, checksum: str) -> bool:
    kind, _, value = checksum.partition(":")
    return _digest(path, kind) == value


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# -- archives -----------------------------------------------------------------------------------------------------
def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive, or a gzip of one file, into a folder; other files are copied.

    Raises: ValueError for an archive that is damaged or has a name that leads outside, before anything is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = archive.name.lower()
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                _require_inside(archive, (info.filename for info in zipped.infolist()))
                zipped.extractall(folder)
        elif name.endswith(ENDINGS):
            with tarfile.open(archive) as tar:
                _require_inside(archive, _names(archive, tar))
                tar.extractall(folder, filter="data")
        elif name.endswith(".gz") and not name.endswith(".nii.gz"):
            with gzip.open(archive) as stream, (folder / archive.name[:-3]).open("wb") as target:
                shutil.copyfileobj(stream, target)
        else:
            shutil.copy(archive, folder)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{archive} is damaged: {error}; remove it to download it again.") from None


def _names(archive: Path, tar: tarfile.TarFile) -> Iterator[str]:
    for member in tar.getmembers():
        if member.issym() or member.islnk():
            yield str(PurePosixPath(member.name).parent / member.linkname)
        elif not (member.isfile() or member.isdir()):
            raise ValueError(f"{archive} has {member.name}, which is no file; it is not unpacked.")
        yield member.name


def _require_inside(archive: Path, names: Iterator[str]) -> None:
    for name in names:
        depth = 0
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for part in parts:
            depth += -1 if part == ".." else part not in (".", "")
            if depth < 0 or part == "/" or part.endswith(":"):
                raise ValueError(
                    f"{archive} has {name!r}, which would be written outside its folder; it is not unpacked."
                )
