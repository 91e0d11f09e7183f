"""Points, frontier and records, on rows that are made by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from maga.experiments.frontier import PANELS, _bars, at_least, frontier_points, on_frontier
from maga.experiments.goals import forgetting, over_targets

TV, RELEARN = PANELS[0], PANELS[2]


def points(*rows, **columns):
    "Points of one case: (method, cost, TV ratio) each."
    made = [{"model": "m", "task": "class", "target": "t", "method": m, "budget": "", "cost": c, "neighbour_tv_ratio": v, "never_back": 0} for m, c, v in rows]
    return pd.DataFrame(made).assign(**{"relearn_ratio": 1.0, "A_r_gap": 0.0, "A_f_gap": 0.0, "rows": 1} | columns)


def test_a_point_that_is_no_nearer_than_a_cheaper_one_is_not_on_the_frontier():
    "Of two at one cost the nearer is, whichever comes first; original and retrain are not."
    some = points(("cheap", 0.01, 2.0), ("as near", 0.02, 2.0), ("far", 0.03, 1.8), ("near", 0.03, 1.5), ("nearer", 0.05, 1.2), ("retrain", 0.001, 1.0))
    for order in (some, some[::-1]):
        assert on_frontier(order, TV).method.tolist() == ["cheap", "near", "nearer"]


def test_only_the_relearn_ratio_has_smallest_means():
    "A class that never came back says nothing against the point in another metric."
    some = points(("cheap", 0.01, 2.0), ("near", 0.02, 1.5), never_back=[0, 1])
    assert at_least(some, "relearn_ratio").tolist() == [False, True] and not at_least(some, "neighbour_tv_ratio").any()
    assert on_frontier(some, TV).method.tolist() == ["cheap", "near"] and on_frontier(some, RELEARN).method.tolist() == ["cheap"]


@pytest.mark.parametrize(("column", "gaps", "kept"), [("A_f_gap", [-5.0, -4.9, 4.9, 5.0], "bc"), ("A_r_gap", [-2.1, -1.9, 1.9, 9.0], "bcd")])
def test_points_that_forget_are_near_the_retrains_on_either_side(column, gaps, kept):
    "And may keep more than these, not much less."
    some = points(*((m, 0.01, 1.0) for m in "abcd"), **{column: gaps})
    assert "".join(forgetting(some).method) == kept


def test_a_row_without_results_is_not_counted():
    "And a point of such rows alone is no point of a mean over targets."
    row = {"model": "m", "task": "class", "method": "ours", "budget": "", "cost": 0.05, "A_f": 0.0, "MIA": 10.0, "neighbour_tv_ratio": 1.0}
    table = pd.DataFrame([row | {"target": t, "seed": s, "A_r": a} for t, s, a in (("t", 0, 70.0), ("t", 1, math.nan), ("u", 0, math.nan))])
    found = frontier_points(table)
    assert found.set_index("target").rows.to_dict() == {"t": 1, "u": 0}
    assert over_targets(found).target.tolist() == ["t"]


def test_bars_reach_down_to_the_smallest_and_up_to_the_largest():
    spread = points(("ours", 0.01, 2.0), neighbour_tv_ratio_least=1.5, neighbour_tv_ratio_most=4.0)
    assert np.allclose(_bars(spread, "neighbour_tv_ratio"), [[0.5], [2.0]])
    assert np.allclose(_bars(points(("ours", 0.01, 2.0), ("theirs", 0.01, 2.0), neighbour_tv_ratio_ci95=[0.3, math.nan]), "neighbour_tv_ratio"), [[0.3, 0]] * 2)
