"""A record's files as tensors: scaled, turned, resampled, padded, and back."""

import folders
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, apply, oblique, sentence

from reglib import data, field, io
from reglib.data.reading import read_image, read_label
from reglib.data.records import Place, Record
from reglib.grid import Grid, GridMismatchError


def saved(folder, image, grid, label=None, points=None):
    io.save_image(folder / "image.nii.gz", image, grid)
    if label is not None:
        io.save_labels(folder / "label.nii.gz", label, grid)
    if points is not None:
        io.save_points(folder / "points.csv", points)
    return Record(
        "case",
        Place(folder / "image.nii.gz"),
        None if label is None else Place(folder / "label.nii.gz"),
        None if points is None else Place(folder / "points.csv"),
    )


def ramp(grid):
    """An image that is a linear function of the world, so that resampling must keep its value at each point."""
    return grid.coordinates("world").movedim(-1, 0)[:1][None].float()


# -- intensities -------------------------------------------------------------------
def test_minmax_percentiles_and_a_window(tmp_path):
    grid = folders.GRID
    image = torch.linspace(-500, 1500, 9 * 12 * 7).reshape(1, 1, 9, 12, 7)
    image[0, 0, 0, 0, 0], image[0, 0, 8, 11, 6] = -1000, 20_000
    record = saved(tmp_path, image, grid)
    torch.testing.assert_close(data.Reading()(record).image, (image[0] + 1000) / 21_000)
    clamped = data.Reading(window=(-100, 400))(record).image
    torch.testing.assert_close(clamped, ((image[0] + 100) / 500).clamp(0, 1))
    robust = data.Reading(scale="percentiles")(record).image
    assert float(robust.max()) == 1
    assert 0.3 < float(robust.median()) < 0.7 < 1 - float(data.Reading()(record).image.median())
    torch.testing.assert_close(data.Reading(scale="none")(record).image, image[0])


def test_a_constant_image_becomes_zero(tmp_path):
    record = saved(tmp_path, torch.full((1, 1, 9, 12, 7), 5.0), folders.GRID)
    assert float(data.Reading()(record).image.abs().max()) == 0


# -- the grid ----------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("how", ["orientation", "spacing", "shape", "multiple", "all"])
def test_what_is_where_in_the_world_stays_there(tmp_path, shape, how):
    d = len(shape)
    grid = Grid([4 * n for n in shape], oblique(d))
    target = {
        "orientation": {"orientation": {2: "AL", 3: "SLA"}[d]},
        "spacing": {"spacing": [1.7, 2.1, 3.3][:d]},
        "shape": {"shape": [17, 20, 11][:d]},
        "multiple": {"multiple": 16},
    }
    target["all"] = target["orientation"] | target["spacing"] | target["multiple"]
    points = torch.tensor(grid.center)[None, None].double() + torch.tensor([[[2.0, -3.0, 1.0][:d]]])
    scan = data.Reading(scale="none", **target[how])(saved(tmp_path, ramp(grid), grid, points=points))
    inside = scan.grid.points(scan.grid.coordinates("voxel"), to="world", from_="voxel")
    voxels = apply(grid.voxel_from_world.numpy(), inside.numpy())
    well = ((voxels > 4) & (voxels < np.array(grid.shape) - 5)).all(-1)  # away from smoothing at the borders
    assert well.sum() > 20
    difference = (scan.image[0] - ramp(scan.grid)[0, 0])[torch.from_numpy(well)]
    assert float(difference.abs().max()) < 0.02
    torch.testing.assert_close(scan.points, points[0])
    assert scan.stored.is_close(grid)
    if how in ("orientation", "all"):
        assert scan.grid.orientation == target[how]["orientation"]
    if how == "shape":
        assert scan.grid.shape == tuple(target[how]["shape"])
    if how in ("multiple", "all"):
        assert all(n % 16 == 0 for n in scan.grid.shape)


@pytest.mark.parametrize("how", [{"multiple": 8}, {"orientation": "PIR"}, {"orientation": "PIR", "multiple": 8}])
def test_padding_and_turning_are_undone_exactly(tmp_path, how):
    image = folders.image_of(3)
    scan = data.Reading(scale="none", **how)(saved(tmp_path, image, folders.GRID))
    assert scan.image.shape != image.shape[1:]
    assert torch.equal(scan.back(scan.image), image[0])


def test_coarser_voxels_hold_no_stripes(tmp_path):
    grid = Grid((32, 24, 16), np.diag([1.0, 1, 1, 1]))
    stripes = torch.zeros(1, 1, 32, 24, 16)
    stripes[:, :, ::2] = 1
    scan = data.Reading(scale="none", spacing=4.0)(saved(tmp_path, stripes, grid))
    assert float((scan.image[:, 2:-2] - 0.5).abs().max()) < 0.1


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_labels_are_read_nearest_or_linearly(tmp_path, mode):
    record = saved(tmp_path, folders.image_of(1), folders.GRID, folders.label_of(1))
    scan = data.Reading(shape=(14, 20, 12), label_mode=mode)(record)
    assert scan.label.shape == (2, 14, 20, 12)
    soft = bool(((scan.label > 0.01) & (scan.label < 0.99)).any())
    assert soft == (mode == "bilinear")
    expected = field.resample(folders.label_of(1).float(), folders.GRID, scan.grid, mode=mode, padding="border")
    torch.testing.assert_close(scan.label, expected[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spacing": 1.0, "shape": (4, 4, 4)}, ["spacing", "shape"]),
        ({"multiple": 0}, ["multiple", "0"]),
        ({"window": (5, 5)}, ["window", "5"]),
        ({"scale": "zscore"}, ["scale", "zscore", "minmax"]),
        ({"structures": (0, 1)}, ["structures", "0"]),
    ],
)
def test_readings_that_make_no_sense(arguments, words, no_jaxtyping):
    with pytest.raises(ValueError, match=words[0]) as raised:
        data.Reading(**arguments)
    sentence(raised, *words)


