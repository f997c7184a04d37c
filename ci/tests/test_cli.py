"""The command line end to end on small brains: its files, keys and statuses, and every kind of bad input."""

import gzip
import json
import math
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from reglib import cli, field, io, metrics, phantoms, pipeline
from reglib.grid import Grid
from reglib.optimize import Registration
from reglib.transforms import Affine, DenseDisplacement, Sequential

FILES = {
    "warped.nii.gz",
    "ddf.nii.gz",
    "ddf_itk.nii.gz",
    "inverse_ddf.nii.gz",
    "affine.txt",
    "warped_labels.nii.gz",
    "metrics.json",
    "provenance.json",
    "overview.png",
}
KEYS = {
    "seconds",
    "peak_mb",
    "similarity_before",
    "similarity_after",
    "folding_fraction",
    "std_log_jacobian",
    "dice_before",
    "dice_after",
    "dice_per_label",
    "tre_mm_before",
    "tre_mm_after",
    "warnings",
    "interrupted",
}


def write_pair(folder, pair):
    """An image pair with labels and landmarks as files; returns their paths by name."""
    names = ("fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz", "fixed.csv", "moving.csv")
    paths = {name.replace(".nii.gz", "").replace(".csv", "_points"): folder / name for name in names}
    io.save_image(paths["fixed"], pair.fixed * 900, pair.fixed_grid)
    io.save_image(paths["moving"], pair.moving * 700, pair.moving_grid)
    io.save_labels(paths["fixed_labels"], pair.fixed_labels, pair.fixed_grid)
    io.save_labels(paths["moving_labels"], pair.moving_labels, pair.moving_grid)
    io.save_points(paths["fixed_points"], pair.truth.fixed_points)
    io.save_points(paths["moving_points"], pair.truth.moving_points)
    return paths


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Two oblique, anisotropic brains of different shapes, on disk."""
    cohort = phantoms.brain_cohort(2, seed=3, shape=(36, 44, 34), spacing=5.0, oblique=True)
    return write_pair(tmp_path_factory.mktemp("brains"), cohort.pair())


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    cohort = phantoms.brain_cohort(2, seed=3, shape=(60, 72), spacing=3.0)
    return write_pair(tmp_path_factory.mktemp("slices"), cohort.pair())


def labels_and_points(paths):
    names = ("fixed_labels", "moving_labels", "fixed_points", "moving_points")
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(paths[name]))]


@pytest.fixture(scope="module")
def registered(brains, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "run"
    status = cli.main(
        ["register", str(brains["fixed"]), str(brains["moving"]), "-o", str(out), *labels_and_points(brains)]
    )
    assert status == 0
    return out


# -- what it writes ---------------------------------------------------------------------------------------------
def test_register_writes_every_file_and_key_and_improves(registered):
    assert {path.name for path in registered.iterdir()} == FILES
    values = json.loads((registered / "metrics.json").read_text())
    assert values.keys() >= KEYS
    assert values["tre_mm_before"] > 4
    assert values["tre_mm_after"] < 0.5 * values["tre_mm_before"]
    assert values["dice_after"] > values["dice_before"] + 0.1
    assert values["folding_fraction"] == 0
    assert values["similarity_after"] > values["similarity_before"]
    assert (values["warnings"], values["interrupted"]) == ([], False)


def test_provenance_names_command_versions_threads_and_inputs(registered, brains):
    record = json.loads((registered / "provenance.json").read_text())
    assert record["versions"].keys() >= {"python", "reglib", "torch"}
    assert record["threads"] == torch.get_num_threads()
    assert set(record["inputs"]) == {str(path) for path in brains.values()}
    assert all(len(digest) == 64 for digest in record["inputs"].values())


def test_warped_has_the_fixed_header_and_the_moving_intensities(registered, brains):
    warped, fixed, moving = (nib.load(p) for p in (registered / "warped.nii.gz", brains["fixed"], brains["moving"]))
    assert warped.shape == fixed.shape
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-4)
    assert warped.get_data_dtype() == np.float32
    assert 0.8 < warped.get_fdata().max() / moving.get_fdata().max() <= 1.0 + 1e-6


def test_simpleitk_reproduces_the_warped_image_from_the_exported_field(registered, brains):
    moving = sitk.ReadImage(str(brains["moving"]), sitk.sitkFloat32)
    fixed = sitk.ReadImage(str(brains["fixed"]))
    vectors = sitk.ReadImage(str(registered / "ddf_itk.nii.gz"), sitk.sitkVectorFloat64)
    theirs = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(vectors), sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    ours = nib.load(registered / "warped.nii.gz").get_fdata()
    inside = nib.load(brains["fixed"]).get_fdata() > 0
    assert np.abs(theirs - ours)[inside].max() < 0.01 * 700


def test_the_inverse_undoes_the_map(registered, brains):
    ddf, fixed_grid = io.load_ddf(registered / "ddf.nii.gz")
    inverse, moving_grid = io.load_ddf(registered / "inverse_ddf.nii.gz")
    points = io.load_points(brains["fixed_points"])

    def apply(field_ddf, grid, x):
        voxels = field.warp_points(grid.points(x, to="voxel", from_="world"), field_ddf)
        return grid.points(voxels, to="world", from_="voxel")

    there = apply(ddf, fixed_grid, points)
    assert (there - points).norm(dim=-1).mean() > 3
    assert (apply(inverse, moving_grid, there) - points).norm(dim=-1).mean() < 0.5


def test_warp_reproduces_register_and_maps_points(registered, brains, tmp_path):
    ddf = str(registered / "ddf.nii.gz")
    assert cli.main(["warp", str(brains["moving"]), ddf, "-o", str(tmp_path / "w.nii.gz")]) == 0
    a, b = nib.load(tmp_path / "w.nii.gz").get_fdata(), nib.load(registered / "warped.nii.gz").get_fdata()
    np.testing.assert_allclose(a, b, atol=0.05)
    assert cli.main(["warp", str(brains["moving_labels"]), ddf, "-o", str(tmp_path / "l.nii.gz"), "--labels"]) == 0
    a, b = (np.asarray(nib.load(p).dataobj) for p in (tmp_path / "l.nii.gz", registered / "warped_labels.nii.gz"))
    np.testing.assert_array_equal(a, b)
    points = ["--points", str(brains["fixed_points"])]
    assert cli.main(["warp", str(brains["moving"]), ddf, "-o", str(tmp_path / "p.csv"), *points]) == 0
    reached, wanted = io.load_points(tmp_path / "p.csv"), io.load_points(brains["moving_points"])
    values = json.loads((registered / "metrics.json").read_text())
    assert float((reached - wanted).norm(dim=-1).mean()) == pytest.approx(values["tre_mm_after"], abs=0.02)


def test_evaluate_agrees_with_register(registered, brains, tmp_path):
    arguments = [str(brains["fixed"]), str(brains["moving"]), str(registered / "ddf.nii.gz")]
    assert cli.main(["evaluate", *arguments, "-o", str(tmp_path / "m.json"), *labels_and_points(brains)]) == 0
    ours, theirs = (json.loads(p.read_text()) for p in (tmp_path / "m.json", registered / "metrics.json"))
    for key in ("dice_after", "tre_mm_after", "similarity_after", "folding_fraction"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-3)


def test_invert_says_what_is_left(registered, tmp_path, capsys):
    assert cli.main(["invert", str(registered / "ddf.nii.gz"), "-o", str(tmp_path / "i.nii.gz")]) == 0
    assert "round trip" in capsys.readouterr().out
    ddf, grid = io.load_ddf(registered / "ddf.nii.gz")
    inverse, same = io.load_ddf(tmp_path / "i.nii.gz")
    assert same == grid
    inside = tuple(slice(n // 4, 3 * n // 4) for n in grid.shape)
    assert metrics.inverse_error(ddf, inverse, grid=grid)[(..., *inside)].mean() < 0.15 * min(grid.spacing)


@pytest.mark.parametrize("model", ["rigid", "affine", "ffd", "dense"])
def test_every_model_runs_in_2d(slices, tmp_path, model):
    arguments = [str(slices["fixed"]), str(slices["moving"]), "-o", str(tmp_path), "--transform", model]
    assert cli.main(["register", *arguments, "--quality", "fast", *labels_and_points(slices)]) == 0
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["similarity_after"] > values["similarity_before"]
    if model != "rigid":
        assert values["tre_mm_after"] < values["tre_mm_before"]
    assert nib.load(tmp_path / "ddf.nii.gz").shape == (60, 72, 1, 2)
    assert nib.load(tmp_path / "ddf_itk.nii.gz").shape == (60, 72, 1, 1, 2)
    assert np.loadtxt(tmp_path / "affine.txt").shape == (4, 4)


@pytest.mark.parametrize("model", ["diffeo", "svf", "ffd", "dense"])
def test_every_bending_model_finds_the_truth(slices, tmp_path, model):
    arguments = [str(slices["fixed"]), str(slices["moving"]), "-o", str(tmp_path), "--transform", model]
    assert cli.main(["register", *arguments, *labels_and_points(slices)]) == 0
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["tre_mm_before"] > 6
    assert values["tre_mm_after"] < 0.9  # a third of a voxel
    assert values["folding_fraction"] == 0


def test_options_reach_the_registration(slices, tmp_path):
    arguments = [str(slices["fixed"]), str(slices["moving"]), "-o", str(tmp_path), "--no-affine", "--similarity", "mi"]
    assert cli.main(["register", *arguments, "--threads", "1", "--device", "cpu"]) == 0
    linear = np.loadtxt(tmp_path / "affine.txt")
    np.testing.assert_allclose(linear[:3, :3], np.eye(3), atol=1e-9)


@pytest.mark.parametrize("similarity", ["nmi", "mi", "ngf", "mind"])
def test_losses_that_know_no_contrast_align_an_inverted_brain(slices, tmp_path, similarity):
    moving, grid = io.load_image(slices["moving"])
    io.save_image(tmp_path / "inverted.nii.gz", torch.where(moving > 20, 720 - moving, moving), grid)
    arguments = [str(slices["fixed"]), str(tmp_path / "inverted.nii.gz"), "-o", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--similarity", similarity, *labels_and_points(slices)]) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["tre_mm_after"] < 0.6 * values["tre_mm_before"]
    assert values["folding_fraction"] == 0


@pytest.mark.parametrize("similarity", ["nmi", "mi"])
def test_one_histogram_is_not_misled_by_shading(slices, tmp_path, similarity):
    moving, grid = io.load_image(slices["moving"])
    x, y = (torch.linspace(-1, 1, n) for n in grid.shape)
    shading = (0.5 * x[:, None] - 0.4 * y[None] * x[:, None]).exp()
    io.save_image(tmp_path / "shaded.nii.gz", torch.where(moving > 20, 720 - moving, moving) * shading, grid)
    arguments = [str(slices["fixed"]), str(tmp_path / "shaded.nii.gz"), "-o", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--similarity", similarity, *labels_and_points(slices)]) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["tre_mm_after"] < 1.1  # 1.7 by the images alone


def test_images_whose_headers_lie_far_apart_still_meet(slices, tmp_path):
    image = nib.load(slices["moving"])
    far = image.affine.copy()
    far[:2, 3] += 900
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), far), tmp_path / "far.nii.gz")
    arguments = [str(slices["fixed"]), str(tmp_path / "far.nii.gz"), "-o", str(tmp_path / "out"), "--quality", "fast"]
    assert cli.main(["register", *arguments]) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["similarity_after"] > 0.8
    assert values["warnings"] == []


@pytest.mark.filterwarnings("ignore:a level of the registration lost sight")  # of noise, a few voxels wide
@pytest.mark.parametrize("shape", [(5, 6), (9, 2), (4, 5, 3), (40, 30, 2)])
@pytest.mark.parametrize("model", ["diffeo", "symmetric", "ffd", "affine"])
def test_images_smaller_than_a_level_are_registered_all_the_same(tmp_path, shape, model):
    grid = Grid(shape, np.diag([2.0] * len(shape) + [1.0]))
    generator = torch.Generator().manual_seed(0)
    for name in ("fixed", "moving"):
        io.save_image(tmp_path / f"{name}.nii.gz", torch.rand(1, 1, *shape, generator=generator), grid)
    files = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")]
    assert cli.main(["register", *files, "-o", str(tmp_path / "out"), "--transform", model]) == 0
    ddf, _ = io.load_ddf(tmp_path / "out" / "ddf.nii.gz")
    assert bool(ddf.isfinite().all())


# -- a result that is not to be trusted -------------------------------------------------------------------------
def test_an_interrupt_writes_the_best_so_far_and_says_so(slices, tmp_path, capsys, monkeypatch):
    steps = []
    known = pipeline.SIMILARITIES["lncc"]

    def interrupted(warped, fixed, **masks):
        steps.append(len(warped))
        if len(steps) == 60:
            raise KeyboardInterrupt
        return known.loss(warped, fixed, **masks)

    monkeypatch.setitem(pipeline.SIMILARITIES, "lncc", replace(known, loss=interrupted))
    files = [slices["fixed"], slices["moving"]]
    status, lines = run(["register", *files, "-o", tmp_path / "out", "--no-affine", *labels_and_points(slices)], capsys)
    assert status == cli.INTERRUPTED
    assert [word in line for word, line in zip(("interrupted at level", "stopped"), lines, strict=True)] == [True, True]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["interrupted"] is True
    assert any("interrupted" in sentence for sentence in values["warnings"])
    assert values["tre_mm_after"] < values["tre_mm_before"]


def test_an_interrupt_before_there_is_a_result_leaves_nothing(slices, tmp_path, capsys, monkeypatch):
    def interrupted(*images, **masks):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "MUTUAL_INFORMATION", interrupted)
    status, lines = run(["register", slices["fixed"], slices["moving"], "-o", tmp_path / "out"], capsys)
    assert status == cli.INTERRUPTED
    assert len(lines) == 1
    assert "stopped" in lines[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_loss_that_becomes_nan_is_one_sentence(slices, tmp_path, capsys, monkeypatch):
    broken = replace(pipeline.SIMILARITIES["lncc"], loss=lambda warped, fixed, mask=None: warped.sum() * math.nan)
    monkeypatch.setitem(pipeline.SIMILARITIES, "lncc", broken)
    status, lines = run(["register", slices["fixed"], slices["moving"], "-o", tmp_path / "out"], capsys)
    assert (status, len(lines)) == (2, 1)
    assert "nan" in lines[0]
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.fixture
def astray(slices, tmp_path, monkeypatch):
    """`register`, after which every map is off by a large wave."""

    def wander(case, settings):
        grid = case.fixed_grid
        x = torch.arange(grid.shape[0], dtype=torch.float32)[:, None].expand(grid.shape)
        ddf = torch.stack([9 * torch.sin(x / 4), torch.zeros_like(x)])[None]
        model = Sequential(Affine(grid), DenseDisplacement(grid).with_values(displacement=ddf))
        warped = field.warp(case.moving, ddf, moving_grid=case.moving_grid, fixed_grid=grid)
        return Registration(model, ddf, warped, left_out=[4.0])

    monkeypatch.setattr(pipeline, "register_pair", wander)


@pytest.mark.usefixtures("astray")
def test_a_map_worse_than_the_headers_says_so(slices, tmp_path, capsys):
    files = [slices["fixed"], slices["moving"]]
    status, lines = run(["register", *files, "-o", tmp_path / "out", *labels_and_points(slices)], capsys)
    assert status == 0
    sentences = json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"]
    doubts = ("less alike than under the headers: lncc", "dice is worse", "tre_mm is worse", "the map folds in")
    for words in (*doubts, "level 4 lost sight of the moving image and is left out"):
        assert sum(words in sentence for sentence in sentences) == 1
        assert sum(words in line for line in lines) == 1


# -- bad input --------------------------------------------------------------------------------------------------
def save(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def image_faults(folder, good):
    """Name, words that the sentence must hold, and a file with that fault."""
    values = np.random.default_rng(0).random((9, 12, 7)).astype(np.float32)
    holes = values.copy()
    holes[2, 3, 4] = np.nan
    endless = values.copy()
    endless[0] = np.inf
    whole = good.read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii").write_text("this is no image\n" * 40)
    (folder / "empty.nii").write_bytes(b"")
    rgb = np.zeros((9, 12, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    header = nib.load(save(folder / "plain.nii", values)).header
    raw = bytearray((folder / "plain.nii").read_bytes())
    raw[252:256] = b"\0" * 4  # qform_code, sform_code
    raw[80:92] = b"\0" * 12  # pixdim 1 to 3
    (folder / "flat.nii").write_bytes(bytes(raw))
    singular = bytearray((folder / "plain.nii").read_bytes())
    singular[254:256] = (1).to_bytes(2, "little")
    singular[252:254] = b"\0\0"
    singular[280:296] = b"\0" * 16  # first row of the sform
    (folder / "singular.nii").write_bytes(bytes(singular))
    assert header["sform_code"] >= 0
    return {
        "missing": (("no such file",), folder / "absent.nii.gz"),
        "truncated": (("cut.nii.gz",), folder / "cut.nii.gz"),
        "text": (("text.nii",), folder / "text.nii"),
        "empty": (("empty.nii",), folder / "empty.nii"),
        "nan": (("NaN",), save(folder / "nan.nii.gz", holes)),
        "infinite": (("infinite",), save(folder / "inf.nii.gz", endless)),
        "4-D": (("4-D",), save(folder / "four.nii.gz", np.stack([values] * 3, -1))),
        "RGB": (("RGB",), save(folder / "rgb.nii.gz", rgb)),
        "zero-spacing": (("flat.nii",), folder / "flat.nii"),
        "singular": (("singular.nii",), folder / "singular.nii"),
        "constant": (("constant",), save(folder / "one.nii.gz", np.ones_like(values))),
        "2-D": (("2-D",), save(folder / "flat2.nii.gz", values[:, :, :1])),
    }


FAULTS = [
    "missing",
    "truncated",
    "text",
    "empty",
    "nan",
    "infinite",
    "4-D",
    "RGB",
    "zero-spacing",
    "singular",
    "constant",
    "2-D",
]


def run(arguments, capsys):
    """Status and the lines on stderr."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    return status, capsys.readouterr().err.strip().splitlines()


