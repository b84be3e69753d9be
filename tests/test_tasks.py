"""What a sample's loss is and when it is a mistake, against loops over samples and scikit-learn."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, log_loss
from torch import Tensor, nn

from salmon import InputError, Pass, PassSettings, Task
from salmon.diagnosis import Diagnosis
from salmon.tasks import (
    NO_CLASS,
    TASKS,
    AnyTask,
    Binary,
    Multilabel,
    Regression,
    Segmentation,
    SequenceLabelling,
    mistakes_of,
    recognise,
)
from tests.networks import PlainNet, batch, one_by_one

RANDOM = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RANDOM, dtype=torch.float64)


def randint(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=RANDOM)


def losses(task: AnyTask, output: Any, targets: Tensor, loss: Any = None) -> Tensor:
    given = output.clone().requires_grad_() if isinstance(output, Tensor) else output
    return task.labelled_losses(given, targets, loss).detach()


@pytest.mark.parametrize("shape", [(9,), (9, 1)])
def test_binary_losses_and_mistakes_are_those_of_scikit_learn(shape: tuple[int, ...]) -> None:
    logits, targets = randn(*shape), randint(2, *shape)
    sure = torch.sigmoid(logits).flatten().numpy()
    expected = [
        log_loss([y], [p], labels=[0, 1]) for y, p in zip(targets.flatten(), sure, strict=True)
    ]
    np.testing.assert_allclose(losses(Binary(), logits, targets), expected, rtol=1e-12)
    answers = Binary().read(logits, targets)
    right = (sure > 0.5) == targets.flatten().numpy()
    assert answers.wrong.tolist() == (~right).tolist()
    assert answers.classes == 2
    given = np.where(targets.flatten(), sure, 1 - sure)
    np.testing.assert_allclose(answers.details["confidence_target"], given, rtol=1e-12)


def test_unknown_binary_targets_count_for_nothing_and_others_are_refused() -> None:
    logits, targets = randn(4), torch.tensor([1.0, torch.nan, -1.0, 0.0])
    assert Binary().read(logits, targets).labelled.tolist() == [True, False, False, True]
    assert torch.isnan(losses(Binary(), logits, targets)).tolist() == [False, True, True, False]
    with pytest.raises(InputError, match=r"targets hold 0\.5; task='binary' needs 0 and 1"):
        Binary().read(logits, torch.tensor([1.0, 0.5, 0.0, 0.0]))


def test_a_logit_that_is_no_number_is_a_mistake_of_no_class() -> None:
    answers = Binary().read(torch.tensor([torch.nan, 1.0]), torch.tensor([1, 1]))
    assert answers.wrong.tolist() == [True, False]
    assert answers.predicted is not None
    assert answers.predicted.tolist() == [NO_CLASS, 1]


def test_the_user_s_loss_module_gets_what_it_is_made_for() -> None:
    logits, targets = randn(6, 1), randint(2, 6)
    module = nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(3.0))
    expected = module(logits.flatten(), targets.double())
    torch.testing.assert_close(losses(Binary(), logits, targets, module), expected.detach())

    def squared(output: Tensor, given: Tensor) -> Tensor:
        return (output.squeeze(1) - given).square()

    got = losses(Binary(), logits, targets, squared)
    torch.testing.assert_close(got, squared(logits, targets).detach())


def test_multilabel_losses_are_means_over_known_labels() -> None:
    logits, targets = randn(7, 4), randint(2, 7, 4).double()
    targets[0, 1], targets[2, 3], targets[5] = torch.nan, -1, torch.nan
    got, answers = losses(Multilabel(), logits, targets), Multilabel().read(logits, targets)
    for row in range(7):
        known = (targets[row] >= 0).nonzero().flatten().tolist()
        if not known:
            assert not answers.labelled[row]
            assert torch.isnan(got[row])
            continue
        sure = torch.sigmoid(logits[row].detach())
        each = [log_loss([targets[row, k]], [sure[k]], labels=[0, 1]) for k in known]
        assert float(got[row]) == pytest.approx(np.mean(each), rel=1e-12)
        wrong = sum(bool(sure[k] > 0.5) != bool(targets[row, k]) for k in known)
        assert int(answers.details["wrong_labels"][row]) == wrong
        assert bool(answers.wrong[row]) == (wrong > 0)
        one_wrong = Multilabel(tolerance=1).read(logits, targets).wrong
        assert bool(one_wrong[row]) == (wrong > 1)
        unsure = max(1 - float(sure[k] if targets[row, k] == 1 else 1 - sure[k]) for k in known)
        assert answers.others is not None
        assert float(answers.others[row]) == pytest.approx(unsure, rel=1e-12)
    missed, spurious = answers.details["missed"], answers.details["spurious"]
    assert torch.equal(missed + spurious, answers.details["wrong_labels"])


@pytest.mark.parametrize("classes", [1, 3])
def test_masks_say_what_is_where(classes: int) -> None:
    logits, targets = randn(5, classes, 4, 6), randint(max(2, classes), 5, 4, 6)
    targets[0, :2] = 255
    true, predicted = Segmentation().masks({"out": logits}, targets)
    for (n, y, x), label in np.ndenumerate(targets.numpy()):
        said = logits[n, :, y, x]
        assert int(true[n, y, x]) == (-1 if label == 255 else label)
        assert int(predicted[n, y, x]) == (int(said > 0) if classes == 1 else int(said.argmax()))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("column", [False, True])
def test_segmentation_is_judged_pixel_by_pixel(classes: int, column: bool) -> None:
    logits, targets = randn(5, classes, 4, 6), randint(max(2, classes), 5, 4, 6)
    targets[0, :2], targets[3] = 255, -1
    given = targets[:, None] if column else targets
    got, answers = losses(Segmentation(), logits, given), Segmentation().read(logits, given)
    for n in range(5):
        known = (targets[n] >= 0) & (targets[n] < 255)
        if not bool(known.any()):
            assert not answers.labelled[n]
            assert torch.isnan(got[n])
            continue
        true, said = targets[n][known].numpy(), logits[n].detach()[:, known].T
        if classes == 1:
            sure = torch.sigmoid(said[:, 0])
            table, predicted = torch.stack([1 - sure, sure], 1), (said[:, 0] > 0).long().numpy()
        else:
            table, predicted = said.softmax(1), said.argmax(1).numpy()
        labels = list(range(max(2, classes)))
        assert float(got[n]) == pytest.approx(
            log_loss(true, table.numpy(), labels=labels), rel=1e-10
        )
        present = sorted({*true.tolist(), *predicted.tolist()})
        iou = jaccard_score(true, predicted, average="macro", labels=present)
        assert float(answers.details["mean_iou"][n]) == pytest.approx(iou, rel=1e-12)
        right = float((true == predicted).mean())
        assert float(answers.details["pixel_accuracy"][n]) == pytest.approx(right, rel=1e-12)
        assert answers.score is not None
        assert float(answers.score[n]) == pytest.approx(1 - iou, rel=1e-12)


def test_a_loss_that_averages_over_unknown_labels_is_refused() -> None:
    output, targets = (
        torch.randn(3, 2, requires_grad=True),
        torch.tensor([[0.0, 1], [1, 0], [1, 1]]),
    )
    task, loss = TASKS["multilabel"], nn.MultiLabelSoftMarginLoss(reduction="none")
    found = task.labelled_losses(output, targets, loss)
    torch.testing.assert_close(found, loss(output, targets), rtol=1e-6, atol=0)
    targets[1, 0] = torch.nan
    with pytest.raises(InputError, match=r"MultiLabelSoftMarginLoss gives one number.*BCEWith"):
        task.labelled_losses(output, targets, loss)


def test_class_weights_and_ignored_pixels_of_the_user_s_loss_count_per_sample() -> None:
    logits, targets = randn(4, 3, 5, 5), randint(3, 4, 5, 5)
    targets[1, 0] = 2
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    module = nn.CrossEntropyLoss(weight=weight, ignore_index=1, reduction="none")
    whole = nn.CrossEntropyLoss(weight=weight, ignore_index=1)
    expected = torch.stack([whole(x[None], y[None]) for x, y in zip(logits, targets, strict=True)])
    torch.testing.assert_close(
        losses(Segmentation(), logits, targets, module), expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 4)])
@pytest.mark.parametrize("error", ["squared", "absolute"])
def test_regression_errors_are_in_the_unit_of_the_targets(
    shape: tuple[int, ...], error: Any
) -> None:
    output, targets = randn(*shape), randn(*shape)
    if len(shape) > 1 and shape[1] > 1:
        targets[0, 0] = torch.nan
    task = Regression(error=error)
    got, answers = losses(task, output, targets), task.read(output, targets)
    for n in range(6):
        gap = (output[n] - targets[n]).detach().flatten().numpy()
        gap = gap[np.isfinite(gap)]
        loss = np.mean(gap**2) if error == "squared" else np.mean(np.abs(gap))
        size = loss**0.5 if error == "squared" else loss
        assert float(got[n]) == pytest.approx(loss, rel=1e-12)
        assert float(answers.details["error"][n]) == pytest.approx(size, rel=1e-12)
    ten = task.read(10 * output, 10 * targets).details["error"]
    torch.testing.assert_close(ten, 10 * answers.details["error"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [False, True])
def test_tokens_are_judged_one_by_one(shift: bool) -> None:
    logits, targets = randn(5, 6, 4), randint(4, 5, 6)
    targets[0, :3], targets[2] = -100, -100
    task = SequenceLabelling(shift=shift)
    got, answers = losses(task, logits, targets), task.read(logits, targets)
    for n in range(5):
        said, true = logits[n].detach(), targets[n]
        if shift:
            said, true = said[:-1], true[1:]
        known = true >= 0
        assert bool(answers.labelled[n]) == bool(known.any())
        if not bool(known.any()):
            continue
        table = said.softmax(1)[known].numpy()
        expected = log_loss(true[known].numpy(), table, labels=range(4))
        assert float(got[n]) == pytest.approx(expected, rel=1e-10)
        wrong = int((said.argmax(1) != true)[known].sum())
        assert (int(answers.details["wrong_tokens"][n]), int(answers.details["tokens"][n])) == (
            wrong, int(known.sum())
        )  # fmt: skip
        assert bool(answers.wrong[n]) == (wrong > 0)


def test_a_share_of_wrong_tokens_can_be_tolerated() -> None:
    logits = nn.functional.one_hot(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]), 2).double()
    targets = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    task = SequenceLabelling(tolerated=0.3)
    assert task.read(logits, targets).wrong.tolist() == [False, True]
    assert task.rule() == "more than 30 % of the tokens wrong"
    worst = SequenceLabelling(tolerated=None)
    answers = worst.read(logits, targets)
    assert answers.score is not None
    torch.testing.assert_close(answers.score, losses(worst, logits, targets))
    assert worst.rule(2.5) == "loss above 2.5, the highest 10 % of the pass"


ROWS = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("output", "targets", "name"),
    [
        (randn(3, 2), torch.tensor([0, 1, 1]), "classification"),
        (randn(3, 2), torch.tensor([[0], [1], [1]]), "classification"),
        (randn(3, 2), ROWS, "classification"),
        (randn(3, 2), torch.tensor([[0, 1], [1, 0], [1, 0]]), "classification"),
        (randn(3, 2), torch.tensor([[0, 1], [1, 1], [1, 0]]), "multilabel"),
        (randn(3, 2), torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), "multilabel"),
        (randn(3), torch.tensor([0, 1, 1]), "binary"),
        (randn(3, 1), torch.tensor([0.0, 1.0, 1.0]), "binary"),
        (randn(3, 1), torch.tensor([[True], [False], [True]]), "binary"),
        (randn(3, 1), torch.tensor([0.3, 1.0, 1.0]), "regression"),
        (randn(3, 2), torch.tensor([[0.3, 4.0], [1.0, 2.0], [0.1, -1.0]]), "regression"),
        (randn(3, 2, 4), randn(3, 2, 4), "regression"),
        (randn(3, 2, 4, 4), randint(2, 3, 4, 4), "segmentation"),
        ({"out": randn(3, 2, 4, 4), "aux": randn(3, 2)}, randint(2, 3, 4, 4), "segmentation"),
        (randn(3, 5, 7), randint(7, 3, 5), "sequence"),
    ],
)
def test_the_task_is_recognised_where_a_batch_leaves_no_doubt(
    output: Any, targets: Tensor, name: str
) -> None:
    assert recognise(output, targets) is TASKS[name]


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (randn(3, 1), torch.tensor([0, 1, 4])),  # one of several classes with one logit, or numbers
        (randn(3, 2), torch.tensor([[0.2, 0.1], [0.5, 0.5], [1.0, 0.0]])),  # soft labels, numbers
        (randn(3, 2, 4, 4), torch.tensor([0, 1, 1])),
        (randn(3, 2, 4, 4), randint(2, 3, 8, 8)),
        (randn(3, 7, 5), randint(7, 3, 5)),
    ],
)
def test_an_ambiguous_batch_is_refused_with_the_names_of_the_tasks(
    output: Tensor, targets: Tensor
) -> None:
    with pytest.raises(InputError, match=r"leaves open what a mistake is.*task=.*multilabel"):
        recognise(output, targets)


@pytest.mark.parametrize(
    ("task", "output", "targets"),
    [
        (Binary(), randn(3, 2), randint(2, 3)),
        (Multilabel(), randn(3, 2), randint(2, 3)),
        (Segmentation(), randn(3, 2, 4, 4), randint(2, 3, 8, 8)),
        (Regression(), randn(3, 2), randn(3)),
        (SequenceLabelling(), randn(3, 4, 2), randint(2, 3, 5)),
    ],
)
def test_what_does_not_fit_the_task_is_refused_with_what_it_needs(
    task: AnyTask, output: Tensor, targets: Tensor
) -> None:
    with pytest.raises(InputError, match=f"task='{task.name}' needs"):
        task.read(output, targets)
    with pytest.raises(InputError, match="in which nothing says what it predicts"):
        task.read({"boxes": [1]}, targets)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PassSettings(task="ranking"), "task is 'ranking'; one of 'classification'"),
        (lambda: Segmentation(metric="dice"), "metric is 'dice'"),  # type: ignore[arg-type]
        (lambda: Regression(error="cubic"), "error is 'cubic'"),  # type: ignore[arg-type]
        (lambda: Regression(worst=1.5), r"worst is 1\.5; a share in \(0, 1\)"),
        (lambda: Task(losses=bad), "either wrong or score"),
        (lambda: Task(losses=bad, wrong=bad, score=bad), "either wrong or score"),
        (lambda: Multilabel(tolerance=-1), "tolerance is -1"),
        (lambda: Segmentation(bound=80), "bound is 80"),
        (lambda: SequenceLabelling(tolerated=10), "tolerated is 10"),
        (lambda: PassSettings(task=Task(losses=bad, wrong=bad), loss=bad), "loss is given beside"),
        (lambda: Task(losses=3, wrong=bad), "a task needs losses"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def bad(output: Tensor, targets: Tensor) -> Tensor:
    return output.mean()


def test_the_mistakes_of_a_pass_are_its_worst_samples() -> None:
    scores = randn(200)
    told, bound = mistakes_of(scores, 0.1)
    assert int(told.sum()) == 20
    assert float(scores[told].amin()) > bound == float(scores[~told].amax())
    assert mistakes_of(scores[:0], 0.1)[0].tolist() == []
    tied, _ = mistakes_of(torch.ones(50), 0.1)
    assert not bool(tied.any())  # none is worse than the others


class MapNet(nn.Module):
    """Logits of three classes for each pixel, or numbers for each image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.kind, self.net = kind, PlainNet(4)
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "map":
            logits: Tensor = self.net(x)
            return logits[:, :1] if self.kind == "one" else logits
        small = self.last(self.net.features(x))
        return nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")


