"""Files to tensors and back: against nibabel and SimpleITK, with every broken file that a user may bring."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
import torch
from helpers import LPS, SHAPES, SPACINGS, affine, apply, largest, oblique, rotation, smooth_ddf, smooth_image, voxels
from helpers import sentence as contains
from hypothesis import given, settings
from hypothesis import strategies as st

from reglib import field, io
from reglib.grid import Grid, GridMismatchError, reorient

DIMS = [2, 3]
properties = settings(deadline=None, max_examples=30, derandomize=True, database=None)


def in_space(matrix):
    """The 4x4 matrix of a file from a 3x3 or 4x4 one."""
    full, d = np.eye(4), len(matrix) - 1
    full[:d, :d], full[:d, 3] = matrix[:d, :d], matrix[:d, d]
    return full


def numbers(shape, dtype=np.int16):
    """An array in which every voxel has its own value."""
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


def write(path, array, matrix=None, *, sform=1, qform=1):
    """A NIfTI file made by nibabel."""
    matrix = in_space(oblique(3) if matrix is None else matrix)
    image = nib.Nifti1Image(array, matrix)
    image.set_sform(matrix, sform)
    image.set_qform(matrix, qform)
    nib.save(image, path)
    return path


def break_header(path, **fields):
    """Overwrite fields of the header of an uncompressed file, as no library would."""
    content = bytearray(Path(path).read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    Path(path).write_bytes(bytes(content))
    return path


def sentence(error, *words):
    """As the helper's, and one sentence only: no full stop but the last."""
    return _Sentence(contains(error, *words), error)


class _Sentence:
    def __init__(self, inner, error):
        self.inner, self.error = inner, error

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, kind, value, trace):
        if value is not None and isinstance(value, self.error):
            text = str(value)
            assert text.endswith(".") or text.endswith("?"), text
            assert ". " not in text, text
        return self.inner.__exit__(kind, value, trace)


# -- loading ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.nii", "b.nii.gz", "C.NII.GZ"])
def test_voxels_come_as_stored(tmp_path, name):
    array = numbers((9, 12, 7))
    matrix = oblique(3)
    image, grid = io.load_image(write(tmp_path / name, array, matrix))
    assert image.dtype == torch.float32
    assert np.array_equal(image[0, 0].numpy(), array)
    assert grid.is_close(Grid((9, 12, 7), matrix), tolerance=1e-4)


@pytest.mark.parametrize("shape", [(16, 13), (16, 13, 1), (16, 13, 1, 1)])
def test_flat_files_are_2d(tmp_path, shape):
    array = numbers(shape)
    image, grid = io.load_image(write(tmp_path / "a.nii.gz", array, oblique(2)))
    assert image.shape == (1, 1, 16, 13)
    assert np.array_equal(image[0, 0].numpy(), array.reshape(16, 13))
    assert grid.is_close(Grid((16, 13), oblique(2)), tolerance=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_number_type_and_byte_order(tmp_path, dtype, order):
    array = numbers((9, 12, 7), dtype) if dtype is not np.uint8 else numbers((9, 12, 7)).astype(np.uint8)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nib.save(nib.Nifti1Image(array.astype(np.dtype(dtype).newbyteorder(order)), oblique(3), header), tmp_path / "a.nii")
    assert np.array_equal(io.load_image(tmp_path / "a.nii").image[0, 0].numpy(), array.astype(np.float32))


def test_slope_and_intercept_are_applied(tmp_path):
    path = write(tmp_path / "a.nii", numbers((9, 12, 7)))
    break_header(path, scl_slope=0.5, scl_inter=-3)
    expected = nib.load(path).get_fdata()
    assert np.allclose(io.load_image(path).image[0, 0].numpy(), expected)
    assert expected.min() == -3
    labels = break_header(path, scl_slope=2, scl_inter=0)
    assert np.array_equal(io.load_labels(labels).labels[0, 0].numpy(), 2 * numbers((9, 12, 7)))


def test_nifti_2(tmp_path):
    array = numbers((9, 12, 7))
    nib.save(nib.Nifti2Image(array, oblique(3)), tmp_path / "a.nii.gz")
    image, grid = io.load_image(tmp_path / "a.nii.gz")
    assert np.array_equal(image[0, 0].numpy(), array)
    assert grid == Grid((9, 12, 7), oblique(3))


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (0, 0)])
def test_the_matrix_is_nibabels(tmp_path, sform, qform):
    path = write(tmp_path / "a.nii.gz", numbers((9, 12, 7)), sform=sform, qform=qform)
    assert np.allclose(io.load_image(path).grid.world_from_voxel, nib.load(path).affine, atol=1e-5)


def test_a_header_without_qfac_is_read_as_the_standard_says(tmp_path):
    path = write(tmp_path / "a.nii", numbers((9, 12, 7)), sform=0)
    right = io.load_image(path).grid
    content = bytearray(path.read_bytes())
    assert np.frombuffer(content, "<f4", 1, 76)[0] == -1  # pixdim[0]; the helper's grid is left-handed
    break_header(path, pixdim=[0, 0.8, 1.0, 2.5, 1, 1, 1, 1])
    mirrored = io.load_image(path).grid
    assert torch.allclose(mirrored.world_from_voxel[:, 2], -right.world_from_voxel[:, 2], atol=1e-6)


def test_4d_is_kept_on_request(tmp_path):
    array = numbers((9, 12, 7, 2))
    image, grid = io.load_image(write(tmp_path / "a.nii.gz", array), allow_4d=True)
    assert image.shape == (1, 2, 9, 12, 7)
    assert np.array_equal(image[0].numpy(), np.moveaxis(array, -1, 0))
    assert grid.shape == (9, 12, 7)
    flat, grid = io.load_image(write(tmp_path / "b.nii.gz", numbers((16, 13, 1, 4))), allow_4d=True)
    assert flat.shape == (1, 4, 16, 13)
    assert grid.shape == (16, 13)