def assert_one_sentence(arguments, capsys, words, out):
    status, lines = run(arguments, capsys)
    assert status == 2
    assert len(lines) == 1, lines
    for word in words:
        assert word.lower() in lines[0].lower()
    assert not out.exists()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_bad_images_get_one_sentence_and_leave_nothing(brains, tmp_path, capsys, no_jaxtyping, fault, role):
    words, bad = image_faults(tmp_path, brains["fixed"])[fault]
    files = [bad, brains["moving"]] if role == "fixed" else [brains["fixed"], bad]
    out = tmp_path / "out"
    assert_one_sentence(["register", *files, "-o", out], capsys, words, out)
    if role == "moving" and fault not in ("constant",):
        ddf = io_identity(tmp_path, brains["fixed"])
        assert_one_sentence(["warp", bad, ddf, "-o", out / "w.nii.gz"], capsys, (), out)


def io_identity(folder, image):
    grid = Grid.from_nifti(nib.load(image))
    io.save_ddf(folder / "zero.nii.gz", field.identity_ddf(grid), grid)
    return folder / "zero.nii.gz"


def test_bad_labels_masks_and_points(brains, tmp_path, capsys, no_jaxtyping):
    shape, affine = nib.load(brains["fixed"]).shape, nib.load(brains["fixed"]).affine
    half = save(tmp_path / "half.nii.gz", np.full(shape, 0.5, np.float32), affine)
    elsewhere = save(tmp_path / "elsewhere.nii.gz", np.ones(shape, np.uint8), np.eye(4))
    nothing = save(tmp_path / "nothing.nii.gz", np.zeros(shape, np.uint8), affine)
    header = tmp_path / "header.csv"
    header.write_text("a,b,c\n1,2,3\n")
    out = tmp_path / "out"
    start = ["register", brains["fixed"], brains["moving"], "-o", out]
    both = ["--moving-labels", brains["moving_labels"], "--fixed-labels"]
    assert_one_sentence([*start, *both, half], capsys, ("whole",), out)
    assert_one_sentence([*start, *both, elsewhere], capsys, ("elsewhere.nii.gz", "grid"), out)
    assert_one_sentence([*start, "--fixed-mask", nothing], capsys, ("empty",), out)
    assert_one_sentence([*start, "--fixed-labels", brains["fixed_labels"]], capsys, ("together",), out)
    points = ["--fixed-points", header, "--moving-points", brains["moving_points"]]
    assert_one_sentence([*start, *points], capsys, ("x,y,z",), out)


