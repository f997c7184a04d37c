"""Figures: letters, millimeters, planted blobs, shared windows, loud folds. Positions are checked with NumPy."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from helpers import SHAPES, affine, apply, oblique, smooth_ddf, smooth_image, voxels
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.quiver import Quiver

from reglib import field, plot
from reglib.grid import Grid, GridMismatchError
from reglib.plot import canvas, planes

ALIGNED = {
    2: affine(np.diag([0.8, 2.5]), (-31.0, 12.5)),
    3: affine(np.diag([0.8, 1.0, 2.5]), (-31.0, 12.5, 40.0)),
}
LIA = affine(np.array([[-0.8, 0, 0], [0, 0, 2.5], [0, -1.0, 0]]), (20.0, -9.0, 11.0))
FLIPPED = affine(np.array([[0.0, -2.5], [-0.8, 0]]), (20.0, -9.0))  # axis 0 runs to P, axis 1 to L
GRIDS = {
    "aligned 2-D": Grid(SHAPES[2], ALIGNED[2]),
    "flipped 2-D": Grid(SHAPES[2], FLIPPED),
    "oblique 2-D": Grid(SHAPES[2], oblique(2)),
    "aligned 3-D": Grid(SHAPES[3], ALIGNED[3]),
    "LIA 3-D": Grid(SHAPES[3], LIA),
    "oblique 3-D": Grid(SHAPES[3], oblique(3)),
}
FACING = {  # plane: letters at left, right, bottom, top
    "axial": "LRPA",
    "coronal": "LRIS",
    "sagittal": "PAIS",
}
TOWARD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@pytest.fixture(params=GRIDS, ids=lambda name: name.replace(" ", "-"))
def grid(request):
    return GRIDS[request.param]


def planes_of(grid):
    return tuple(FACING) if grid.dim == 3 else ("axial",)


def draw(figure):
    """Pixels (rows, columns, 3) of the figure; drawing is when matplotlib warns."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw", dpi=figure.dpi)
    width, height = (round(n) for n in figure.bbox.size)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "color bar"]


def bars(figure):
    return [axes for axes in figure.axes if axes.get_label() == "color bar"]


def letters(panel):
    """{(-1, 0): "L", ...}: each edge's letter, by where it stands on the panel."""
    found = {}
    for text in panel.texts:
        if len(text.get_text()) == 1:
            x, y = text.get_position()
            found[(round(2.4 * (x - 0.5)), round(2.4 * (y - 0.5)))] = text.get_text()
    return found


def pixel_mm(picture, row, column):
    """(x, y) mm of the middle of a pixel of an image on an axes, from its extent."""
    left, right, bottom, top = picture.get_extent()
    h, w = picture.get_array().shape[:2]
    return left + (column + 0.5) * (right - left) / w, bottom + (row + 0.5) * (top - bottom) / h


def brightest(panel, which=0):
    picture = panel.images[which]
    return pixel_mm(picture, *np.unravel_index(np.argmax(picture.get_array()), picture.get_array().shape))


def planted(grid, voxel, value=1.0):
    image = torch.zeros(1, 1, *grid.shape)
    image[(0, 0, *voxel)] = value
    return image


def closest_axis(grid, world):
    """The tensor axis that comes closest to a world axis, and its direction."""
    matrix = grid.world_from_voxel.numpy()[:-1, :-1]
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    axis = int(np.abs(cosines[world]).argmax())
    return axis, 1 if cosines[world, axis] > 0 else -1


def world_of(grid, voxel):
    return apply(grid.world_from_voxel.numpy(), voxel)


