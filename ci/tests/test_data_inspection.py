"""`data.inspect` and `reglib data inspect`: every fault of a data set in one run, each with its cure."""

import gzip
import re

import folders
import numpy as np
import pytest
import torch
from helpers import affine, oblique

from reglib import cli, data, io
from reglib.grid import Grid


def spoil(folder, fault):
    """Plants a fault in the group folders train and test of `folder`; returns words that its sentence must have."""
    train = folder / "train"
    images, labels = train / "images", train / "labels"
    if fault == "unmatched":
        (labels / "group1" / "scan1.nii.gz").unlink()
        return ["no partner", "group1/scan1"]
    if fault == "twice":
        image, grid = io.load_image(images / "group1" / "scan2.nii.gz")
        io.save_image(images / "group1" / "scan2.nii", image, grid)
        return ["twice", "scan2.nii", "keep one"]
    if fault == "alone":
        folders.save_scan(train, "group7/only", 70)
        return ["one scan only", "group7/only", "add one"]
    if fault == "counts":
        folders.save_scan(train, "group2/scan1", 21, structures=1)
        return ["different numbers of labels", "group2/scan1", "(1)"]
    if fault == "overlap":
        label = folders.label_of(1)
        label[:, 1] = label[:, 0]
        io.save_labels(labels / "group2" / "scan2.nii.gz", label, folders.GRID)
        return ["one-hot", "scan2", "take from one"]
    if fault == "orientation":
        image, grid = io.load_image(images / "group3" / "scan1.nii.gz")
        label, _ = io.load_labels(labels / "group3" / "scan1.nii.gz")
        io.save_image(images / "group3" / "scan1.nii.gz", image.flip(2), _flipped(grid))
        io.save_labels(labels / "group3" / "scan1.nii.gz", label.flip(2), _flipped(grid))
        return ["mixed orientations", "orientation='RAS'"]
    if fault == "nan":
        _write(images / "group3" / "scan2.nii.gz", lambda x: _set(x, np.nan))
        return ["scan2", "NaN"]
    if fault == "unreadable":
        path = images / "group3" / "scan3.nii.gz"
        path.write_bytes(path.read_bytes()[:200])
        return ["scan3.nii.gz", "copy"]
    if fault == "range":
        io.save_labels(labels / "group3" / "scan4.nii.gz", 255 * folders.label_of(4), folders.GRID)
        return ["[0, 1]", "scan4", "divide by 255"]
    if fault == "off":
        grid = Grid(folders.GRID.shape, affine(np.eye(3), [0.0, 9.0, 0.0]) @ folders.GRID.world_from_voxel.numpy())
        io.save_labels(labels / "group4" / "scan1.nii.gz", folders.label_of(1), grid)
        return ["on its image's grid", "group4/scan1", "resample"]
    if fault == "constant":
        io.save_image(images / "group4" / "scan2.nii.gz", torch.ones(1, 1, *folders.GRID.shape), folders.GRID)
        return ["constant", "group4/scan2"]
    assert fault == "leak"
    folders.save_scan(folder / "test", "group8/scan3", 12)  # which is scan2 of group1 in train
    return ["train and test share", "group1/scan2", "split_by_subject"]


FAULTS = [
    "unmatched", "twice", "alone", "counts", "overlap", "orientation", "nan", "unreadable", "range", "off", "constant",
    "leak",
]  # fmt: skip


def _flipped(grid):
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = grid.shape[0] - 1
    return Grid(grid.shape, grid.world_from_voxel.numpy() @ turn)


def _set(array, value):
    array[3, 3, 3] = value
    return array


