"""Who meets whom: as many arrows as pairs, counts that add up, and nobody on two places."""

import numpy as np
import pytest
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import widgets
from reglib.data import sampling

GROUPS = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
NAMES = [f"group{k}/scan{i}" for k, group in enumerate(GROUPS) for i in group]


def grouped(probability):
    def meet(epoch):
        rng = np.random.default_rng([1, epoch])
        rules = {"intra_group_prob": probability, "intra_group_option": "forward"}
        return [(d.moving, d.fixed) for d in sampling.groups_sampled(GROUPS, rng, **rules)]

    return meet


RULES = {"within": grouped(1.0), "between": grouped(0.0)}


def build():
    return widgets.meeting_dial(RULES, GROUPS, NAMES, epochs=6)


def test_every_state_draws_on_a_figure_of_one_size():
    assert len(draw_every_state(*build())) == 1


def test_drawing_is_pure():
    require_pure(*build())


def test_every_control_matters():
    require_every_control_matters(*build())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("epoch", [1, 4])
def test_arrows_are_the_epochs_pairs_and_counts_are_all_until_then(rule, epoch):
    render, controls = build()
    circle, table = render(start(controls, rule=rule, epoch=epoch)).axes[:2]
    pairs = RULES[rule](epoch - 1)
    arrows = [note for note in circle.texts if note.get_text() == ""]
    assert len(arrows) == len(pairs) == 3
    assert f"epoch {epoch}: 3 pairs" in circle.get_title()
    counts = table.images[0].get_array()
    assert counts.sum() == 3 * epoch
    owner = np.repeat([0, 1, 2], [3, 2, 4])
    same = owner[:, None] == owner[None]
    assert counts[~same if rule == "within" else same].sum() == 0
    assert np.tril(counts[:3, :3]).sum() == 0  # forward


def test_a_scan_that_meets_itself_has_a_ring():
    render, controls = widgets.meeting_dial({"twice": lambda _: [(0, 0), (0, 1)]}, [[0, 1]], ["a", "b"], epochs=2)
    circle = render(start(controls)).axes[0]
    assert len([note for note in circle.texts if note.get_text() == ""]) == 1
    assert "2 pairs" in circle.get_title()
    assert "sit out" not in circle.get_title()


def test_groups_hold_every_scan_once():
    with pytest.raises(ValueError, match="each of the 3 scans once"):
        widgets.meeting_dial({"any": lambda _: []}, [[0, 1], [1]], ["a", "b", "c"], epochs=1)