def test_bad_fields(brains, tmp_path, capsys, no_jaxtyping):
    affine = nib.load(brains["fixed"]).affine
    shape = nib.load(brains["fixed"]).shape
    two = save(tmp_path / "two.nii.gz", np.zeros((*shape, 2), np.float32), affine)
    out = tmp_path / "out"
    files = [brains["fixed"], brains["moving"]]
    assert_one_sentence(["warp", brains["moving"], two, "-o", out / "w.nii.gz"], capsys, ("component",), out)
    assert_one_sentence(["evaluate", *files, two, "-o", out / "m.json"], capsys, ("component",), out)
    other = io_identity(tmp_path, brains["moving"])
    assert_one_sentence(["evaluate", *files, other, "-o", out / "m.json"], capsys, ("grid",), out)
    assert_one_sentence(["invert", two, "-o", out / "i.nii.gz"], capsys, ("component",), out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["register"],
        ["register", "a.nii.gz"],
        ["register", "a", "b", "-o", "c", "--transform", "magic"],
        ["register", "a", "b", "-o", "c", "--threads", "0"],
        ["register", "a", "b", "-o", "c", "--no-such-option"],
        ["warp", "a", "b"],
        ["no-such-command"],
    ],
)
def test_usage_errors_are_one_line(arguments, capsys):
    status, lines = run(arguments, capsys)
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("reglib: ")