# -- where things are ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "letter"), [(name, a) for name, g in GRIDS.items() for a, (world, _) in TOWARD.items() if world < g.dim]
)
def test_a_blob_toward_a_letter_is_drawn_at_that_letter(name, letter):
    grid, (world, sign) = GRIDS[name], TOWARD[letter]
    axis, direction = closest_axis(grid, world)
    voxel = [n // 2 for n in grid.shape]
    voxel[axis] = grid.shape[axis] - 1 if direction * sign > 0 else 0
    for name in planes_of(grid):
        if letter not in FACING[name]:
            continue
        figure = plot.pair(*[planted(grid, voxel)] * 2, grid, plane=name, world=tuple(world_of(grid, voxel)))
        panel = panels(figure)[0]
        edges = letters(panel)
        x, y = brightest(panel)
        left, right, bottom, top = panel.images[0].get_extent()
        reached = 2 * (x - left) / (right - left) - 1, 2 * (y - bottom) / (top - bottom) - 1
        edge = max(edges, key=lambda e: e[0] * reached[0] + e[1] * reached[1])
        assert edges[edge] == letter


def test_letters_stand_at_their_edges(grid):
    image = smooth_image(grid.shape)
    for name in planes_of(grid):
        figure = plot.pair(image, image, grid, plane=name)
        for panel in panels(figure):
            assert letters(panel) == dict(zip([(-1, 0), (1, 0), (0, -1), (0, 1)], FACING[name], strict=True))


@pytest.mark.parametrize("name", ["aligned 2-D", "flipped 2-D", "aligned 3-D", "LIA 3-D"])
def test_a_pixel_stands_at_its_world_millimeters(name):
    grid = GRIDS[name]
    voxel = [1, 4, 5][: grid.dim]
    world = world_of(grid, voxel)
    for plane in planes_of(grid):
        figure = plot.pair(*[planted(grid, voxel)] * 2, grid, plane=plane, world=tuple(world))
        across, up = ["RAS".index(FACING[plane][k]) for k in (1, 3)]
        np.testing.assert_allclose(brightest(panels(figure)[0]), world[[across, up]], atol=1e-4)


@pytest.mark.parametrize("name", ["oblique 2-D", "oblique 3-D"])
def test_oblique_pictures_keep_distances_from_the_grids_center(name):
    grid = GRIDS[name]
    voxel = np.array([1, 4, 5][: grid.dim])
    offsets = (voxel - (np.array(grid.shape) - 1) / 2) * grid.spacing  # mm along the tensor axes
    for plane in planes_of(grid):
        figure = plot.pair(*[planted(grid, voxel)] * 2, grid, plane=plane, world=tuple(world_of(grid, voxel)))
        found = brightest(panels(figure)[0])
        for k, letter in enumerate(FACING[plane][1::2]):
            world = "RAS".index(letter)
            axis, direction = closest_axis(grid, world)
            assert found[k] == pytest.approx(grid.center[world] + direction * offsets[axis], abs=1e-4)


def test_panels_are_as_wide_and_high_in_mm_as_the_slice(grid):
    for plane in planes_of(grid):
        figure = plot.pair(*[smooth_image(grid.shape)] * 2, grid, plane=plane)
        draw(figure)
        panel = panels(figure)[0]
        axes = [closest_axis(grid, "RAS".index(letter))[0] for letter in FACING[plane][1::2]]
        left, right, bottom, top = panel.images[0].get_extent()
        assert (right - left, top - bottom) == pytest.approx([grid.extent[k] for k in axes])
        assert (*panel.get_xlim(), *panel.get_ylim()) == pytest.approx((left, right, bottom, top))
        per_mm = panel.transData.transform([(1, 0), (0, 1)]) - panel.transData.transform((0, 0))
        assert per_mm[0, 0] == pytest.approx(per_mm[1, 1], rel=1e-3)
        assert "mm" in panel.get_xlabel()
        assert "mm" in panel.get_ylabel()


def test_ticks_are_inside_and_round():
    figure = plot.pair(*[smooth_image(SHAPES[3])] * 2, GRIDS["aligned 3-D"])
    first, second = panels(figure)
    assert len(first.get_xticks()) >= 2
    assert len(first.get_yticks()) >= 2
    assert all(first.get_xlim()[0] <= t <= first.get_xlim()[1] for t in first.get_xticks())
    assert len(second.get_yticks()) == 0  # named once


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_nice_ticks_are_few_and_evenly_spaced(count):
    ticks = np.array(canvas.nice_ticks(-98.3, 133.0, count))
    assert 2 <= len(ticks) <= count + 1
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert ticks[0] >= -98.3
    assert ticks[-1] <= 133.0


def test_the_default_slice_is_the_middle_of_what_is_not_zero():
    grid = GRIDS["LIA 3-D"]
    image = torch.zeros(1, 1, *grid.shape)
    image[0, 0, 2:5, 3:10, 1:4] = 0.5  # middles 3, 6, 2
    image[0, 0, 3, 6, 2] = 1.0
    for plane in FACING:
        assert panels(plot.pair(image, image, grid, plane=plane))[0].images[0].get_array().max() == 1.0
    assert planes.middle(torch.zeros(1, 1, *grid.shape)) == (4, 5, 3)


def test_a_moving_image_on_another_grid_is_drawn_in_its_own_mm_at_the_same_world_point():
    fixed_grid, moving_grid = (
        GRIDS["aligned 3-D"],
        Grid((11, 8, 15), affine(np.diag([-0.7, 2.1, 1.3]), (-25.0, 13.0, 41.0))),
    )
    point = world_of(fixed_grid, (4, 5, 3))
    voxel = np.rint(apply(np.linalg.inv(moving_grid.world_from_voxel.numpy()), point)).astype(int)
    figure = plot.pair(
        planted(fixed_grid, (4, 5, 3)),
        planted(moving_grid, voxel),
        fixed_grid,
        moving_grid=moving_grid,
        world=tuple(point),
    )
    here, there = (brightest(panel) for panel in panels(figure))
    np.testing.assert_allclose(here, there, atol=1.1)  # half a voxel of 2.1 mm
    np.testing.assert_allclose(there, world_of(moving_grid, voxel)[:2], atol=1e-4)


def test_scans_that_share_no_world_show_their_own_middles():
    far = Grid(SHAPES[3], affine(np.diag([0.8, 1.0, 2.5]), (900.0, 0.0, 0.0)))
    image = planted(far, (2, 3, 4))
    figure = plot.pair(smooth_image(SHAPES[3]), image, GRIDS["aligned 3-D"], moving_grid=far)
    assert panels(figure)[1].images[0].get_array().max() == 1.0


# -- two images ------------------------------------------------------------------------------------------------
def test_moving_and_warped_share_their_window_and_fixed_has_its_own(grid):
    moving = smooth_image(grid.shape, seed=1)
    figure = plot.pair(100 * smooth_image(grid.shape), moving, grid, warped=0.5 * moving)
    fixed, before, after = (panel.images[0].norm for panel in panels(figure))
    assert (before.vmin, before.vmax) == (after.vmin, after.vmax)
    assert fixed.vmax > 10 * before.vmax


def test_roles_have_their_colors():
    image = smooth_image(SHAPES[2])
    titles = [panel.title for panel in panels(plot.pair(image, image, GRIDS["aligned 2-D"], warped=image))]
    assert [(t.get_text(), t.get_color()) for t in titles] == [
        ("fixed", plot.FIXED_COLOR),
        ("moving", plot.MOVING_COLOR),
        ("warped", plot.WARPED_COLOR),
    ]


def test_an_overlay_is_gray_where_both_agree_and_colored_where_one_is_alone(grid):
    both, one, other = ([k] * grid.dim for k in (3, 4, 5))
    fixed = planted(grid, both) + planted(grid, one)
    warped = planted(grid, both) + planted(grid, other)
    for voxel, color in ((both, "#ffffff"), (one, plot.FIXED_COLOR), (other, plot.WARPED_COLOR)):
        figure = plot.overlay(fixed, warped, grid, world=tuple(world_of(grid, voxel)))
        light = panels(figure)[0].images[0].get_array()
        assert to_hex(light.reshape(-1, 3)[light.reshape(-1, 3).sum(1).argmax()]) in ("#ffffff", color)
        assert (np.abs(light - to_rgb(color)).max(-1) < 1e-5).sum() == 1
    same = panels(plot.overlay(fixed, fixed, grid))[0].images[0].get_array()
    assert np.ptp(same, axis=-1).max() < 1e-6


@pytest.mark.parametrize("function", [plot.overlay, plot.checkerboard])
def test_before_and_after_share_slice_and_window(function, grid):
    fixed, moving = smooth_image(grid.shape), smooth_image(grid.shape, seed=1)
    weak = moving.clone()
    weak[weak > 0.5] = 0.5  # its own window would be narrower
    figure = function(fixed, moving, grid, before=weak)
    before, after = (panel.images[0].get_array() for panel in panels(figure))
    at = planes.plane_of(fixed, grid)
    same = at.cut(weak) == at.cut(moving)
    assert 0.3 < same.mean() < 1
    np.testing.assert_array_equal(before[same], after[same])
    assert panels(figure)[0].get_title().startswith("before")
    assert panels(figure)[1].get_title().startswith("after")


def test_checkerboard_takes_tiles_from_both_in_turn():
    grid = Grid((24, 16))
    figure = plot.checkerboard(
        torch.ones(1, 1, 24, 16).tril(), torch.zeros(1, 1, 24, 16) + smooth_image((24, 16)) * 1e-6, grid, tiles=3
    )
    light = panels(figure)[0].images[0].get_array()  # (16, 24, 3), tiles of 8
    blue, orange = (light[..., k] for k in (2, 0))
    assert (blue[0:8, 8:16] <= orange[0:8, 8:16]).all()  # second tile: warped's tint
    tinted = blue > orange
    assert not tinted[0:8, 8:16].any()
    assert not tinted[8:16, 0:8].any()
    assert tinted[0:8, 16:24].all()


# -- one image -------------------------------------------------------------------------------------------------
def outlines(panel):
    return [c for c in panel.collections if type(c) is LineCollection]


def test_contours_run_around_the_label_and_truth_is_dashed():
    grid = GRIDS["LIA 3-D"]
    labels, other = torch.zeros(2, 1, 1, *grid.shape, dtype=torch.int64)
    labels[0, 0, 2:5, :, 3:6] = 4
    other[0, 0, 3:7, :, 1:4] = 4
    figure = plot.contours(smooth_image(grid.shape), labels, grid, other=other, names={4: "left white matter"})
    draw(figure)
    solid, dashed = outlines(panels(figure)[0])
    for contour, (a, b), (i, j) in ((solid, (2, 4), (3, 5)), (dashed, (3, 6), (1, 3))):
        (vertices,) = contour.get_segments()
        ends = np.array([world_of(grid, (a, 0, i)), world_of(grid, (b, 0, j))])[:, :2]
        half = np.array([0.8, 2.5]) / 2  # axial: axis 0 is x, axis 2 is y
        np.testing.assert_allclose(vertices.min(0), ends.min(0) - half, atol=1e-4)
        np.testing.assert_allclose(vertices.max(0), ends.max(0) + half, atol=1e-4)
    assert solid.get_linestyle()[0][1] is None
    assert dashed.get_linestyle()[0][1] is not None
    assert "left white matter" in [t.get_text() for t in panels(figure)[0].texts]


def test_structures_in_channels_may_overlap():
    masks = torch.zeros(1, 2, *SHAPES[2])
    masks[0, 0, 3:9, 3:9] = 1
    masks[0, 1, 5:12, 5:12] = 1
    figure = plot.contours(smooth_image(SHAPES[2]), masks, GRIDS["oblique 2-D"])
    (drawn,) = outlines(panels(figure)[0])
    assert [to_hex(c) for c in drawn.get_edgecolor()] == list(canvas.LABEL_COLORS[:2])


def test_a_label_that_fills_the_image_is_outlined_at_its_edges():
    grid = GRIDS["aligned 2-D"]
    figure = plot.contours(smooth_image(SHAPES[2]), torch.full((1, 1, *SHAPES[2]), 3), grid)
    (vertices,) = outlines(panels(figure)[0])[0].get_segments()
    left, right, bottom, top = panels(figure)[0].images[0].get_extent()
    np.testing.assert_allclose((*vertices.min(0), *vertices.max(0)), (left, bottom, right, top), atol=1e-4)
    np.testing.assert_array_equal(vertices[0], vertices[-1])


def test_slices_go_through_the_world_point_with_a_crosshair(grid):
    voxel = [2, 7, 5][: grid.dim]
    point = world_of(grid, voxel)
    figure = plot.slices(planted(grid, voxel), grid, world=tuple(point), labels=planted(grid, voxel).long())
    draw(figure)
    found = panels(figure)
    assert len(found) == (3 if grid.dim == 3 else 1)
    for panel in found:
        vertical, horizontal = panel.lines
        assert brightest(panel) == pytest.approx((vertical.get_xdata()[0], horizontal.get_ydata()[0]), abs=1e-4)


# -- fields ----------------------------------------------------------------------------------------------------
def shift_ddf(grid, moves):
    return torch.tensor(moves, dtype=torch.float32).reshape(1, -1, *[1] * grid.dim).expand(1, grid.dim, *grid.shape)


def in_plane_mm(grid, moves, plane):
    """What a shift in voxels is across and up in the picture, mm."""
    result = []
    for letter in FACING[plane][1::2]:
        axis, direction = closest_axis(grid, "RAS".index(letter))
        result.append(direction * moves[axis] * grid.spacing[axis])
    return np.array(result)


def lattice(panel):
    return np.concatenate(next(c for c in panel.collections if type(c) is LineCollection).get_segments())


def test_the_lattice_moves_as_the_field_does(grid):
    moves = [1.5, -0.5, 0.25][: grid.dim]
    for plane in planes_of(grid):
        still = lattice(panels(plot.warped_grid(shift_ddf(grid, [0.0] * grid.dim), grid, plane=plane))[0])
        moved = lattice(panels(plot.warped_grid(shift_ddf(grid, moves), grid, plane=plane))[0])
        np.testing.assert_allclose((moved - still).mean(0), in_plane_mm(grid, moves, plane), atol=1e-4)
        np.testing.assert_allclose(np.ptp(moved - still, axis=0), 0, atol=1e-4)


def fold_along(grid, axis):
    """A field that folds around voxel 4 of one axis: det I + grad u is below 0 there and nowhere else."""
    position = torch.arange(grid.shape[axis], dtype=torch.float32) - 4
    line = -2.0 * position * torch.exp(-(position**2) / 2)
    ddf = torch.zeros(1, grid.dim, *grid.shape)
    ddf[0, axis] = line.reshape([-1 if k == axis else 1 for k in range(grid.dim)])
    return ddf


def loud(panel):
    return [c for c in panel.collections if isinstance(c, PolyCollection) and not isinstance(c, Quiver)]


@pytest.mark.parametrize(("name", "axis"), [(name, k) for name, g in GRIDS.items() for k in range(g.dim)])
def test_folds_are_loud_whatever_axis_they_fold_along(name, axis):
    grid = GRIDS[name]
    ddf = fold_along(grid, axis)
    count = (field.jacobian_determinant(ddf) <= 0).sum().item()
    assert 0 < count < np.prod(grid.shape)
    world = tuple(world_of(grid, [4 if k == axis else 2 for k in range(grid.dim)]))
    for plane in planes_of(grid):
        figure = plot.warped_grid(ddf, grid, plane=plane, world=world, image=smooth_image(grid.shape))
        (cells,) = loud(panels(figure)[0])
        expected = planes.plane_of(ddf, grid, name=plane, world=world).cut(field.jacobian_determinant(ddf)) <= 0
        assert len(cells.get_paths()) == expected.sum() > 0
        assert to_hex(cells.get_facecolor()[0]) == plot.FOLD_COLOR
        assert (draw(figure) == np.round(np.multiply(to_rgb(plot.FOLD_COLOR), 255))).all(-1).sum() > 20
        shown = panels(plot.jacobian_map(ddf, grid, plane=plane, world=world))[0].images[0]
        colors = shown.to_rgba(shown.get_array())[..., :3]
        np.testing.assert_allclose(colors[expected], [to_rgb(plot.FOLD_COLOR)] * int(expected.sum()), atol=1e-6)
        assert not (np.abs(colors[~expected] - to_rgb(plot.FOLD_COLOR)).max(-1) < 0.1).any()


def test_a_map_without_folds_shows_nothing_loud():
    grid = GRIDS["oblique 3-D"]
    figure = plot.warped_grid(smooth_ddf(grid.shape, largest=0.3), grid)
    assert loud(panels(figure)[0]) == []
    assert not (draw(figure) == np.round(np.multiply(to_rgb(plot.FOLD_COLOR), 255))).all(-1).any()


def test_a_folded_cell_is_filled_where_the_map_takes_it():
    grid = GRIDS["aligned 2-D"]
    ddf = fold_along(grid, 0) + shift_ddf(grid, (3.0, 0.0))
    (cells,) = loud(panels(plot.warped_grid(ddf, grid))[0])
    middle = np.mean([path.vertices[:4].mean(0) for path in cells.get_paths()], axis=0)
    expected = world_of(grid, (4 + 3, (grid.shape[1] - 1) / 2))
    np.testing.assert_allclose(middle, expected, atol=0.5)


def test_truth_is_a_dashed_lattice():
    grid = GRIDS["LIA 3-D"]
    ddf = smooth_ddf(grid.shape, largest=1.0)
    figure = plot.warped_grid(ddf, grid, truth=0.5 * ddf)
    solid, dashed = (c for c in panels(figure)[0].collections if type(c) is LineCollection)
    assert solid.get_linestyle()[0][1] is None
    assert dashed.get_linestyle()[0][1] is not None


def test_the_jacobian_of_one_slice_is_that_of_the_volume(grid):
    ddf = smooth_ddf(grid.shape, largest=2.0)
    whole = field.jacobian_determinant(ddf)
    frame = planes.frame_of(grid)
    for name in planes_of(grid):
        axis = planes.Plane(frame, name, 0).axes[-1] if grid.dim == 3 else None
        for index in (0, 1, grid.shape[axis] - 1) if axis is not None else (0,):
            at = planes.Plane(frame, name, index)
            np.testing.assert_allclose(at.determinant(ddf), at.cut(whole), atol=1e-6)


def test_quiver_arrows_are_true_to_scale(grid):
    moves = [1.5, -0.5, 0.25][: grid.dim]
    ddf = shift_ddf(grid, moves)
    for plane in planes_of(grid):
        figure = plot.quiver(ddf, grid, smooth_image(grid.shape), plane=plane)
        draw(figure)
        (arrows,) = (c for c in panels(figure)[0].collections if isinstance(c, Quiver))
        np.testing.assert_allclose([arrows.U[0], arrows.V[0]], in_plane_mm(grid, moves, plane), atol=1e-4)
        assert arrows.scale == 1
        assert arrows.scale_units == "xy"
        assert arrows.get_array()[0] == pytest.approx(np.linalg.norm(np.multiply(moves, grid.spacing)), abs=1e-4)
        assert bars(figure)[0].get_ylabel() == "displacement [mm]"


def test_jacobian_map_is_on_a_log_scale_centered_at_one(grid):
    ddf = smooth_ddf(grid.shape, largest=1.0)
    shown = panels(plot.jacobian_map(ddf, grid))[0].images[0]
    given = panels(plot.jacobian_map(field.jacobian_determinant(ddf), grid))[0].images[0]
    assert float(shown.norm(1.0)) == pytest.approx(0.5)
    assert float(shown.norm(1.2)) + float(shown.norm(1 / 1.2)) == pytest.approx(1)
    np.testing.assert_allclose(shown.get_array(), given.get_array(), atol=1e-6)
    assert shown.norm.vmax >= np.quantile(np.exp(np.abs(np.log(np.asarray(shown.get_array())))), 0.99)


def test_jacobian_bar_reads_one_in_its_middle():
    figure = plot.jacobian_map(smooth_ddf(SHAPES[3], largest=1.5), GRIDS["oblique 3-D"])
    (bar,) = bars(figure)
    ticks = dict(zip([t.get_text() for t in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert ticks["×1"] == pytest.approx(0.5)
    assert len(ticks) == 5
    assert "volume" in bar.get_ylabel()


@pytest.mark.parametrize("det", [1.0, 2.0, -1.0])
def test_constant_determinants_are_drawn(det):
    figure = plot.jacobian_map(torch.full((1, 1, *SHAPES[2]), det), GRIDS["aligned 2-D"])
    draw(figure)
    assert (f"folds: {np.prod(SHAPES[2])} voxels" in [t.get_text() for t in panels(figure)[0].texts]) == (det <= 0)


def test_error_map_has_millimeters_on_its_bar():
    error = smooth_image(SHAPES[3]).abs()
    figure = plot.error_map(error, GRIDS["oblique 3-D"], largest_mm=4.0)
    draw(figure)
    norm = panels(figure)[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, 4.0)
    assert bars(figure)[0].get_ylabel() == "error [mm]"
    ticks = {
        t.get_text(): y for t, y in zip(bars(figure)[0].get_yticklabels(), bars(figure)[0].get_yticks(), strict=True)
    }
    assert ticks["0"] == 0
    assert ticks["2"] == pytest.approx(0.5)
    own = panels(plot.error_map(error, GRIDS["oblique 3-D"]))[0].images[0]
    assert own.norm.vmax == pytest.approx(own.get_array().max())
    draw(plot.error_map(torch.zeros_like(error), GRIDS["oblique 3-D"]))


# -- registration ----------------------------------------------------------------------------------------------
def test_curves_have_a_line_for_each_term_and_a_band_for_each_level():
    history = [
        {"level": level, "step": k, "loss": level + k, "similarity": 2.0 * level}
        for level, steps in ((4, 3), (2, 5), (1, 2))
        for k in range(steps)
    ]
    figure = plot.curves(history)
    draw(figure)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "similarity"]
    for axes, term in zip(figure.axes, ("loss", "similarity"), strict=True):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [record[term] for record in history])
        edges = [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
        assert edges == [(0, 3), (3, 8), (8, 10)]
        assert [t.get_text() for t in axes.texts] == ["1/4", "1/2", "full"]


def test_curves_need_a_step():
    with pytest.raises(ValueError, match="at least one term"):
        plot.curves([])


def test_curves_of_one_step_and_of_no_level():
    draw(plot.curves([{"level": 1, "step": 0, "loss": 1.0}]))
    figure = plot.curves([{"step": k, "loss": k} for k in range(3)])
    assert len(figure.axes[0].patches) == 0


def test_registration_shows_before_above_after_on_one_slice(grid):
    fixed, moving = smooth_image(grid.shape), smooth_image(grid.shape, seed=1)
    figure = plot.registration(fixed, moving, moving, smooth_ddf(grid.shape, largest=3.0), grid)
    draw(figure)
    found = panels(figure)
    assert [p.get_title().split(",")[0] for p in found] == [
        "before",
        "fixed",
        "moving",
        "after",
        "warped grid",
        "Jacobian",
    ]
    np.testing.assert_array_equal(found[0].images[0].get_array(), found[3].images[0].get_array())
    boxes = [p.get_position() for p in found]
    assert boxes[0].x0 == pytest.approx(boxes[3].x0)
    assert boxes[0].y0 > boxes[3].y1
    assert len({p.images[0].get_array().shape[:2] for p in found}) == 1


# -- house rules -----------------------------------------------------------------------------------------------
def every_figure(grid):
    image, labels = smooth_image(grid.shape), (smooth_image(grid.shape, seed=2) > 0).long()
    ddf = smooth_ddf(grid.shape, largest=1.0)
    yield plot.pair(image, image, grid, warped=image)
    yield plot.overlay(image, image, grid, before=image)
    yield plot.checkerboard(image, image, grid, before=image)
    yield plot.contours(image, labels, grid, other=labels)
    yield plot.slices(image, grid, labels=labels)
    yield plot.warped_grid(ddf, grid, image=image, truth=ddf)
    yield plot.quiver(ddf, grid, image)
    yield plot.jacobian_map(ddf, grid)
    yield plot.error_map(image.abs(), grid)
    yield plot.registration(image, image, image, ddf, grid)


@pytest.mark.parametrize("shape", [(9, 12, 1), (1, 12, 7), (2, 2)])
def test_thin_images_are_drawn(shape):
    for figure in every_figure(Grid(shape)):
        draw(figure)


def test_flat_images_and_still_fields_are_drawn():
    grid = GRIDS["oblique 3-D"]
    flat, still = torch.ones(1, 1, *grid.shape), torch.zeros(1, 3, *grid.shape)
    draw(plot.registration(flat, flat, flat, still, grid))
    draw(plot.quiver(still, grid, flat))
    draw(plot.contours(flat, torch.zeros_like(flat).long(), grid))


def test_inputs_stay_as_they_are_and_gradients_do_not_matter():
    grid = GRIDS["LIA 3-D"]
    image = smooth_image(grid.shape).requires_grad_()
    ddf = smooth_ddf(grid.shape, largest=1.0).requires_grad_()
    before = image.detach().clone(), ddf.detach().clone()
    draw(plot.registration(image, image, image, ddf, grid))
    assert torch.equal(image, before[0])
    assert torch.equal(ddf, before[1])


def test_nothing_is_left_in_pyplot_and_no_setting_changes():
    from matplotlib import pyplot

    settings = dict(matplotlib.rcParams)
    for figure in every_figure(GRIDS["oblique 2-D"]):
        draw(figure)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def test_a_figure_is_no_wider_than_a_notebook(grid):
    for figure in every_figure(grid):
        width, height = figure.get_size_inches()
        assert width <= canvas.WIDTH_IN + 1e-6
        assert height < 10
        for axes in figure.axes:
            box = axes.get_position()
            assert box.x0 >= 0
            assert box.x1 <= 1
            assert box.y0 >= 0
            assert box.y1 <= 1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g, x: plot.pair(x[..., :-1], x, g), GridMismatchError, "fixed must be"),
        (lambda g, x: plot.overlay(x, x, g, before=x[..., 1:]), GridMismatchError, "before must be"),
        (lambda g, x: plot.slices(x, g, world=(900.0, 0.0, 0.0)), ValueError, "inside the image"),
        (lambda g, x: plot.slices(x, g, world=(0.0, 0.0)), ValueError, "3 numbers in mm"),
        (lambda g, x: plot.pair(x, x, g, plane="oblique"), ValueError, "one of axial, coronal, sagittal"),
    ],
)
def test_misuse_is_explained(no_jaxtyping, call, error, words):
    with pytest.raises(error, match=words):
        call(GRIDS["aligned 3-D"], smooth_image(SHAPES[3]))


