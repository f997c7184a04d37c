"""`reglib data prepare`: each step against its truth, and a run that is killed ends as one that is not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import folders
import numpy as np
import pytest
import torch
from helpers import affine, apply, oblique, rotation, sentence

from reglib import cli, data, field, io, phantoms, preparation
from reglib.data.reading import Array, Scan
from reglib.grid import Grid
from reglib.preparation import Preparation, prepare


def tree(folder):
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def scans(tmp_path):
    folders.unpaired(tmp_path / "in" / "train", 4)
    folders.unpaired(tmp_path / "in" / "test", 2, first=5)
    return tmp_path / "in"


# -- the command -------------------------------------------------------------------
def test_a_folder_comes_out_in_its_layout_and_without_faults(scans, tmp_path, capsys):
    (scans / "train" / "points").mkdir()
    for k in range(1, 5):
        io.save_points(scans / "train" / "points" / f"case{k}.csv", torch.full((1, 2, 3), float(k)))
    out = tmp_path / "out"
    words = [
        "--orientation",
        "RAS",
        "--spacing",
        "1.5",
        "--multiple",
        "8",
        "--window",
        "0.2",
        "0.8",
        "--scale",
        "minmax",
    ]
    assert cli.main(["data", "prepare", str(scans), "-o", str(out), *words]) == 0
    assert "6 scans" in capsys.readouterr().out
    found = data.inspect(out)
    assert found.ok
    assert found.kinds == {"train": "unpaired", "test": "unpaired"}
    assert set(found.table["orientation"]) == {"RAS"}
    assert all(n % 8 == 0 for shape in found.table["shape"] for n in shape)
    assert all(abs(s - 1.5) < 1e-4 for spacing in found.table["spacing"] for s in spacing)
    assert set(found.table["low"]) == {0.0}
    assert set(found.table["high"]) == {1.0}
    assert list(found.table["points"].dropna()) == [2.0] * 4
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["scans"]) == [f"{'train' if k < 5 else 'test'}/images/case{k}" for k in range(1, 7)]
    entry = manifest["scans"]["test/images/case5"]
    assert entry["stored"]["shape"] == list(folders.GRID.shape)
    assert entry["prepared"]["orientation"] == "RAS"
    assert entry["image"].endswith("case5.nii.gz")
    assert manifest["settings"]["reading"]["window"] == [0.2, 0.8]
    prepared = data.Reading(scale="none")(data.find(out / "test").records[0])
    again = data.Reading(orientation="RAS", spacing=1.5, multiple=8, window=(0.2, 0.8))(
        data.find(scans / "test").records[0]
    )
    torch.testing.assert_close(prepared.image, again.image)
    torch.testing.assert_close(prepared.label, again.label)


@pytest.mark.parametrize("kind", ["paired", "grouped"])
def test_every_layout_is_kept(tmp_path, kind):
    getattr(folders, kind)(tmp_path / "in")
    prepare(tmp_path / "in", tmp_path / "out", Preparation(size=(8, 8, 8)))
    before, after = data.find(tmp_path / "in"), data.find(tmp_path / "out")
    assert after.kind == before.kind == kind
    for side in ("records", "fixed"):
        assert [r.name for r in getattr(before, side)] == [r.name for r in getattr(after, side)]
    assert data.inspect(tmp_path / "out").ok


def test_slices_are_prepared_too(tmp_path):
    for k in (1, 2):
        folders.save_scan(tmp_path / "in", f"case{k}", k, structures=0, grid=Grid((16, 13), oblique(2)))
    assert cli.main(["data", "prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--spacing", "1.2"]) == 0
    assert {s for spacing in data.inspect(tmp_path / "out").table["spacing"] for s in np.round(spacing, 4)} == {1.2}


def test_label_maps_become_channels_or_stay(tmp_path):
    grid = folders.GRID
    labels = torch.zeros(1, 1, *grid.shape, dtype=torch.int64)
    labels[..., 2:4, :, :], labels[..., 5:7, :, :] = 3, 17
    for k in (1, 2):
        folders.save_scan(tmp_path / "in", f"case{k}", k, structures=0)
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        io.save_labels(tmp_path / "in" / "labels" / f"case{k}.nii.gz", labels, grid)
    words = [str(tmp_path / "in"), "-o", str(tmp_path / "hot"), "--structures", "3", "--structures", "17"]
    assert cli.main(["data", "prepare", *words]) == 0
    hot, _ = io.load_labels(tmp_path / "hot" / "labels" / "case1.nii.gz")
    torch.testing.assert_close(hot[0], torch.cat([labels[0] == 3, labels[0] == 17]).long())
    prepare(tmp_path / "in", tmp_path / "map", Preparation())
    torch.testing.assert_close(io.load_labels(tmp_path / "map" / "labels" / "case2.nii.gz")[0], labels)


def test_workers_change_no_byte(scans, tmp_path):
    small = Preparation(size=(8, 8, 8))
    manifests = [prepare(scans, tmp_path / name, small, workers=n) for name, n in (("a", 1), ("b", 3))]
    assert manifests[0] == manifests[1]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


SCRIPT = """
import sys
from reglib.data import Reading
from reglib.preparation import Preparation, prepare
if __name__ == "__main__":
    finer = Preparation(reading=Reading(spacing=0.5, scale="minmax"))
    prepare(sys.argv[1], sys.argv[2], finer, workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_ends_as_one_that_is_not(scans, tmp_path, workers):
    (tmp_path / "script.py").write_text(SCRIPT)
    call = [sys.executable, "-W", "ignore", tmp_path / "script.py", scans]
    subprocess.run([*call, tmp_path / "whole", str(workers)], check=True)
    rng, out, stopped = random.Random(workers), tmp_path / "killed", 0
    for _ in range(10 if workers == 1 else 4):
        before = snapshot(out)
        with subprocess.Popen([*call, out, str(workers)], start_new_session=True) as process:
            while process.poll() is None and snapshot(out) == before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.2))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)  # its workers are left to themselves
                stopped += 1
        files = sorted(p for p in out.glob("*/*/*") if p.is_file())
        for path in rng.sample(files, k=min(4, len(files))):
            path.unlink(missing_ok=True)  # so that there is something to do again
    subprocess.run([*call, out, str(workers)], check=True)
    assert stopped >= 3
    assert tree(out) == tree(tmp_path / "whole")


