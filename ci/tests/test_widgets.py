"""Views: every state of every control draws, drawing is pure, and what is drawn is what the state asks for."""

import copy

import numpy as np
import pytest
import torch
from helpers import SHAPES, apply, blob, oblique, smooth_ddf, smooth_image
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from test_plot import ALIGNED, GRIDS, LIA, in_plane_mm, planted, shift_ddf
from viewing import draw, require_pure, start

from reglib import field, plot, widgets
from reglib.grid import Grid, GridMismatchError
from reglib.phantoms import letter_f
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
    require_pure(*build(view, GRIDS["LIA 3-D"]))


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
        note = figure.axes[1].title
        assert "Jacobian" in note.get_text()
        assert (to_hex(note.get_color()) == plot.FOLD_COLOR) == folds
        assert ("−" in note.get_text()) == folds


def test_no_push_changes_nothing():
    image = smooth_image(PLAIN.shape)
    render, controls = widgets.field_editor(image, PLAIN)
    figure = render(start(controls) | {"dx_mm": 0.0, "dy_mm": 0.0})
    np.testing.assert_allclose(values(figure), image[0, 0].T, atol=1e-6)
    assert figure.axes[1].get_title() == "Jacobian ≥ 1.00"


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


# -- rulers, and grids in the world ------------------------------------------------------------------------------
LETTER = letter_f((16, 16))
RULERS = {
    "axis_ruler": widgets.axis_ruler,
    "half_voxel": widgets.half_voxel,
    "resize_ruler": widgets.resize_ruler,
    "storage_puzzle": lambda: widgets.storage_puzzle(LETTER, Grid.centered((16, 16), 2.0), {"A": "PL", "B": "RA"}),
}


def bright_voxels(panel):
    """Where the voxels above 0 are drawn and what they hold, (k, 3): x, y, value."""
    (mesh,) = (c for c in panel.collections if isinstance(c, QuadMesh))
    corners, held = mesh.get_coordinates(), np.asarray(mesh.get_array())
    centers = (corners[1:, 1:] + corners[:-1, 1:] + corners[1:, :-1] + corners[:-1, :-1]) / 4
    found = np.concatenate([centers[held > 0], held[held > 0][:, None]], axis=1)
    return found[np.lexsort(found.round(3).T)]


@pytest.mark.parametrize("name", RULERS)
def test_every_state_of_every_ruler_draws_the_same_twice(name):
    render, controls = RULERS[name]()
    for control_name, control in controls.items():
        for value in control.states():
            state = start(controls) | {control_name: value}
            before = copy.deepcopy(state)
            np.testing.assert_array_equal(draw(render(state)), draw(render(state)))
            assert state == before


def test_the_ruler_reads_the_place_in_every_system():
    render, _ = widgets.axis_ruler(length_mm=40.0)  # five voxels of 8 mm, centers at -16, -8, 0, 8, 16
    assert {"2.50", "4.00", "0.20", "0.25"} <= set(words(render({"voxels": 5, "place_mm": 4.0})))
    assert {"−0.50", "−20.00", "−1.00", "−2.00"} <= set(words(render({"voxels": 2, "place_mm": -20.0})))


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("formula", widgets.NORMALIZED)
def test_asked_and_read_are_those_of_grid_sample(formula, align_corners, n):
    render, _ = widgets.half_voxel()
    figure = render({"formula": formula, "align_corners": align_corners, "voxels": n})
    asked, read = (np.asarray(line.get_xdata()) for line in figure.axes[0].lines[-2:])
    np.testing.assert_allclose(asked, np.arange(n))
    unit = widgets.NORMALIZED[formula](torch.arange(n, dtype=torch.float64), n)
    ramp = torch.arange(-3.0, n + 3, dtype=torch.float64)  # so wide that nothing is read beyond its ends
    # The place that unit means on n voxels, on the wider ramp: scale about the middle, which both share.
    scale = (n - 1) / (n + 5) if align_corners else n / (n + 6)
    places = torch.stack([torch.zeros_like(unit), unit * scale], dim=-1)[None, None]
    got = torch.nn.functional.grid_sample(ramp[None, None, :, None], places, align_corners=align_corners)
    np.testing.assert_allclose(read, got.flatten().numpy(), atol=1e-9)
    right = (formula, align_corners) in (("2x/(n-1) - 1", True), ("(2x+1)/n - 1", False))
    assert (figure.axes[0].get_title() == "reads where you ask") == right


