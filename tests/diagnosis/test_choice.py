"""Which samples of a large pass are measured, and that they stand for the others."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salmon import Pass, PassSettings, Tails, filter_saliency, fit_tails
from salmon.diagnosis import Diagnosis, Step
from salmon.diagnosis.choice import UNSURE, Choice
from salmon.diagnosis.waiting import SMALL_IMAGES
from tests.networks import PlainNet, batch

SAMPLES = 400
SETTINGS = PassSettings(level=0.8, top_k=5, right_samples=10, max_mistakes=300)


def network() -> nn.Module:
    torch.manual_seed(5)
    return PlainNet().double().eval()


MODEL = network()
IMAGES = batch(SAMPLES, seed=5)[0].double()
with torch.no_grad():
    LOGITS = MODEL(IMAGES) * 200  # so that it is sure of most
NUMBERS = torch.arange(SAMPLES)
FORWARDS: list[int] = []
"""Sizes of the batches that went through the network; what is on a module would be put back."""


class Sure(nn.Module):
    """The network, with large logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: Tensor, *, times: float = 200.0) -> Tensor:
        FORWARDS.append(len(images))
        logits: Tensor = times * self.net(images)
        return logits


LABELS = LOGITS.argmax(1)
LABELS[::10] = (LABELS[::10] + 1) % 4  # a tenth is wrong
WRONG = LOGITS.argmax(1) != LABELS
OTHERS = 1 - LOGITS.softmax(1).gather(1, LABELS.unsqueeze(1)).squeeze(1)


def planned(**changes: Any) -> Choice | None:
    values = {
        "seed": 0, "right_samples": 500, "max_mistakes": 2000, "expected": 50_000,
        "accuracy": 0.5, "tail": 0.1,
    }  # fmt: skip
    return Choice.of(**(values | changes))


def measured(ends: list[int], settings: PassSettings = SETTINGS, **options: Any) -> Pass:
    own = Pass(Sure(), settings, expected=SAMPLES, **options)
    for start, end in zip([0, *ends], [*ends, SAMPLES], strict=True):
        own.update(IMAGES[start:end], LABELS[start:end], numbers=NUMBERS[start:end])
    return own


def choice_of(settings: PassSettings = SETTINGS, **options: Any) -> Choice:
    found = Choice.of(
        seed=settings.seed, right_samples=settings.right_samples,
        max_mistakes=settings.max_mistakes, expected=SAMPLES, accuracy=options.get("accuracy"),
        tail=0.2,
    )  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize(
    "changes",
    [{"expected": 2500}, {"expected": None}, {"right_samples": None, "max_mistakes": None}],
)
def test_small_passes_and_those_of_unknown_length_are_measured_whole(
    changes: dict[str, Any],
) -> None:
    assert planned(**changes) is None


def test_chances_are_powers_of_two_that_keep_the_numbers_asked_for() -> None:
    choice = planned()
    assert choice is not None
    assert 25_000 / 2**choice.wrong <= 2000 < 25_000 / 2 ** (choice.wrong - 1)
    assert 25_000 / 2 ** (choice.right + 1) < 500 <= 25_000 / 2**choice.right
    first = planned(accuracy=None)
    assert first is not None
    assert (first.wrong, first.right) == (0, 6)  # nobody knows how many are wrong
    every = planned(right_samples=None)
    assert every is not None
    assert every.right == every.wrong == choice.wrong  # no right sample is likelier


def test_where_mistakes_fill_the_tails_fewer_right_samples_are_measured() -> None:
    many, few, unknown, given = (
        planned(**changes)
        for changes in ({"accuracy": 0.8}, {"accuracy": 0.9}, {"accuracy": None}, {"tail": 0.0})
    )
    assert many is not None
    assert few is not None
    assert unknown is not None
    assert given is not None
    assert few.unsure == unknown.unsure == UNSURE
    assert many.unsure == pytest.approx(UNSURE / 4)
    assert given.unsure == 0


