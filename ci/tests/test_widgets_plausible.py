"""Views of regularizers: every state draws, and what is drawn is what the losses say."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from viewing import draw_every_state, require_pure, start

from reglib import losses, widgets
from reglib.grid import Axes, Grid, GridMismatchError
from reglib.plot import canvas

SMALL = Grid((16, 13))
HOME = Grid.centered((24, 20), 1.0)
PRICES = {"diffusion": losses.diffusion_loss, "bending": losses.bending_loss, "folding": losses.folding_loss}


def fields(amount):
    x, y = (SMALL.coordinates() - torch.tensor([7.5, 6.0])).movedim(-1, 0)
    zero = torch.zeros_like(x)
    made = {
        "translation": (zero + 2, zero),
        "shear": (0.3 * y, zero),
        "slide": (zero, torch.sign(x)),
        "fold": (4 * torch.exp(-(x**2 + y**2) / 4), zero),
    }
    return {name: amount * torch.stack(parts)[None] for name, parts in made.items()}


def noise(scale=0.5):
    return scale * torch.randn(1, 2, *SMALL.shape, generator=torch.Generator().manual_seed(0))


def ddf_on(grid):
    x, y = grid.coordinates(Axes.WORLD).movedim(-1, 0)
    near = torch.exp(-(x**2 + y**2) / 18)
    return (torch.stack([2 * near, near]) / torch.tensor(grid.spacing).reshape(2, 1, 1))[None]


def priced(loss):
    return lambda u, spacing: loss(u, spacing=spacing)


def folding(u, margin):
    return losses.folding_loss(u, margin=margin)


def elastic(u, poisson):
    return losses.elastic_loss(u, material=losses.Material.from_young(1.0, poisson))


def sweep():
    truth = fields(1.0)["shear"]
    found = {0.1: (fields(1.0)["fold"], 3.0, 0.2), 1.0: (truth, 0.5, 0.0), 10.0: (0 * truth, 2.0, 0.0)}
    return {weight: widgets.Trial(ddf, tre, folds, 1 / tre) for weight, (ddf, tre, folds) in found.items()}


def build(name):
    body = torch.ones(1, 1, *SMALL.shape, dtype=torch.long)
    eye = widgets.Eye(losses.gradient_loss, order=1, reads=(-1, 1))
    return {
        "price_tag": lambda: widgets.price_tag(fields, SMALL, PRICES),
        "stencil_eye": lambda: widgets.stencil_eye({"central": eye}),
        "repair": lambda: widgets.repair(fields(1.0)["slide"], {"grain": noise()}, SMALL, PRICES),
        "squeeze": lambda: widgets.squeeze(elastic, Grid((13, 11))),
        "unfold": lambda: widgets.unfold(fields(1.0)["fold"], SMALL, folding, steps=40),
        "grid_prices": lambda: widgets.grid_prices(ddf_on, HOME, {"bending": priced(losses.bending_loss)}),
        "weight_dial": lambda: widgets.weight_dial(sweep(), body, SMALL, fields(1.0)["shear"], before_mm=4.0),
    }[name]()


VIEWS = ("price_tag", "stencil_eye", "repair", "squeeze", "unfold", "grid_prices", "weight_dial")


def words(panel):
    return [text.get_text() for text in panel.texts]


@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view):
    assert len(draw_every_state(*build(view))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view))


def test_fields_must_be_on_the_grid(no_jaxtyping):
    other = Grid((9, 8))
    body = torch.ones(1, 1, *SMALL.shape, dtype=torch.long)
    calls = [
        lambda: widgets.zoo(fields(1.0), other),
        lambda: widgets.price_tag(fields, other, PRICES),
        lambda: widgets.repair(fields(1.0)["slide"], {"grain": noise()[..., 1:]}, SMALL, PRICES),
        lambda: widgets.unfold(fields(1.0)["fold"], other, folding),
        lambda: widgets.weight_dial(sweep(), body, SMALL, torch.zeros(1, 2, 9, 8), before_mm=4.0),
    ]
    for call in calls:
        with pytest.raises(GridMismatchError, match="as its grid"):
            call()


# -- prices ----------------------------------------------------------------------------------------------------
def test_the_zoo_names_every_field_and_marks_the_fold_alone():
    figure = widgets.zoo(fields(1.0), SMALL, columns=2)
    assert [panel.get_title() for panel in figure.axes] == list(fields(1.0))
    folds = [
        any(to_hex(color) == canvas.FOLD_COLOR for c in panel.collections for color in c.get_facecolor())
        for panel in figure.axes
    ]
    assert folds == [False, False, False, True]


def test_the_table_writes_shares_of_the_dearest_and_free():
    figure = widgets.price_table({"a": {"x": 2.0, "y": 1.0, "z": 1e-9}, "b": {"x": 0.0, "y": 0.0, "z": 0.0}})
    assert words(figure.axes[0]) == ["100%", "50%", "free", "free", "free", "free"]


def test_the_table_wants_the_same_fields_in_every_row():
    with pytest.raises(ValueError, match="must price the same fields"):
        widgets.price_table({"a": {"x": 1.0}, "b": {"y": 1.0}})


def test_the_price_tag_says_what_is_free():
    render, controls = widgets.price_tag(fields, SMALL, PRICES)
    chart = render(start(controls) | {"field": "shear"}).axes[1]
    assert words(chart)[1:] == ["free", "free"]
    assert words(chart)[0] != "free"
    assert set(words(render(start(controls) | {"field": "fold", "amount": 0.0}).axes[1])) == {"free"}


def test_a_little_of_a_field_is_cheap_and_not_free():
    def faint(amount):
        return {"small": 0.004 * fields(amount)["fold"], "large": fields(amount)["fold"]}

    render, controls = widgets.price_tag(faint, SMALL, PRICES)
    assert words(render(start(controls) | {"field": "small", "amount": 0.1}).axes[1]) == ["< 0.1%", "< 0.1%", "free"]


def test_a_bar_ends_at_its_share():
    render, controls = widgets.price_tag(fields, SMALL, PRICES)
    chart = render(start(controls) | {"field": "fold", "amount": 1.5}).axes[1]
    shares = [
        float(loss(fields(1.5)["fold"])) / max(float(loss(u)) for u in fields(1.0).values()) for loss in PRICES.values()
    ]
    assert [bar.get_x() + bar.get_width() for bar in chart.patches] == pytest.approx(shares)
    assert words(chart) == [f"{share:.0%}" for share in shares]


# -- stencils --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wave", [2.0, 3.5, 8.0, 12.0])
def test_the_share_seen_is_the_known_response_of_the_stencil(wave):
    k = 2 * math.pi / wave
    known = {
        "forward": (losses.diffusion_loss, 1, (2 * math.sin(k / 2)) ** 2 / k**2),
        "central": (losses.gradient_loss, 1, math.sin(k) ** 2 / k**2),
        "compact": (losses.bending_loss, 2, (2 * math.sin(k / 2)) ** 4 / k**4),
        "nested": (partial(losses.bending_loss, stencil="nested"), 2, math.sin(k) ** 4 / k**4),
    }
    for loss, order, share in known.values():
        render, controls = widgets.stencil_eye({"it": widgets.Eye(loss, order=order, reads=(0, 1))})
        drawn = render(start(controls) | {"wave": wave}).axes[1].lines[2].get_ydata()
        assert float(drawn[0]) == pytest.approx(share, abs=1e-6)


# -- repair ----------------------------------------------------------------------------------------------------
def test_no_strength_leaves_the_field_and_more_lowers_the_price():
    noisy = fields(1.0)["slide"] + noise()
    found = [widgets.mend(noisy, noise(), losses.diffusion_loss, strength) for strength in (0.0, 1.0, 4.0)]
    torch.testing.assert_close(found[0], noisy, rtol=0, atol=0)
    prices = [float(losses.diffusion_loss(u)) for u in found]
    assert prices[0] > 1.2 * prices[1] > 1.2 * prices[2]
    assert [float((u - noisy).square().mean()) for u in found] == sorted(
        float((u - noisy).square().mean()) for u in found
    )


def test_mending_finds_the_minimum():
    noisy = noise()
    found = widgets.mend(noisy, noise(), losses.diffusion_loss, 2.0).double().requires_grad_()
    unit, price = noise().double().square().mean(), float(losses.diffusion_loss(noisy.double()))
    total = (found - noisy).square().mean() / unit + 2.0 * losses.diffusion_loss(found) / price
    (slope,) = torch.autograd.grad(total, found)
    assert float(slope.abs().max()) < 1e-5


def test_the_profile_dashes_the_truth():
    truth = fields(1.0)["slide"]
    render, controls = widgets.repair(truth, {"grain": noise()}, SMALL, PRICES)
    lines = {line.get_label(): line for line in render(start(controls)).axes[1].lines}
    np.testing.assert_allclose(lines["truth"].get_ydata(), truth[0, 1, :, SMALL.shape[1] // 2])
    assert lines["truth"].is_dashed()
    assert not lines["mended"].is_dashed()


# -- materials and folds ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("poisson", [-0.3, 0.0, 0.3, 0.45])
def test_a_pressed_block_widens_as_plane_strain_says(poisson):
    u = widgets.press(lambda ddf: elastic(ddf, poisson), Grid((41, 33)), amount=0.1)
    assert float(u[0, 1, :, 0].sub(1.6).abs().max()) < 1e-9  # the plate: a tenth of 16 voxels
    wider = float(u[0, 0, -1, 16] - u[0, 0, 0, 16]) / 40 / 0.1
    assert wider == pytest.approx(poisson / (1 - poisson), abs=0.06)


def test_descending_takes_folds_away_and_leaves_the_rest():
    folded = fields(1.0)["fold"]
    mended = widgets.descend(folded, lambda u: folding(u, 0.2), steps=200)
    assert float(folding(folded, 0.0)) > 0
    assert float(folding(mended, 0.1)) == 0
    assert float((mended - folded)[:, :, 0].abs().max()) == 0  # far from the fold
    torch.testing.assert_close(widgets.descend(mended, lambda u: folding(u, 0.0), steps=5), mended)


# -- grids and weights -----------------------------------------------------------------------------------------
def test_spacing_makes_prices_agree_and_voxels_do_not():
    render, controls = widgets.grid_prices(ddf_on, HOME, {"bending": priced(losses.bending_loss)})
    state = {"x_mm": 1.0, "y_mm": 0.75}
    (right,), (wrong,) = (words(render(state | {"spacing": on}).axes[1]) for on in (True, False))
    assert abs(float(right[1:]) - 1) < 0.05 < abs(float(wrong[1:]) - 1)
    assert controls["spacing"].value is False


def test_the_dial_stops_at_the_weights_and_starts_at_the_best():
    render, controls = build("weight_dial")
    dial = controls["log10_weight"]
    assert (dial.low, dial.value, dial.high, dial.step) == pytest.approx((-1, 0, 1, 1))
    picture, errors, below = render({"log10_weight": -1.0}).axes
    assert "0.1" in picture.get_title()
    assert "3.00 mm" in errors.get_title()
    assert any("20.0%" in text for text in words(picture))
    assert "folds" in words(below)


def test_a_dial_needs_weights():
    body, truth = torch.ones(1, 1, *SMALL.shape, dtype=torch.long), fields(1.0)["shear"]
    for trials in ({1.0: sweep()[1.0]}, {0.0: sweep()[1.0], 1.0: sweep()[1.0]}):
        with pytest.raises(ValueError, match="at least two weights above 0"):
            widgets.weight_dial(trials, body, SMALL, truth, before_mm=1.0)
