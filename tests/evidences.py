"""What remedies are made from, for the tests of each: evidence, verdicts, and who gives them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from salmon import FilterIndex, RepairSettings, Samples
from salmon.repairs.edit import Edit
from salmon.repairs.evidence import Evidence, Part, split_set
from salmon.repairs.trial import Proposal, Proposals, Trial
from tests.shifts import some


class ByKeyword(nn.Sequential):
    """Calls its layers by keyword."""

    def forward(self, input: Any) -> Any:
        for layer in self:
            input = layer(input=input)
        return input


def evidence_of(
    network: nn.Module,
    *,
    new: int = 300,
    reference: int = 200,
    epochs: int = 1,
    batch_size: int = 64,
) -> Evidence:
    """Of squares, in the type of the network; the repair splits hold two in five of them."""
    settings = RepairSettings(min_split=1, epochs=epochs, seed=3)

    def part(size: int, seed: int, *, shifted: bool) -> Part:
        samples = some(size, seed, shifted=shifted)
        inputs: Tensor = samples.inputs.to(next(network.parameters()).dtype)
        samples = Samples(inputs, samples.targets, samples.ids)
        return split_set(network, samples, settings, "set", 64)["repair"]

    return Evidence(
        model=network, index=FilterIndex.from_model(network), given_fit=None,
        new=part(new, 21, shifted=True), reference=part(reference, 20, shifted=False),
        settings=settings, batch_size=batch_size, say=lambda *_: None,
    )  # fmt: skip


def trial_of(
    proposal: Proposal,
    *,
    gain: float = 0.1,
    lost: float = 0.0,
    failed: str = "",
    complete: bool = True,
    near: bool = True,
) -> Trial:
    """What a guard might say of a proposal."""
    return Trial(
        remedy=proposal.remedy, order=proposal.order, how=proposal.how,
        filters=proposal.edit.filters, weights=proposal.edit.weights, relative_change=0.1,
        samples=100, gain=gain, lost=lost, fixed=10, broken=0, failed=failed, complete=complete,
        near=near,
    )  # fmt: skip


def driven(proposals: Proposals, verdict: Callable[[Proposal], Trial] = trial_of) -> list[Proposal]:
    """All that a remedy proposes, each followed by its verdict."""
    seen: list[Proposal] = []
    trial = None
    while True:
        try:
            proposal = proposals.send(trial)  # type: ignore[arg-type]  # None starts it
        except StopIteration:
            return seen
        seen.append(proposal)
        trial = verdict(proposal)


def assert_same(one: Edit, other: Edit) -> None:
    """Bit for bit."""
    for a, b in zip(one.changes, other.changes, strict=True):
        assert a.layer == b.layer
        assert torch.equal(a.channels, b.channels)
        assert torch.equal(a.values, b.values)
