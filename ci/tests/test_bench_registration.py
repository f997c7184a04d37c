"""The benchmark of registrations: units of fields, what a method's process may do, the table; no time is asserted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, SHAPES, affine, apply, largest, oblique, rotation, sentence, sitk_warp, smooth_image, voxels

from bench import peers
from bench import registration as bench
from reglib import field, io, phantoms
from reglib.grid import Grid
from reglib.pipeline import Case

LIMITS = bench.Limits(timeout_s=60.0, threads=1)


def case_of(pair):
    points = pair.truth.fixed_points, pair.truth.moving_points
    images = pair.fixed, pair.moving, pair.fixed_grid, pair.moving_grid
    return Case(*images, pair.fixed_labels, pair.moving_labels, *points, None, None, ())


@pytest.fixture(scope="module")
def brains():
    """Two oblique, anisotropic brains on grids of their own, as (case, truth)."""
    pair = phantoms.brain_cohort(2, seed=3, shape=(36, 44, 34), spacing=5.0, oblique=True).pair()
    return case_of(pair), pair.truth


@pytest.fixture
def inputs(brains, tmp_path):
    return bench.write_inputs(brains[0], tmp_path / "inputs")


def empty_case(matrix=None, shape=SHAPES[3]):
    grid = Grid(shape, oblique(3) if matrix is None else matrix)
    image = smooth_image(shape)
    return Case(image, image, grid, grid, *[None] * 6, ())


# -- units ---------------------------------------------------------------------------------------------------------
MOVED = affine(rotation((4.0, -3.0, 6.0)), [1.5, -2.0, 0.7])  # fixed world to moving world, RAS mm


@pytest.mark.parametrize("unit", ["lps_mm", "ras_mm", "voxel"])
def test_a_known_map_in_each_unit_becomes_its_ddf(unit):
    case = empty_case()
    world = apply(oblique(3), voxels(SHAPES[3]))
    move = apply(MOVED, world) - world
    array = {"ras_mm": move, "lps_mm": move @ LPS[3], "voxel": move @ np.linalg.inv(oblique(3)[:3, :3]).T}[unit]
    ddf = bench.convert(array.astype(np.float32), unit, case)
    expected = field.affine_ddf(torch.from_numpy(MOVED), case.fixed_grid)
    torch.testing.assert_close(ddf, expected, atol=1e-5, rtol=0)


def test_a_field_that_cannot_be_one_is_refused():
    case = empty_case()
    good = np.zeros((*SHAPES[3], 3))
    with sentence(ValueError, "(9, 12, 7, 3)", "(3, 9, 12, 7)"):
        bench.convert(np.moveaxis(good, -1, 0), "voxel", case)
    with sentence(ValueError, "NaN"):
        bench.convert(good + np.nan, "voxel", case)
    with sentence(ValueError, "lps_mm", "cube"):
        bench.convert(good, "cube", case)


def test_two_transforms_of_simpleitk_become_what_simpleitk_resamples():
    """The last one is applied to a fixed point first; judged by SimpleITK itself on an oblique grid."""
    shape, matrix = (18, 15, 12), oblique(3)
    case = empty_case(matrix, shape)
    fixed = case.fixed_grid.to_sitk(case.fixed[0, 0])
    linear = sitk.AffineTransform(3)
    linear.SetMatrix(rotation((5.0, 2.0, -4.0)).ravel().tolist())
    linear.SetTranslation((1.0, -0.5, 2.0))
    spline = sitk.BSplineTransformInitializer(fixed, [2, 2, 2])
    count = len(spline.GetParameters())
    spline.SetParameters((2 * np.random.default_rng(0).standard_normal(count)).tolist())
    unit, array = peers._sitk_field(sitk, fixed, [linear, spline])
    ddf = bench.convert(array, unit, case)
    total = sitk.Resample(fixed, fixed, sitk.CompositeTransform([sitk.Transform(linear), sitk.Transform(spline)]))
    theirs = np.transpose(sitk.GetArrayFromImage(total), (2, 1, 0))
    ours = field.warp(case.moving, ddf)[0, 0].numpy()
    inside = field.valid_mask(ddf)[0, 0].numpy() & (theirs != 0)
    assert inside.mean() > 0.3
    assert np.quantile(np.abs(ours - theirs)[inside], 0.95) < 1e-4
    again = sitk_warp(case.moving[0, 0].numpy(), matrix, ddf[0].numpy().astype(float), matrix, sitk.sitkLinear)
    assert np.quantile(np.abs(again - theirs)[inside], 0.95) < 1e-4


# -- the tools -----------------------------------------------------------------------------------------------------
def test_simpleitk_registers_oblique_brains_in_our_units(brains, inputs, tmp_path):
    """The real tool: a sign or an axis that is wrong would move landmarks away."""
    case, _ = brains
    start = bench.measure(case, torch.zeros(1, 3, *case.fixed_grid.shape))
    clock = peers.Clock()
    unit, array = peers.PEERS["sitk-demons"].run(inputs, tmp_path, clock)
    found = bench.measure(case, bench.convert(array, unit, case))
    assert clock.seconds > 0
    assert start["tre_mm"] > 4
    assert found["tre_mm"] < 0.7 * start["tre_mm"]
    assert found["dice"] > start["dice"]


SHIFT = np.array([3.0, -5.0, 2.0])  # RAS mm, fixed to moving, that every false tool finds


def false_itk(shape):
    parameters = SimpleNamespace(GetDefaultParameterMap=lambda name: name, AddParameterMap=lambda found: None)
    return {
        "itk": SimpleNamespace(
            F=float,
            imread=lambda path, kind: Path(path).name,
            ParameterObject=SimpleNamespace(New=lambda: parameters),
            elastix_registration_method=lambda fixed, moving, **options: (None, "found"),
            transformix_deformation_field=lambda moving, found, **options: found,
            array_from_image=lambda found: np.broadcast_to(SHIFT @ LPS[3], (*reversed(shape), 3)),
        )
    }


def false_dipy(shape):
    def linear(moving, static, *, moving_affine, static_affine):
        return moving, np.eye(4)

    def syn(moving, static, *, moving_affine, static_affine, prealign):
        return moving, SimpleNamespace(transform_points=lambda points: points + SHIFT)

    return {"dipy.align": SimpleNamespace(affine_registration=linear, syn_registration=syn)}


def false_convex_adam(shape):
    def find(fixed, moving):
        assert fixed.shape == moving.shape == shape
        return np.zeros((*shape, 3)) + 1.5

    return {"convexAdam.convex_adam_MIND": SimpleNamespace(convex_adam_pt=find)}


def false_fireants(shape):
    class Stage:
        def __init__(self, *given, **options):
            pass

        def optimize(self):
            pass

        def get_affine_matrix(self):
            return torch.eye(4)

        def save_as_ants_transforms(self, path):
            array = np.broadcast_to(SHIFT @ LPS[3], (*reversed(shape), 3))
            sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=True), path)

    images = SimpleNamespace(Image=SimpleNamespace(load_file=lambda path, device: path), BatchedImages=list)
    return {
        "fireants.io": images,
        "fireants.registration.affine": SimpleNamespace(AffineRegistration=Stage),
        "fireants.registration.greedy": SimpleNamespace(GreedyRegistration=Stage),
    }


FALSE = {"elastix": false_itk, "dipy": false_dipy, "convexadam": false_convex_adam, "fireants": false_fireants}


@pytest.mark.parametrize("name", FALSE)
def test_what_a_tool_finds_keeps_its_direction(name, brains, inputs, tmp_path, monkeypatch):
    """False tools that all find one known shift, in the form in which the real ones give it."""
    case, _ = brains
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for module, false in FALSE[name](case.fixed_grid.shape).items():
        monkeypatch.setitem(sys.modules, module, false)
    unit, array = peers.PEERS[name].run(inputs, tmp_path, peers.Clock())
    ddf = bench.convert(np.asarray(array), unit, case)
    if name == "convexadam":
        expected = torch.full_like(ddf, 1.5)
    else:
        expected = field.affine_ddf(torch.from_numpy(affine(np.eye(3), SHIFT)), case.fixed_grid)
    torch.testing.assert_close(ddf, expected, atol=1e-4, rtol=0)


def test_a_tool_that_does_not_load_says_why(tmp_path):
    (tmp_path / "dipy").mkdir()
    (tmp_path / "dipy" / "__init__.py").write_text("raise ImportError('built for another numpy')\n")
    method = bench.peer_method("dipy", [str(tmp_path)])
    assert method.absent == "not installed: ImportError: built for another numpy"
    row = bench.run_method(method, empty_case(), tmp_path, pair="a", limits=LIMITS)
    assert row == bench.Row("dipy", "a", note=method.absent)


# -- a method's process --------------------------------------------------------------------------------------------
GOOD = """
import json, sys
import numpy as np
from pathlib import Path
inputs, out = map(Path, sys.argv[1:])
assert sorted(p.name for p in inputs.glob("*.nii.gz")) == ["fixed.nii.gz", "moving.nii.gz", "moving_on_fixed.nii.gz"]
np.save(out / "field.npy", np.load(inputs / "given.npy"))
(out / "outcome.json").write_text(json.dumps({"unit": "voxel", "seconds": 0.25}))
"""


def false_method(folder, code, name="false"):
    """A method whose program is a few lines."""
    program = folder / f"{name}.py"
    program.write_text(code)
    command = lambda inputs, out: [sys.executable, str(program), str(inputs), str(out)]  # noqa: E731
    return bench.Method(name, name.title(), "none", command, bench.read_peer)


def test_a_good_method_is_measured(brains, inputs, tmp_path):
    case, truth = brains
    np.save(inputs / "given.npy", truth.ddf[0].movedim(0, -1).numpy())
    row = bench.run_method(false_method(tmp_path, GOOD), case, inputs, pair="a", limits=LIMITS)
    assert row.note == ""
    assert (row.method, row.pair, row.alone_s, row.folded_percent) == ("false", "a", 0.25, 0)
    assert row.whole_s > 0
    assert row.tre_mm < 0.1
    start = bench.measure(case, torch.zeros_like(truth.ddf))
    assert start["tre_mm"] > 4
    assert row.dice > start["dice"] + 0.2
    assert row.hd95_mm < start["hd95_mm"]


def test_peak_memory_is_the_childs_own(brains, inputs, tmp_path):
    """This process holds torch and more than either child."""
    case, truth = brains
    np.save(inputs / "given.npy", truth.ddf[0].movedim(0, -1).numpy())
    peaks = []
    for name, extra in (("small", ""), ("large", "kept = np.ones(25_000_000)\n")):  # 200 MB
        row = bench.run_method(false_method(tmp_path, GOOD + extra, name), case, inputs, pair="a", limits=LIMITS)
        peaks.append(row.peak_mb)
    assert peaks[0] < 120
    assert 180 < peaks[1] - peaks[0] < 220


BAD = {
    "raises": (
        "raise RuntimeError('the metric diverged')",
        "failed: RuntimeError: the metric diverged (exit status 1)",
    ),
    "silent": ("import os; os._exit(3)", "failed: no word (exit status 3)"),
    "nothing": ("", "failed: its result cannot be used"),
    "NaN": (GOOD.replace('np.load(inputs / "given.npy")', 'np.load(inputs / "given.npy") * np.nan'), "NaN or infinity"),
    "turned": (GOOD.replace('np.load(inputs / "given.npy")', 'np.load(inputs / "given.npy").T'), "the field must be"),
    "address": ("raise SystemExit('Metric(0x55e1dd948b40): no overlap')", "failed: Metric: no overlap (exit status 1)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_method_is_a_stated_row(kind, brains, inputs, tmp_path):
    case, truth = brains
    np.save(inputs / "given.npy", truth.ddf[0].movedim(0, -1).numpy())
    code, words = BAD[kind]
    row = bench.run_method(false_method(tmp_path, code), case, inputs, pair="a", limits=LIMITS)
    assert words in row.note
    assert "\n" not in row.note
    assert row.dice is row.tre_mm is row.alone_s is None


def test_a_slow_method_is_stopped_with_its_children_and_not_tried_again(tmp_path):
    """Its child would write a file when it is not stopped too."""
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(late)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    methods = [false_method(tmp_path, code, "slow"), false_method(tmp_path, "raise SystemExit('no')", "other")]
    cases = iter([("a", empty_case()), ("b", empty_case())])
    rows = list(bench.run_all(cases, methods, bench.Limits(1.0, 1), work=tmp_path / "work"))
    notes = {(row.pair, row.method): row.note for row in rows}
    assert notes["a", "slow"] == "timed out after 1 s"
    assert notes["b", "slow"] == "not tried: timed out on an earlier pair"
    assert notes["b", "other"] == notes["a", "other"] == "failed: no (exit status 1)"
    assert notes["a", "headers"] == ""
    assert not late.exists()


def test_our_own_command_line_is_a_method(brains, inputs):
    case, _ = brains
    row = bench.run_method(bench.own_method("fast", 1), case, inputs, pair="a", limits=LIMITS)
    start = bench.measure(case, torch.zeros(1, 3, *case.fixed_grid.shape))
    assert row.note == ""
    assert row.tre_mm < 0.6 * start["tre_mm"]
    assert row.folded_percent == 0
    assert 0 < row.alone_s < row.whole_s


def test_a_process_gets_its_own_packages_and_threads(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert "PYTHONPATH" not in bench.environment([], 2)
    found = bench.environment(["a", "b"], 2)
    assert found["PYTHONPATH"].split(bench.os.pathsep) == ["a", "b"]
    assert {found[name] for name in bench.THREADS} == {"2"}


# -- pairs ---------------------------------------------------------------------------------------------------------
def test_the_cohort_is_a_ring_of_strongly_deformed_pairs():
    cases = list(bench.cohort_cases(3, shape=(16, 18, 14), spacing=12.0))
    assert [name for name, _ in cases] == ["brains 0-1", "brains 1-2", "brains 2-0"]
    assert torch.equal(cases[0][1].moving, cases[1][1].fixed)
    assert torch.equal(cases[2][1].moving, cases[0][1].fixed)
    for _, case in cases:
        assert bench.measure(case, torch.zeros(1, 3, 16, 18, 14))["tre_mm"] > 8


def test_pairs_from_files_have_labels_and_no_landmarks(brains, tmp_path):
    case, _ = brains
    paths = [tmp_path / f"{name}.nii.gz" for name in ("f", "m", "fl", "ml")]
    for path, image, grid in zip(
        paths[:2], (case.fixed, case.moving), (case.fixed_grid, case.moving_grid), strict=True
    ):
        io.save_image(path, image, grid)
    for path, labels, grid in zip(
        paths[2:], (case.fixed_labels, case.moving_labels), (case.fixed_grid, case.moving_grid), strict=True
    ):
        io.save_labels(path, labels, grid)
    ((name, read),) = bench.file_cases(*[[path] for path in paths])
    assert name == "f.nii.gz m.nii.gz"
    assert read.fixed_grid == case.fixed_grid
    found = bench.measure(read, torch.zeros(1, 3, *case.fixed_grid.shape))
    assert found["dice"] == bench.measure(case, torch.zeros(1, 3, *case.fixed_grid.shape))["dice"]
    assert "tre_mm" not in found
    ((_, bare),) = bench.file_cases([paths[0]], [paths[1]], [], [])
    assert sorted(bench.measure(bare, torch.zeros(1, 3, *case.fixed_grid.shape))) == [
        "folded_percent",
        "std_log_jacobian",
    ]
    with sentence(ValueError, "as many files", "1, 1, 1 and 0"):
        next(bench.file_cases([paths[0]], [paths[1]], [paths[2]], []))
    flat = tmp_path / "flat.nii.gz"
    io.save_image(flat, smooth_image((9, 8)), Grid((9, 8)))
    with sentence(ValueError, "2-D", "flat"):
        next(bench.file_cases([flat], [flat], [], []))


def test_moving_on_the_fixed_grid_is_in_the_inputs(brains, inputs):
    case, _ = brains
    image, grid = io.load_image(inputs / peers.MOVING_ON_FIXED)
    assert grid == case.fixed_grid
    expected = field.resample(case.moving, case.moving_grid, case.fixed_grid)
    assert largest(image, expected) < 1e-3


# -- the table -----------------------------------------------------------------------------------------------------
ROWS = [
    bench.Row("headers", "a", dice=0.4, hd95_mm=9.0, folded_percent=0.0, std_log_jacobian=0.0),
    bench.Row("good", "a", 0.6, 5.0, None, 0.0, 0.2, 10.0, 8.0, 100.0),
    bench.Row("good", "b", 0.8, 3.0, None, 1.0, 0.4, 30.0, 9.0, 300.0),
    bench.Row("good", "c", 0.7, 4.0, None, 0.5, 0.3, 20.0, 10.0, 200.0),
    bench.Row("weak", "a", note="failed: a | b (exit status 1)"),
    bench.Row("weak", "b", 0.5, float("nan"), None, 0.0, 0.2, 5.0, None, 90.0),
    bench.Row("absent", "a", note="not installed: no"),
    bench.Row("absent", "b", note="not installed: no"),
]


def test_the_table_has_medians_and_every_reason():
    found = {each.method: each for each in bench.summarize(ROWS, {"good": "Good tool"})}
    assert list(found) == ["headers", "good", "weak", "absent"]
    medians = found["good"].medians
    assert (medians["dice"], medians["whole_s"], medians["peak_mb"], medians["tre_mm"]) == (0.7, 20.0, 200.0, None)
    assert (found["weak"].worked, found["weak"].pairs) == (1, 2)
    assert found["weak"].medians["hd95_mm"] is None
    assert found["absent"].note == "not installed: no"
    lines = bench.table(list(found.values()))
    assert lines[0] == "| method | pairs | Dice | HD95 mm | folded % | SD log J | s whole | s alone | peak MB | note |"
    assert "| Good tool | 3 of 3 | 0.700 | 4.00 | 0.5 | 0.30 | 20.0 | 9.0 | 200 |  |" in lines
    assert "| weak | 1 of 2 | 0.500 |  | 0 | 0.20 | 5.0 |  | 90 | failed: a / b (exit status 1) |" in lines
    assert {line.count("|") for line in lines} == {11}


def test_results_are_written(tmp_path):
    methods = [bench.Method("good", "Good tool", "its defaults", list, list, version="1.2")]
    bench.write(tmp_path / "new", ROWS, methods, {"threads": "2", "pairs": "3 pairs"})
    stored = json.loads((tmp_path / "new" / "registration.json").read_text())
    assert len(stored["rows"]) == len(ROWS)
    assert stored["versions"] == {"good": "1.2"}
    assert stored["medians"]["good"]["dice"] == 0.7
    text = (tmp_path / "new" / "registration.md").read_text()
    assert "- Good tool 1.2: its defaults" in text
    assert "threads 2" in text
    assert (tmp_path / "new" / "registration.png").stat().st_size > 5000


# -- the program ---------------------------------------------------------------------------------------------------
def test_quick_and_full_differ_and_what_is_given_stands():
    full, quick = bench.parse([]), bench.parse(["--quick", "--pairs", "1", "--shape", "20", "22", "24"])
    assert (full.pairs, full.threads, len(full.only)) == (8, 2, 2 + len(peers.PEERS))
    assert (quick.pairs, quick.shape, quick.spacing) == (1, [20, 22, 24], 4.0)
    assert quick.timeout < full.timeout
    with pytest.raises(SystemExit):
        bench.parse(["--only", "nobody"])


def test_folders_are_for_one_tool_or_for_all(monkeypatch):
    monkeypatch.setenv("REGLIB_PEERS", bench.os.pathsep.join(["every", "dipy=d2"]))
    assert bench.peer_folders(["ants=a", "dipy=d1"], "dipy") == ["d1", "d2", "every"]
    assert bench.peer_folders(["ants=a", "dipy=d1"], "deepali") == ["every"]


def test_files_that_do_not_fit_are_one_line_and_status_2(tmp_path, capsys):
    rest = ["--threads", "1", "-o", str(tmp_path)]
    assert bench.main(["--fixed", "a.nii.gz", "--moving", "b.nii.gz", "c.nii.gz", *rest]) == 2
    assert bench.main(["--fixed", "a.nii.gz", "--moving", "b.nii.gz", *rest]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "got 1, 2, 0 and 0" in lines[0]
    assert "a.nii.gz" in lines[1]
    assert list(tmp_path.iterdir()) == []


FALSE_ANTS = """
import numpy, nibabel