# -- labels ------------------------------------------------------------------------
def test_structures_of_a_label_map_become_channels(tmp_path):
    labels = torch.zeros(1, 1, *folders.GRID.shape, dtype=torch.int64)
    labels[..., 2:4, :, :], labels[..., 5:7, :, :] = 3, 17
    record = saved(tmp_path, folders.image_of(1), folders.GRID, labels)
    scan = data.Reading(structures=(17, 3, 5))(record)
    torch.testing.assert_close(scan.label, torch.cat([labels[0] == v for v in (17, 3, 5)]).float())
    with pytest.raises(ValueError, match="structures") as raised:
        data.Reading()(record)
    sentence(raised, "[0, 1]", "17", "label.nii.gz")


def test_a_label_must_be_on_its_images_grid(tmp_path):
    record = saved(tmp_path, folders.image_of(1), folders.GRID)
    other = Grid(folders.GRID.shape, folders.GRID.world_from_voxel.numpy() + np.eye(4)[:, [0, 0, 0, 0]] * [0, 0, 0, 3])
    io.save_labels(tmp_path / "label.nii.gz", folders.label_of(1), other)
    with pytest.raises(GridMismatchError, match="another header") as raised:
        read_label(Place(tmp_path / "label.nii.gz"), folders.GRID)
    sentence(raised, "label.nii.gz", "resample")
    smaller = folders.GRID.crop((0, 0, 0), (9, 12, 6))
    io.save_labels(tmp_path / "label.nii.gz", folders.label_of(1, smaller), smaller)
    with pytest.raises(GridMismatchError, match=r"\(9, 12, 6\)"):
        data.Reading()(Record("case", record.image, Place(tmp_path / "label.nii.gz")))


# -- other files -------------------------------------------------------------------
def test_hdf5_has_no_header_unless_ours(tmp_path):
    array = folders.image_of(4)[0, 0].numpy()
    folders.hdf5(tmp_path / "plain.h5", {"a": array, "b": array[..., None]})
    folders.hdf5(tmp_path / "ours.h5", {"a": array}, folders.GRID.world_from_voxel.numpy())
    for key in "ab":
        image, grid = read_image(Place(tmp_path / "plain.h5", key))
        np.testing.assert_array_equal(image[0].numpy(), array)
        assert grid == Grid(array.shape)
    assert read_image(Place(tmp_path / "ours.h5", "a")).grid == folders.GRID
    with pytest.raises(ValueError, match="no array 'c'"):
        read_image(Place(tmp_path / "plain.h5", "c"))


def test_two_dimensional_arrays_with_and_without_structures(tmp_path):
    image, masks = np.random.default_rng(0).random((16, 13)), np.zeros((16, 13, 2))
    masks[3:5, :, 0] = masks[7:9, :, 1] = 1
    np.savez(tmp_path / "s.npz", vol=image, seg=masks)
    record = Record("s", Place(tmp_path / "s.npz", "vol"), Place(tmp_path / "s.npz", "seg"))
    scan = data.Reading(multiple=16)(record)
    assert scan.image.shape == (1, 16, 16)
    assert scan.label.shape == (2, 16, 16)
    assert float(scan.label[1, 7].sum()) == 13


def test_freesurfers_mgz_keeps_its_header(tmp_path):
    array = folders.image_of(4)[0, 0].numpy()
    nib.save(nib.MGHImage(array, folders.GRID.world_from_voxel.numpy()), tmp_path / "t1.mgz")
    image, grid = read_image(Place(tmp_path / "t1.mgz"))
    np.testing.assert_array_equal(image[0].numpy(), array)
    assert grid.is_close(folders.GRID)
    (tmp_path / "t1.mgz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(Place(tmp_path / "t1.mgz"))


@pytest.mark.parametrize("fault", ["missing", "nan", "truncated", "text", "complex", "4d"])
def test_files_that_cannot_be_used_are_named(tmp_path, fault):
    path = tmp_path / "array.npy"
    array = folders.image_of(1)[0, 0].numpy()
    if fault == "nan":
        array[2, 2, 2] = np.nan
    if fault == "complex":
        array = array + 1j
    if fault == "4d":
        array = np.stack([array, array], axis=-1)
    if fault != "missing":
        np.save(path, array)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    if fault == "text":
        path.write_text("hello")
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_image(Place(path))
    sentence(raised, "array.npy")
