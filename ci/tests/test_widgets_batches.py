"""Scans of a folder, pairs of an epoch, headers that lie, augmented pairs: what is drawn is what was loaded."""

import numpy as np
import pytest
import torch
from viewing import draw, draw_every_state, require_every_control_matters, require_pure, start

from reglib import data, field, phantoms, widgets
from reglib.grid import Grid


def scan_of(subject, name="brain"):
    masks = torch.cat([(subject.labels[0] - 1) % 3 + 1 == k for k in (1, 2, 3)]).float()
    return data.Scan(name, subject.image[0], subject.grid, subject.grid, masks)


@pytest.fixture(scope="module")
def brains():
    cohort = phantoms.brain_cohort(2, shape=(40, 48), spacing=4.5, noise=0.0, bias=0.0, contrast=0.0)
    return cohort.pair(0, 1), [scan_of(subject, f"brain{k}") for k, subject in enumerate(cohort.subjects)]


def item_of(scans, index=-1):
    kept = slice(None) if index < 0 else slice(index, index + 1)
    item = {"label_index": index}
    for role, scan in zip(("moving", "fixed"), scans, strict=True):
        item |= {role: scan.image, f"{role}_label": scan.label[kept], f"{role}_grid": scan.grid}
        item |= {f"{role}_name": scan.name}
    return item


# -- scans of a folder ----------------------------------------------------------------------------------------
def test_a_sheet_has_every_scan_in_millimeters_with_its_structures(brains):
    _, scans = brains
    volume = phantoms.brain_cohort(1, shape=(20, 24, 20), spacing=9.0).subjects[0]
    bare = data.Scan("bare", volume.image[0], volume.grid, volume.grid)
    figure = widgets.contact_sheet([*scans, bare, *scans])
    assert [panel.get_title() for panel in figure.axes] == ["brain0", "brain1", "bare", "brain0", "brain1"]
    lines = [len(panel.collections) for panel in figure.axes]
    assert lines == [1, 1, 0, 1, 1]
    drawn = {tuple(np.round(color[:3], 2)) for color in figure.axes[0].collections[0].get_colors()}
    assert len(drawn) == 3
    left, right = figure.axes[0].get_xlim()
    assert right - left == pytest.approx(40 * 4.5)
    as_array = widgets.contact_sheet(scans, headers=False).axes[0]
    assert as_array.get_xlim() == (-0.5, 39.5)
    assert as_array.get_xlabel() == "axis 0 [voxel]"
    assert not as_array.texts
    with pytest.raises(ValueError, match="at least one scan"):
        widgets.contact_sheet([])


# -- pairs of an epoch ----------------------------------------------------------------------------------------
def pair_view(scans):
    def draw_item(epoch, k):
        return item_of(scans if k == 0 else scans[::-1], index=epoch % 3)

    return widgets.pair_dial(draw_item, epochs=3, pairs=2, structures=("fluid", "gray"))


def test_the_pair_and_the_label_that_was_drawn(brains):
    view = pair_view(brains[1])
    assert len(draw_every_state(*view)) == 1
    require_pure(*view)
    require_every_control_matters(*view)
    render, controls = view
    figure = render(start(controls, pair=2))
    assert [panel.get_title() for panel in figure.axes] == ["moving: brain1", "fixed: brain0"]
    for epoch, words in ((1, "fluid"), (2, "gray"), (3, "label 3")):
        panel = render(start(controls, epoch=epoch)).axes[0]
        assert words in {text.get_text() for text in panel.texts}
        assert {tuple(c) for c in panel.collections[0].get_colors()} != set()


def test_all_labels_of_a_pair_and_none(brains):
    everything = item_of(brains[1])
    render, controls = widgets.pair_dial(lambda e, k: everything, epochs=1, pairs=1)
    panel = render(start(controls)).axes[0]
    assert len({tuple(color) for color in panel.collections[0].get_colors()}) == 3
    assert not {text.get_text() for text in panel.texts} - set("LRAP")
    none = {key: value for key, value in everything.items() if not key.endswith("_label")}
    render, controls = widgets.pair_dial(lambda e, k: none, epochs=1, pairs=1)
    assert not render(start(controls)).axes[0].collections


# -- headers ------------------------------------------------------------------------------------------------------
def test_a_header_moves_the_scan_and_leaves_the_array(brains):
    pair, _ = brains
    image, grid = pair.fixed, pair.fixed_grid
    shifted = Grid(grid.shape, torch.diag(torch.tensor([1.0, 1, 1]).double()) @ _shift(30.0) @ grid.world_from_voxel)
    view = widgets.header_dial({"right": (image, grid), "wrong": (image, shifted)}, image, grid)
    assert len(draw_every_state(*view)) == 1
    require_pure(*view)
    render, _ = view
    right, wrong = (render({"scan": name}).axes for name in ("right", "wrong"))
    np.testing.assert_array_equal(right[0].images[0].get_array(), wrong[0].images[0].get_array())
    apart = [np.ptp(axes[1].images[0].get_array(), axis=-1).mean() for axes in (right, wrong)]
    assert apart[0] < 0.3 * apart[1]  # where both agree there is no color
    assert "40 x 48 of 4.5 x 4.5 mm, RA" in {text.get_text() for text in right[0].texts}
    with pytest.raises(ValueError, match="at least one scan"):
        widgets.header_dial({}, image, grid)