IMAGES = batch(60, seed=2)[0].double()
TARGETS = {
    "binary": ("one", randint(2, 60)),
    "multilabel": ("four", randint(2, 60, 4)),
    "regression": ("one", randn(60)),
    "segmentation": ("map", randint(3, 60, 4, 4)),
}


def measured(name: str, parts: list[Tensor], **settings: Any) -> Diagnosis:
    kind, targets = TARGETS[name]
    model, passes = MapNet(kind).double().eval(), list[Pass]()
    for rows in parts:
        own = Pass(model, PassSettings(level=0.7, top_k=4, **settings))
        for some in rows.split(9):
            own.update(IMAGES[some], targets[some], numbers=some)
        passes.append(pickle.loads(pickle.dumps(own)) if passes else own)
    for other in passes[1:]:
        passes[0].merge(other)
    return passes[0].compute()


@pytest.mark.parametrize("name", TARGETS)
def test_filters_are_measured_by_the_loss_of_the_task(name: str) -> None:
    kind, targets = TARGETS[name]
    found = measured(name, [torch.arange(60)])
    model, task = MapNet(kind).double().eval(), TASKS[name]
    profile = one_by_one(
        model, IMAGES, targets, found.index, lambda out, y: task.labelled_losses(out, y)[0]
    )
    torch.testing.assert_close(found.profile, profile[found.mistakes.sample], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        answers = task.read(model(IMAGES), targets)
    wrong = answers.wrong if answers.score is None else mistakes_of(answers.score, 0.1)[0]
    assert found.mistakes.sample.tolist() == wrong.nonzero().flatten().tolist()
    assert (found.task, found.misclassified, found.samples) == (name, int(wrong.sum()), 60)
    assert found.trusted
    for column, values in answers.details.items():
        torch.testing.assert_close(found.mistakes.details[column], values[wrong])
    assert len(found.right.filters) == 60 - int(wrong.sum())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("memory_mb", [256, 1])
def test_any_split_of_the_samples_has_the_same_mistakes(name: str, memory_mb: int) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    whole = measured(name, [torch.arange(60)], memory_mb=memory_mb)
    split = measured(name, [order[:25], order[25:]], memory_mb=memory_mb)
    assert whole.mistakes.ids == split.mistakes.ids
    assert whole.rule == split.rule
    assert torch.equal(whole.rankings["pot"].filters, split.rankings["pot"].filters)
    assert [f.filter for f in whole.findings.found] == [f.filter for f in split.findings.found]


def test_where_memory_is_short_the_worst_samples_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salmon.diagnosis.passes.BYTES_PER_MB", 8 * 27 * 12)  # twelve profiles
    kind, targets = TARGETS["regression"]
    with torch.no_grad():
        answers = TASKS["regression"].read(MapNet(kind).double().eval()(IMAGES), targets)
    assert answers.score is not None
    settings: dict[str, Any] = {"memory_mb": 1, "task": Regression(worst=0.5)}
    found = measured("regression", [torch.arange(60)], **settings)
    assert found.misclassified == 30
    worst = answers.score.argsort(descending=True)[: len(found.mistakes.sample)]
    assert found.mistakes.sample.tolist() == sorted(worst.tolist())
    assert 5 < len(worst) < 15


def test_a_task_of_one_s_own_tells_which_samples_are_mistakes() -> None:
    task = Task(
        losses=lambda out, y: (out[:, 0] - y).abs(),
        wrong=lambda out, y: (out[:, 0] - y).abs() > 1,
        describe=lambda out, y: {"gap": out[:, 0] - y},
    )
    kind, targets = TARGETS["regression"]
    found = measured("regression", [torch.arange(60)], task=task)
    with torch.no_grad():
        gap = MapNet(kind).double().eval()(IMAGES)[:, 0] - targets
    assert found.mistakes.sample.tolist() == (gap.abs() > 1).nonzero().flatten().tolist()
    torch.testing.assert_close(found.mistakes.details["gap"], gap[gap.abs() > 1])
    assert (found.task, found.has_classes) == ("custom", False)
    by_score = Task(losses=task.losses, score=lambda out, y: (out[:, 0] - y).abs(), bound=1.0)
    same = measured("regression", [torch.arange(30), torch.arange(30, 60)], task=by_score)
    assert same.mistakes.ids == found.mistakes.ids
    assert same.rule == "score above 1"
    fifth = Task(losses=task.losses, score=by_score.score, worst=0.2)
    assert measured("regression", [torch.arange(60)], task=fifth).misclassified == 12


def test_functions_that_give_no_number_for_each_sample_are_refused() -> None:
    task = Task(losses=lambda out, y: (out[:, 0] - y).abs(), wrong=lambda out, y: out.mean())
    with pytest.raises(InputError, match=r"the task's wrong gave \(\); a tensor \[9\]"):
        measured("regression", [torch.arange(60)], task=task)


def test_only_some_samples_of_a_large_pass_are_measured_where_probabilities_are_known() -> None:
    for name, part in (("binary", True), ("multilabel", True), ("regression", False)):
        kind, targets = TARGETS[name]
        settings = PassSettings(level=0.7, top_k=4, right_samples=2, max_mistakes=50)
        model = MapNet(kind).double().eval()
        own = Pass(Times(model, 60.0), settings, expected=60)
        for some in torch.arange(60).split(9):
            own.update(IMAGES[some], targets[some])
        found = own.compute()
        assert (found.measured < 60) == part
        with torch.no_grad():
            answers = TASKS[name].read(60.0 * model(IMAGES), targets)
        if part:
            assert found.mistakes.sample.tolist() == answers.wrong.nonzero().flatten().tolist()


class Times(nn.Module):
    """A network that is surer of what it says."""

    def __init__(self, net: nn.Module, times: float) -> None:
        super().__init__()
        self.net, self.times = net, times

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.times * self.net(x)
        return out


def test_logits_that_are_no_numbers_are_mistakes() -> None:
    maps, tokens = randn(3, 2, 4, 4), randn(3, 4, 2)
    maps[1], tokens[1] = torch.nan, torch.nan
    pixels = torch.zeros(3, 4, 4, dtype=torch.int64)
    for classes in (2, 1):
        answers = Segmentation(bound=0.01).read(maps[:, :classes], pixels)
        assert float(answers.details["mean_iou"][1]) == 0 == answers.details["pixel_accuracy"][1]
        assert bool(answers.wrong[1])
    wrong = SequenceLabelling().read(tokens, pixels[:, 0]).details["wrong_tokens"]
    assert int(wrong[1]) == 4


def test_a_loss_of_probabilities_says_on_which_side_they_are() -> None:
    logits, targets = randn(40, 3), randint(2, 40, 3)
    loss = nn.BCELoss(reduction="none")
    for task, columns in ((Binary(), 1), (Multilabel(), 3)):
        given = logits[:, :columns], targets[:, :columns]
        plain, sure = task.read(*given), task.read(given[0].sigmoid(), given[1], loss)
        assert torch.equal(plain.wrong, sure.wrong)
        torch.testing.assert_close(
            losses(task, *given), losses(task, given[0].sigmoid(), given[1].double(), loss)
        )
    own = Pass(
        Times(MapNet("four").double().eval(), 1.0), PassSettings(level=0.7, task="multilabel")
    )
    own.update(IMAGES, TARGETS["multilabel"][1])
    assert own.compute().trusted


def test_masks_of_other_numbers_are_noticed() -> None:
    logits, mask = randn(4, 1, 5, 5), 255 * randint(2, 4, 5, 5)
    beyond = Segmentation().read(logits, mask.where(mask.sum((1, 2), keepdim=True) > 3000, 255))
    assert beyond.beyond is not None
    assert bool(beyond.beyond.all())
    with pytest.raises(InputError, match="with fractions; class numbers are needed"):
        Segmentation().read(logits, mask / 300)
    wide = Segmentation().read(logits, mask.to(torch.uint16))
    assert wide.labelled.all()


def test_equal_scores_at_the_top_are_mistakes_together() -> None:
    told, bound = mistakes_of(torch.tensor([0.0] * 16 + [1.0] * 4), 0.1)
    assert told.tolist() == [False] * 16 + [True] * 4
    assert bound == 0
    told, bound = mistakes_of(torch.tensor([0.5, torch.inf, 0.1] * 5), 0.1)
    assert (int(told.sum()), bound) == (5, 0.5)


def test_all_scores_of_a_full_reservoir_may_be_zero() -> None:
    from salmon.diagnosis.reservoir import Reservoir

    rows, numbers = torch.arange(40.0).unsqueeze(1), torch.arange(40)
    scores = torch.where(numbers < 30, 0.0, numbers.double())
    for parts in ([slice(0, 40)], [slice(0, 30), slice(30, 40)]):
        for turned in (False, True):
            held = [Reservoir(10, 1, 0) for _ in parts]
            for own, part in zip(held, parts, strict=True):
                for some in numbers[part].split(7):
                    wanted = some[own.admits(some)]
                    own.offer(wanted, rows[wanted], wanted, scores[wanted])
            first, *others = held[::-1] if turned else held
            for other in others:
                first.merge(other)
            assert first.kept()[0].tolist() == list(range(30, 40))


def test_an_unknown_target_costs_no_gradient_of_a_loss_function() -> None:
    output, targets = randn(5, 4).requires_grad_(), randn(5, 4)
    targets[:, 0] = torch.nan
    Regression().labelled_losses(output, targets, lambda o, y: (o - y).square()).sum().backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())