def test_every_sample_stands_for_one_on_the_average() -> None:
    choice = Choice(seed=3, wrong=1, right=5, unsure=UNSURE)
    numbers = torch.arange(200_000)
    # Those measured are half of all, as far as their weights go.
    for others, wrong in ((0.2, False), (0.01, False), (0.7, True), (float("nan"), True)):
        copies = choice.copies(
            numbers, torch.full((len(numbers),), wrong), torch.full((len(numbers),), others)
        )
        weight = int(copies.max())
        chance = (copies > 0).double().mean()
        spread = (weight / len(numbers)) ** 0.5  # of the mean of a Poisson sample
        assert abs(copies.double().mean() - 0.5) < 4 * spread
        assert abs(chance - 0.5 / weight) < 4 * spread
        assert weight == 1 if wrong else weight <= 1 / max(UNSURE * others, 2**-4) < 2 * weight
    assert choice.stood_for(200_001) == 100_000
    assert set(choice.copies(numbers, numbers < 0, numbers * 0.0).tolist()) == {0, 16}


def test_right_samples_by_chance_are_measured_whatever_the_network_says() -> None:
    choice = Choice(seed=3, wrong=0, right=4, unsure=UNSURE)
    numbers = torch.arange(5000)
    even = choice.by_chance(numbers)
    assert abs(int(even.sum()) - 5000 / 16) < 4 * (5000 / 16) ** 0.5
    others = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert bool((choice.copies(numbers, numbers < 0, others)[even] > 0).all())


def test_the_tails_are_those_of_a_stream_that_gets_each_sample_so_many_times() -> None:
    copies = choice_of().copies(NUMBERS, WRONG, OTHERS)
    assert 40 < int((copies > 0).sum()) < 300
    found = measured([7, 100, 250]).compute()
    model = Sure().eval()
    tails = Tails(len(found.index))
    for number in NUMBERS[copies > 0].tolist():
        profile = filter_saliency(model, IMAGES[[number]], LABELS[[number]])
        for _ in range(int(copies[number])):
            tails.update(profile)
    expected = fit_tails(tails, 0.8, index=found.index, stands_for=SAMPLES)
    assert found.measured == int((copies > 0).sum())
    assert found.fit.samples == SAMPLES
    assert found.fit.top == SAMPLES // 5
    torch.testing.assert_close(found.fit.threshold, expected.threshold, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.fit.mean, expected.mean, rtol=1e-9, atol=0)
    assert found.mistakes.sample.tolist() == NUMBERS[WRONG].tolist()


@pytest.mark.parametrize("ends", [[1, 2, 3], list(range(16, SAMPLES, 16)), [399]])
def test_any_split_chooses_the_same(ends: list[int]) -> None:
    settings = PassSettings(level=0.8, top_k=5, right_samples=10, max_mistakes=12)
    whole = measured([], settings, accuracy=0.9).compute()
    found = measured(ends, settings, accuracy=0.9).compute()
    assert 5 < len(whole.mistakes.ids) < 20
    assert found.measured == whole.measured < SAMPLES
    assert found.mistakes.ids == whole.mistakes.ids
    assert found.confusions == whole.confusions
    torch.testing.assert_close(found.fit.threshold, whole.fit.threshold, rtol=1e-9, atol=0)
    mine, theirs = found.right.score, whole.right.score
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_merged_passes_are_one_and_what_waits_in_them_counts() -> None:
    whole = measured([]).compute()
    parts = []
    for rank in range(3):
        own = Pass(Sure(), SETTINGS, expected=SAMPLES)
        for some in NUMBERS[rank::3].split(9):
            own.update(IMAGES[some], LABELS[some], numbers=some)
        parts.append(pickle.loads(pickle.dumps(own)))
    for other in parts[1:]:
        parts[0].merge(other)
    found = parts[0].compute()
    assert (found.measured, found.samples) == (whole.measured, SAMPLES)
    assert found.mistakes.sample.tolist() == whole.mistakes.sample.tolist()
    torch.testing.assert_close(found.fit.threshold, whole.fit.threshold, rtol=1e-9, atol=0)


def test_counts_are_of_all_samples_though_some_mistakes_are_not_measured() -> None:
    settings = PassSettings(level=0.8, right_samples=10, max_mistakes=12)
    found = measured([50], settings, accuracy=0.9).compute()
    assert found.samples == SAMPLES
    assert found.misclassified == int(WRONG.sum()) > len(found.mistakes.ids)
    assert torch.equal(found.class_samples, LABELS.bincount(minlength=4))
    assert torch.equal(found.class_mistakes, LABELS[WRONG].bincount(minlength=4))
    pairs = {(pair.target, pair.predicted): pair.mistakes for pair in found.confusions}
    for target, predicted in torch.stack([LABELS[WRONG], LOGITS.argmax(1)[WRONG]], 1).tolist():
        pairs[target, predicted] -= 1
    assert set(pairs.values()) == {0}


