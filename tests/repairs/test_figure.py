"""The figure of a repair's trade-off."""

from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from salmon.repairs.figure import tradeoff, tradeoff_svg
from salmon.repairs.trial import Trial


def trial(order: str, gain: float, lost: float, *, complete: bool = True) -> Trial:
    return Trial(
        remedy="tune", order=order, how="1 epoch", filters=4, weights=9, relative_change=0.1,
        samples=300, gain=gain, lost=lost, fixed=3, broken=1, failed="", complete=complete,
    )  # fmt: skip


TRIALS = [
    trial("pot", 0.02, 0.0), trial("pot", 0.05, 0.01), trial("pot", 0.04, 0.012),
    trial("pot", 0.5, 0.9), trial("pot", 0.6, 0.0, complete=False),
    trial("group:$x_1$ <b>&", 0.01, -0.002),
]  # fmt: skip


def test_each_remedy_has_a_line_through_the_largest_gains_at_each_loss() -> None:
    (axes,) = tradeoff(TRIALS, 0.01).axes
    margin, pot, other = axes.lines
    assert np.asarray(margin.get_xdata()).tolist() == [1, 1]
    assert np.asarray(pot.get_xydata()) == pytest.approx(np.asarray([[0, 2], [1, 5]]))
    assert np.asarray(other.get_xydata()) == pytest.approx(np.asarray([[-0.2, 1]]))
    assert axes.get_xlim() == pytest.approx((-0.2, 1.5))


def test_the_vector_graphic_is_the_same_each_time_and_shows_names_as_text() -> None:
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        text = tradeoff_svg(TRIALS, 0.01)
    assert text == tradeoff_svg(TRIALS, 0.01)
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img"
    shown = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert {"tune (pot)", "tune (group:$x_1$ <b>&)", "margin"} <= set(shown)


def test_a_search_without_trials_has_a_figure() -> None:
    assert "<svg" in tradeoff_svg([], 0.0)
