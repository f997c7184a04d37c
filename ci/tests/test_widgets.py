"""Views: every state of every control draws, drawing is pure, and what is drawn is what the state asks for."""

import copy

import numpy as np
import pytest
import torch
from helpers import SHAPES, apply, blob, oblique, smooth_ddf, smooth_image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from test_plot import ALIGNED, GRIDS, LIA, in_plane_mm, planted, shift_ddf

from reglib import field, plot, widgets
from reglib.grid import Grid, GridMismatchError
from reglib.plot import canvas, planes
from reglib.widgets import Click, Slider

PLAIN = Grid((24, 18), np.diag([1.0, 1.0, 1.0]))
UPRIGHT = {2: GRIDS["aligned 2-D"], 3: GRIDS["aligned 3-D"]}


def build(name, grid):
    """A view on small random images; with every option that adds a control or a panel."""
    image, other = smooth_image(grid.shape).abs(), smooth_image(grid.shape, seed=1).abs()
    ddf = smooth_ddf(grid.shape, largest=1.5)
    return {
        "slice_viewer": lambda: widgets.slice_viewer(image, grid, (other > 1).long()),
        "blend": lambda: widgets.blend(image, other, grid, smooth_image(grid.shape, seed=2)),
        "field_editor": lambda: widgets.field_editor(image, grid),
        "warp_amount": lambda: widgets.warp_amount(image, ddf, grid, other),
        "warp_amount of a velocity": lambda: widgets.warp_amount(image, ddf, grid, velocity=True),
        "pull_push": lambda: widgets.pull_push(image, ddf, grid),
        "voxel_finder": lambda: widgets.voxel_finder(image, grid),
    }[name]()


VIEWS = (
    "slice_viewer",
    "blend",
    "field_editor",
    "warp_amount",
    "warp_amount of a velocity",
    "pull_push",
    "voxel_finder",
)


def start(controls):
    return {name: control.value for name, control in controls.items()}


def draw(figure):
    drawing = FigureCanvasAgg(figure)
    drawing.draw()
    return np.asarray(drawing.buffer_rgba()).copy()


def values(figure, panel=0, which=0):
    return np.asarray(figure.axes[panel].images[which].get_array())


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def arrow(panel):
    """Foot and move of the one arrow on a panel, (x, y, dx, dy) mm."""
    (found,) = (c for c in panel.collections if isinstance(c, Quiver))
    assert (found.angles, found.scale_units, found.scale) == ("xy", "xy", 1)
    return tuple(float(part[0]) for part in (found.X, found.Y, found.U, found.V))


