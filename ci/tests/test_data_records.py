"""Which scans a folder, an HDF5 file, a table or a list has: DeepReg's layouts and their faults."""

import folders
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import sentence

from reglib import data, io
from reglib.data.records import natural


def names(found):
    return [record.name for record in found.records]


# -- folders -----------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["paired", "unpaired", "grouped"])
def test_each_layout_is_known_by_its_folders(tmp_path, kind):
    getattr(folders, kind)(tmp_path)
    found = data.find(tmp_path)
    assert found.kind == kind == data.kind_of(tmp_path)
    assert found.labeled
    assert found.faults == ()
    assert len(found.fixed) == (4 if kind == "paired" else 0)


def test_names_are_in_natural_order_or_as_strings(tmp_path):
    for number in (10, 2, 1):
        folders.save_scan(tmp_path, f"case{number}", number)
    assert names(data.find(tmp_path)) == ["case1", "case2", "case10"]
    assert names(data.find(tmp_path, order="string")) == ["case1", "case10", "case2"]


def test_groups_are_the_folders_that_hold_scans(tmp_path):
    found = data.find(folders.grouped(tmp_path, (3, 2)))
    assert names(found) == ["group1/scan1", "group1/scan2", "group1/scan3", "group2/scan1", "group2/scan2"]
    assert found.groups == [[0, 1, 2], [3, 4]]


def test_keys_of_hdf5_say_the_group_and_count_as_numbers(tmp_path):
    """DeepReg sorts keys as strings, so that group-1-10 would move forward to group-1-2."""
    arrays = {f"group-{i}-{j}": folders.image_of(j)[0, 0] for i, j in ((1, 10), (1, 2), (2, 1), (10, 1))}
    folders.hdf5(tmp_path / "images.h5", arrays)
    found = data.find(tmp_path)
    assert found.kind == "grouped"
    assert names(found) == ["group-1/2", "group-1/10", "group-2/1", "group-10/1"]
    assert [record.image.key for record in found.records] == ["group-1-2", "group-1-10", "group-2-1", "group-10-1"]
    assert names(data.find(tmp_path, order="string")) == ["group-1/10", "group-1/2", "group-10/1", "group-2/1"]


def test_labels_may_be_left_out_or_wanted(tmp_path):
    folders.unpaired(tmp_path / "with")
    folders.unpaired(tmp_path / "without", structures=0)
    assert not data.find(tmp_path / "with", labeled=False).labeled
    assert not data.find(tmp_path / "without").labeled
    with pytest.raises(FileNotFoundError, match="labels"):
        data.find(tmp_path / "without", labeled=True)


def test_several_folders_count_as_one(tmp_path):
    parts = [folders.unpaired(tmp_path / name, 3) for name in "ab"]
    found = data.find(parts)
    assert names(found) == 2 * ["case1", "case2", "case3"]
    assert found.records[0].image.path.parent.parent.name == "a"
    folders.paired(tmp_path / "c")
    with pytest.raises(ValueError, match="one layout"):
        data.find([*parts, tmp_path / "c"])
    with pytest.raises(ValueError, match="more than once") as raised:
        data.find([parts[0], parts[0] / "." / ".." / "a"])
    sentence(raised, str(parts[0]))


def test_points_come_along(tmp_path):
    folders.unpaired(tmp_path, 2)
    (tmp_path / "points").mkdir()
    for k in (1, 2):
        io.save_points(tmp_path / "points" / f"case{k}.csv", torch.full((1, 3, 3), float(k)))
    found = data.find(tmp_path)
    assert [record.points.path.name for record in found.records] == ["case1.csv", "case2.csv"]


def test_what_is_no_scan_is_a_note_and_hidden_files_are_nothing(tmp_path):
    folders.unpaired(tmp_path)
    (tmp_path / "images" / "case1.json").write_text("{}")
    (tmp_path / "images" / ".DS_Store").write_text("")
    found = data.find(tmp_path)
    assert len(found.records) == 5
    assert len(found.notes) == 1
    assert "case1.json" in found.notes[0]


@pytest.mark.parametrize("side", ["moving_images", "fixed_images", "moving_labels", "fixed_labels"])
def test_a_name_without_a_partner_is_named(tmp_path, side):
    folders.paired(tmp_path)
    (tmp_path / side / "case2.nii.gz").unlink()
    with pytest.raises(ValueError, match="case2") as raised:
        data.find(tmp_path)
    sentence(raised, "no partner", side)
    assert names(data.find(tmp_path, strict=False)) == ["case1", "case3", "case4"]


def test_a_name_that_is_there_twice(tmp_path):
    folders.unpaired(tmp_path)
    image, grid = io.load_image(tmp_path / "images" / "case3.nii.gz")
    io.save_image(tmp_path / "images" / "case3.nii", image, grid)
    with pytest.raises(ValueError, match="twice") as raised:
        data.find(tmp_path)
    sentence(raised, "case3.nii", "case3.nii.gz")


def test_folders_that_are_none(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="no scan"):
        data.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.find(tmp_path / "train")
    with pytest.raises(ValueError, match="at least one folder"):
        data.find([])
    with pytest.raises(ValueError, match="it has images_of_mine"):
        data.kind_of(_other(tmp_path))
    (tmp_path / "images.h5").write_text("no HDF5")
    (tmp_path / "images").rmdir()
    with pytest.raises(ValueError, match="HDF5"):
        data.find(tmp_path)


def _other(folder):
    (folder / "x" / "images_of_mine").mkdir(parents=True)
    return folder / "x"


# -- splits ------------------------------------------------------------------------
def test_splits_of_a_root_and_of_a_split(tmp_path):
    for split in ("train", "test"):
        folders.unpaired(tmp_path / split)
    assert list(data.splits(tmp_path)) == ["train", "test"]
    assert data.splits(tmp_path / "test") == {"": tmp_path / "test"}