def test_large_maps_in_half_precision_have_a_loss() -> None:
    output = randn(2, 300, 300).half()
    found = losses(Regression(), output, torch.zeros(2, 300, 300))
    torch.testing.assert_close(found, output.float().square().mean((1, 2)), rtol=1e-2, atol=0)


def test_names_that_flags_have_already_are_refused() -> None:
    task = Task(
        losses=lambda out, y: (out[:, 0] - y).abs(), wrong=lambda out, y: out[:, 0] > y,
        describe=lambda out, y: {"target": y},
    )  # fmt: skip
    with pytest.raises(InputError, match="describe gives 'target', which flags hold already"):
        measured("regression", [torch.arange(60)], task=task)


def test_passes_that_took_their_samples_for_other_tasks_are_not_merged() -> None:
    kind, targets = TARGETS["regression"]
    model = MapNet(kind).double().eval()
    one, other = (Pass(model, PassSettings(level=0.7)) for _ in range(2))
    one.update(IMAGES, targets)
    other.update(IMAGES, randint(2, 60))
    with pytest.raises(InputError, match="for the tasks 'regression' and 'binary'; give task="):
        one.merge(pickle.loads(pickle.dumps(other)))


def test_batches_that_do_not_fit_what_the_first_one_told_are_told() -> None:
    kind, targets = TARGETS["regression"]
    own = Pass(MapNet(kind).double().eval(), PassSettings(level=0.7))
    own.update(IMAGES[:20], randint(2, 20).double())
    for start in (20, 40):
        with pytest.raises(InputError, match="task='binary' needs 0 and 1"):
            own.update(IMAGES[start : start + 20], targets[start : start + 20])
    assert "told by the first batch, and 2 others do not fit" in own.compute().doubts[0]