def test_an_output_folder_that_cannot_be_written(brains, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    status, lines = run(["register", brains["fixed"], brains["moving"], "-o", tmp_path / "file" / "out"], capsys)
    assert (status, len(lines)) == (2, 1)
    assert "file" in lines[0]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_qform_unlike_the_sform_is_a_warning_that_names_the_one_used(brains, tmp_path, capsys):
    image = nib.load(brains["fixed"])
    other = image.affine.copy()
    other[:3, 3] += 30
    image.set_qform(other, code=1)
    image.set_sform(image.affine, code=1)
    nib.save(image, tmp_path / "two_minds.nii.gz")
    ddf = io_identity(tmp_path, brains["fixed"])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, lines = run(["warp", tmp_path / "two_minds.nii.gz", ddf, "-o", tmp_path / "w.nii.gz"], capsys)
    assert status == 0
    assert len(lines) == 1
    assert "warning" in lines[0]
    assert "sform" in lines[0]


# -- doctor -----------------------------------------------------------------------------------------------------
def test_doctor_statuses(brains, tmp_path, capsys):
    assert cli.main(["doctor", str(brains["fixed"]), str(brains["moving"])]) == 0
    assert "fixed.nii.gz" in capsys.readouterr().out
    bad = save(tmp_path / "nan.nii.gz", np.full((9, 12, 7), np.nan, np.float32))
    assert cli.main(["doctor", str(bad)]) == 1
    assert "NaN" in capsys.readouterr().out
    status, lines = run(["doctor", tmp_path / "absent.nii"], capsys)
    assert (status, len(lines)) == (2, 1)


def test_a_gzip_of_text_is_named(tmp_path, capsys, brains):
    path = tmp_path / "notes.nii.gz"
    path.write_bytes(gzip.compress(b"only words " * 50))
    status, lines = run(["register", path, brains["moving"], "-o", tmp_path / "out"], capsys)
    assert (status, len(lines)) == (2, 1)
    assert "notes.nii.gz" in lines[0]