def test_2d_images_have_one_plane():
    image = smooth_image(SHAPES[2])
    with pytest.raises(ValueError, match="the only one a 2-D image has"):
        plot.pair(image, image, GRIDS["aligned 2-D"], plane="coronal")


# -- colors ----------------------------------------------------------------------------------------------------
SEEN = {  # Machado et al. 2009, doi:10.1109/TVCG.2009.113, severity 1, linear RGB
    "normal": np.eye(3),
    "red-blind": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green-blind": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(color, eyes):
    """CIE L*a*b* of a color as these eyes see it."""
    c = np.array(to_rgb(color))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SEEN[eyes]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = xyz / [0.9505, 1.0, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_the_roles_differ_for_every_reader(eyes):
    roles = [plot.FIXED_COLOR, plot.MOVING_COLOR, plot.WARPED_COLOR]
    for k, a in enumerate(roles):
        for b in roles[:k]:
            assert np.linalg.norm(lab(a, eyes) - lab(b, eyes)) > 30, (a, b)


@pytest.mark.parametrize("eyes", SEEN)
def test_folds_differ_from_every_ratio_and_every_gray(eyes):
    scale = [matplotlib.colormaps[canvas.RATIO_COLORS](x)[:3] for x in np.linspace(0, 1, 33)]
    for color in [*scale, *[(g, g, g) for g in np.linspace(0, 1, 9)], plot.WARPED_COLOR]:
        assert np.linalg.norm(lab(plot.FOLD_COLOR, eyes) - lab(color, eyes)) > 30, color


def test_the_two_colors_of_an_overlay_add_up_to_white():
    np.testing.assert_allclose(np.add(to_rgb(plot.FIXED_COLOR), to_rgb(plot.WARPED_COLOR)), 1, atol=0.01)


def test_coordinates_agree_with_the_grid_at_its_center(grid):
    frame = planes.frame_of(grid)
    middle = (np.array(grid.shape) - 1) / 2
    np.testing.assert_allclose(frame.mm(middle.tolist()), grid.center, atol=1e-6)
    for voxel in voxels(grid.shape).reshape(-1, grid.dim)[::37]:
        mm = frame.mm(voxel.tolist())
        np.testing.assert_allclose(frame.voxel(mm), voxel, atol=1e-9)
        np.testing.assert_allclose(frame.world(mm), world_of(grid, voxel), atol=1e-6)