def test_repeats_and_samples_without_a_class_are_neither_chosen_nor_counted() -> None:
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    labels, numbers = LABELS.clone(), NUMBERS.clone()
    labels[20:40], numbers[:20] = -100, -1
    own.update(IMAGES, labels, numbers=numbers)
    found = own.compute()
    assert (found.samples, found.unlabelled) == (SAMPLES - 40, 20)
    assert int(found.mistakes.sample.min()) >= 40


def test_outputs_that_the_step_got_save_a_forward() -> None:
    FORWARDS.clear()
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for some in NUMBERS.split(50):
        own.update(IMAGES[some], LABELS[some], step=Step([LOGITS[some]]))
    found = own.compute()
    assert max(FORWARDS) <= SMALL_IMAGES
    assert found.measured <= sum(FORWARDS) <= found.measured + 5  # to look at layers and layouts
    assert found.trusted
    assert own.compared
    assert found.mistakes.sample.tolist() == NUMBERS[WRONG].tolist()
    another = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for some in NUMBERS.split(50):
        another.update(IMAGES[some], LABELS[some], step=Step([LOGITS[some] + torch.rand(50, 4)]))
    assert "gave other outputs" in another.compute().doubts[0]


def test_what_waits_is_as_it_came() -> None:
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for some in NUMBERS.split(20):
        images, labels = IMAGES[some].clone(), LABELS[some].clone()
        own.update(images, labels)
        images.zero_()
        labels.zero_()
    whole = measured([]).compute()
    torch.testing.assert_close(own.compute().profile, whole.profile, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("values", "size"), [(30 * IMAGES[0].numel(), 30), (1, 20)])
