"""Mixtures of two edits: the original values and shares of what each adds, row by row."""

import pytest
import torch
from torch import Tensor, nn

from salmon.repairs import Edit, edited
from salmon.repairs.edit import Change, by_layer, channel_rows, plain_layout, state_of
from salmon.repairs.evidence import Evidence
from salmon.repairs.remedies import combine
from salmon.repairs.remedies.combine import SHARES, mixture
from salmon.repairs.search import Candidate
from salmon.repairs.trial import Proposal
from tests.evidences import assert_same, evidence_of, trial_of
from tests.shifts import trained

FIRST, SECOND = [0, 3, 5, 20, 21], [3, 4, 21, 40]
"""Filters of both convolutions of the trained network; 3 and 21 are of both edits."""


def edit_of(evidence: Evidence, filters: list[int], seed: int, *buffers: str) -> Edit:
    """New values of some filters, and of the first rows of buffers."""
    random = torch.Generator().manual_seed(seed)
    state, rows = evidence.state, list(by_layer(evidence.index, filters))
    rows += [(plain_layout(name, state[name]), torch.arange(seed + 2)) for name in buffers]
    return Edit(tuple(
        Change(layer, at, old + 0.1 * torch.randn(old.shape, generator=random).to(old))
        for layer, at in rows for old in [channel_rows(state[layer.weight], layer, at)]
    ))  # fmt: skip


def both(evidence: Evidence) -> tuple[Edit, Edit]:
    """Two edits that touch some rows together, and one buffer each besides one of both."""
    return (
        edit_of(evidence, FIRST, 1, "1.running_mean", "1.running_var"),
        edit_of(evidence, SECOND, 2, "1.running_mean", "8.bias"),
    )


def values_after(evidence: Evidence, edit: Edit) -> dict[str, Tensor]:
    """All tensors of the edited network, in float64."""
    with edited(evidence.model, edit):
        return {name: value.double() for name, value in state_of(evidence.model).items()}


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 1.0), (0.3, -0.4), (0.0, 0.0)])
def test_a_mixture_adds_shares_of_both_changes(a: float, b: float) -> None:
    evidence = evidence_of(trained())
    first, second = both(evidence)
    old, one, other = (values_after(evidence, edit) for edit in (Edit(()), first, second))
    mixed = mixture(evidence, (first, second), (a, b))
    found = values_after(evidence, mixed)
    for name, value in found.items():
        wanted = old[name] + a * (one[name] - old[name]) + b * (other[name] - old[name])
        torch.testing.assert_close(value, wanted, rtol=1e-7, atol=1e-7)
    assert mixed.filters == len({*FIRST, *SECOND})


@pytest.mark.parametrize(("shares", "which"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_all_of_one_edit_and_none_of_the_other_is_that_edit(
    shares: tuple[float, float], which: int
) -> None:
    evidence = evidence_of(trained())
    edits = both(evidence)
    found = values_after(evidence, mixture(evidence, edits, shares))
    for name, value in values_after(evidence, edits[which]).items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-7)


def test_rows_of_a_mixture_are_those_of_both_once_each() -> None:
    evidence = evidence_of(trained())
    first, second = both(evidence)
    mixed = mixture(evidence, (first, second), (1.0, 1.0))
    names = [change.layer.weight for change in mixed.changes]
    assert len(names) == len(set(names))
    for change in mixed.changes:
        rows = [
            each.channels.tolist() for edit in (first, second) for each in edit.changes
            if each.layer.weight == change.layer.weight
        ]  # fmt: skip
        assert change.channels.tolist() == sorted(set().union(*rows))
        assert change.values.dtype == evidence.state[change.layer.weight].dtype


def test_rows_of_transposed_convolutions_are_mixed_by_output_channel() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.ConvTranspose2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    evidence = evidence_of(network.bfloat16().float())
    edits = edit_of(evidence, [1, 7, 10], 1), edit_of(evidence, [0, 7, 11], 2)
    old, one, other = (values_after(evidence, edit) for edit in (Edit(()), *edits))
    for name, value in values_after(evidence, mixture(evidence, edits, (0.5, 1.0))).items():
        wanted = old[name] + 0.5 * (one[name] - old[name]) + (other[name] - old[name])
        torch.testing.assert_close(value, wanted, rtol=1e-7, atol=1e-7)


def test_proposals_name_both_remedies_and_their_shares() -> None:
    evidence = evidence_of(trained())
    edits = both(evidence)
    right = torch.ones(18, dtype=torch.bool)
    one = trial_of(Proposal("step", "pot", "normalised 0.1", edits[0]))
    for order, wanted in (("pot", "pot"), ("zscore", "mixed")):
        other = trial_of(Proposal("tune", order, "1 epoch at 0.01", edits[1]))
        pair = Candidate(one, edits[0], right), Candidate(other, edits[1], right)
        proposals = list(combine(evidence, pair))
        assert {(p.remedy, p.order) for p in proposals} == {("step + tune", wanted)}
        for (a, b), proposal in zip(SHARES, proposals, strict=True):
            assert proposal.how == f"{a:g} (normalised 0.1) + {b:g} (1 epoch at 0.01)"
            mixed = mixture(evidence, edits, (a, b))
            assert_same(proposal.edit, mixed)
