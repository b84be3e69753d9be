"""One gradient step on the filters that an order puts first: the paper's repair (section 4)."""

from collections.abc import Sequence

from salmon.repairs.edit import step_edit
from salmon.repairs.evidence import Evidence
from salmon.repairs.trial import Proposal, Proposals

RATES = {"normalised": (0.01, 0.03, 0.1), "plain": (0.01, 0.1)}
"""Of a normalised step the relative change of each filter, of a plain one the learning rate."""


def step(evidence: Evidence, order: str, shares: Sequence[float]) -> Proposals:
    """Follow the mean gradient of the new samples, without its conflict with the reference.

    A rate is not raised further once a step was given up, or loses too much. Fewer filters are not
    tried where those before were not about as good as the best.
    """
    for share in sorted(shares, reverse=True):
        filters, near = evidence.first(order, share), False
        if not len(filters):  # none is ranked
            return
        for kind, rates in RATES.items():
            for rate in rates:
                edit = step_edit(
                    evidence.state, evidence.index, filters, evidence.kept_gradients, rate,
                    normalised=kind == "normalised",
                )  # fmt: skip
                trial = yield Proposal("step", order, f"{kind} {rate:g}", edit)
                near = near or trial.near
                if not trial.complete or trial.lost > 2 * evidence.settings.margin:
                    break
        if not near:
            break