def test_no_subject_is_in_two_parts(tmp_path):
    records = data.find(folders.grouped(tmp_path, (3, 2, 4, 1, 2))).records
    parts = data.split_by_subject(records, (0.6, 0.2, 0.2), seed=3)
    groups = [{record.group for record in part} for part in parts]
    assert [len(g) for g in groups] == [3, 1, 1]
    assert sum(map(len, parts)) == len(records)
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert parts == data.split_by_subject(records, (0.6, 0.2, 0.2), seed=3)
    assert parts != data.split_by_subject(records, (0.6, 0.2, 0.2), seed=4)


def test_subjects_are_found_in_names(tmp_path):
    for subject in "abcd":
        for visit in (1, 2):
            folders.save_scan(tmp_path, f"sub-{subject}_ses-{visit}", visit, structures=0)
    records = data.find(tmp_path).records
    parts = data.split_by_subject(records, (0.5, 0.5), subject=r"sub-(\w)_")
    assert [len(part) for part in parts] == [4, 4]
    assert not {r.name[4] for r in parts[0]} & {r.name[4] for r in parts[1]}
    with pytest.raises(ValueError, match="pattern"):
        data.split_by_subject(records, (0.5, 0.5), subject=r"patient(\d)")
    with pytest.raises(ValueError, match="sum to 1"):
        data.split_by_subject(records, (0.5, 0.6))


def test_natural_order():
    assert sorted(["a10", "a2", "b", "a", "2", "10"], key=natural) == ["2", "10", "a", "a2", "a10", "b"]


# -- tables and lists --------------------------------------------------------------
@pytest.fixture
def table(tmp_path):
    for site in "xy":
        for number in (1, 2, 3):
            folders.save_scan(tmp_path / site, f"sub-00{number}", number)
    rows = [{"site": site, "subject": number} for site in "xy" for number in (1, 2, 3)]
    pd.DataFrame(rows).to_csv(tmp_path / "scans.csv", index=False)
    return tmp_path / "scans.csv"


TEMPLATES = {"image": "{site}/images/sub-{subject:03}.nii.gz", "label": "{site}/labels/sub-{subject:03}.nii.gz"}


def test_a_table_with_templates(table):
    found = data.from_table(table, **TEMPLATES, name="{site}{subject}", group="site")
    assert found.kind == "grouped"
    assert names(found) == ["x1", "x2", "x3", "y1", "y2", "y3"]
    assert found.groups == [[0, 1, 2], [3, 4, 5]]
    assert folders.number_of(data.Reading(scale="none")(found.records[4]).image) == 2


def test_a_table_joined_with_another(table):
    ages = pd.DataFrame({"subject": [1, 2, 3], "age": ["old", "young", "old"]})
    found = data.from_table(table, **TEMPLATES, name="{site}{subject}", group="age", join=ages, on="subject")
    assert [len(group) for group in found.groups] == [4, 2]
    with pytest.raises(ValueError, match="no partner") as raised:
        data.from_table(table, **TEMPLATES, join=ages[:2], on="subject")
    sentence(raised, "3")
    with pytest.raises(ValueError, match="join on"):
        data.from_table(table, **TEMPLATES, join=ages, on="patient")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image": "{place}/{subject}.nii.gz"}, ValueError, ["place", "site, subject"]),
        ({"image": "{site}/{subject:d}.nii"}, FileNotFoundError, ["x/1.nii", "6 files"]),
        ({"name": "{site}"}, ValueError, ["x", "more than once"]),
    ],
)
def test_faults_of_a_table(table, changes, error, words):
    with pytest.raises(error) as raised:
        data.from_table(table, **{**TEMPLATES, "name": "{site}{subject}", **changes})
    sentence(raised, *words)


def test_a_table_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.from_table(tmp_path / "scans.csv", image="{a}")
    (tmp_path / "scans.csv").write_text("")
    with pytest.raises(ValueError, match="header"):
        data.from_table(tmp_path / "scans.csv", image="{a}")
    (tmp_path / "scans.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="a line for each scan"):
        data.from_table(tmp_path / "scans.csv", image="{a}")


def test_voxelmorphs_lists_and_npz(tmp_path):
    """An npz file has its image under vol and its label under seg."""
    for k in (1, 2):
        np.savez(tmp_path / f"s{k}.npz", vol=folders.image_of(k)[0, 0], seg=folders.label_of(k)[0].argmax(0))
    (tmp_path / "list.txt").write_text("s1\ns2\n\n")
    found = data.from_list(tmp_path / "list.txt", prefix=f"{tmp_path}/", suffix=".npz")
    assert names(found) == ["s1", "s2"]
    scan = data.Reading(scale="none", structures=(1,))(found.records[1])
    assert folders.number_of(scan.image) == 2
    torch.testing.assert_close(scan.label[0] > 0, folders.label_of(2)[0, 1] > 0)


def test_lists_of_two_lengths_and_pairs_of_two_lists(tmp_path):
    folders.paired(tmp_path)
    sides = {role: sorted((tmp_path / f"{role}_images").iterdir()) for role in ("moving", "fixed")}
    with pytest.raises(ValueError, match="as many"):
        data.from_list(sides["moving"], sides["fixed"][:2])
    found = data.paired(data.from_list(sides["moving"]), data.from_list(sides["fixed"]))
    assert found.kind == "paired"
    assert len(data.PairedDataset(found)) == 4
    with pytest.raises(ValueError, match="case4"):
        data.paired(data.from_list(sides["moving"]), data.from_list(sides["fixed"][:3]))
    with pytest.raises(FileNotFoundError, match=r"no\.nii"):
        data.from_list([tmp_path / "no.nii"])
