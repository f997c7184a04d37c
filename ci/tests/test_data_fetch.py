"""Downloads against a local server that truncates, corrupts, stalls and fails; archives that would write outside."""

import gzip
import hashlib
import io as bytesio
import shutil
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from data_scripts import fetch
from data_scripts.script import Source, run

CONTENT = bytes(range(256)) * 4000
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """What happens is the first part of the path; a number after it says how often, then all is well."""

    seen: dict[str, int]
    content = CONTENT

    def do_GET(self):
        fault, _, times = self.path.strip("/").split("/")[0].partition("-")
        count = self.seen[self.path] = self.seen.get(self.path, 0) + 1
        if times and count > int(times):
            fault = "well"
        if fault in ("missing", "broken"):
            self.send_error(404 if fault == "missing" else 503)
            return
        body = self.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 3])
            self.close_connection = True
        elif fault == "corrupt":
            self.wfile.write(body[:-4] + b"spam")
        elif fault == "stalls":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(3)
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Fresh", (Handler,), {"seen": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        one.handler = handler
        one.url = f"http://127.0.0.1:{one.server_address[1]}"
        yield one
        one.shutdown()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_download_is_what_it_should_be_and_not_repeated(server, tmp_path):
    for _ in range(2):
        path = fetch.download(f"{server.url}/well/a.bin?download=1", tmp_path, checksum=SHA256)
        assert path == tmp_path / "a.bin"
        assert path.read_bytes() == CONTENT
    assert sum(server.handler.seen.values()) == 1
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("fault", ["truncated", "corrupt", "stalls", "broken"])
def test_what_passes_is_tried_again(server, tmp_path, fault):
    path = fetch.download(f"{server.url}/{fault}-2/a.bin", tmp_path, checksum=SHA256, timeout_s=0.3)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert list(server.handler.seen.values()) == [3]


@pytest.mark.parametrize(
    ("fault", "tries"), [("truncated", 3), ("corrupt", 3), ("stalls", 3), ("broken", 3), ("missing", 1)]
)
def test_what_does_not_pass_is_one_sentence_and_leaves_nothing(server, tmp_path, fault, tries):
    with pytest.raises(ValueError, match="could not be downloaded") as raised:
        fetch.download(f"{server.url}/{fault}/a.bin", tmp_path, checksum=SHA256, timeout_s=0.3)
    assert names(tmp_path) == []
    assert list(server.handler.seen.values()) == [tries]
    assert "--make" in str(raised.value)


def test_truncation_is_seen_without_a_checksum(server, tmp_path):
    with pytest.raises(ValueError, match="could not be downloaded"):
        fetch.download(f"{server.url}/truncated/a.bin", tmp_path, checksum=None, timeout_s=0.3)
    assert names(tmp_path) == []


def test_no_server_at_all(tmp_path):
    with pytest.raises(ValueError, match="could not be downloaded"):
        fetch.download("http://127.0.0.1:9/a.bin", tmp_path, checksum=SHA256, timeout_s=0.3)


def test_a_checksum_that_nobody_states_is_recorded_and_holds(server, tmp_path, capsys):
    fetch.download(f"{server.url}/well/a.bin", tmp_path, checksum=None)
    assert "states no checksum" in capsys.readouterr().err
    assert (tmp_path / "a.bin.sha256").read_text().split() == [SHA256[7:], "a.bin"]
    fetch.download(f"{server.url}/well/a.bin", tmp_path, checksum=None)
    (tmp_path / "a.bin").write_bytes(b"another")
    with pytest.raises(ValueError, match="remove it"):
        fetch.download(f"{server.url}/well/a.bin", tmp_path, checksum=None)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ValueError, match="hash"):
        fetch.download(f"{server.url}/corrupt/a.bin", tmp_path, checksum=None)


