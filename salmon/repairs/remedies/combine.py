"""Two edits at once: a search in the span of the changes that two remedies make."""

from collections.abc import Sequence

import torch

from salmon.repairs.edit import Change, Edit
from salmon.repairs.evidence import Evidence
from salmon.repairs.search import Candidate
from salmon.repairs.trial import Proposal, Proposals

SHARES = ((1.0, 0.5), (0.5, 1.0), (1.0, 1.0))
"""Of the first and of the second change."""


def combine(evidence: Evidence, pair: Sequence[Candidate]) -> Proposals:
    """Try mixtures of two edits, which may touch the same rows."""
    first, second = pair
    name = f"{first.trial.remedy} + {second.trial.remedy}"
    order = first.trial.order if first.trial.order == second.trial.order else "mixed"
    for a, b in SHARES:
        edit = mixture(evidence, (first.edit, second.edit), (a, b))
        yield Proposal(name, order, f"{a:g} ({first.trial.how}) + {b:g} ({second.trial.how})", edit)


def mixture(evidence: Evidence, edits: Sequence[Edit], shares: Sequence[float]) -> Edit:
    """The original values plus shares of what each edit adds to them."""
    layers = {change.layer.weight: change.layer for edit in edits for change in edit.changes}
    changes = []
    for name, layer in layers.items():
        parts = [
            (share, change)
            for share, edit in zip(shares, edits, strict=True)
            for change in edit.changes
            if change.layer.weight == name
        ]
        channels = torch.cat([change.channels for _, change in parts]).unique()
        blank = torch.empty(len(channels), layer.size)
        (old,) = Edit((Change(layer, channels, blank),)).values_in(evidence.state).changes
        values = old.values.double()
        for share, change in parts:
            at = torch.searchsorted(channels, change.channels)
            values[at] += share * (change.values.double() - old.values[at].double())
        changes.append(Change(layer, channels, values.to(old.values.dtype)))
    return Edit(tuple(changes))