def snapshot(folder):
    """The files below a folder and when they were written."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a partial file that got its name meanwhile
            found.append((path, path.stat().st_mtime_ns))
    return sorted(found)


def test_what_is_done_is_not_done_again(scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(scans, out, Preparation(size=(8, 8, 8)))
    calls = []
    original = Preparation.__call__
    monkeypatch.setattr(
        Preparation, "__call__", lambda self, record: calls.append(record.name) or original(self, record)
    )
    prepare(scans, out, Preparation(size=(8, 8, 8)))
    assert calls == []
    folders.save_scan(scans / "test", "case5", 9)
    prepare(scans, out, Preparation(size=(8, 8, 8)))
    assert calls == ["case5"]
    prepare(scans, out, Preparation(size=(10, 8, 8)))
    assert len(calls) == 7


def test_a_bad_scan_does_not_stop_the_others(scans, tmp_path):
    (scans / "train" / "images" / "case2.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="1 of 6") as raised:
        prepare(scans, out, Preparation())
    sentence(raised, "case2.nii.gz")
    assert len(list((out / "train" / "images").iterdir())) == 3
    assert not (out / "manifest.json").exists()
    folders.save_scan(scans / "train", "case2", 2)
    prepare(scans, out, Preparation())
    assert data.inspect(out).ok


@pytest.mark.parametrize("fault", ["same", "other", "unmatched", "reference", "size", "model"])
def test_what_cannot_be_prepared(scans, tmp_path, capsys, fault):
    out = tmp_path / "out"
    words = [str(scans), "-o", str(out)]
    if fault == "same":
        words[2] = str(scans)
    if fault == "other":
        out.mkdir()
        (out / "thesis.pdf").write_text("mine")
    if fault == "unmatched":
        (scans / "train" / "labels" / "case3.nii.gz").unlink()
    more = {
        "reference": ["--reference", str(scans / "no.nii.gz")],
        "size": ["--size", "8", "--size", "8"],
        "model": ["--model", "bent"],
    }
    before = tree(tmp_path)
    assert cli.main(["data", "prepare", *words, *more.get(fault, [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = {
        "same": "another folder",
        "other": "thesis.pdf",
        "unmatched": "no partner",
        "reference": "no.nii.gz",
        "size": "3 numbers",
        "model": "bent",
    }
    assert expected[fault] in error
    assert tree(tmp_path) == before


# -- steps -------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 20, 7), (9, 12, 7), (16, 8, 16)])
def test_cut_and_filled_from_the_middle(size):
    grid = folders.GRID
    image = folders.image_of(1)[0] + 1
    scan = Scan("case", image, grid, grid, folders.label_of(1)[0].float())
    done = preparation.resized(scan, size)
    assert done.grid.shape == size == done.image.shape[1:] == done.label.shape[1:]
    expected = field.resample(image[None], grid, done.grid, mode="nearest", padding=float(image.min()))
    torch.testing.assert_close(done.image, expected[0])
    middle = np.linalg.norm(np.subtract(done.grid.center, grid.center))
    assert middle < max(grid.spacing)


def a_ct():
    """A body with lungs and bones that lies 3 mm above the sheet of a bed; HU, oblique."""
    matrix = affine(np.eye(3), [0, 0, 0]) @ np.diag([3.0, 3.0, 5.0, 1.0])
    grid = Grid((60, 56, 12), affine(rotation((0.0, 0.0, 4.0)), [0.0] * 3) @ matrix)
    x, y = torch.meshgrid(torch.arange(60.0), torch.arange(56.0), indexing="ij")
    body = ((x - 30) / 22) ** 2 + ((y - 30) / 15) ** 2 < 1
    lungs = (((x - 20) / 6) ** 2 + ((y - 30) / 8) ** 2 < 1) | (((x - 40) / 6) ** 2 + ((y - 30) / 8) ** 2 < 1)
    bone = ((x - 30) / 3) ** 2 + ((y - 20) / 3) ** 2 < 1
    bed = (y < 13) & (y > 11) | (((x - 30).abs() < 25) & (y == 7))
    image = torch.full((60, 56), -1000.0)
    image[body], image[body & lungs], image[bone], image[bed & ~body] = 40.0, -850.0, 700.0, 150.0
    rng = np.random.default_rng(0)
    volume = image[..., None].expand(60, 56, 12) + torch.from_numpy(rng.normal(0, 15, (60, 56, 12))).float()
    return volume[None], body[..., None].expand(60, 56, 12), grid


def test_the_bed_goes_and_the_lungs_stay():
    image, body, grid = a_ct()
    done = preparation.without_bed(image, grid)[0]
    assert float((done[~body] != -1000).float().mean()) < 2e-3
    assert float((done[body] == image[0][body]).float().mean()) > 0.995
    flipped = preparation.without_bed(image.flip(2), Grid(grid.shape, grid.world_from_voxel))
    torch.testing.assert_close(flipped.flip(2)[0], done)
    for scaled in (image.clamp(0, 1) - 900, image.clamp(0, 255)):
        with pytest.raises(ValueError, match="Hounsfield"):
            preparation.without_bed(scaled, grid)


def test_scans_are_laid_on_a_reference_with_labels_and_points(tmp_path):
    """Heads that were turned, shifted and stretched come back onto the template they were made from."""
    template = phantoms.brain_cohort(1, seed=1, shape=(48, 56, 48), spacing=4.0, strength_mm=0.0).subjects[0]
    io.save_image(tmp_path / "reference.nii.gz", template.image, template.grid)
    center = np.asarray(template.grid.center)
    linear = rotation((8.0, -5.0, 12.0)) @ np.diag([1.08, 0.95, 1.04])
    matrix = (
        affine(np.eye(3), np.add(center, (9.0, -6.0, 4.0))) @ affine(linear, [0.0] * 3) @ affine(np.eye(3), -center)
    )
    scan_from_reference = torch.from_numpy(matrix)
    grid = Grid((44, 50, 52), oblique(3, spacing=(4.4, 4.2, 3.9), origin=(-100.0, 85.0, -92.0)))
    back = torch.linalg.inv(scan_from_reference)
    pull = field.affine_ddf(back, grid)
    image = field.warp(template.image, pull, moving_grid=template.grid, fixed_grid=grid, padding="zeros")
    label = field.warp_labels(template.labels, pull, method="nearest", moving_grid=template.grid, fixed_grid=grid)
    assert float((image > 0.1).float().mean()) > 0.1
    there = np.array([[5.0, -20.0, 10.0], [-20.0, 10.0, 25.0], [25.0, -40.0, 0.0]])
    scan = Scan("case", image[0], grid, grid, (label[0] == 2).float(), torch.from_numpy(apply(matrix, there)))
    done, found = preparation.on_reference(scan, *Array(template.image[0], template.grid), model="affine")
    corners = template.grid.corners().numpy()
    assert np.linalg.norm(apply(found.numpy(), corners) - apply(matrix, corners), axis=1).mean() < 2
    assert np.linalg.norm(done.points.numpy() - there, axis=1).max() < 1.5
    truth = (template.labels[0] == 2).float()
    overlap = 2 * float((done.label * truth).sum()) / float((done.label + truth).sum())
    assert overlap > 0.75
    assert done.grid == template.grid


def test_a_reference_in_a_whole_run_is_in_the_manifest(tmp_path):
    cohort = phantoms.brain_cohort(2, seed=2, shape=(32, 36, 32), spacing=6.0, strength_mm=3.0)
    for k, subject in enumerate(cohort.subjects):
        (tmp_path / "in" / "images").mkdir(parents=True, exist_ok=True)
        io.save_image(tmp_path / "in" / "images" / f"b{k}.nii.gz", subject.image, subject.grid)
    reference = tmp_path / "in" / "images" / "b0.nii.gz"
    manifest = prepare(tmp_path / "in", tmp_path / "out", Preparation(reference=reference, model="rigid"))
    matrices = [np.array(entry["scan_from_reference"]) for entry in manifest["scans"].values()]
    np.testing.assert_allclose(matrices[0], np.eye(4), atol=0.1)
    for matrix in matrices:
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6)
    assert set(data.inspect(tmp_path / "out").table["shape"]) == {(32, 36, 32)}