def test_a_full_disk_is_known_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 10**10 - 10**8, 10**8))
    fetch.require_room(tmp_path, 10**7)
    with pytest.raises(ValueError, match=r"0\.3 GB") as raised:
        fetch.require_room(tmp_path / "not" / "yet", 10**8)
    assert "0.1 GB are free" in str(raised.value)


# -- archives ----------------------------------------------------------------------
def zipped(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, "content")
    return path


def tarred(path, *members):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            data = b"content" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            archive.addfile(info, bytesio.BytesIO(data))
    return path


def test_archives_are_unpacked(tmp_path):
    zipped(tmp_path / "a.zip", "x/one.txt", "y/two.txt")
    tarred(tmp_path / "b.tar.gz", ("x/three.txt", tarfile.REGTYPE, ""), ("x/four.txt", tarfile.SYMTYPE, "three.txt"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"content"))
    (tmp_path / "d.h5").write_bytes(b"content")
    for name in ("a.zip", "b.tar.gz", "c.txt.gz", "d.h5"):
        fetch.unpack(tmp_path / name, tmp_path / "out")
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["c.txt", "d.h5", "x/four.txt", "x/one.txt", "x/three.txt", "y/two.txt"]
    assert {p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == {b"content"}


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_outside_is_refused(tmp_path, kind, name):
    (tmp_path / "in").mkdir()
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        zipped(path, "fine.txt", name)
    else:
        tarred(path, ("fine.txt", tarfile.REGTYPE, ""), (name, tarfile.REGTYPE, ""))
    with pytest.raises(ValueError, match="outside its folder"):
        fetch.unpack(path, tmp_path / "in" / "out")
    assert not list((tmp_path / "in").rglob("*.txt"))


@pytest.mark.parametrize(
    "member",
    [
        ("a/link", tarfile.SYMTYPE, "../../evil"),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.LNKTYPE, "../evil"),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member):
    path = tarred(tmp_path / "a.tar", ("fine.txt", tarfile.REGTYPE, ""), member)
    with pytest.raises(ValueError, match=r"not unpacked") as raised:
        fetch.unpack(path, tmp_path / "out")
    assert member[0] in str(raised.value) or member[2].lstrip("./") in str(raised.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.txt.gz"])
def test_a_damaged_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no archive, but long enough to be looked at by every reader" * 20)
    with pytest.raises(ValueError, match="is damaged"):
        fetch.unpack(tmp_path / name, tmp_path / "out")


# -- the whole way -----------------------------------------------------------------
def a_source(url, content):
    entry = {"url": url, "megabytes": 1, "checksum": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    return Source("toy", "A toy", "page", "none", "nobody", "unpaired", (), (entry,))


def test_from_a_server_to_our_layout(server, tmp_path, monkeypatch, capsys):
    buffer = bytesio.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("theirs/a.txt", "scan")
    server.handler.content = buffer.getvalue()
    source = a_source(f"{server.url}/truncated-1/toy.zip", server.handler.content)
    monkeypatch.setattr("data_scripts.script.manifest", lambda: {"toy": source})

    def arrange(unpacked, out, source):
        (out / "train").mkdir()
        shutil.move(unpacked / "theirs" / "a.txt", out / "train" / "a.txt")

    out = tmp_path / "toy"
    assert run("toy", lambda *_: None, arrange, ["--out", str(out)]) == 0
    assert (out / "train" / "a.txt").read_text() == "scan"
    assert names(tmp_path) == ["archives", "toy"]
    assert "A toy" in capsys.readouterr().out


def test_a_failed_download_leaves_no_folder(server, tmp_path, monkeypatch, capsys):
    source = a_source(f"{server.url}/missing/toy.zip", b"")
    monkeypatch.setattr("data_scripts.script.manifest", lambda: {"toy": source})
    assert run("toy", lambda *_: None, lambda *_: None, ["--out", str(tmp_path / "toy")]) == 2
    assert "could not be downloaded" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()
    assert not [name for name in names(tmp_path) if name.startswith(".") or name.startswith("tmp")]