def test_what_is_measured_fills_batches_or_more_of_small_images(
    values: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salmon.diagnosis.waiting.THEIR_VALUES", values)
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    own.update(IMAGES[:20], LABELS[:20], step=Step([LOGITS[:20]]))  # at once, to know the layers
    FORWARDS.clear()
    for some in NUMBERS[20:].split(20):
        own.update(IMAGES[some], LABELS[some], step=Step([LOGITS[some]]))
    assert set(FORWARDS) == {size}
    own.flush()
    assert own.compute().measured == measured([]).compute().measured


def test_batches_that_the_network_cannot_take_at_once_are_measured_apart() -> None:
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for turn, some in enumerate(NUMBERS.split(20)):
        own.update({"images": IMAGES[some], "times": 200.0 + turn % 2}, LABELS[some])
    assert own.compute().measured > 40


def test_given_tails_need_no_unsure_samples() -> None:
    whole = measured([]).compute()
    found = measured([], reference=whole.fit).compute()
    by_chance = choice_of().by_chance(NUMBERS) & ~WRONG
    assert found.measured == int((WRONG | by_chance).sum()) < whole.measured
    assert len(found.right.filters) == len(whole.right.filters) == int(by_chance.sum())


def test_calibration_measures_all() -> None:
    settings = PassSettings(level=0.8, right_samples=10, max_mistakes=300, calibrate=True)
    assert measured([], settings).compute().measured == SAMPLES


def test_half_precision_in_the_step_counts_and_lists_the_same_mistakes() -> None:
    rounded = LOGITS.bfloat16()
    labels = rounded.argmax(1)
    labels[0] = LOGITS[0].argmin()
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    own.update(IMAGES, labels, step=Step([rounded]))
    found = own.compute()
    assert found.misclassified == len(found.mistakes.ids) == 1
    assert not torch.equal(labels[1:], LOGITS.argmax(1)[1:])  # measured, more are wrong


def test_outputs_of_parts_of_the_network_do_not_tell_which_are_wrong() -> None:
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for some in NUMBERS.split(50):
        step = Step([torch.rand(len(some), 32), LOGITS[some]], whole=False)
        own.update(IMAGES[some], LABELS[some], step=step)
    found = own.compute()
    assert found.trusted
    assert own.compared
    assert found.mistakes.sample.tolist() == NUMBERS[WRONG].tolist()


def test_a_single_sample_that_waits_is_not_a_batch_of_one() -> None:
    class Squeezes(Sure):
        def forward(self, images: Tensor, *, times: float = 200.0) -> Tensor:
            return super().forward(images, times=times).squeeze(0)

    own = Pass(Squeezes(), SETTINGS, expected=SAMPLES)
    own.update(IMAGES[:20], LABELS[:20])
    copies = choice_of().copies(NUMBERS, WRONG, OTHERS)
    one = int(((copies > 0) & (NUMBERS > 20)).nonzero()[0])
    none = ((copies == 0) & (NUMBERS > 20)).nonzero().squeeze(1)[:3]
    rows = torch.cat([torch.tensor([one]), none])
    own.update(IMAGES[rows], LABELS[rows], numbers=rows)
    found = own.compute()
    assert found.measured == int((copies[:20] > 0).sum()) + 1
    assert found.samples == 24


def test_a_sample_that_cannot_be_measured_costs_no_other_batch_that_waited() -> None:
    class Refuses(Sure):
        def forward(self, images: Tensor, *, times: float = 200.0) -> Tensor:
            if torch.is_grad_enabled() and bool((images == images.new_tensor(7.0)).any()):
                raise RuntimeError("no gradient for this one")
            return super().forward(images, times=times)

    wrong = int(WRONG.nonzero()[5])
    images = IMAGES.clone()
    images[wrong, 0, 0, 0] = 7.0
    own, errors = Pass(Refuses(), SETTINGS, expected=SAMPLES), []
    for some in NUMBERS.split(4):
        try:
            own.update(images[some], LABELS[some], step=Step([LOGITS[some]]))
        except RuntimeError as error:
            errors.append(str(error))
    found, whole = own.compute(), measured([]).compute()
    its_batch = wrong // 4
    others = whole.mistakes.sample // 4 != its_batch
    assert errors == ["no gradient for this one"]
    assert found.samples == SAMPLES
    assert found.mistakes.sample.tolist() == whole.mistakes.sample[others].tolist()


class Shifted(Sure):
    """Takes what is not a row of each sample, too."""

    def forward(  # type: ignore[override]
        self, images: Tensor, table: Tensor, shares: list[float], *, times: float = 200.0
    ) -> Tensor:
        logits = super().forward(images, times=times)
        return logits * torch.tensor(shares).double().unsqueeze(1) + 0 * table.sum()


@pytest.mark.parametrize("rows", [3, 20])
def test_samples_are_not_chosen_from_inputs_that_cannot_be_divided(rows: int) -> None:
    def found(settings: PassSettings) -> Diagnosis:
        own = Pass(Shifted(), settings, expected=SAMPLES)
        for some in NUMBERS.split(20):
            shares = (1 + some / SAMPLES).tolist()
            own.update((IMAGES[some], torch.ones(rows, 2), shares), LABELS[some])
        return own.compute()

    whole = PassSettings(level=0.8, top_k=5, right_samples=None, max_mistakes=None)
    part, every = found(SETTINGS), found(whole)
    assert part.measured < every.measured == SAMPLES
    assert part.mistakes.ids == every.mistakes.ids
    torch.testing.assert_close(part.profile, every.profile, rtol=1e-9, atol=0)


def test_a_value_that_changes_between_batches_goes_with_its_own_samples() -> None:
    times = torch.tensor(200.0).double()
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    apart = Pass(Sure(), SETTINGS, expected=SAMPLES)
    for turn, some in enumerate(NUMBERS.split(20)):
        times.fill_(200.0 + turn)
        own.update({"images": IMAGES[some], "times": times}, LABELS[some])
        apart.update({"images": IMAGES[some], "times": 200.0 + turn}, LABELS[some])
    torch.testing.assert_close(own.compute().profile, apart.compute().profile, rtol=1e-9, atol=0)


def test_samples_without_a_finite_saliency_do_not_stand_for_others() -> None:
    images = IMAGES.clone()
    images[WRONG] = torch.nan
    settings = PassSettings(level=0.8, right_samples=10, max_mistakes=12)
    own = Pass(Sure(), settings, expected=SAMPLES, accuracy=0.9)
    own.update(images, LABELS)
    found = own.compute()
    assert found.fit.samples == round(SAMPLES / 4) - found.dropped
    assert 5 < found.dropped < 20


def test_empty_batches_and_batches_of_repeats_do_not_run_the_network() -> None:
    own = Pass(Sure(), SETTINGS, expected=SAMPLES)
    own.update(IMAGES[:20], LABELS[:20])
    FORWARDS.clear()
    own.update(IMAGES[:0], LABELS[:0])
    own.update(IMAGES[:5], LABELS[:5], numbers=torch.full((5,), -1))
    assert FORWARDS == []
