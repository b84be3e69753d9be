"""One network on one statistics set and one target set, from measuring to curves."""

from dataclasses import dataclass

from torch import nn

from examples.paper.shared.editing import Curves, follow
from examples.paper.shared.images import Images
from examples.paper.shared.measuring import (
    Mistakes,
    Say,
    facts_of,
    mistakes_of,
    shares_of,
    tails_of,
)
from examples.paper.shared.options import Options
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import Panel, Shares
from salmon import FilterIndex, TailFit


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What was found."""

    fit: TailFit
    mistakes: Mistakes
    curves: Curves  # empty where nothing was edited
    shares: Shares

    def panel(self, name: str, *, drawn: bool = True) -> Panel:
        """Its curves and facts under a name.

        Args:
            name: Of the panel.
            drawn: Whether to draw it.
        """
        return Panel(name, [self.curves], drawn, facts_of(self.fit, self.mistakes))


def run_study(
    parts: Parts, model: nn.Module, index: FilterIndex, statistics: Images, target: Images,
    options: Options, say: Say, *, fit_parts: Parts | None = None,
) -> Study:  # fmt: skip
    """Measure and edit.

    Args:
        parts: Where everything is kept.
        model: In eval mode, on its device.
        index: The filters.
        statistics: The set that the tails are fitted to.
        target: The set whose mistakes are edited.
        options: Of the experiment.
        say: Gets progress.
        fit_parts: Where the tails are kept, if several studies share them.
    """
    fit = tails_of(fit_parts or parts, model, index, statistics, options, say)
    mistakes = mistakes_of(parts, model, index, fit, target, options, say)
    curves = {}
    if options.edits:
        curves = follow(parts, model, index, target, mistakes, options, say)
    return Study(fit, mistakes, curves, shares_of(mistakes, index))