def test_pictures_keep_rows_as_their_first_axis(tmp_path):
    array = numbers((16, 13), np.uint8)
    skimage.io.imsave(tmp_path / "a.png", array, check_contrast=False)
    image, grid = io.load_image(tmp_path / "a.png")
    assert np.array_equal(image[0, 0].numpy(), array)
    assert torch.equal(grid.world_from_voxel, torch.eye(3, dtype=torch.float64))
    for channels in (3, 4):  # gray stored as colors, with and without opacity
        colors = np.stack([array] * 3 + [np.full_like(array, 255)], axis=-1)[..., :channels]
        skimage.io.imsave(tmp_path / "b.png", colors, check_contrast=False)
        assert torch.equal(io.load_image(tmp_path / "b.png").image, image)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("dim", DIMS)
def test_what_simpleitk_reads_agrees_with_nifti(tmp_path, dim, name):
    array = numbers(SHAPES[dim])
    nifti = write(tmp_path / "a.nii.gz", array, oblique(dim))
    sitk.WriteImage(sitk.ReadImage(nifti), tmp_path / name)
    image, grid = io.load_image(tmp_path / name)
    expected = io.load_image(nifti)
    assert torch.equal(image, expected.image)
    assert grid.is_close(expected.grid)


def write_dicom(folder, array, matrix, *, series="1.2.3", skip=()):
    """A series of slices (X, Y, Z) on a RAS world matrix."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1.0, -1, 1]) @ matrix[:3, :3]
    spacing = np.linalg.norm(lps, axis=0)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(array.shape[2]):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, k : k + 1].T))
        image.SetSpacing(spacing)
        position = LPS[3] @ apply(matrix, [0, 0, k])
        tags = {
            "0008|0060": "MR",
            "0020|000e": series,
            "0020|000d": "1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in position),
            "0020|0037": "\\".join(f"{x:.6f}" for x in (lps / spacing).T[:2].ravel()),
            "0018|0050": str(spacing[2]),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}_{k:03d}.dcm"))
        writer.Execute(image)
    return folder


def test_a_dicom_folder(tmp_path):
    array = numbers((9, 12, 7))
    matrix = oblique(3, flips=(1, 1, 1))
    matrix[:3, :3] = LPS[3] @ matrix[:3, :3]  # slices in the direction that DICOM sorts them
    image, grid = io.load_image(write_dicom(tmp_path / "a", array, matrix))
    assert np.array_equal(image[0, 0].numpy(), array)
    assert grid.is_close(Grid((9, 12, 7), matrix), tolerance=1e-2)
    single, flat = io.load_image(next((tmp_path / "a").glob("*.dcm")))
    assert single.shape[2:] == flat.shape == (9, 12)


# -- properties ------------------------------------------------------------------------------------------------
@st.composite
def headers(draw, dims=(2, 3)):
    """A shape and a world matrix: any rotation, spacing, axis order, mirroring and origin."""
    d = draw(st.sampled_from(dims))
    shape = tuple(draw(st.integers(2, 9)) for _ in range(d))
    spacing = [draw(st.floats(0.3, 4.0)) for _ in range(d)]
    signs = [draw(st.sampled_from([1, -1])) for _ in range(d)]
    angles = [draw(st.floats(-180, 180)) for _ in range(1 if d == 2 else 3)]
    shuffle = np.eye(d)[:, draw(st.permutations(range(d)))]
    origin = [draw(st.floats(-200, 200)) for _ in range(d)]
    return shape, affine(rotation(angles) @ shuffle @ np.diag(np.multiply(spacing, signs)), origin)


@properties
@given(header=headers(), orientation=st.sampled_from(["RAS", "LPS", "PIR", "SLA"]), suffix=st.sampled_from(["", ".gz"]))
def test_every_voxel_keeps_its_place_through_load_reorient_save_load(tmp_path_factory, header, orientation, suffix):
    shape, matrix = header
    d = len(shape)
    folder = tmp_path_factory.mktemp("voxels")
    places = {}
    path = write(folder / f"a.nii{suffix}", numbers(shape), matrix)
    for value, place in zip(numbers(shape).ravel(), apply(matrix, voxels(shape)).reshape(-1, d), strict=True):
        places[int(value)] = place
    image, grid = io.load_image(path)
    letters = "".join(letter for letter in orientation if letter in "RLAPSI"[: 2 * d])
    turned, turned_grid = reorient(image, grid, letters)
    io.save_image(folder / f"b.nii{suffix}", turned, turned_grid)
    again, again_grid = io.load_image(folder / f"b.nii{suffix}")
    world = apply(again_grid.world_from_voxel.numpy(), voxels(again_grid.shape)).reshape(-1, d)
    expected = np.array([places[int(value)] for value in again.reshape(-1)])
    assert len(set(again.reshape(-1).tolist())) == len(places)
    assert np.abs(world - expected).max() < 1e-3


@properties
@given(header=headers(), seed=st.integers(0, 99))
def test_ddf_and_itk_files_round_trip(tmp_path_factory, header, seed):
    shape, matrix = header
    folder, grid = tmp_path_factory.mktemp("fields"), Grid(shape, matrix)
    ddf = smooth_ddf(shape, largest=4.0, seed=seed)
    io.save_ddf(folder / "ddf.nii.gz", ddf, grid)
    same, same_grid = io.load_ddf(folder / "ddf.nii.gz")
    assert torch.equal(same, ddf)
    assert same_grid == grid
    io.export_itk(folder / "itk.nii.gz", ddf, grid)
    back, back_grid = io.import_itk(folder / "itk.nii.gz")
    assert largest(back, ddf) < 1e-4
    assert back_grid == grid


# -- saving ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", DIMS)
def test_saved_headers_say_the_same_in_every_way(tmp_path, dim):
    matrix = oblique(dim)
    grid = Grid(SHAPES[dim], matrix)
    io.save_image(tmp_path / "a.nii.gz", smooth_image(SHAPES[dim]), grid)
    io.save_ddf(tmp_path / "b.nii.gz", smooth_ddf(SHAPES[dim], largest=2.0), grid)
    io.export_itk(tmp_path / "c.nii.gz", smooth_ddf(SHAPES[dim], largest=2.0), grid)
    shapes = {2: [(16, 13), (16, 13, 1, 2), (16, 13, 1, 1, 2)]}
    shapes[3] = [(9, 12, 7), (9, 12, 7, 3), (9, 12, 7, 1, 3)]
    for name, shape in zip("abc", shapes[dim], strict=True):
        header = nib.load(tmp_path / f"{name}.nii.gz").header
        assert header.get_data_shape() == shape
        assert header.get_data_dtype() == np.float32
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
        assert np.allclose(header.get_sform(), in_space(matrix), atol=1e-5)
        assert np.allclose(header.get_qform(), in_space(matrix), atol=1e-4)
        assert np.allclose(header.get_zooms()[:dim], SPACINGS[dim])
        assert header.get_xyzt_units()[0] == "mm"
        assert int(header["intent_code"]) == (1007 if name == "c" else 0)


@pytest.mark.parametrize(("top", "dtype"), [(5, np.uint8), (255, np.uint8), (256, np.int16), (70000, np.int32)])
def test_labels_are_saved_as_the_smallest_type_that_holds_them(tmp_path, top, dtype):
    labels = torch.from_numpy(numbers((9, 12, 7)) % 3).long()[None, None]
    labels[0, 0, 1, 2, 3] = top
    io.save_labels(tmp_path / "a.nii.gz", labels, Grid((9, 12, 7), oblique(3)))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype
    same, grid = io.load_labels(tmp_path / "a.nii.gz")
    assert same.dtype == torch.int64
    assert torch.equal(same, labels)
    assert grid == Grid((9, 12, 7), oblique(3))


@pytest.mark.parametrize("dim", DIMS)
def test_structures_are_channels(tmp_path, dim):
    labels = (smooth_image(SHAPES[dim], channels=3) > 0).long()
    io.save_labels(tmp_path / "a.nii.gz", labels, Grid(SHAPES[dim], oblique(dim)))
    same, grid = io.load_labels(tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").shape == (*SHAPES[dim], *([1] if dim == 2 else []), 3)
    assert torch.equal(same, labels)
    assert grid.shape == SHAPES[dim]


def test_a_sheared_grid_is_saved_without_a_qform(tmp_path):
    matrix = oblique(3)
    matrix[:3, 1] += 0.3 * matrix[:3, 0]
    io.save_image(tmp_path / "a.nii.gz", smooth_image((9, 12, 7)), Grid((9, 12, 7), matrix))
    assert int(nib.load(tmp_path / "a.nii.gz").header["qform_code"]) == 0
    assert io.load_image(tmp_path / "a.nii.gz").grid == Grid((9, 12, 7), matrix)


@pytest.mark.parametrize(("top", "dtype"), [(200, np.uint8), (40000, np.uint16)])
def test_png_round_trip(tmp_path, top, dtype):
    image = torch.linspace(0, top, 16 * 13).round().reshape(1, 1, 16, 13)
    io.save_image(tmp_path / "a.png", image, Grid((16, 13)))
    assert skimage.io.imread(tmp_path / "a.png").dtype == dtype
    assert torch.equal(io.load_image(tmp_path / "a.png").image, image)


def test_same_image_same_bytes(tmp_path):
    for name in "ab":
        io.save_image(tmp_path / f"{name}.nii.gz", smooth_image((9, 12, 7)), Grid((9, 12, 7)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_saving_refuses_what_a_file_cannot_hold(tmp_path, no_jaxtyping):
    grid, image = Grid((16, 13)), smooth_image((16, 13))
    with sentence(ValueError, "a.mha", ".nii.gz"):
        io.save_image(tmp_path / "a.mha", image, grid)
    with contains(GridMismatchError, "image", "16, 13"):
        io.save_image(tmp_path / "a.nii", image.transpose(2, 3), grid)
    with sentence(ValueError, "image", "1 of 208", "NaN"):
        io.save_image(tmp_path / "a.nii", torch.where(image == image.max(), math.nan, image), grid)
    with sentence(ValueError, "PNG", "0 to 65535", "-"):
        io.save_image(tmp_path / "a.png", image, grid)
    with sentence(ValueError, "PNG", "whole numbers", "255"):
        io.save_image(tmp_path / "a.png", image.sigmoid(), grid)
    with sentence(ValueError, "PNG", "2-D", "(1, 1, 9, 12, 7)"):
        io.save_image(tmp_path / "a.png", smooth_image((9, 12, 7)), Grid((9, 12, 7)))
    with sentence(TypeError, "integer", "float32"):
        io.save_labels(tmp_path / "a.nii", image, grid)
    with sentence(ValueError, "0 to", "-1"):
        io.save_labels(tmp_path / "a.nii", torch.full((1, 1, 16, 13), -1), grid)
    with sentence(ValueError, "ddf", "(1, 2,", "(1, 3, 16, 13)"):
        io.save_ddf(tmp_path / "a.nii", torch.zeros(1, 3, 16, 13), grid)
    with sentence(ValueError, "ddf", "channels last", "movedim"):
        io.save_ddf(tmp_path / "a.nii", torch.zeros(1, 16, 13, 2), grid)
    with sentence(ValueError, "ddf", "NaN"):
        io.save_ddf(tmp_path / "a.nii", torch.full((1, 2, 16, 13), math.nan), grid)
    with contains(GridMismatchError, "ddf", "16, 13"):
        io.save_ddf(tmp_path / "a.nii", torch.zeros(1, 2, 13, 16), grid)
    assert list(tmp_path.iterdir()) == []


# -- ITK -------------------------------------------------------------------------------------------------------
def itk_pair(dim):
    """A fixed and a moving grid, oblique to each other, anisotropic, of different shapes, about one center."""
    fixed = Grid(SHAPES[dim], oblique(dim))
    shape = [n + 7 - k for k, n in enumerate(SHAPES[dim])]
    turn = rotation([-17.0] if dim == 2 else [25.0, 8.0, -14.0])
    return fixed, Grid.centered(shape, [0.9, 1.4, 2.0][:dim], center=fixed.center, direction=turn)


@pytest.mark.parametrize("dim", DIMS)
def test_simpleitk_applies_the_exported_field_as_warp_does(tmp_path, dim):
    fixed_grid, moving_grid = itk_pair(dim)
    ddf = smooth_ddf(fixed_grid.shape, largest=2.5, seed=3)
    moving = smooth_image(moving_grid.shape, seed=4)
    io.save_image(tmp_path / "moving.nii.gz", moving, moving_grid)
    io.save_image(tmp_path / "fixed.nii.gz", torch.zeros(1, 1, *fixed_grid.shape), fixed_grid)
    io.export_itk(tmp_path / "itk.nii.gz", ddf, fixed_grid, moving_grid=moving_grid)

    vectors = sitk.ReadImage(tmp_path / "itk.nii.gz", sitk.sitkVectorFloat64)
    assert vectors.GetDimension() == vectors.GetNumberOfComponentsPerPixel() == dim
    assert vectors.GetSize() == fixed_grid.shape
    transform = sitk.DisplacementFieldTransform(vectors)
    moving_file, fixed_file = (sitk.ReadImage(tmp_path / f"{name}.nii.gz") for name in ("moving", "fixed"))
    theirs = sitk.Resample(moving_file, fixed_file, transform, sitk.sitkLinear, 0.0)
    theirs = torch.from_numpy(sitk.GetArrayFromImage(theirs)).permute(*reversed(range(dim)))

    grids = {"moving_grid": moving_grid, "fixed_grid": fixed_grid}
    ours = field.warp(moving, ddf, **grids)
    # SimpleITK writes 0 beyond the outer voxel edges, and so do we: compare well inside, where both interpolate.
    inside = field.warp(torch.ones_like(moving), ddf, padding="zeros", **grids)[0, 0] > 0.999
    assert 0.5 < inside.float().mean() < 1
    assert largest(theirs[inside], ours[0, 0][inside]) < 1e-3
    still = field.warp(moving, torch.zeros_like(ddf), **grids)
    assert largest(theirs[inside], still[0, 0][inside]) > 0.5


@pytest.mark.parametrize("dim", DIMS)
def test_a_field_written_by_simpleitk_is_imported(tmp_path, dim):
    grid = Grid(SHAPES[dim], oblique(dim))
    ddf = smooth_ddf(grid.shape, largest=2.5, dtype=torch.float64)
    lps = np.moveaxis(ddf[0].numpy(), 0, -1) @ (LPS[dim] @ oblique(dim)[:dim, :dim]).T
    image = sitk.GetImageFromArray(lps.transpose(*reversed(range(dim)), dim), isVector=True)
    image.CopyInformation(grid.to_sitk())
    for name in ("a.nii.gz", "a.mha", "a.nrrd"):
        sitk.WriteImage(image, tmp_path / name)
        found, found_grid = io.import_itk(tmp_path / name)
        assert largest(found, ddf) < 1e-4
        assert found_grid == grid


def test_displacement_intent_is_ras(tmp_path):
    grid = Grid((9, 12, 7), oblique(3))
    ddf = smooth_ddf((9, 12, 7), largest=2.0)
    io.export_itk(tmp_path / "a.nii", ddf, grid)
    theirs = np.array(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "a.nii")))
    file = nib.load(tmp_path / "a.nii")
    ras = nib.Nifti1Image(file.get_fdata(dtype=np.float32) * np.float32([-1, -1, 1]), None, file.header)
    ras.header.set_intent(1006)
    nib.save(ras, tmp_path / "b.nii")
    assert np.allclose(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "b.nii")), theirs)  # what SimpleITK makes of it
    assert largest(io.import_itk(tmp_path / "b.nii").ddf, ddf) < 1e-4


def test_export_itk_refuses_grids_that_itk_cannot_hold(tmp_path):
    sheared = oblique(3)
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    straight, sheared = Grid((9, 12, 7), oblique(3)), Grid((9, 12, 7), sheared)
    ddf = field.identity_ddf(straight)
    with sentence(ValueError, "right angles", "fixed", "resample"):
        io.export_itk(tmp_path / "a.nii", ddf, sheared)
    with sentence(ValueError, "right angles", "moving", "resample"):
        io.export_itk(tmp_path / "a.nii", ddf, straight, moving_grid=sheared)
    with sentence(ValueError, "3-D", "2-D"):
        io.export_itk(tmp_path / "a.nii", ddf, straight, moving_grid=Grid((16, 13)))
    assert list(tmp_path.iterdir()) == []


# -- broken files ----------------------------------------------------------------------------------------------
def test_a_missing_file(tmp_path):
    for load in (
        io.load_image,
        io.load_labels,
        io.load_ddf,
        io.import_itk,
        io.load_points,
        io.load_matrix,
        io.load_mask,
    ):
        with sentence(FileNotFoundError, "nowhere.nii", "no such file", "spelling"):
            load(tmp_path / "nowhere.nii")


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def noise(shape):
    """Values that do not compress, so that half a file ends in its voxels."""
    return np.random.default_rng(0).integers(0, 999, shape).astype(np.int16)


BROKEN = {
    "truncated .nii.gz": (lambda f: truncated(write(f / "a.nii.gz", noise((9, 12, 7)))), ["1512 bytes", "breaks off"]),
    "truncated .nii": (lambda f: truncated(write(f / "a.nii", noise((9, 12, 7)))), ["1512 bytes; got 580", "early"]),
    "damaged .nii.gz": (lambda f: damaged(write(f / "a.nii.gz", noise((9, 12, 7)))), ["a.nii.gz", "again"]),
    "header only": (lambda f: short(f / "a.nii", 100), ["348 bytes", "100"]),
    "header only, compressed": (lambda f: short(f / "a.nii.gz", 60), ["breaks off", "352"]),
    "empty": (lambda f: touch(f / "a.nii"), ["empty", "0 bytes"]),
    "empty .png": (lambda f: touch(f / "a.png"), ["empty", "0 bytes"]),
    "text": (lambda f: text(f / "a.nii"), ["NIfTI header", "text"]),
    "text as .nii.gz": (lambda f: text(f / "a.nii.gz"), ["gzip", "rename"]),
    "text as .png": (lambda f: text(f / "a.png"), ["a .png file is expected", "rename"]),
    "text as .mha": (lambda f: text(f / "a.mha"), ["a .mha file is expected", "rename"]),
    "compressed as .nii": (lambda f: write(f / "a.nii.gz", noise((9, 12, 7))).rename(f / "a.nii"), ["gzip", ".nii.gz"]),
    "half a .png": (lambda f: truncated(noisy_png(f / "a.png")), ["picture", "decoder says"]),
    "text as .dcm": (lambda f: text(f / "a.dcm"), [".dcm image", "SimpleITK says"]),
    "unknown extension": (lambda f: text(f / "a.dat"), ["extension", ".nii.gz", '".dat"']),
    "no extension": (lambda f: text(f / "a"), ["extension", "no extension"]),
    "folder": (lambda f: f, ["DICOM series", "none"]),
    "NaN": (lambda f: write(f / "a.nii", spoil(math.nan, 3)), ["finite", "3 of 756", "NaN", "(1, 2, 0)"]),
    "infinity": (lambda f: write(f / "a.nii", spoil(math.inf, 1)), ["finite", "1 of 756", "infinite", "(1, 2, 0)"]),
    "beyond float32": (lambda f: write(f / "a.nii", spoil(1e300, 2)), ["2 of 756", "float32"]),
    "4-D": (lambda f: write(f / "a.nii", noise((9, 12, 7, 5))), ["3-D", "4-D", "5 volumes", "split"]),
    "2-D with time": (lambda f: write(f / "a.nii", noise((16, 13, 1, 5))), ["2-D", "5 volumes", "split"]),
    "ddf as image": (lambda f: write(f / "a.nii", noise((9, 12, 7, 3))), ["4-D", "io.load_ddf"]),
    "ITK field as image": (lambda f: write(f / "a.nii", noise((9, 12, 7, 1, 3))), ["3 values", "io.import_itk"]),
    "5-D": (lambda f: write(f / "a.nii", noise((5, 4, 3, 2, 2))), ["5-D", "4 volumes"]),
    "RGB": (lambda f: write(f / "a.nii", colors()), ["gray", "RGB"]),
    "RGB .png": (lambda f: color_png(f / "a.png"), ["gray", "RGB", "3 channels", "rgb2gray"]),
    "RGB .mha": (lambda f: itk(f / "a.mha", sitk.Image([9, 12, 7], sitk.sitkVectorUInt8, 3)), ["gray", "3 values"]),
    "complex": (lambda f: write(f / "a.nii", noise((9, 12, 7)).astype(np.complex64)), ["real", "complex64", "abs"]),
    "complex .nrrd": (
        lambda f: itk(f / "a.nrrd", sitk.Image([9, 12, 7], sitk.sitkComplexFloat32)),
        ["real", "complex64", "abs"],
    ),
    "4-D .nrrd": (lambda f: itk(f / "a.nrrd", sitk.Image([9, 12, 7, 2], sitk.sitkUInt8)), ["4-D", "2 volumes"]),
    "flat 4-D .nrrd": (
        lambda f: itk(f / "a.nrrd", sitk.Image([9, 12, 7, 1], sitk.sitkUInt8)),
        ["two or three axes; got 4"],
    ),
    "unknown type": (lambda f: broken(f, datatype=7), ["data type", "code 7"]),
    "zero-size axis": (lambda f: broken(f, dim=[3, 9, 0, 7, 1, 1, 1, 1]), ["at least 1 voxel", "9 x 0 x 7"]),
    "negative axis": (lambda f: broken(f, dim=[3, 9, -12, 7, 1, 1, 1, 1]), ["at least 1 voxel", "9 x -12 x 7"]),
    "one axis": (lambda f: broken(f, dim=[1, 756, 1, 1, 1, 1, 1, 1]), ["two or three axes", "756"]),
    "zero affine": (lambda f: broken(f, srow_x=0, srow_y=0, srow_z=0), ["affine", "sform", "invertible", "set_sform"]),
    "singular affine": (
        lambda f: broken(f, srow_x=[1, 2, 0, 0], srow_y=[2, 4, 0, 0]),
        ["affine", "sform", "invertible"],
    ),
    "NaN affine": (lambda f: broken(f, srow_x=[math.nan, 0, 0, 0]), ["affine", "sform", "finite"]),
    "zero pixdim": (lambda f: broken(f, pixdim=[1, 0.8, 0, 2.5, 1, 1, 1, 1]), ["pixdim", "above 0", "0.8 x 0 x 2.5"]),
    "zero pixdim, qform": (
        lambda f: broken(f, pixdim=[1, 0.8, 0, 2.5, 1, 1, 1, 1], sform_code=0),
        ["pixdim", "above 0", "0.8 x 0 x 2.5", "set_zooms"],
    ),
    "negative pixdim, qform": (
        lambda f: broken(f, pixdim=[1, 0.8, -1, 2.5, 1, 1, 1, 1], sform_code=0, qform_code=1),
        ["affine", "qform", "positive"],
    ),
    "infinite intercept": (lambda f: broken(f, scl_slope=1, scl_inter=math.inf), ["scl_inter", "finite", "inf"]),
    "voxels inside the header": (lambda f: broken(f, vox_offset=0), ["byte 352", "vox_offset", "got 0"]),
    "huge": (lambda f: broken(f, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), ["take 54000000000000 bytes", "early"]),
}


def short(path, count):
    write(path, noise((9, 12, 7)))
    path.write_bytes(path.read_bytes()[:count])
    return path


def touch(path):
    path.touch()
    return path


def text(path):
    path.write_text("patient,scan\n" * 100)
    return path


def spoil(value, count):
    array = np.zeros((9, 12, 7))
    array[1, 2, :count] = value
    return array


def colors():
    return np.zeros((9, 12, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def color_png(path):
    skimage.io.imsave(path, np.random.default_rng(0).integers(0, 255, (16, 13, 3)).astype(np.uint8))
    return path


def noisy_png(path):
    skimage.io.imsave(path, noise((64, 51)).astype(np.uint8), check_contrast=False)
    return path


def itk(path, image):
    sitk.WriteImage(image, path)
    return path


def broken(folder, **fields):
    return break_header(write(folder / "a.nii", noise((9, 12, 7))), **fields)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path, fault, capfd):
    make, words = BROKEN[fault]
    path = make(tmp_path)
    with sentence(ValueError, str(path), *words):
        io.load_image(path)
    assert capfd.readouterr() == ("", "")  # libraries print, too


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_of_no_or_several_series(tmp_path, count, capfd):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("nothing")
    for k in range(count):
        write_dicom(tmp_path / "a", noise((9, 12, 3)), oblique(3), series=f"1.2.{k + 3}")
    with sentence(ValueError, "one DICOM series", "it holds 2" if count else "it holds none"):
        io.load_image(tmp_path / "a")
    assert capfd.readouterr() == ("", "")


def test_a_series_with_a_missing_slice(tmp_path):
    with sentence(ValueError, "evenly spaced", "2.5 to 5 mm", "missing"):
        io.load_image(write_dicom(tmp_path / "a", noise((9, 12, 7)), oblique(3), skip=[3]))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "folder"])
def test_without_simpleitk(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"NRRD, NDims")
    with sentence(ValueError, "needs SimpleITK", "not installed", "pip install", ".nii.gz"):
        io.load_image(path)


# -- labels and masks ------------------------------------------------------------------------------------------
def test_labels_that_are_none(tmp_path):
    array = np.zeros((9, 12, 7))
    array[2, 3, 4:6] = 1.5
    with sentence(ValueError, "a.nii", "whole numbers", "2 of 756", "1.5", "nearest"):
        io.load_labels(write(tmp_path / "a.nii", array))
    with sentence(ValueError, "at least 0", "-7"):
        io.load_labels(write(tmp_path / "a.nii", noise((9, 12, 7)) * 0 - np.int16(7)))
    with sentence(ValueError, "3 values", "io.import_itk"):
        io.load_labels(write(tmp_path / "a.nii", noise((9, 12, 7, 1, 3))))


def test_labels_on_the_grid_of_their_image(tmp_path):
    matrix = oblique(3)
    grid = Grid((9, 12, 7), matrix)
    near, far = matrix.copy(), matrix.copy()
    near[0, 3] += 0.01
    far[0, 3] += 0.5
    path = write(tmp_path / "near.nii", noise((9, 12, 7)), near)
    assert io.load_labels(path).grid != grid
    assert io.load_labels(path, grid=grid).grid is grid
    words = ["grid of their image", "9 x 12 x 7", "(-31, 12.5, 40)", "resample"]
    with sentence(GridMismatchError, "far.nii", "labels", *words, "(-30.5, 12.5, 40)"):
        io.load_labels(write(tmp_path / "far.nii", noise((9, 12, 7)), far), grid=grid)
    with sentence(GridMismatchError, "labels", *words, "12 x 9 x 7"):
        io.load_labels(write(tmp_path / "turned.nii", noise((12, 9, 7)), matrix), grid=grid)
    with sentence(GridMismatchError, "mask", *words, "16 x 13"):
        io.load_mask(write(tmp_path / "flat.nii", noise((16, 13)), oblique(2)), grid=grid)


def test_masks(tmp_path):
    array = noise((9, 12, 7)) * 0
    path = write(tmp_path / "a.nii", array)
    with sentence(ValueError, "mask", "above 0", "empty"):
        io.load_mask(path)
    array[3:5, 2:9] = 255
    mask, grid = io.load_mask(write(path, array))
    assert mask.dtype == torch.float32
    assert torch.equal(mask[0, 0], torch.from_numpy((array > 0).astype(np.float32)))
    assert grid.shape == (9, 12, 7)
    with sentence(ValueError, "4-D", "2 volumes"):
        io.load_mask(write(path, noise((9, 12, 7, 2))))


# -- fields ----------------------------------------------------------------------------------------------------
FIELDS = [
    ((9, 12, 7, 2), ["(X, Y, Z, 3)", "9 x 12 x 7 x 2", "component"]),
    ((16, 13, 1, 3), ["(X, Y, 1, 2)", "16 x 13 x 1 x 3"]),
    ((16, 13, 2), ["(X, Y, 1, 2)", "16 x 13 x 2", "not an image"]),
    ((9, 12, 7), ["(X, Y, Z, 3)", "not an image"]),
    ((3, 9, 12, 7), ["3 x 9 x 12 x 7", "components first", "moveaxis"]),
    ((9, 12, 7, 1, 3), ["9 x 12 x 7 x 1 x 3", "ITK", "io.import_itk"]),
    ((16, 13, 1, 1, 2), ["16 x 13 x 1 x 1 x 2", "ITK", "io.import_itk"]),
]


@pytest.mark.parametrize(("shape", "words"), FIELDS)
def test_a_ddf_of_another_layout(tmp_path, shape, words):
    with sentence(ValueError, "a.nii", "ddf", *words):
        io.load_ddf(write(tmp_path / "a.nii", noise(shape).astype(np.float32)))


@pytest.mark.parametrize("shape", [(9, 12, 7, 3), (16, 13, 1, 2)])
def test_a_ddf_is_not_imported_from_itk(tmp_path, shape):
    path = write(tmp_path / "a.nii", noise(shape).astype(np.float32))
    with sentence(ValueError, "(X, Y, Z, 1, 3)", "io.load_ddf"):
        io.import_itk(path)
    with sentence(ValueError, "(X, Y, Z, 1, 3)", "not an image"):
        io.import_itk(write(path, noise((9, 12, 7))))


def test_a_ddf_with_nan(tmp_path):
    array = np.zeros((9, 12, 7, 3), np.float32)
    array[4, 5, 6, 1] = math.nan
    with sentence(ValueError, "finite", "1 of 2268", "(4, 5, 6, 1)"):
        io.load_ddf(write(tmp_path / "a.nii", array))


# -- warnings --------------------------------------------------------------------------------------------------
def conflicting(path, shift_mm, array=None):
    matrix = oblique(3)
    image = nib.Nifti1Image(noise((9, 12, 7)) if array is None else array, matrix)
    image.set_sform(matrix, 2)
    matrix = matrix.copy()
    matrix[1, 3] += shift_mm
    image.set_qform(matrix, 1)
    nib.save(image, path)
    return path


def test_a_qform_unlike_the_sform_warns_and_names_the_one_used(tmp_path):
    path = conflicting(tmp_path / "a.nii", 3.0)
    with pytest.warns(io.HeaderWarning) as caught:
        grid = io.load_image(path).grid
    (warning,) = caught
    message = str(warning.message)
    assert "\n" not in message
    assert all(word in message for word in ("a.nii", "qform", "sform is used", "3 mm"))
    assert grid == Grid((9, 12, 7), oblique(3))


def test_rounding_between_qform_and_sform_does_not_warn(tmp_path):
    io.load_image(conflicting(tmp_path / "a.nii", 0.05))


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1)])
def test_a_matrix_that_is_not_in_use_does_not_warn(tmp_path, sform, qform):
    path = break_header(conflicting(tmp_path / "a.nii", 30.0), sform_code=sform, qform_code=qform)
    io.load_image(path)


# -- points, matrices, JSON ------------------------------------------------------------------------------------
@properties
@given(data=st.data(), dim=st.sampled_from(DIMS))
def test_points_round_trip_to_the_last_bit(tmp_path_factory, data, dim):
    coordinate = st.floats(-1e6, 1e6, allow_nan=False)
    rows = data.draw(st.lists(st.lists(coordinate, min_size=dim, max_size=dim), min_size=1, max_size=6))
    points = torch.tensor([rows], dtype=torch.float64)
    path = tmp_path_factory.mktemp("points") / "a.csv"
    io.save_points(path, points)
    assert path.read_text().splitlines()[0] == "x,y,z"[: 2 * dim - 1]
    assert torch.equal(io.load_points(path), points)


def test_points_as_spreadsheets_write_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfX, Y ,Z\r\n1,"2",3e1\r\n\r\n 4 ,5,-6.5\r\n,,\r\n')
    assert io.load_points(path).tolist() == [[[1, 2, 30], [4, 5, -6.5]]]


POINTS = {
    "empty": ("", ["empty", "header x,y,z"]),
    "header only": ("x,y,z\n", ["at least one point", "none"]),
    "no header": ("1,2,3\n4,5,6\n", ["header x,y,z", "1,2,3", "RAS"]),
    "other header": ("label,x,y,z\na,1,2,3\n", ["header x,y,z", "label,x,y,z"]),
    "columns": ("x,y,z\n1,2,3\n4,5\n", ["3 columns", "point 2 has 2"]),
    "decimal commas": ("x,y\n1,5,2,5\n", ["2 columns", "point 1 has 4", "decimals"]),
    "words": ("x,y,z\n1,2,three\n", ["numbers", "point 1", "1,2,three"]),
    "NaN": ("x,y,z\n1,2,3\n1,nan,3\n", ["finite", "point 2", "nan"]),
    "infinity": ("x,y,z\n1,inf,3\n", ["finite", "point 1"]),
}


@pytest.mark.parametrize("fault", POINTS)
def test_broken_points(tmp_path, fault):
    content, words = POINTS[fault]
    path = tmp_path / "a.csv"
    path.write_text(content)
    with sentence(ValueError, "a.csv", *words):
        io.load_points(path)


def test_points_that_are_no_text(tmp_path, no_jaxtyping):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with sentence(ValueError, "CSV"):
        io.load_points(tmp_path / "a.csv")
    with sentence(ValueError, "folder"):
        io.load_points(tmp_path)
    with sentence(ValueError, "(1, k, 2)", "(4, 3)"):
        io.save_points(tmp_path / "b.csv", torch.zeros(4, 3))
    with sentence(ValueError, "points", "NaN"):
        io.save_points(tmp_path / "b.csv", torch.full((1, 4, 3), math.nan))
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("dim", DIMS)
def test_matrices_round_trip_to_the_last_bit(tmp_path, dim):
    matrix = torch.from_numpy(oblique(dim))
    io.save_matrix(tmp_path / "affine.txt", matrix)
    assert torch.equal(io.load_matrix(tmp_path / "affine.txt"), matrix)
    assert np.array_equal(np.loadtxt(tmp_path / "affine.txt"), oblique(dim))


MATRICES = {
    "words": ("one two\n", ["numbers", "other text"]),
    "shape": ("1 0 0\n0 1 0\n", ["4 lines of 4", "[3, 3]"]),
    "empty": ("", ["4 lines of 4", "[]"]),
    "NaN": ("1 0 nan\n0 1 0\n0 0 1\n", ["finite", "NaN"]),
    "transposed": ("1 0 0\n0 1 0\n5 6 1\n", ["last row", "[5.0, 6.0, 1.0]", "transposed"]),
    "singular": ("1 2 0\n2 4 0\n0 0 1\n", ["invertible", "determinant"]),
}


@pytest.mark.parametrize("fault", MATRICES)
def test_broken_matrices(tmp_path, fault):
    content, words = MATRICES[fault]
    (tmp_path / "affine.txt").write_text(content)
    with sentence(ValueError, "affine.txt", *words):
        io.load_matrix(tmp_path / "affine.txt")


def test_matrices_that_cannot_be_saved(tmp_path, no_jaxtyping):
    with sentence(ValueError, "(4, 4)", "(3, 4)"):
        io.save_matrix(tmp_path / "a.txt", torch.zeros(3, 4))
    with sentence(ValueError, "last row"):
        io.save_matrix(tmp_path / "a.txt", torch.ones(4, 4))
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path):
    data = {
        "a": np.float32(0.5),
        "b": torch.tensor([1, 2]),
        "c": math.nan,
        1: (Path("x"), None, True, "ä"),
        "d": math.inf,
    }
    io.save_json(tmp_path / "new" / "a.json", data)
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": 0.5, "b": [1, 2], "c": None, "1": ["x", None, True, "ä"], "d": None}


# -- writing ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.nii.gz", "overview.png", "metrics.json", "plain"])
def test_atomic_writing(tmp_path, name):
    path = tmp_path / "new" / name
    with io.write_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith("".join(path.suffixes))
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def fail():
        with io.write_atomically(path) as temporary:
            temporary.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    grid, image = Grid((9, 12, 7)), smooth_image((9, 12, 7))
    io.save_image(tmp_path / "a.nii.gz", image, grid)
    before = (tmp_path / "a.nii.gz").read_bytes()

    def full(nifti, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    with pytest.raises(OSError, match="No space"):
        io.save_image(tmp_path / "a.nii.gz", image * 2, grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_two_writers_do_not_meet(tmp_path):
    with io.write_atomically(tmp_path / "a.txt") as first, io.write_atomically(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.txt").read_text() == "1"


@pytest.mark.skipif(os.name == "nt", reason="file modes are of POSIX systems")
def test_written_files_have_the_usual_permissions(tmp_path):
    io.save_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_a_folder_that_can_be_written(tmp_path):
    assert io.require_writable(tmp_path / "new" / "deeper") == tmp_path / "new" / "deeper"
    assert list(tmp_path.iterdir()) == []  # a run that fails later leaves nothing


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with sentence(ValueError, str(folder), "folder", "is a file", "another output folder"):
            io.require_writable(folder)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with sentence(ValueError, str(tmp_path), "written", "Permission denied"):
        io.require_writable(tmp_path)


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="needs a user with limits")
def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with sentence(ValueError, "locked", "written"):
        io.require_writable(folder)


# -- real scans ------------------------------------------------------------------------------------------------
def test_real_scans_load_as_nibabel_and_simpleitk_see_them(real_data):
    for name in ("brain/ch2_t1.nii.gz", "brain/subject_t1.nii.gz", "prostate/test/us_images/case000025.nii.gz"):
        image, grid = io.load_image(real_data / name)
        theirs = nib.load(real_data / name)
        assert np.array_equal(image[0, 0].numpy(), theirs.get_fdata(dtype=np.float32))
        assert np.allclose(grid.world_from_voxel, theirs.affine)
        assert grid.is_close(Grid.from_sitk(sitk.ReadImage(real_data / name)), tolerance=1e-2)


def test_real_labels_pictures_and_fields(real_data):
    labels, grid = io.load_labels(real_data / "prostate/test/mr_labels/case000025.nii.gz")
    assert labels.shape == (1, 3, 64, 64, 60)
    image = io.load_image(real_data / "prostate/test/mr_images/case000025.nii.gz")
    assert io.load_labels(real_data / "prostate/test/mr_labels/case000025.nii.gz", grid=image.grid).grid is image.grid
    assert grid == image.grid
    assert io.load_image(real_data / "slices/r16.jpg").image.shape == (1, 1, 256, 256)
    with sentence(ValueError, "query.jpg", "RGB"):
        io.load_image(real_data / "retina/query.jpg")
    ddf, grid = io.load_ddf(real_data / "deepreg_layout/nifti/unit_test/ddf.nii.gz")
    assert ddf.shape == (1, 3, *grid.shape)


def test_simpleitk_applies_an_exported_field_to_real_brains(real_data, tmp_path):
    fixed_file, moving_file = real_data / "brain/head_a_2mm.nii.gz", real_data / "brain/subject_t1.nii.gz"
    fixed_grid = io.load_image(fixed_file).grid
    moving, moving_grid = io.load_image(moving_file)
    turn = affine(rotation([4.0, -3.0, 6.0]), [5.0, -8.0, 3.0])
    turn[:3, 3] += np.array(moving_grid.center) - turn[:3, :3] @ np.array(fixed_grid.center)
    ddf = field.affine_ddf(torch.from_numpy(turn), fixed_grid)
    ddf = ddf + smooth_ddf(fixed_grid.shape, largest=3.0, sigma=8.0)
    io.export_itk(tmp_path / "itk.nii.gz", ddf, fixed_grid, moving_grid=moving_grid)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(tmp_path / "itk.nii.gz", sitk.sitkVectorFloat64))
    moving_itk = sitk.ReadImage(moving_file, sitk.sitkFloat32)
    theirs = sitk.Resample(moving_itk, sitk.ReadImage(fixed_file), transform, sitk.sitkLinear, 0.0)
    theirs = torch.from_numpy(sitk.GetArrayFromImage(theirs)).permute(2, 1, 0)
    ours = field.warp(moving, ddf, padding="zeros", moving_grid=moving_grid, fixed_grid=fixed_grid)[0, 0]
    brain = ours > 0.1 * ours.max()
    assert brain.float().mean() > 0.05
    assert largest(theirs[brain], ours[brain]) < 0.01 * float(ours.max())


def test_importing_io_imports_no_picture_reader_and_no_simpleitk():
    code = "import sys, reglib.io; print([m for m in ('SimpleITK', 'skimage', 'pandas', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gzip_of_several_members(tmp_path):
    """bgzip and parallel compressors write them."""
    content = write(tmp_path / "a.nii", noise((9, 12, 7))).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
    assert np.array_equal(io.load_image(tmp_path / "a.nii.gz").image[0, 0].numpy(), noise((9, 12, 7)))