def test_every_control_of_a_volumes_header_matters():
    volume = phantoms.brain_cohort(1, shape=(20, 24, 20), spacing=9.0).subjects[0]
    scans = {"right": (volume.image, volume.grid), "lost": (volume.image, Grid((20, 24, 20)))}
    require_every_control_matters(*widgets.header_dial(scans, volume.image, volume.grid))


def _shift(mm):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = mm
    return matrix


# -- intensities --------------------------------------------------------------------------------------------------
def test_the_picture_and_its_histogram_are_of_the_scaling(brains):
    pair, _ = brains
    scaled = {"as it is": pair.fixed.clamp(0, 1), "dark": 0.1 * pair.fixed.clamp(0, 1)}
    view = widgets.scale_dial(pair.fixed, pair.fixed_grid, scaled)
    assert len(draw_every_state(*view)) == 1
    require_pure(*view)
    for name, image in scaled.items():
        panel, chart = view[0]({"scaling": name}).axes
        np.testing.assert_allclose(np.sort(panel.images[0].get_array().ravel()), np.sort(image.numpy().ravel()))
        assert sum(bar.get_height() for bar in chart.patches) == image.numel()
    with pytest.raises(ValueError, match="at least one scaling"):
        widgets.scale_dial(pair.fixed, pair.fixed_grid, {})


# -- augmentation -------------------------------------------------------------------------------------------------
def test_an_augmented_pair_and_its_truth(brains):
    pair, scans = brains
    item = item_of(scans[::-1])  # `pair` has fixed 0, moving 1

    def augment(settings, draw):
        return data.Augmentation(**settings)(item, np.random.default_rng(draw))

    view = widgets.augmentation_dial(augment, lambda changed: data.true_ddf_after(pair.truth.ddf, changed))
    assert len(draw_every_state(*view)) == 1
    require_pure(*view)
    require_every_control_matters(*view)
    render, controls = view
    calm = {"angle_deg": 0.0, "field_mm": 0.0}
    panels = render(start(controls, **calm)).axes
    straight = field.warp(pair.moving, pair.truth.ddf, padding="zeros")
    shown = panels[2].images[0].get_array()
    assert np.abs(np.sort(shown.ravel()) - np.sort(straight.numpy().ravel())).max() < 1e-5
    turned = draw(render(start(controls, angle_deg=40.0)))
    assert (turned != draw(render(start(controls, **calm)))).any()


# -- learning -----------------------------------------------------------------------------------------------------
def test_learning_curves_and_what_they_are_compared_with():
    figure = widgets.learning_curves(
        {"training": [3.0, 2.0, 1.5], "test": [3.5, 3.0, 2.5]}, up="mm", levels={"truth": 0.1}
    )
    panel = figure.axes[0]
    lines = {line.get_label(): line for line in panel.lines}
    assert lines["training"].get_ydata().tolist() == [3.0, 2.0, 1.5]
    assert lines["test"].get_xdata().tolist() == [1, 2, 3]
    assert len(panel.lines) == 3
    assert "truth" in {text.get_text() for text in panel.texts}
    with pytest.raises(ValueError, match="at least one curve"):
        widgets.learning_curves({"empty": []}, up="mm")


# -- what a network answers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(40, 48), (20, 24, 20)])
def test_an_answer_is_shown_on_the_outlines_and_against_the_truth(shape):
    pair = phantoms.brain_cohort(2, shape=shape, spacing=180 / shape[0], noise=0.0).pair(0, 1)
    scans = [data.Scan(n, x[0], g, g, (labels[0] > 0).float()) for n, x, g, labels in (
        ("moving", pair.moving, pair.moving_grid, pair.moving_labels),
        ("fixed", pair.fixed, pair.fixed_grid, pair.fixed_labels),
    )]  # fmt: skip
    answers = {"nothing": torch.zeros_like(pair.truth.ddf), "truth": pair.truth.ddf}
    view = widgets.answer_dial(item_of(scans), answers, truth=pair.truth.ddf)
    draw_every_state(*view)
    require_pure(*view)
    require_every_control_matters(*view)
    still, right = (view[0](start(view[1], after=name)) for name in answers)
    assert right.axes[2].get_title() == "mean error 0.0 mm"
    mean_mm = field.magnitude(field.convert_ddf(pair.truth.ddf, pair.fixed_grid, to="world", from_="voxel")).mean()
    assert still.axes[2].get_title() == f"mean error {float(mean_mm):.1f} mm"
    assert [len(panel.collections) for panel in right.axes[:3]] == [2, 1, 1]


def test_an_answer_without_truth_or_labels_shows_how_far_voxels_move():
    grid = Grid.centered((16, 16), 2.0)
    item = {"fixed": torch.rand(1, 16, 16), "moving": torch.rand(1, 16, 16), "fixed_grid": grid, "moving_grid": grid}
    render, controls = widgets.answer_dial(item, {"net": torch.full((1, 2, 16, 16), 3.0)}, name="by")
    figure = render(start(controls))
    assert figure.axes[2].get_title() == "mean shift 8.5 mm"
    assert not any(panel.collections for panel in figure.axes[:3])
    batch = {"fixed": item["fixed"][None], "moving": item["moving"][None], "fixed_grid": [grid], "moving_grid": [grid]}
    draw(widgets.answer_dial(batch, {"net": torch.zeros(1, 2, 16, 16)})[0]({"after": "net"}))
    with pytest.raises(ValueError, match="at least one map"):
        widgets.answer_dial(item, {})