class Image:
    def __init__(self, path):
        self.path = path
    def numpy(self):
        shape = nibabel.load(self.path).shape
        return numpy.broadcast_to([-3.0, 5.0, 2.0], (*shape, 3))

def image_read(path):
    return Image(path)

def registration(fixed, moving, type_of_transform):
    assert type_of_transform == "SyN"
    return {"fwdtransforms": [fixed.path]}

def apply_transforms(fixed, moving, transformlist, compose):
    return transformlist[0]
"""


def test_the_whole_program_with_a_false_tool(tmp_path, capsys):
    """A package of our making in place of ANTsPy: found by its folder, run, measured, written."""
    package = tmp_path / "packages"
    (package / "antspyx-9.9.dist-info").mkdir(parents=True)
    (package / "antspyx-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: antspyx\nVersion: 9.9\n")
    (package / "ants.py").write_text(FALSE_ANTS)
    out = tmp_path / "out"
    size = ["--pairs", "2", "--shape", "16", "18", "14", "--spacing", "12", "--threads", "1"]
    assert bench.main(["--only", "ants", *size, "--peer-path", f"ants={package}", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "| ANTsPy SyN | 2 of 2 |" in shown
    stored = json.loads((out / "registration.json").read_text())
    assert stored["versions"] == {"ants": "9.9"}
    for (pair, case), row in zip(
        bench.cohort_cases(2, shape=(16, 18, 14), spacing=12.0), stored["rows"][1::2], strict=True
    ):
        moved = case.fixed_points[0].numpy() + SHIFT
        error = np.linalg.norm(moved - case.moving_points[0].numpy(), axis=-1).mean()
        assert row["pair"] == pair
        assert row["tre_mm"] == pytest.approx(error, abs=1e-3)
        assert row["note"] == ""
    stored["rows"].append({**stored["rows"][1], "method": "fast", "dice": 0.123})
    stored["settings"]["fast"], stored["versions"]["fast"] = "as it was", "0.0.1"
    (out / "registration.json").write_text(json.dumps(stored))
    words = ["--only", "ants", "--renew", "--peer-path", f"ants={package}", "-o", str(out)]
    assert bench.main([*words, *size]) == 0
    renewed = json.loads((out / "registration.json").read_text())
    assert [row["method"] for row in renewed["rows"]] == ["headers"] * 2 + ["fast"] + ["ants"] * 2
    assert renewed["medians"]["fast"]["dice"] == 0.123
    assert renewed["versions"] == {"ants": "9.9", "fast": "0.0.1"}
    text = (out / "registration.md").read_text()
    assert "renewed on " in text
    assert "reglib fast 0.0.1: as it was" in text
    assert bench.main([*words, "--pairs", "1", *size[2:]]) == 2
    assert "--renew needs the pairs of" in capsys.readouterr().err