def test_the_resize_ruler_keeps_the_centers_that_stay():
    render, controls = widgets.resize_ruler(voxels=9, spacing=4.0)
    figure = render({"voxels": 5, "spacing_mm": 5.0})
    yours, resized, resampled = (np.asarray(line.get_xdata()) for line in figure.axes[0].lines[:3])
    np.testing.assert_allclose(yours, 4.0 * np.arange(9))
    np.testing.assert_allclose(resized, [0, 8, 16, 24, 32])
    np.testing.assert_allclose(resampled, 5.0 * np.arange(8))
    assert {"9 × 4 mm", "5 × 8 mm", "8 × 5 mm"} <= set(words(figure))
    for state in (start(controls) | {name: value} for name in controls for value in controls[name].states()):
        panel = render(state).axes[0]
        for box in panel.patches:  # every voxel is in the picture, whatever the state
            assert panel.get_xlim()[0] <= box.get_x()
            assert box.get_x() + box.get_width() <= panel.get_xlim()[1]


@pytest.mark.parametrize("name", ["aligned 2-D", "flipped 2-D", "oblique 2-D"])
def test_voxels_are_drawn_where_their_grid_puts_them(name):
    grid = GRIDS[name]
    image = smooth_image(grid.shape)
    figure = widgets.in_world({"array": (image, None), "world": (image, grid)}, truth=(image, grid))
    draw(figure)
    index = np.argwhere(image[0, 0].numpy() > 0)
    expected = np.column_stack([apply(grid.world_from_voxel.numpy(), index), image[0, 0].numpy()[tuple(index.T)]])
    np.testing.assert_allclose(bright_voxels(figure.axes[1]), expected[np.lexsort(expected.round(3).T)], atol=1e-3)
    bare = bright_voxels(figure.axes[0])
    steps = np.unique(bare[:, 0].round(4)), np.unique(bare[:, 1].round(4))
    assert [len(s) for s in steps] == [len(np.unique(index[:, k])) for k in (0, 1)]
    np.testing.assert_allclose(np.diff(steps[0]).min(), np.diff(steps[1]).min(), rtol=1e-3)  # square voxels


def test_arrows_run_along_the_tensor_axes():
    grid = GRIDS["oblique 2-D"]
    figure = widgets.in_world({"world": (smooth_image(grid.shape), grid)})
    found = [c for c in figure.axes[0].collections if isinstance(c, Quiver)]
    matrix = grid.world_from_voxel.numpy()
    for k, drawn in enumerate(found):
        np.testing.assert_allclose([drawn.X[0], drawn.Y[0]], matrix[:2, 2], rtol=1e-4)
        np.testing.assert_allclose([drawn.U[0], drawn.V[0]], matrix[:2, k] * grid.shape[k] / 3, rtol=1e-4)
    assert [w for w in words(figure) if w in "ij"] == ["i", "j"]


@pytest.mark.parametrize("code", widgets.CODES_2D)
def test_one_header_of_eight_puts_a_file_right(code):
    grid = Grid.centered((16, 16), 2.0, center=(5.0, -3.0))
    render, controls = widgets.storage_puzzle(LETTER, grid, {"A": code})
    truth = bright_voxels(widgets.in_world({"truth": (LETTER, grid)}).axes[0])
    worlds = {c: bright_voxels(render({"file": "A", "header": c}).axes[1]) for c in controls["header"].options}
    assert [c for c, found in worlds.items() if np.abs(found - truth).max() < 1e-3] == [code]


def test_a_picture_must_be_on_its_grid(no_jaxtyping):
    grid = GRIDS["oblique 2-D"]
    image = smooth_image(grid.shape)
    with pytest.raises(GridMismatchError, match="wrong must be"):
        widgets.in_world({"right": (image, grid), "wrong": (image.transpose(2, 3), grid)})
    draw(widgets.in_world({"only the array": (image, None)}))
