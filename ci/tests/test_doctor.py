"""The doctor: every fault of a file in one list, and never an exception."""

import gzip
import math
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
import torch
from helpers import SHAPES, affine, oblique, rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from reglib import io
from reglib.grid import Grid

SPACING = (0.9, 1.0, 2.5)  # within a factor of three


def write(path, array=None, matrix=None, *, units="mm", **fields):
    """A NIfTI file by nibabel, then with fields of its header overwritten; .nii only if there are any."""
    array = np.random.default_rng(0).integers(0, 999, (9, 12, 7)).astype(np.int16) if array is None else array
    matrix = affine(np.diag(SPACING), [-31.0, 12.5, 40.0]) if matrix is None else matrix
    image = nib.Nifti1Image(array, matrix)
    image.set_sform(matrix, 1)
    image.set_qform(matrix, 1)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    if fields:
        content = bytearray(path.read_bytes())
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        path.write_bytes(header.binaryblock + bytes(content[348:]))
    return path


def found(report, severity):
    return [finding for finding in report.findings if finding.severity == severity]


def words_of(finding):
    return f"{finding.sentence} -> {finding.cure}"


def loads(path):
    """Whether io.load_image takes the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", io.HeaderWarning)
            io.load_image(path)
    except (ValueError, FileNotFoundError):
        return False
    return True


# -- a healthy file --------------------------------------------------------------------------------------------
def test_a_healthy_file_has_facts_and_no_findings(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    report = io.doctor(path)
    assert report.path == path
    assert report.ok
    assert report.findings == report.errors == ()
    values = nib.load(path).get_fdata()
    assert report.facts["spacing"] == pytest.approx(SPACING)
    assert report.facts["size_mm"] == pytest.approx((8.1, 12.0, 17.5))
    rest = {name: value for name, value in report.facts.items() if name not in ("spacing", "size_mm")}
    assert rest == {
        "shape": (9, 12, 7),
        "dtype": "int16",
        "sform_code": 1,
        "qform_code": 1,
        "units": "mm",
        "orientation": "RAS",
        "oblique_degrees": 0.0,
        "range": (values.min(), values.max()),
    }


def test_the_report_is_readable(tmp_path):
    healthy = str(io.doctor(write(tmp_path / "a.nii.gz"))).splitlines()
    assert healthy[0] == str(tmp_path / "a.nii.gz")
    assert healthy[-1].strip() == "nothing wrong"
    assert any(line.split() == ["shape", "9", "x", "12", "x", "7"] for line in healthy)
    assert any(line.split() == ["spacing", "0.9", "x", "1", "x", "2.5"] for line in healthy)
    ill = str(io.doctor(write(tmp_path / "b.nii", np.full((9, 12, 7), math.nan), units="meter")))
    assert ill.index("ERROR") < ill.index("WARNING")
    assert "numpy.nan_to_num" in ill
    assert "nothing wrong" not in ill


def test_2d_files_and_pictures(tmp_path):
    flat = io.doctor(write(tmp_path / "a.nii", np.arange(208).reshape(16, 13).astype(np.int16)))
    assert (flat.facts["shape"], flat.facts["orientation"]) == ((16, 13), "RA")
    assert flat.ok
    skimage.io.imsave(tmp_path / "a.png", np.arange(208, dtype=np.uint8).reshape(16, 13), check_contrast=False)
    picture = io.doctor(str(tmp_path / "a.png"))
    assert picture.facts["spacing"] == (1, 1)
    assert picture.facts["range"] == (0, 207)
    assert picture.facts["dtype"] == "uint8"
    assert picture.findings == ()


# -- all faults at once ----------------------------------------------------------------------------------------
def test_all_faults_are_listed_not_the_first(tmp_path):
    array = np.zeros((9, 12, 7, 2))
    array[1, 2, 3] = math.nan
    path = write(tmp_path / "a.nii", array, units="meter", srow_x=0, pixdim=[1, 0, 1, 1, 1, 1, 1, 1])
    path.write_bytes(path.read_bytes() + b"more")
    report = io.doctor(path)
    assert not report.ok
    text = "\n".join(map(words_of, report.findings))
    for fault in ("2 volumes", "pixdim", "invertible", "NaN", "unit of length is m", "the file holds"):
        assert fault in text, fault
    assert len(report.errors) == 4
    assert [f.severity for f in report.findings] == sorted(f.severity for f in report.findings)


def test_every_error_of_the_loader_is_the_doctors(tmp_path):
    for path in (tmp_path / "missing.nii", tmp_path, write(tmp_path / "a.nii", np.full((9, 12, 7), math.inf))):
        report = io.doctor(path)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            io.load_image(path)
        assert str(caught.value) == f"{path}: {report.errors[0]}"


# -- what only the doctor says ---------------------------------------------------------------------------------
def identity_affine(spacing=SPACING):
    return affine(np.diag(spacing), [0.0, 0.0, 0.0])


ADVICE = {
    "left-handed": ("note", lambda p: write(p, matrix=identity_affine((-0.9, 1.0, 2.5))), ["left-handed", "LAS"]),
    "oblique": (
        "note",
        lambda p: write(p, matrix=affine(rotation([0, 0, 5.0]) @ np.diag(SPACING), [0.0] * 3)),
        ["5.0 degrees"],
    ),
    "no codes": ("warning", lambda p: write(p, sform_code=0, qform_code=0), ["neither sform nor qform", "guesses"]),
    "lost header": (
        "warning",
        lambda p: write(p, sform_code=0, qform_code=0, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]),
        ["every spacing is exactly 1", "header was lost"],
    ),
    "anisotropic": (
        "warning",
        lambda p: write(p, matrix=identity_affine((0.8, 1.0, 4.0))),
        ["5.0 times", "0.8 x 1 x 4 mm"],
    ),
    "micron": ("warning", lambda p: write(p, units="micron"), ["micron", "read as mm"]),
    "no units": ("note", lambda p: write(p, units="unknown"), ["unit of length is not given", "mm is assumed"]),
    "large": ("warning", lambda p: write(p, matrix=identity_affine((900, 1000, 2500))), ["8100 x 1.2e+04", "unit"]),
    "tiny": ("warning", lambda p: write(p, matrix=identity_affine((8e-4, 1e-3, 2e-3))), ["0.0072", "unit"]),
    "constant": ("warning", lambda p: write(p, np.full((9, 12, 7), 3.0)), ["every voxel is 3"]),
    "CT": ("note", lambda p: write(p, np.linspace(-1024, 1800, 756).reshape(9, 12, 7)), ["CT", "Hounsfield", "-1024"]),
    "unit range": ("note", lambda p: write(p, np.linspace(0, 1, 756).reshape(9, 12, 7)), ["[0, 1]"]),
    "trailing axes": (
        "note",
        lambda p: write(p, np.arange(756, dtype=np.int16).reshape(9, 12, 7, 1)),
        ["one voxel at the end", "9 x 12 x 7 x 1"],
    ),
    "sheared": (
        "warning",
        lambda p: write(p, matrix=affine(np.diag(SPACING) @ (np.eye(3) + 0.3 * np.eye(3, k=1)), [0] * 3), qform_code=0),
        ["right angles"],
    ),
    "more bytes": ("warning", lambda p: append(write(p), b"1234"), ["1512 bytes", "holds 1516"]),
    "negative pixdim": (
        "warning",
        lambda p: write(p, pixdim=[1, -0.8, 1, 2.5, 1, 1, 1, 1], qform_code=0),
        ["below 0", "-0.8"],
    ),
    "qform unlike sform": ("warning", lambda p: write(p, qoffset_x=50), ["qform", "81 mm apart", "sform is used"]),
    "qform that is none": ("warning", lambda p: write(p, quatern_b=2), ["qform is not a rotation", "sform is used"]),
}


def append(path, more):
    path.write_bytes(path.read_bytes() + more)
    return path


@pytest.mark.parametrize("case", ADVICE)
def test_advice(tmp_path, case):
    severity, make, words = ADVICE[case]
    path = make(tmp_path / "a.nii")
    report = io.doctor(path)
    assert report.ok
    texts = [words_of(f) for f in found(report, severity)]
    assert any(all(word in text for word in words) for text in texts), (words, report.findings)
    assert loads(path)
    expected = {"no codes": 2, "lost header": 2, "sheared": 2}.get(case, 1)
    assert len(report.findings) <= expected, report.findings


def test_time_is_named(tmp_path):
    path = write(tmp_path / "a.nii", np.arange(2268, dtype=np.int16).reshape(9, 12, 7, 3))
    image = nib.load(path)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "b.nii")
    (note,) = found(io.doctor(tmp_path / "b.nii"), "note")
    assert "time, 3 points" in note.sentence
    assert found(io.doctor(path), "note") == []


def test_obliqueness_is_measured_in_degrees(tmp_path):
    path = write(tmp_path / "a.nii", matrix=oblique(3))
    expected = np.rad2deg(nib.affines.obliquity(oblique(3))).max()
    assert io.doctor(path).facts["oblique_degrees"] == pytest.approx(expected, abs=0.01)
    grid = Grid(SHAPES[2], oblique(2, angles=(40.0,), flips=(1, 1)))
    io.save_image(tmp_path / "b.nii", torch.arange(208.0).reshape(1, 1, 16, 13), grid)
    assert io.doctor(tmp_path / "b.nii").facts["oblique_degrees"] == pytest.approx(40.0, abs=0.01)


# -- it never raises -------------------------------------------------------------------------------------------
properties = settings(deadline=None, max_examples=150, derandomize=True, database=None)


@properties
@given(
    edits=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1900)),
    packed=st.booleans(),
)
def test_no_damage_makes_it_raise_and_it_agrees_with_the_loader(tmp_path_factory, edits, cut, packed):
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(write(folder / "a.nii").read_bytes())
    for position, value in edits:
        content[position] = value
    path = folder / ("a.nii.gz" if packed else "a.nii")
    whole = gzip.compress(bytes(content)) if packed else bytes(content)
    path.write_bytes(whole[:cut])
    report = io.doctor(path)
    assert report.ok == loads(path), report
    assert "\n" not in "".join(words_of(f) for f in report.findings)
    assert str(report)


FIELDS = ["dim", "datatype", "pixdim", "vox_offset", "scl_slope", "scl_inter", "qform_code", "sform_code", "quatern_b"]
FIELDS += ["quatern_c", "qoffset_x", "srow_x", "srow_y", "srow_z", "xyzt_units", "intent_code", "magic"]
VALUES = [0, -1, 1, 2, 7, 300, -32768, 1e-30, 1e30, math.nan, math.inf, -math.inf]


@properties
@given(edits=st.lists(st.tuples(st.sampled_from(FIELDS), st.integers(0, 7), st.sampled_from(VALUES)), max_size=4))
def test_no_header_makes_it_raise(tmp_path_factory, edits):
    path = write(tmp_path_factory.mktemp("fields") / "a.nii")
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, index, value in edits:
        array = np.atleast_1d(header[name])
        if array.dtype.kind in "iu":
            bounds = np.iinfo(array.dtype)
            value = int(np.clip(np.nan_to_num(value), bounds.min, bounds.max))
        array[index % len(array)] = str(value).encode()[:3] if name == "magic" else value
        header[name] = array if np.ndim(header[name]) else array[0]
    path.write_bytes(header.binaryblock + content[348:])
    report = io.doctor(path)
    assert report.ok == loads(path), report
    assert str(report)


CONTENTS = {
    "nothing": b"",
    "zeros": b"\x00" * 500,
    "words": b"words\n" * 99,
    "a broken PNG": b"\x89PNG\r\n\x1a\n" + b"\x00" * 90,
    "a broken JPEG": b"\xff\xd8\xff\xe0" + b"\x00" * 90,
    "a broken NRRD": b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 12 7\nencoding: raw\n\n123",
}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mha", "a.nrrd", "a.dcm", "a.nii.gz", "a.txt"])
@pytest.mark.parametrize("content", CONTENTS)
def test_no_content_makes_it_raise(tmp_path, name, content, capfd):
    path = tmp_path / name
    path.write_bytes(CONTENTS[content])
    report = io.doctor(path)
    assert len(report.errors) == 1
    assert not loads(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["", "no/such/folder/a.nii", "a" * 5000, "a\0b.nii"])
def test_no_path_makes_it_raise(path):
    report = io.doctor(path)
    assert len(report.errors) == 1


@pytest.mark.parametrize("name", ["a.nii", "a.png", "a.mha"])
def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch, name):
    path = write(tmp_path / "a.nii").rename(tmp_path / name)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (error,) = io.doctor(path).errors
    assert "cannot be opened (Permission denied)" in error.sentence


def test_a_disk_that_fails_while_reading(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii.gz")

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip, "open", fail)
    (error,) = io.doctor(path).errors
    assert "cannot be read (Input/output error)" in error.sentence


# -- real scans ------------------------------------------------------------------------------------------------
def test_real_scans(real_data):
    colin, subject = (io.doctor(real_data / f"brain/{name}.nii.gz") for name in ("ch2_t1", "subject_t1"))
    assert colin.findings == ()
    assert (colin.facts["shape"], colin.facts["orientation"]) == ((181, 217, 181), "RAS")
    assert [f.severity for f in subject.findings] == ["note"]
    assert subject.facts["orientation"] == "LIA"
    labels = io.doctor(real_data / "prostate/test/mr_labels/case000025.nii.gz")
    assert ["io.load_labels" in f.cure for f in labels.errors] == [True]
    assert not io.doctor(real_data / "retina/query.jpg").ok


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mha", ".nrrd"])
def test_truncated_pictures_and_volumes(tmp_path, suffix, capfd):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 51) if suffix in (".png", ".jpg") else (31, 52, 7))
    if noise.ndim == 2:
        skimage.io.imsave(path, noise.astype(np.uint8), check_contrast=False)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(noise.astype(np.uint8)), path)
    assert io.doctor(path).ok
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    report = io.doctor(path)
    assert not report.ok
    assert not loads(path)
    assert capfd.readouterr() == ("", "") or suffix == ".mha"  # ITK's reader prints, whatever it is told
