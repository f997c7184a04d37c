"""The workbook's calls in every mode, and the sentences a reader meets."""

import io
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from PIL import Image

from reglib import explorer, workbook
from reglib.widgets import Choice, Click, Slider, Toggle

START = {"profile": "smoke", "seed": 0, "device": "cpu", "out": "out"}


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A folder without pyproject.toml, no run yet, and no variables from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workbook, "_runs", [])
    for name in ("REGLIB_WIDGETS", "REGLIB_EXERCISES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """What notebooks would display: a list of (data, metadata)."""
    published = []
    shell = InteractiveShell.instance()
    monkeypatch.setattr(
        shell.display_pub, "publish", lambda data, metadata=None, **_: published.append((data, metadata))
    )
    yield published
    InteractiveShell.clear_instance()


def line(state):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, state.get("height_mm", 1)])
    return figure


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


# -- start ----------------------------------------------------------------------------------------------------
def test_a_folder_of_the_readers_own(reader):
    assert workbook.start(**START).folder is None
    (reader / "scans").mkdir()
    run = workbook.start(**START, folder="scans")
    assert run.folder == Path("scans")
    (reader / "file").touch()
    for name, words in (("file", "is a file"), ("nowhere", "is not there")):
        with pytest.raises(ValueError, match=f"FOLDER must be the folder of a data set.*{name} {words}"):
            workbook.start(**START, folder=name)


def test_start_prints_one_constant_line_and_makes_its_folder(reader, capsys):
    run = workbook.start(**START)
    assert capsys.readouterr().out == "workbook ready: profile smoke, seed 0, cpu\n"
    assert (run.profile, run.seed, run.device, run.own_data) == ("smoke", 0, torch.device("cpu"), False)
    assert run.out == Path("out")
    assert run.out.resolve() == (reader / "out").resolve()
    assert json.loads((reader / "out" / "checks.json").read_text()) == []
    assert run.scale(smoke=1, lite=2, full=3) == 1


def test_start_seeds_python_numpy_and_torch():
    import random

    def draw():
        workbook.start(**START)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    assert draw() == draw()


def test_relative_paths_start_at_the_folder_of_pyproject(reader, monkeypatch):
    (reader / "project" / "notebooks").mkdir(parents=True)
    (reader / "project" / "pyproject.toml").touch()
    monkeypatch.chdir(reader / "project" / "notebooks")
    run = workbook.start(**START)
    assert str(run.out) == str(Path("..", "out"))  # so that a printed path names no machine
    assert run.out.resolve() == (reader / "project" / "out").resolve()
    assert workbook.start(**START | {"out": str(reader / "else")}).out == reader / "else"


def test_start_forgets_the_checks_of_an_earlier_run(reader):
    workbook.start(**START)
    workbook.check("one", 1, equals=1)
    workbook.start(**START)
    assert json.loads((reader / "out" / "checks.json").read_text()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"profile": "light"}, "PROFILE must be smoke, lite or full; got 'light'."),
        ({"device": "gpu"}, "DEVICE must be auto, cpu or cuda; got 'gpu'."),
        ({"data": "brian"}, "data must be brain; got 'brian'."),
        ({"fixed": "a.nii.gz"}, "FIXED is given but MOVING is empty. Name both images, or neither"),
        ({"moving": "a.nii.gz"}, "MOVING is given but FIXED is empty."),
    ],
)
def test_start_refuses_in_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        workbook.start(**START | change)


def test_start_without_a_gpu_refuses_cuda_and_auto_takes_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU here"):
        workbook.start(**START | {"device": "cuda"})
    workbook.start(**START | {"device": "auto"})
    assert capsys.readouterr().out.endswith("seed 0, cpu\n")


def test_start_refuses_an_out_dir_that_is_a_file(reader):
    (reader / "out").touch()
    with pytest.raises(ValueError, match="OUT_DIR must be a folder that can be written; got out: "):
        workbook.start(**START)


def test_the_bundled_pair_is_made_when_it_is_first_asked_for(monkeypatch):
    from reglib import phantoms

    made = []
    cohort = phantoms.brain_cohort(2, shape=(12, 9), spacing=16.0)
    monkeypatch.setattr(phantoms, "brain_cohort", lambda n, **options: made.append(options) or cohort)
    run = workbook.start(**START | {"seed": 7})
    assert made == []
    pair = cohort.pair()
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        assert torch.equal(getattr(run, name), getattr(pair, name))
    assert (run.grid, run.moving_grid) == (pair.fixed_grid, pair.moving_grid)
    assert torch.equal(run.truth.ddf, pair.truth.ddf)
    assert made == [{"seed": 7, "shape": (32, 32, 32), "spacing": 6.0}]


def save(path, shape, *, scale=1.0, channels=()):
    rng = np.random.default_rng(0)
    data = (100 + scale * rng.random((*shape, *channels))).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([0.8, 1.0, 2.5, 1.0])), path)
    return str(path)


def test_own_images_come_with_the_doctors_report_and_are_scaled(reader, capsys):
    fixed, moving = save(reader / "a.nii.gz", (9, 12, 7)), save(reader / "b.nii.gz", (8, 10, 6), scale=50)
    run = workbook.start(**START, fixed="a.nii.gz", moving=moving)
    printed = capsys.readouterr().out
    assert "a.nii.gz" in printed
    assert "b.nii.gz" in printed
    assert printed.endswith("workbook ready: profile smoke, seed 0, cpu\n")
    assert run.own_data
    assert (tuple(run.fixed.shape), tuple(run.moving.shape)) == ((1, 1, 9, 12, 7), (1, 1, 8, 10, 6))
    for image in (run.fixed, run.moving):
        assert (image.min(), image.max()) == (0, 1)
    assert run.grid.spacing == pytest.approx((0.8, 1.0, 2.5))
    assert run.moving_grid.shape == (8, 10, 6)
    assert (run.fixed_labels, run.moving_labels, run.truth) == (None, None, None)
    assert fixed.endswith("a.nii.gz")


def test_a_slice_and_a_volume_are_refused(reader):
    save(reader / "a.nii.gz", (9, 12, 7))
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(reader / "b.png")
    with pytest.raises(ValueError, match=r"FIXED and MOVING must have the same rank; got 3-D .* and 2-D"):
        workbook.start(**START, fixed="a.nii.gz", moving="b.png")


def test_a_constant_image_does_not_divide_by_zero(reader):
    save(reader / "a.nii.gz", (9, 12, 7), scale=0)
    save(reader / "b.nii.gz", (9, 12, 7))
    run = workbook.start(**START, fixed="a.nii.gz", moving="b.nii.gz")
    assert run.fixed.abs().max() == 0


def test_versions_name_what_was_used(capsys):
    run = workbook.start(**START)
    capsys.readouterr()
    run.versions()
    printed = capsys.readouterr().out
    assert f"python {sys.version.split()[0]}" in printed
    assert f"torch {torch.__version__.split('+')[0]}" in printed


# -- check and expect -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (0.5, {"below": 1.0}),
        (2, {"above": 1}),
        (torch.tensor(0.5), {"within": (0.5, 1)}),
        (np.float32(0.1), {"equals": 0.1}),
        (3, {"equals": 3.0}),
        ("RAS", {"equals": "RAS"}),
        (torch.tensor([1.0, 2.0]), {"equals": (1, 2)}),
        ((9, 12, 7), {"equals": torch.Size([9, 12, 7])}),
        (True, {"equals": True}),
        ([[1], "a"], {"equals": [[1], "a"]}),
    ],
)
def test_check_passes(reader, capsys, value, bound):
    workbook.start(**START)
    capsys.readouterr()
    workbook.check("name", value, **bound)
    assert capsys.readouterr().out == "PASS name\n"
    (entry,) = json.loads((reader / "out" / "checks.json").read_text())
    assert entry["name"] == "name"
    assert entry["passed"] is True
    assert entry["bound"].startswith(next(iter(bound)))


@pytest.mark.parametrize(
    ("value", "bound", "sentence"),
    [
        (3.21987, {"below": 1.0}, "tre_mm is 3.22, but should be below 1.0. Hint: look at the units"),
        (1, {"above": 1}, "tre_mm is 1, but should be above 1."),
        (5, {"within": (1, 2)}, r"tre_mm is 5, but should be within [1, 2]."),
        (float("nan"), {"below": 1.0}, "tre_mm is nan, but should be below 1.0."),
        (float("nan"), {"equals": float("nan")}, "tre_mm is nan, but should be equal to nan."),
        ("LIA", {"equals": "RAS"}, "tre_mm is 'LIA', but should be equal to RAS."),
        ([1, 2], {"equals": [1, 2, 3]}, "tre_mm is [1, 2], but should be equal to [1, 2, 3]."),
        ("1", {"equals": 1.0}, "tre_mm is '1', but should be equal to 1.0."),
    ],
)
def test_check_fails_with_value_bound_and_hint(reader, capsys, value, bound, sentence):
    workbook.start(**START)
    capsys.readouterr()
    with pytest.raises(workbook.CheckFailed) as caught:
        workbook.check("tre_mm", value, **bound, hint="look at the units" if "Hint" in sentence else "")
    assert str(caught.value) == sentence
    assert isinstance(caught.value, AssertionError)
    assert capsys.readouterr().out == ""
    (entry,) = json.loads((reader / "out" / "checks.json").read_text())
    assert entry["passed"] is False


def test_a_check_that_is_run_again_replaces_itself(reader):
    workbook.start(**START)
    with pytest.raises(workbook.CheckFailed):
        workbook.check("a", 2, below=1)
    workbook.check("b", 0, below=1)
    workbook.check("a", 0, below=1)
    entries = json.loads((reader / "out" / "checks.json").read_text())
    assert [(e["name"], e["passed"]) for e in entries] == [("b", True), ("a", True)]
    assert [p.name for p in (reader / "out").iterdir()] == ["checks.json"]


def test_check_wants_one_bound_and_one_number():
    workbook.start(**START)
    with pytest.raises(TypeError, match="check 'a' needs one of below, above, within, equals; got none"):
        workbook.check("a", 1)
    with pytest.raises(TypeError, match="got below, above"):
        workbook.check("a", 1, below=2, above=0)
    with pytest.raises(TypeError, match=r"check 'a' needs one number for below; got \[1, 2\]"):
        workbook.check("a", torch.tensor([1, 2]), below=2)


def test_check_before_start_says_so():
    with pytest.raises(RuntimeError, match=r"call run = workbook\.start\(\.\.\.\) first"):
        workbook.check("a", 1, equals=1)


def test_expect_prints_the_sentence_of_the_error(capsys):
    workbook.expect(lambda: [][1], IndexError)
    assert capsys.readouterr().out == "IndexError: list index out of range\n"


def test_expect_fails_for_another_error_and_for_none():
    with pytest.raises(workbook.CheckFailed, match=r"got IndexError: list index .* Hint: use a dict"):
        workbook.expect(lambda: [][1], KeyError, hint="use a dict")
    with pytest.raises(workbook.CheckFailed, match=r"expected KeyError, but nothing was raised\.$"):
        workbook.expect(lambda: 1, KeyError)


# -- exercise -------------------------------------------------------------------------------------------------
def stub(x):
    raise NotImplementedError


def double(x):
    return 2 * x


def asserts(function):
    assert function(2) == 4, "two and two"


def test_a_stub_prints_its_hint_and_run_all_goes_on(capsys):
    workbook.exercise("double", stub, lambda f: f(2) == 4, hint="add it to itself")
    assert capsys.readouterr().out == "TODO double: add it to itself\n"


def test_a_stub_is_an_error_in_strict_mode(monkeypatch):
    monkeypatch.setenv("REGLIB_EXERCISES", "strict")
    with pytest.raises(workbook.CheckFailed, match=r"exercise double is not solved yet\. Hint: add it to itself"):
        workbook.exercise("double", stub, lambda f: f(2) == 4, hint="add it to itself")


@pytest.mark.parametrize("check", [lambda f: f(2) == 4, lambda f: torch.tensor(f(2) == 4), asserts])
def test_a_solution_passes(capsys, check):
    workbook.exercise("double", double, check, hint="")
    assert capsys.readouterr().out == "PASS exercise double\n"


def raises_type_error(x):
    raise TypeError("no number")


def asks_torch(x):
    return torch_cannot()


def torch_cannot():
    raise NotImplementedError("not implemented for 'Half'")


@pytest.mark.parametrize(
    ("function", "check", "sentence"),
    [
        (lambda x: x, lambda f: f(2) == 4, "exercise double: the result is not right yet. Hint: add"),
        (lambda x: x, asserts, "exercise double: AssertionError: two and two"),
        (raises_type_error, lambda f: f(2) == 4, "exercise double: TypeError: no number Hint: add"),
        (asks_torch, lambda f: f(2) == 4, "exercise double: NotImplementedError: not implemented for 'Half'"),
    ],
)
def test_a_wrong_solution_always_raises(function, check, sentence):
    with pytest.raises(workbook.CheckFailed) as caught:
        workbook.exercise("double", function, check, hint="add")
    assert str(caught.value).startswith(sentence)


# -- show -----------------------------------------------------------------------------------------------------
def test_show_displays_saves_and_describes(reader, shown):
    workbook.start(**START)
    workbook.show(line({}), "A line: it rises.")
    (data, metadata), (below, _) = shown
    assert metadata == {"image/png": {"alt": "A line: it rises."}}
    assert data["text/plain"] == "A line: it rises."
    assert below["text/markdown"] == "*A line: it rises.*"
    with Image.open(reader / "out" / "figures" / "a_line_it_rises.png") as image:
        assert (image.size, image.mode) == ((300, 200), "P")


def test_show_keeps_the_size_whatever_matplotlib_was_told(shown):
    import matplotlib

    workbook.start(**START)
    with matplotlib.rc_context({"savefig.bbox": "tight", "savefig.dpi": 37}):
        workbook.show(line({}), "A line.")
    assert explorer.draw(line({})).size == (300, 200)


def test_a_figure_of_pyplot_is_closed(shown):
    import matplotlib.pyplot as plt

    workbook.start(**START)
    figure, _ = plt.subplots()
    workbook.show(figure, "")
    assert plt.get_fignums() == []


# -- explore --------------------------------------------------------------------------------------------------
CONTROLS = {
    "height_mm": Slider(0.0, 2.0, 1.0, unit="mm"),
    "count": Slider(1, 5, 2),
    "style": Choice(("solid", "dashed"), "solid"),
    "grid": Toggle(),
    "point": Click((0.0, 0.0), (1.0, 2.0), (0.5, 1.0)),
}


def test_states_of_the_controls():
    assert [control.states() for control in CONTROLS.values()] == [
        [0.0, 1.0, 2.0],
        [1, 2, 5],
        ["solid", "dashed"],
        [False, True],
        [(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)],
    ]
    assert Slider(0, 1, 0).states() == [0, 1]


@pytest.mark.parametrize(
    "make",
    [lambda: Slider(0, 1, 2), lambda: Choice((1, 2), 3), lambda: Click((0, 0), (1, 1), (0, 2))],
)
def test_a_control_starts_inside_its_range(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_sweep_visits_every_end_and_prints_how_many(monkeypatch, capsys, shown):
    monkeypatch.setenv("REGLIB_WIDGETS", "sweep")
    visited = []
    workbook.explore(lambda state: visited.append(state) or line(state), CONTROLS)
    assert capsys.readouterr().out == "PASS explored 9 states\n"
    swept = visited[:9]
    start = {name: control.value for name, control in CONTROLS.items()}
    assert swept[0] == start
    assert [{k: v for k, v in state.items() if v != start[k]} for state in swept[1:]] == [
        {"height_mm": 0.0},
        {"height_mm": 2.0},
        {"count": 1},
        {"count": 5},
        {"style": "dashed"},
        {"grid": True},
        {"point": (0.0, 0.0)},
        {"point": (1.0, 2.0)},
    ]
    assert "image/png" in shown[0][0]  # the strip, for the gallery


def test_sweep_raises_what_a_state_raises_and_says_which(monkeypatch, shown):
    monkeypatch.setenv("REGLIB_WIDGETS", "sweep")

    def breaks(state):
        return line(state) if state["count"] < 5 else 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        workbook.explore(breaks, {"count": Slider(1, 5, 2)})
    assert caught.value.__notes__ == ["while drawing the state {'count': 5}"]


def test_static_draws_a_strip_of_three_with_words(monkeypatch, shown, capsys):
    monkeypatch.setenv("REGLIB_WIDGETS", "static")
    drawn = []
    workbook.explore(lambda state: drawn.append(state) or line(state), CONTROLS, caption="Heights.")
    assert [state["height_mm"] for state in drawn] == [0.0, 1.0, 2.0]
    assert capsys.readouterr().out == ""
    (data, metadata), _ = shown
    assert metadata == {"image/png": {"alt": "Heights."}}
    import base64

    strip = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert strip.mode == "P"
    assert strip.size == (300, 3 * (200 + explorer.LABEL_PIXELS))  # wide figures stand below each other


def test_static_puts_narrow_pictures_side_by_side_and_limits_their_width(monkeypatch):
    def square(state):
        return Figure(figsize=(6, 6), facecolor=("red", "lime", "blue")[state["k"]])

    controls = {"k": Slider(0, 2, 1)}
    strip = pixels(explorer._strip(square, controls, [{"k": 0}, {"k": 1}, {"k": 2}]))
    assert strip.shape == (367 + explorer.LABEL_PIXELS, 3 * 367, 3)
    row = strip[200]
    assert [tuple(row[x]) for x in (180, 550, 920)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert len(np.unique(strip[: explorer.LABEL_PIXELS].reshape(-1, 3), axis=0)) > 1  # words above


def test_static_states_may_be_chosen(monkeypatch, shown):
    monkeypatch.setenv("REGLIB_WIDGETS", "static")
    drawn = []
    workbook.explore(
        lambda s: drawn.append(s) or line(s), CONTROLS, [{"point": (0.2, 0.3)}, {"grid": True, "count": 3}]
    )
    assert [(s["point"], s["grid"], s["count"]) for s in drawn] == [((0.2, 0.3), False, 2), ((0.5, 1.0), True, 3)]


def test_explore_refuses_in_one_sentence(monkeypatch, shown):
    with pytest.raises(ValueError, match="explore needs a control; got none"):
        workbook.explore(line, {})
    with pytest.raises(ValueError, match=r"static names \['hight'\], but the controls are \['height'\]"):
        workbook.explore(line, {"height": Toggle()}, [{"hight": 1}])
    monkeypatch.setenv("REGLIB_WIDGETS", "lively")
    with pytest.raises(ValueError, match="REGLIB_WIDGETS must be live, sweep or static; got 'lively'"):
        workbook.explore(line, {"height": Toggle()})
    monkeypatch.setenv("REGLIB_WIDGETS", "static")
    with pytest.raises(TypeError, match="render must return a matplotlib Figure; got NoneType"):
        workbook.explore(lambda state: None, {"height": Toggle()})


def test_names_are_read_with_their_unit():
    assert explorer.describe("tilt_rad", Slider(0, 1, 0, unit="rad")) == "tilt [rad]"
    assert explorer.describe("slice_index", Slider(0, 1, 0)) == "slice index"
    assert explorer._words("tilt_rad", Slider(0, 1, 0, unit="rad"), 0.5) == "tilt: 0.5 rad"
    assert explorer._words("point", Click((0, 0), (1, 1), (0, 0)), (1, 0.25)) == "point: (1, 0.25)"
    assert explorer.describe("point_mm", Click((0, 0), (1, 1), (0, 0))) == "point mm"


# -- live -----------------------------------------------------------------------------------------------------
def test_live_shows_a_widget_and_a_picture_for_pages_without_a_kernel(shown):
    drawn = []
    workbook.explore(lambda state: drawn.append(state) or line(state), CONTROLS)
    assert len(drawn) == 1
    ((data, _),) = shown
    assert set(data) == {"text/plain", "application/vnd.jupyter.widget-view+json", "image/png"}


def test_live_redraws_when_a_control_moves():
    live = explorer.Explorer(line, {"height_mm": CONTROLS["height_mm"]}, "low < high")
    assert "reglib-explore" in live.box._dom_classes
    assert live.box.children[-1].value == "<em>low &lt; high</em>"
    before = live.picture.value
    live.inputs["height_mm"][0].value = 2.0
    assert live.picture.value != before
    assert np.array_equal(pixels(live.picture.value), np.asarray(explorer.draw(line({"height_mm": 2.0}))))


def test_live_shows_an_error_as_a_sentence_and_recovers():
    def breaks(state):
        return line(state) if state["count"] < 5 else {}["<b>"]

    live = explorer.Explorer(breaks, {"count": Slider(1, 5, 2)}, "")
    before = live.picture.value
    live.inputs["count"][0].value = 5
    assert "KeyError: &#x27;&lt;b&gt;&#x27;" in live.message.value
    assert live.picture.value == before
    live.inputs["count"][0].value = 1
    assert live.message.value == ""


def test_an_error_in_the_first_live_picture_reaches_the_cell():
    with pytest.raises(ZeroDivisionError):
        explorer.Explorer(lambda state: 1 / 0, {"count": Slider(1, 5, 2)}, "")


def test_each_control_has_its_widget():
    live = explorer.Explorer(line, CONTROLS | {"many": Choice(tuple("abcdef"), "a")}, "")
    kinds = {name: [type(part).__name__ for part in parts] for name, parts in live.inputs.items()}
    assert kinds == {
        "height_mm": ["FloatSlider"],
        "count": ["IntSlider"],
        "style": ["ToggleButtons"],
        "grid": ["Checkbox"],
        "point": ["FloatSlider", "FloatSlider"],
        "many": ["Dropdown"],
    }
    described = [part.description for parts in live.inputs.values() for part in parts]
    assert described == ["height [mm]", "count", "style", "grid", "point x", "point y", "many"]
    assert (live.inputs["height_mm"][0].step, live.inputs["height_mm"][0].readout_format) == (0.02, ".2f")


def test_steps_are_round():
    steps = [explorer._round_step(step) for step in (0.08, 0.02, 0.1, 3.0, 10, 0.0055, 0)]
    assert steps == pytest.approx([0.05, 0.02, 0.1, 2.0, 10, 0.005, 0.01])


def picture_with_axes(state):
    figure = Figure(figsize=(4, 3), dpi=50)
    axes = figure.add_axes((0.25, 0.25, 0.5, 0.5))
    axes.set(xlim=(0, 10), ylim=(6, 0))  # an image's axes: y grows downwards
    axes.plot(*state["point"], "o")
    return figure


def test_a_click_becomes_data_coordinates():
    figure = picture_with_axes({"point": (1, 1)})
    explorer.draw(figure)
    # The axes cover pixels 50 to 150 across and 37.5 to 112.5 down of 200 by 150.
    assert explorer.data_point(figure, 99.5, 74.5) == pytest.approx((5.0, 3.0), abs=0.05)
    assert explorer.data_point(figure, 59.5, 49.5) == pytest.approx((1.0, 1.0), abs=0.05)
    assert explorer.data_point(figure, 10, 10) is None


def test_a_click_moves_the_point_once_and_stays_in_its_box():
    drawn = []
    controls = {"point": Click((0, 0), (10, 2), (5, 1))}
    live = explorer.Explorer(lambda state: drawn.append(state["point"]) or picture_with_axes(state), controls, "")
    live.clicked({"dataX": 59, "dataY": 49})
    assert len(drawn) == 2
    assert drawn[-1] == pytest.approx((0.95, 1.0), abs=0.1)
    live.clicked({"dataX": 99, "dataY": 74})  # y = 3, above the box
    assert drawn[-1] == pytest.approx((5.0, 2.0), abs=0.1)
    live.clicked({"dataX": 1, "dataY": 1})
    assert len(drawn) == 3
    live.inputs["point"][1].value = 0.5
    assert drawn[-1][1] == 0.5


# -- stored pictures ------------------------------------------------------------------------------------------
def test_stored_pictures_keep_gray_gray_and_thin_lines_their_color():
    rng = np.random.default_rng(0)
    picture = np.repeat(rng.integers(0, 256, (200, 300, 1), dtype=np.uint8), 3, axis=2)
    lines = {10: (255, 204, 0), 50: (25, 195, 255), 90: (255, 92, 154), 130: (255, 0, 255)}
    for row, color in lines.items():
        picture[row, :40] = color
    stored = pixels(explorer.encode(Image.fromarray(picture), colors=explorer.PALETTE)).astype(int)
    gray = np.ptp(picture.astype(int), axis=-1) == 0
    assert np.ptp(stored[gray], axis=-1).max() == 0
    assert np.abs(stored - picture).max() < 4
    smooth = np.indices((256, 256, 3))[0].astype(np.uint8)
    assert np.abs(pixels(explorer.encode(Image.fromarray(smooth), colors=128)).astype(int) - smooth).max() <= 1
