"""The rules of acceptance, each against a count by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from salmon import FilterIndex, InputError, RepairSettings
from salmon.repairs.edit import Edit, state_of, step_edit
from salmon.repairs.judge import judge
from salmon.repairs.predictions import Comparison, Objective, Predictions, compare, mcnemar
from tests.shifts import trained


@pytest.mark.parametrize("fixed", range(8))
@pytest.mark.parametrize("broken", range(8))
def test_mcnemar_counts_all_outcomes(fixed: int, broken: int) -> None:
    changed = fixed + broken
    exact = sum(math.comb(changed, k) for k in range(fixed, changed + 1)) / 2**changed
    assert mcnemar(fixed, broken) == pytest.approx(exact, rel=1e-12)


def test_the_loss_bound_grows_with_confidence() -> None:
    found = Comparison(300, 0.9, 0.89, 2, 5)
    assert found.loss_bound(0.5) == pytest.approx(0.01)
    # Wald: 0.01 + 1.6449 * sqrt(7 - 9/300) / 300
    expected = 0.01 + 1.644854 * 6.97**0.5 / 300
    assert found.loss_bound(0.95) == pytest.approx(expected, rel=1e-6)
    assert replace(found, fixed=0, broken=0).loss_bound(0.95) > 0


def read(logits: Tensor, targets: Tensor) -> Predictions:
    with torch.no_grad():
        return Objective().read(logits, targets)


def predictions(right: list[int], targets: Tensor, sharp: float = 0.5) -> Predictions:
    """Right for the given samples, the next class for all others."""
    chosen = (targets + 1) % 4
    chosen[right] = targets[right]
    return read(sharp * torch.nn.functional.one_hot(chosen, 4).double(), targets)


TARGETS = torch.arange(400) % 4
BEFORE_NEW, BEFORE_REFERENCE = list(range(100)), list(range(400))
STRICT = RepairSettings(margin=0.01, class_margin=0.05, max_broken_reference=0.02)


def edit() -> Edit:
    network = trained()
    index = FilterIndex.from_model(network)
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    return step_edit(state_of(network), index, [0], gradients, 0.1, normalised=True)


def failed(
    new: list[int],
    reference: list[int],
    settings: RepairSettings = STRICT,
    change: Edit | None = None,
    sharp: float = 0.5,
) -> set[str]:
    verdict = judge(
        change or edit(),
        (predictions(BEFORE_NEW, TARGETS), predictions(new, TARGETS, sharp)),
        (predictions(BEFORE_REFERENCE, TARGETS), predictions(reference, TARGETS)),
        settings,
    )
    names = {rule.name for rule in verdict.rules if not rule.passed}
    assert verdict.accepted == (not names)
    return names


def test_a_clean_gain_passes_every_rule() -> None:
    loose = replace(STRICT, max_ece_increase=1.0)
    assert failed(list(range(150)), BEFORE_REFERENCE, loose) == set()


@pytest.mark.parametrize(
    ("new", "reference", "expected"),
    [
        (list(range(100)), list(range(400)), "fixes more than it breaks"),
        (list(range(104)), list(range(400)), "fixes more than it breaks"),  # p = 1/16
        (list(range(40, 150)), list(range(400)), "broken new samples"),
        (list(range(150)), list(range(5, 400)), "reference accuracy"),
        (list(range(150)), [i for i in range(400) if i % 4 or i >= 24], "every class"),
        (list(range(150)), list(range(9, 400)), "broken reference samples"),
    ],
)
def test_each_rule_can_fail(new: list[int], reference: list[int], expected: str) -> None:
    assert expected in failed(new, reference)


def test_four_lost_of_four_hundred_are_one_point() -> None:
    assert "reference accuracy" not in failed(list(range(150)), list(range(4, 400)))
    strict = replace(STRICT, reference_confidence=0.95)
    assert "reference accuracy" in failed(list(range(150)), list(range(4, 400)), strict)


def test_bad_weights_fail() -> None:
    change = edit()
    change.changes[0].values[0, 0] = torch.nan
    assert "finite weights" in failed(list(range(150)), BEFORE_REFERENCE, change=change)


def test_new_confidence_without_accuracy_fails() -> None:
    assert "calibration on new data" in failed(list(range(150)), BEFORE_REFERENCE, sharp=30.0)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # All samples have the same confidence, so that there is one bin.
    found = predictions(list(range(100)), TARGETS)
    confidence = math.exp(0.5) / (math.exp(0.5) + 3)
    assert found.calibration_error == pytest.approx(confidence - 0.25, rel=1e-5)
    unknown = read(torch.full((2, 4), math.nan), TARGETS[:2]).calibration_error
    assert unknown is not None
    assert math.isnan(unknown)


def test_samples_without_finite_logits_are_wrong() -> None:
    logits = torch.eye(4, dtype=torch.float64)
    logits[1, 0] = math.nan
    assert read(logits, torch.arange(4)).right.tolist() == [True, False, True, True]


def test_rules_tell_how_much_room_they_leave() -> None:
    pair = (predictions(BEFORE_REFERENCE, TARGETS), predictions(list(range(2, 400)), TARGETS))
    new = (predictions(BEFORE_NEW, TARGETS), predictions(list(range(150)), TARGETS))
    rules = {rule.name: rule for rule in judge(edit(), new, pair, STRICT).rules}
    assert rules["reference accuracy"].headroom == pytest.approx(0.01 - 2 / 400)
    assert rules["broken reference samples"].headroom == pytest.approx(0.02 - 2 / 400)


def test_comparisons_count_what_changed() -> None:
    found = compare(predictions([0, 1, 2], TARGETS[:8]), predictions([1, 2, 3, 4], TARGETS[:8]))
    assert (found.samples, found.fixed, found.broken) == (8, 2, 1)
    assert found.gain == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"remedies": ("best",)}, {"remedies": ()}, {"remedies": "tune"}, {"prefer": "head"},
        {"remedies": ("tune",), "prefer": "step"}, {"order": "best"}, {"order": "pot:3"},
        {"split": (0.5, 0.5, 0.5)}, {"shares": (2.0,)}, {"epochs": 0}, {"alpha": 0.0},
        {"reference_confidence": 0.4}, {"margin": -0.1}, {"min_split": 0}, {"shares": 0.05},
        {"seed": 1.5}, {"epochs": 1.5}, {"split": 0.3}, {"order": 3}, {"shares": ("a",)},
        {"max_broken": math.inf},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        RepairSettings(**wrong)  # type: ignore[arg-type]