@pytest.mark.parametrize("name", ["oblique 2-D", "LIA 3-D", "oblique 3-D"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws(view, name):
    render, controls = build(view, GRIDS[name])
    for control_name, control in controls.items():
        for value in control.states():
            draw(render(start(controls) | {control_name: value}))


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    render, controls = build(view, GRIDS["LIA 3-D"])
    state = start(controls)
    kept = copy.deepcopy(state)
    first = draw(render(state))
    for name, control in controls.items():
        render(state | {name: control.states()[0]})
    assert state == kept
    np.testing.assert_array_equal(draw(render(state)), first)


@pytest.mark.parametrize("view", VIEWS)
def test_controls_carry_their_unit_and_pictures_do_not_jump(view):
    render, controls = build(view, GRIDS["oblique 3-D"])
    for name, control in controls.items():
        if isinstance(control, Slider):
            assert name.endswith("_mm") == (control.unit == "mm")
            sizes = {tuple(render(start(controls) | {name: v}).get_size_inches()) for v in control.states()}
            assert len(sizes) == 1


@pytest.mark.parametrize("view", ["field_editor", "pull_push", "voxel_finder"])
@pytest.mark.parametrize("name", ["oblique 2-D", "LIA 3-D"])
def test_a_click_lands_on_the_first_panel(view, name):
    render, controls = build(view, GRIDS[name])
    click = next(control for control in controls.values() if isinstance(control, Click))
    panel = render(start(controls)).axes[0]
    for point in click.states():
        assert panel.get_xlim()[0] < point[0] < panel.get_xlim()[1]
        assert panel.get_ylim()[0] < point[1] < panel.get_ylim()[1]


@pytest.mark.parametrize("view", VIEWS)
def test_images_must_be_on_the_grid(view, no_jaxtyping):
    grid = GRIDS["LIA 3-D"]
    image, ddf = smooth_image((5, 6, 7)), smooth_ddf((5, 6, 7), largest=1.0)
    calls = {
        "slice_viewer": lambda: widgets.slice_viewer(image, grid),
        "blend": lambda: widgets.blend(smooth_image(grid.shape), image, grid),
        "field_editor": lambda: widgets.field_editor(image, grid),
        "warp_amount": lambda: widgets.warp_amount(smooth_image(grid.shape), ddf, grid),
        "warp_amount of a velocity": lambda: widgets.warp_amount(image, ddf, grid, velocity=True),
        "pull_push": lambda: widgets.pull_push(smooth_image(grid.shape), ddf, grid),
        "voxel_finder": lambda: widgets.voxel_finder(image, grid),
    }
    with pytest.raises(GridMismatchError, match="as its grid"):
        calls[view]()


# -- slice_viewer ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GRIDS)
def test_sliders_run_over_the_voxel_centers(name):
    grid = GRIDS[name]
    _, controls = widgets.slice_viewer(smooth_image(grid.shape), grid)
    assert list(controls) == ["x_mm", "y_mm", "z_mm"][: grid.dim]
    for k, slider in enumerate(controls.values()):
        axis = planes.frame_of(grid).axes[k]
        assert slider.step == pytest.approx(grid.spacing[axis])
        assert slider.high - slider.low == pytest.approx((grid.shape[axis] - 1) * grid.spacing[axis])


@pytest.mark.parametrize("matrix", [ALIGNED[3], LIA], ids=["aligned", "LIA"])
def test_the_viewer_goes_where_the_sliders_say(matrix):
    grid, voxel = Grid(SHAPES[3], matrix), (1, 8, 2)
    render, controls = widgets.slice_viewer(planted(grid, voxel), grid)
    world = apply(matrix, voxel)
    figure = render(dict(zip(controls, world.tolist(), strict=True)))
    assert [values(figure, k).max() for k in range(3)] == [1.0, 1.0, 1.0]
    assert [values(render(start(controls) | {"x_mm": float(world[0])}), 2).max()] == [1.0]
    step = 1.6 if world[0] < grid.center[0] else -1.6
    away = dict(zip(controls, world.tolist(), strict=True)) | {"x_mm": float(world[0]) + step}
    assert [values(render(away), k).max() for k in range(3)] == [1.0, 1.0, 0.0]


def test_the_viewer_keeps_one_window():
    grid = GRIDS["oblique 3-D"]
    image = smooth_image(grid.shape)
    render, controls = widgets.slice_viewer(image, grid)
    norms = {
        (axes.images[0].norm.vmin, axes.images[0].norm.vmax)
        for z in controls["z_mm"].states()
        for axes in render(start(controls) | {"z_mm": z}).axes
    }
    assert norms == {plot.window(image)}


# -- blend -----------------------------------------------------------------------------------------------------
def test_fading_goes_from_fixed_to_warped():
    grid = GRIDS["oblique 2-D"]
    fixed, warped = planted(grid, (3, 4)), planted(grid, (9, 7))
    render, controls = widgets.blend(fixed, warped, grid)
    at = planes.plane_of(fixed, grid)
    for fade, color, image in ((0.0, plot.FIXED_COLOR, fixed), (1.0, plot.WARPED_COLOR, warped)):
        light = values(render(start(controls) | {"fade": fade}))
        (found,) = {to_hex(c) for c in light.reshape(-1, 3) if c.sum() > 0}
        assert found == color
        np.testing.assert_array_equal(light.sum(-1) > 0, at.cut(image) > 0)
        gray = values(render(start(controls) | {"mode": "fade", "fade": fade}))
        np.testing.assert_allclose(gray, at.cut(image), atol=1e-6)


def test_the_difference_is_signed_and_has_a_bar():
    grid = GRIDS["oblique 2-D"]
    fixed, warped = planted(grid, (3, 4)), planted(grid, (9, 7))
    render, controls = widgets.blend(fixed, warped, grid)
    figure = render(start(controls) | {"mode": "difference"})
    at = planes.plane_of(fixed, grid)
    np.testing.assert_allclose(values(figure), at.cut(warped) - at.cut(fixed), atol=1e-6)
    norm = figure.axes[0].images[0].norm
    assert norm(0.0) == 0.5
    assert "window" in figure.axes[1].get_ylabel()


def test_before_is_the_moving_image_in_the_window_of_warped():
    grid = GRIDS["LIA 3-D"]
    warped = smooth_image(grid.shape, seed=1)
    before = warped.clamp(max=0.3)
    render, controls = widgets.blend(smooth_image(grid.shape), warped, grid, before)
    state = start(controls) | {"mode": "fade", "fade": 1.0}
    after, early = values(render(state)), values(render(state | {"before": True}))
    at = planes.plane_of(warped, grid)
    kept = at.cut(warped) <= 0.3
    np.testing.assert_array_equal(after[kept], early[kept])
    assert (after[~kept] > early[~kept]).all()
    assert "moving" in words(render(state | {"before": True}))


def test_the_blend_moves_through_slices_in_mm():
    grid = Grid(SHAPES[3], LIA)
    render, controls = widgets.blend(planted(grid, (4, 2, 3)), planted(grid, (4, 2, 3)), grid)
    state = start(controls)
    assert values(render(state | {"z_mm": float(apply(LIA, (4, 2, 3))[2])})).max() == 1.0
    assert values(render(state | {"z_mm": float(apply(LIA, (4, 3, 3))[2])})).max() == 0.0


# -- warp_amount -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["oblique 2-D", "LIA 3-D", "oblique 3-D"])
@pytest.mark.parametrize("amount", [0.0, 0.5, 1.5])
def test_the_slice_is_that_of_the_whole_warped_image(name, amount):
    grid = GRIDS[name]
    moving, ddf = smooth_image(grid.shape), smooth_ddf(grid.shape, largest=2.0)
    render, controls = widgets.warp_amount(moving, ddf, grid)
    whole = field.warp(moving, amount * ddf)
    for plane in planes.PLANE_NAMES if grid.dim == 3 else ("axial",):
        at = planes.plane_of(moving, grid, name=plane)
        figure = render(start(controls) | {"amount": amount} | ({"plane": plane} if grid.dim == 3 else {}))
        np.testing.assert_allclose(values(figure), at.cut(whole), atol=1e-5)
        assert f"×{amount:.2f}" in figure.axes[0].get_title()
        lattice, *_ = (c for c in figure.axes[1].collections)
        expected = at.nodes(amount * ddf)
        segments = lattice.get_segments()
        assert min(np.abs(expected.reshape(2, -1).T - p).sum(1).min() for p in segments[0]) < 1e-4


def test_a_velocity_is_followed():
    grid = GRIDS["oblique 2-D"]
    moving, velocity = smooth_image(grid.shape), smooth_ddf(grid.shape, largest=2.0)
    render, _ = widgets.warp_amount(moving, velocity, grid, velocity=True)
    expected = planes.plane_of(moving, grid).cut(field.warp(moving, field.exponential(1.5 * velocity)))
    np.testing.assert_allclose(values(render({"amount": 1.5})), expected, atol=1e-5)


# -- field_editor ----------------------------------------------------------------------------------------------
def test_the_picture_shows_at_the_arrows_foot_what_was_at_its_tip():
    image = blob(PLAIN.shape, (15, 9), 1.5)
    render, controls = widgets.field_editor(image, PLAIN)
    state = start(controls) | {"point": (12.0, 7.0), "dx_mm": 3.0, "dy_mm": 2.0, "radius_mm": 4.0}
    figure = render(state)
    warped = values(figure)  # (y, x), 1 mm a voxel from 0
    assert warped[7, 12] == pytest.approx(1.0, abs=1e-5)
    for panel in figure.axes:
        assert arrow(panel) == pytest.approx((12, 7, 3, 2))


def test_pushing_further_than_the_radius_allows_folds():
    render, controls = widgets.field_editor(smooth_image(PLAIN.shape), PLAIN)
    state = start(controls) | {"dx_mm": 4.0, "dy_mm": 0.0}
    for radius, folds in ((4.0, False), (1.5, True)):  # folds above 4 / 1.65 = 2.4
        figure = render(state | {"radius_mm": radius})
        cells = [c for c in figure.axes[1].collections if isinstance(c, PolyCollection) and not isinstance(c, Quiver)]
        assert bool(cells) == folds
        note = next(text for text in figure.axes[1].texts if "Jacobian" in text.get_text())
        assert (to_hex(note.get_color()) == plot.FOLD_COLOR) == folds
        assert ("−" in note.get_text()) == folds


def test_no_push_changes_nothing():
    image = smooth_image(PLAIN.shape)
    render, controls = widgets.field_editor(image, PLAIN)
    figure = render(start(controls) | {"dx_mm": 0.0, "dy_mm": 0.0})
    np.testing.assert_allclose(values(figure), image[0, 0].T, atol=1e-6)
    assert "Jacobian ≥ 1.00" in words(figure)


@pytest.mark.parametrize("name", ["LIA 3-D", "oblique 3-D"])
def test_the_editor_works_in_mm_on_any_grid(name):
    grid = GRIDS[name]
    image = smooth_image(grid.shape)
    render, controls = widgets.field_editor(image, grid)
    at = planes.plane_of(image, grid)
    (x, y), (dx, dy) = at.centers, at.spacing
    state = {"point": (float(x[3]), float(y[2])), "dx_mm": dx, "dy_mm": 2 * dy, "radius_mm": 2.0}
    assert set(state) == set(controls)
    np.testing.assert_allclose(values(render(state))[2, 3], at.cut(image)[4, 4], atol=1e-4)


# -- pull_push -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["flipped 2-D", "LIA 3-D", "oblique 3-D"])
def test_the_arrow_points_to_where_a_voxel_is_read(name):
    grid = GRIDS[name]
    moves = [1.0, -2.0, 0.0] if name == "flipped 2-D" else [1.0, 1.0, -2.0]
    ddf = shift_ddf(grid, moves[: grid.dim])
    image = smooth_image(grid.shape)
    render, controls = widgets.pull_push(image, ddf, grid)
    figure = render(start(controls))
    expected = (*controls["point"].value, *in_plane_mm(grid, moves, "axial"))
    assert arrow(figure.axes[1]) == pytest.approx(expected, abs=1e-4)


def test_a_whole_shift_leaves_no_holes_and_both_ways_agree():
    grid, image = UPRIGHT[2], smooth_image(SHAPES[2])
    render, controls = widgets.pull_push(image, shift_ddf(grid, (2.0, -1.0)), grid)
    figure = render(start(controls))
    assert {"holes 0%", "overlaps 0%"} <= set(words(figure))
    pulled, pushed = values(figure, 0), values(figure, 2)
    np.testing.assert_allclose(pulled[1:, :-2], pushed[1:, :-2], atol=1e-5)  # the rest is read outside


@pytest.mark.parametrize(("factor", "name", "other"), [(-0.3, "holes", "overlaps"), (0.3, "overlaps", "holes")])
def test_stretching_leaves_holes_and_shrinking_overlaps(factor, name, other):
    grid = PLAIN
    offset = grid.coordinates() - torch.tensor([(n - 1) / 2 for n in grid.shape])
    ddf = (factor * offset).movedim(-1, 0)[None]  # fixed reads a smaller part of moving: it is stretched
    image = torch.ones(1, 1, *grid.shape)
    figure = widgets.pull_push(image, ddf, grid)[0]({"point": (4.0, 4.0)})
    share, absent = (int(w.split()[1].rstrip("%")) for key in (name, other) for w in words(figure) if w.startswith(key))
    assert share > 15
    assert absent < 5
    flagged = values(figure, 2, which=1 if name == "holes" else 2)
    assert to_hex(flagged[flagged[..., 3] > 0][0][:3]) == widgets.PUSHED[name]
    assert (flagged[..., 3] > 0).mean() == pytest.approx(share / 100, abs=0.01)


# -- voxel_finder ----------------------------------------------------------------------------------------------
def test_the_finder_names_the_point_in_every_system():
    grid = Grid(SHAPES[3], LIA)
    voxel = np.array([2.25, 4.0, 3.5])
    world = apply(LIA, voxel)
    image = planted(grid, (2, 4, 4), 0.625)
    render, controls = widgets.voxel_finder(image, grid)
    state = {"point": (float(world[0]), float(world[1])), "z_mm": float(world[2])}
    assert set(state) == set(controls)
    found = [w.replace("−", "-") for w in words(render(state))]
    cube = 2 * (voxel + 0.5) / SHAPES[3] - 1
    corners = 2 * voxel / (np.array(SHAPES[3]) - 1) - 1
    for numbers, digits in ((voxel, 2), (world, 1), (cube, 3), (corners, 3)):
        assert f"({', '.join(f'{x + 0.0:.{digits}f}' for x in numbers)})" in found
    assert "(2, 4, 4)" in found
    assert "0.625" in found


def test_the_finder_counts_voxels_as_the_tensor_does():
    grid = Grid(SHAPES[3], LIA)  # axis 0 runs to the left, axis 2 to the front
    render, controls = widgets.voxel_finder(smooth_image(grid.shape), grid)
    world = apply(LIA, (2, 4, 3))
    close = render(start(controls) | {"point": (float(world[0]), float(world[1]))}).axes[1]
    for labels, places, axis, line in (
        (close.get_xticklabels(), close.get_xticks(), 0, 0),
        (close.get_yticklabels(), close.get_yticks(), 2, 1),
    ):
        for label, place in zip(labels, places, strict=True):
            assert apply(LIA, np.eye(3)[axis] * int(label.get_text()))[line] == pytest.approx(place, abs=1e-4)
    assert close.get_xlabel() == "axis 0 [voxel]"
    assert close.get_ylabel() == "axis 2 [voxel]"


@pytest.mark.parametrize("name", ["oblique 2-D", "oblique 3-D"])
def test_the_finder_is_right_on_oblique_grids(name):
    grid = GRIDS[name]
    voxel = [2, 4, 3][: grid.dim]
    render, controls = widgets.voxel_finder(planted(grid, voxel, 0.625), grid)
    mm = planes.frame_of(grid).mm(voxel)
    state = {"point": mm[:2]} | ({"z_mm": mm[2]} if grid.dim == 3 else {})
    found = [w.replace("−", "-") for w in words(render(state))]
    world = apply(oblique(grid.dim), voxel)
    assert f"({', '.join(f'{x:.1f}' for x in world)})" in found
    assert "0.625" in found
    assert len(controls) == grid.dim - 1


def test_labels_of_the_pushed_are_not_loud():
    assert canvas.FOLD_COLOR not in widgets.PUSHED.values()
