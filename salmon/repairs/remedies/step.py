"""One gradient step on the filters that an order puts first: the paper's repair (section 4)."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from salmon.repairs.edit import step_edit
from salmon.repairs.evidence import Evidence
from salmon.repairs.trial import Proposal, Proposals, rising

RATES = {"normalised": (0.01, 0.03, 0.1), "plain": (0.01, 0.1)}
"""Of a normalised step the relative change of each filter, of a plain one the learning rate."""


def step(evidence: Evidence, order: str, shares: Sequence[float]) -> Proposals:
    """Follow the mean gradient of the new samples, without its conflict with the reference.

    Fewer filters are not tried where those before were not about as good as the best.
    """
    for share in sorted(shares, reverse=True):
        filters, near = evidence.first(order, share), False
        for kind in RATES if len(filters) else ():  # none where no filter is ranked
            steps = _steps(evidence, order, filters, kind)
            near = (yield from rising(steps, evidence.settings.margin)) or near
        if not near:
            break


def _steps(evidence: Evidence, order: str, filters: Tensor, kind: str) -> Iterator[Proposal]:
    for rate in RATES[kind]:
        edit = step_edit(
            evidence.state, evidence.index, filters, evidence.kept_gradients, rate,
            normalised=kind == "normalised",
        )  # fmt: skip
        yield Proposal("step", order, f"{kind} {rate:g}", edit)