@pytest.mark.parametrize("task", [None, "regression"])
def test_an_empty_pass_takes_over_how_another_one_chose(task: str | None) -> None:
    kind, targets = TARGETS["regression"]
    settings = PassSettings(level=0.7, right_samples=5, max_mistakes=5, task=task)
    model = MapNet(kind).double().eval()
    empty, full = (Pass(model, settings, expected=60, accuracy=0.9) for _ in range(2))
    full.update(IMAGES, targets)
    expected = full.compute()
    empty.merge(full)
    assert torch.equal(empty.compute().fit.threshold, expected.fit.threshold)


def test_a_pass_that_came_without_its_functions_says_so() -> None:
    task = Task(losses=lambda out, y: (out[:, 0] - y).abs(), score=lambda out, y: out[:, 0])
    kind, targets = TARGETS["regression"]
    own = Pass(MapNet(kind).double().eval(), PassSettings(level=0.7, task=task))
    own.update(IMAGES, targets)
    with pytest.raises(InputError, match="the pass came without its task"):
        pickle.loads(pickle.dumps(own)).compute()


def test_probabilities_in_place_of_logits_are_noticed() -> None:
    class Sure(MapNet):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (60 * (super().forward(x) - middle)).sigmoid()
            return out

    for name in ("binary", "multilabel"):
        kind, targets = TARGETS[name]
        with torch.no_grad():
            middle = MapNet(kind).double().eval()(IMAGES).mean()
        own = Pass(Times(MapNet(kind).double().eval(), 1e-3), PassSettings(level=0.7, task=name))
        own.update(IMAGES, targets)
        assert own.compute().trusted  # so small are logits before a training
        own = Pass(Sure(kind).double().eval(), PassSettings(level=0.7, task=name))
        own.update(IMAGES, targets)
        assert "probabilities where logits are needed" in own.compute().doubts[0]