def _write(path, change):
    """Change the voxels of a NIfTI file behind the back of `io`, which writes no NaN."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    values = np.frombuffer(content, dtype="<f4", offset=352).reshape(folders.GRID.shape, order="F").copy()
    content[352:] = change(values).astype("<f4").tobytes(order="F")
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def dataset(tmp_path):
    folders.grouped(tmp_path / "train", (3, 2, 4, 2))
    folders.save_scan(tmp_path / "test", "group8/scan1", 81)
    folders.save_scan(tmp_path / "test", "group8/scan2", 82)
    return tmp_path


def test_a_clean_data_set(dataset, capsys):
    found = data.inspect(dataset)
    assert found.ok
    assert found.faults == found.notes == ()
    assert found.kinds == {"train": "grouped", "test": "grouped"}
    assert len(found.table) == 13
    assert set(found.table["labels"]) == {2}
    assert cli.main(["data", "inspect", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "train: grouped, 11 scans in 4 groups, 11 of 11 with labels" in printed
    assert "9 x 12 x 7" in printed
    assert "nothing wrong" in printed


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_one_sentence(dataset, fault):
    words = spoil(dataset, fault)
    faults = data.inspect(dataset).faults
    assert len(faults) == 1, faults
    for word in words:
        assert word in faults[0]
    assert "\n" not in faults[0]
    assert len(faults[0]) < 400


def test_all_twelve_in_one_run(dataset, capsys):
    words = [spoil(dataset, fault) for fault in FAULTS]
    assert cli.main(["data", "inspect", str(dataset)]) == 1
    printed = capsys.readouterr().out
    assert "12 faults" in printed
    lines = [line for line in printed.splitlines() if re.match(r" +\d+\. ", line)]
    assert len(lines) == 12
    for expected in words:
        assert sum(all(word in line for word in expected) for line in lines) == 1, expected


def test_pairs_with_different_numbers_of_labels(tmp_path):
    folders.paired(tmp_path, 3)
    folders.save_scan(tmp_path, "case2", 2, role="moving_", structures=1)
    (fault,) = data.inspect(tmp_path).faults
    assert "pairs have different numbers of labels: case2 (1 and 2)" in fault


def test_what_may_be_meant_is_a_note(tmp_path):
    folders.unpaired(tmp_path, 2)
    label = folders.label_of(1)
    label[:, 1] = 0
    io.save_labels(tmp_path / "labels" / "case1.nii.gz", label, folders.GRID)
    (tmp_path / "images" / "README.txt").write_text("about")
    found = data.inspect(tmp_path)
    assert found.ok
    assert any("channel 1 is empty" in note for note in found.notes)
    assert any("README.txt" in note for note in found.notes)
    assert not any("spacings" in note for note in found.notes)
    finer = Grid(folders.GRID.shape, folders.GRID.world_from_voxel.numpy() @ np.diag([1, 0.5, 1, 1]))
    folders.save_scan(tmp_path, "fine", 3, grid=finer)
    assert any("0.8 x 0.5 x 2.5" in note for note in data.inspect(tmp_path).notes)


def test_a_group_of_one_name_in_two_splits_is_a_note(dataset):
    folders.save_scan(dataset / "test", "group1/scan7", 7)
    folders.save_scan(dataset / "test", "group1/scan8", 8)
    found = data.inspect(dataset)
    assert found.ok
    assert found.notes == ("train and test both have a group group1; if it is one subject, move it to one of them.",)


def test_an_empty_side_and_mixed_dimensions(tmp_path):
    folders.unpaired(tmp_path / "a", 2, structures=0)
    folders.save_scan(tmp_path / "a", "flat", 3, structures=0, grid=Grid((16, 13), oblique(2)))
    (fault,) = [f for f in data.inspect(tmp_path / "a").faults if "mixed," in f]
    assert "2-D and 3-D" in fault
    (tmp_path / "b" / "images").mkdir(parents=True)
    assert "no scan" in data.inspect(tmp_path / "b").faults[0]


@pytest.mark.parametrize(("name", "words"), [("absent", "does not exist"), ("other", "it has nothing")])
def test_what_cannot_be_inspected(tmp_path, capsys, name, words):
    (tmp_path / "other").mkdir()
    assert cli.main(["data", "inspect", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["paired", "unpaired", "grouped"])
def test_real_scans_in_deepregs_layout(real_data, kind):
    """The prostates have one to three labels each, equal within a pair; and three of them overlap."""
    found = data.inspect(real_data / "deepreg_layout" / "nifti" / kind)
    assert set(found.kinds.values()) == {kind}
    assert set(found.table["orientation"]) == {"RAS"}
    for fault in found.faults:
        assert "one-hot" in fault or "different numbers of labels" in fault
