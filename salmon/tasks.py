"""What a sample's loss is, and when a sample is a mistake: by task.

A task reads the output of a network and the targets of N samples. Everything above asks it which
samples are mistakes, and nothing else of what the network is for.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeGuard

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.saliency import (
    Loss,
    are_probabilities,
    class_numbers,
    labels_of,
    logits_of,
    prediction_of,
    sample_losses,
)

NO_CLASS = -1
"""Predicted where the probabilities are no numbers, as those of NaN logits are."""


def class_name(number: int, names: Sequence[str] | None) -> str:
    """Name a class, by its number where it has no name."""
    if number == NO_CLASS:
        return "none"
    return names[number] if names and 0 <= number < len(names) else str(number)


_SURE = 0.9  # few logits lie between it and 1, and none below 0

_IN_FLAGS = """
schema kind id id_source sample batch target predicted loss score stage loader pass step top
ranked_filters significant_filters sample_p beyond_chance place run filter label group threshold
saliency p p_low p_high log_p e strength extrapolated z
"""
RESERVED = frozenset(_IN_FLAGS.split())
"""Names that a flag, or a row of its table, has without the task."""

WORST = 0.1
"""Share of a pass that are its mistakes, where there is no other bound."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What a network says of N samples; ``[N]`` each, on its device."""

    labelled: Tensor  # bool, whether there is a label to be judged by
    wrong: Tensor  # bool; where a pass tells its mistakes at the end, whether it can be one
    score: Tensor | None = None  # float64, how bad it is, if a pass tells its mistakes at the end
    classes: int = 0  # of which each sample has one; 0 where they have none
    target: Tensor | None = None  # int64 true class
    predicted: Tensor | None = None  # int64, or NO_CLASS
    others: Tensor | None = None  # probability of another answer than the true one, if known
    details: Mapping[str, Tensor] = field(default_factory=dict)
    beyond: Tensor | None = None  # bool, whether its label is higher than any class
    probabilities: Tensor | None = None  # bool, whether the output can be such, and no logits
    extreme: Tensor | None = None  # bool, whether it would be a sure one


class AnyTask(ABC):
    """Losses and mistakes of samples; the tasks that have a name take a loss of the user's."""

    name: ClassVar[str]
    worst: float | None = None
    """Share of a pass, those with the highest score, that are its mistakes; None where each sample
    tells by itself whether it is one."""

    @abstractmethod
    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Judge N samples.

        Args:
            output: Of the network.
            targets: ``[N, ...]``.
            loss: The user's, whose ``ignore_index`` stands for no label.

        Raises:
            InputError: If output and targets do not fit.
        """

    @abstractmethod
    def per_sample(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """``[N]`` losses with their graph; those of samples without a label do not count."""

    @abstractmethod
    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake.

        Args:
            bound: Score above which samples of the pass are.
        """

    @abstractmethod
    def labelled(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """``[N]`` bool, which samples have a label to be judged by."""

    def labelled_losses(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Tensor:
        """``[N]`` losses with their graph, NaN for samples without a label.

        Args:
            output: Of the network.
            targets: ``[N, ...]``.
            loss: The user's; None takes the usual one of the task.

        Raises:
            InputError: If output, targets and loss do not fit.
        """
        labelled = self.labelled(output, targets, loss)
        found = sample_losses(output, targets, partial(self.per_sample, loss=loss))
        return torch.where(labelled, found, torch.nan)

    def prediction(self, output: Any) -> Tensor | None:
        """``[N, ...]`` what two runs of the network can be compared by; None if nothing is."""
        return prediction_of(output)


@dataclass(frozen=True, kw_only=True)
class Task(AnyTask):
    """A task of your own.

    Attributes:
        losses: ``(output, targets) -> [N]`` losses with their graph.
        wrong: ``(output, targets) -> [N]`` bool, which samples are mistakes; or give ``score``.
        score: ``(output, targets) -> [N]`` numbers, higher ones for worse samples.
        bound: Samples with a higher score are mistakes; None takes the worst ones of each pass.
        worst: Share of a pass that its mistakes are, without a bound.
        describe: ``(output, targets) ->`` mapping of names to ``[N]`` numbers, for the flags.

    Raises:
        InputError: If there is neither ``wrong`` nor ``score``, or both, or no function.
    """

    name: ClassVar[str] = "custom"
    losses: Loss
    wrong: Callable[[Any, Tensor], Tensor] | None = None
    score: Callable[[Any, Tensor], Tensor] | None = None
    bound: float | None = None
    worst: float | None = WORST
    describe: Callable[[Any, Tensor], Mapping[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        """Check what is there."""
        if not callable(self.losses) or (self.wrong is None) == (self.score is None):
            raise InputError(
                "a task needs losses, and either wrong or score: functions of the network's "
                "output and the targets that give a number for each of the N samples."
            )
        if self.wrong is not None or self.bound is not None:
            object.__setattr__(self, "worst", None)
        check_worst(self.worst)

    def labelled(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """All of them."""
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Judge N samples by the user's functions."""
        every = self.labelled(output, targets, loss)
        described = {} if self.describe is None else self.describe(output, targets)
        details = {}
        for name, column in described.items():
            if name in RESERVED:
                raise InputError(
                    f"the task's describe gives {name!r}, which flags hold already; name it "
                    f"otherwise, such as {f'own_{name}'!r}."
                )
            details[name] = _column(f"describe: {name}", column, targets)
        if self.wrong is not None:
            wrong = _column("wrong", self.wrong(output, targets), targets).bool()
            return Answers(labelled=every, wrong=wrong, details=details)
        assert self.score is not None
        score = _column("score", self.score(output, targets), targets)
        return _judged(score, self.bound, every, {"score": score, **details})

    def per_sample(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """The user's losses."""
        return self.losses(output, targets)

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        if self.score is None:
            return "by the rule of the task"
        return _above("score", self.bound if bound is None else bound, self.worst)


class Classification(AnyTask):
    """One class for each sample: class numbers ``[N]``, or probabilities ``[N, K]``.

    Logits are ``[N, K]``, the loss is the cross-entropy, and a mistake has its largest logit
    elsewhere.
    """

    name: ClassVar[str] = "classification"

    def labelled(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """Those whose number is a class of the network, and not ignored."""
        return labels_of(targets, logits_of(output), loss)[1]

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Compare the class of the largest logit with the true one."""
        logits = logits_of(output)
        classes, labelled = labels_of(targets, logits, loss)
        sure = logits.double().softmax(1)
        predicted = logits.argmax(1).masked_fill(torch.isnan(sure).any(1), NO_CLASS)
        of_target = _pick(sure, classes.where(labelled, 0))
        shares = are_probabilities(logits) if loss is None else None
        return Answers(
            labelled=labelled,
            wrong=(predicted != classes) & labelled,
            classes=logits.shape[1],
            target=classes,
            predicted=predicted,
            others=1 - of_target,
            details={
                "confidence_target": of_target,
                "confidence_predicted": _pick(sure, predicted.clamp_min(0)),
            },
            beyond=(classes >= logits.shape[1]) & ~labelled,
            probabilities=shares,
            extreme=shares,
        )

    def per_sample(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """Cross-entropy, or the user's loss."""
        logits = logits_of(output)
        if class_numbers(targets) is not None:
            _, labelled = labels_of(targets, logits, loss)
            targets = targets.long()  # other types lack operations on a GPU
            targets = targets.where(labelled.view(targets.shape), 0)
        found = _by_user(loss, output, targets, logits, targets)
        return sample_losses(output, targets, None) if found is None else found

    def prediction(self, output: Any) -> Tensor | None:
        """``[N, K]`` logits; None if that is not what came out."""
        try:
            return logits_of(output)
        except InputError:
            return None

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        return "another class than the true one"


class _ByEntries(AnyTask):
    """A task whose loss is a mean over the known entries of a sample."""

    @abstractmethod
    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions ``[N, ...]``, what is true as their loss takes it, and where it is known."""

    @abstractmethod
    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        """``[N, ...]`` losses of the entries."""

    def labelled(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """Those of which anything is known."""
        return _number(self._aligned(output, targets, loss)[2]) > 0

    def per_sample(self, output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
        """Mean over what is known of the task's losses, or of the user's."""
        found, true, known = self._aligned(output, targets, loss)
        own = _by_user(loss, output, targets, found, true)
        values = self._losses(found, true) if own is None else own
        if _is_of_torch(loss) and values.shape != known.shape and not bool(known.all()):
            raise InputError(
                f"{type(loss).__name__} gives one number for each sample, from which the entries "
                "of which nothing is known cannot be taken out; use a loss of each entry, such as "
                "torch.nn.BCEWithLogitsLoss(), or a function that leaves them out."
            )
        return _mean(values, known, _class_weights(loss, true))


class Binary(_ByEntries):
    """Yes or no: one logit for each sample, ``[N]`` or ``[N, 1]``, and targets of 0 and 1.

    The loss is the binary cross-entropy; a mistake lies on the wrong side of 0.5.
    """

    name: ClassVar[str] = "binary"

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Compare the side of 0.5 with the target."""
        found, true, labelled = self._aligned(output, targets, loss)
        logits = _logits(found, loss)
        predicted = (logits > 0).long().masked_fill(torch.isnan(logits), NO_CLASS)
        of_one = logits.double().sigmoid()
        of_target = torch.where(true == 1, of_one, 1 - of_one)
        return Answers(
            labelled=labelled,
            wrong=(predicted != true) & labelled,
            classes=2,
            target=true.long(),
            predicted=predicted,
            others=1 - of_target,
            details={
                "confidence_target": of_target,
                "confidence_predicted": torch.maximum(of_one, 1 - of_one),
            },
            probabilities=_in_unit(found, loss),
            extreme=found > _SURE,
        )

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        return "on the wrong side of 0.5"

    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N]`` each."""
        logits = _needed(output)
        if logits.numel() != len(targets) or targets.numel() != len(targets):
            raise _unfit("binary", logits, targets, "one logit and one target (0 or 1) for each")
        return (logits.reshape(-1), *_zeros_and_ones(targets.reshape(-1), logits, "binary"))

    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        return _binary_entropy(found, true)


@dataclass(frozen=True)
class Multilabel(_ByEntries):
    """Any of K labels for each sample: logits and targets of 0 and 1, ``[N, K]``.

    The loss is the mean binary cross-entropy over labels that are known; those that are NaN or
    negative are not.

    Attributes:
        tolerance: A mistake has more labels than so many on the wrong side of 0.5.
    """

    name: ClassVar[str] = "multilabel"
    tolerance: int = 0

    def __post_init__(self) -> None:
        """Check the argument."""
        if not isinstance(self.tolerance, int) or self.tolerance < 0:
            raise InputError(f"tolerance is {self.tolerance!r}; a number of labels is needed.")

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Count the labels on the wrong side."""
        found, true, known = self._aligned(output, targets, loss)
        logits = _logits(found, loss)
        missed = ((true == 1) & known & ~(logits > 0)).sum(1)
        spurious = ((true == 0) & known & ~(logits <= 0)).sum(1)
        right = torch.where(true == 1, logits, -logits).double().sigmoid()
        labelled = known.any(1)
        return Answers(
            labelled=labelled,
            wrong=(missed + spurious > self.tolerance) & labelled,
            others=1 - right.masked_fill(~known, 1).amin(1),
            details={"wrong_labels": missed + spurious, "missed": missed, "spurious": spurious},
            probabilities=_in_unit(found, loss),
            extreme=(found > _SURE).any(1),
        )

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        several = f"more than {self.tolerance} labels" if self.tolerance else "a label"
        return f"{several} on the wrong side of 0.5"

    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, K]`` each."""
        logits = _needed(output)
        if logits.shape != targets.shape or logits.ndim != 2:
            raise _unfit("multilabel", logits, targets, "logits and targets (0 or 1) [N, K]")
        return (logits, *_zeros_and_ones(targets, logits, "multilabel"))

    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        return _binary_entropy(found, true)


@dataclass(frozen=True)
class Segmentation(_ByEntries):
    """A class for each pixel: logits ``[N, K, H, W]``, targets ``[N, H, W]``.

    With one logit a pixel (K = 1) targets are 0 and 1. The loss is the mean cross-entropy over
    pixels with a label; those that are the loss's ``ignore_index``, or no class, have none.

    Attributes:
        metric: ``"iou"``, the mean intersection over union of the classes that a sample or its
            prediction has, or ``"accuracy"``, the share of right pixels.
        bound: Samples below it are mistakes; None takes the worst ones of each pass.
        worst: Share of a pass that its mistakes are, without a bound.
    """

    name: ClassVar[str] = "segmentation"
    metric: Literal["iou", "accuracy"] = "iou"
    bound: float | None = None
    worst: float | None = WORST

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.metric not in ("iou", "accuracy"):
            raise InputError(f"metric is {self.metric!r}; 'iou' or 'accuracy' is needed.")
        if self.bound is not None and not 0 < self.bound <= 1:
            raise InputError(f"bound is {self.bound!r}; in (0, 1], such as 0.8, is needed.")
        _only_one(self)

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Compare the maps."""
        found, true, known = self._aligned(output, targets, loss)
        several, predicted = found.ndim > true.ndim, self._predicted(found, true, loss)
        pixels = _number(known)
        accuracy = _number((predicted == true) & known).double() / pixels
        iou = _mean_iou(true.long(), predicted, known, found.shape[1] if several else 2)
        score = 1 - (iou if self.metric == "iou" else accuracy)
        details = {"mean_iou": iou, "pixel_accuracy": accuracy}
        bound = None if self.bound is None else 1 - self.bound
        answers = _judged(score, bound, pixels > 0, details)
        if several:
            return answers
        above = _comparable(targets).reshape(true.shape) > 1
        return replace(
            answers,
            beyond=_number(above) * 2 > _number(above | known),
            probabilities=_in_unit(found, loss),
            extreme=(found > _SURE).flatten(1).any(1),
        )

    def masks(
        self, output: Any, targets: Tensor, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Say what is where.

        Returns:
            ``[N, ...]`` true and predicted class of each pixel, -1 where there is none.

        Raises:
            InputError: If output and targets do not fit.
        """
        found, true, known = self._aligned(output, targets, loss)
        return true.long().masked_fill(~known, NO_CLASS), self._predicted(found, true, loss)

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        low = self.bound if bound is None else 1 - bound
        name = "mean IoU" if self.metric == "iou" else "pixel accuracy"
        return _above(name, low, self.worst, "under")

    @staticmethod
    def _predicted(found: Tensor, true: Tensor, loss: Loss | None) -> Tensor:
        if found.ndim > true.ndim:
            return _largest(found)
        return (_logits(found, loss) > 0).long().masked_fill(torch.isnan(found), NO_CLASS)

    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, K, ...]``, or without K where it is 1, and ``[N, ...]`` twice."""
        logits = _needed(output)
        if targets.ndim == logits.ndim and targets.shape[1] == 1:
            targets = targets[:, 0]
        if logits.ndim < 3 or logits.shape[:1] + logits.shape[2:] != targets.shape:
            raise _unfit(
                "segmentation", logits, targets, "logits [N, K, H, W] and classes [N, H, W] of the "
                "same size (let forward bring its map to that of the targets)",
            )  # fmt: skip
        true, known = _classes(targets, max(2, logits.shape[1]), loss)
        if logits.shape[1] == 1:
            return logits[:, 0], true.to(logits.dtype), known
        return logits, true, known

    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        return _entropy(found, true) if found.ndim > true.ndim else _binary_entropy(found, true)


@dataclass(frozen=True)
class Regression(_ByEntries):
    """Numbers for each sample: output and targets of the same shape ``[N, ...]``.

    The loss is the mean squared error over targets that are finite, or the absolute one.

    Attributes:
        error: ``"squared"`` or ``"absolute"``.
        bound: Samples with a larger error are mistakes, in the unit of the targets: the root of the
            mean squared error, or the mean absolute one. None takes the worst ones of each pass.
        worst: Share of a pass that its mistakes are, without a bound.
    """

    name: ClassVar[str] = "regression"
    error: Literal["squared", "absolute"] = "squared"
    bound: float | None = None
    worst: float | None = WORST

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.error not in ("squared", "absolute"):
            raise InputError(f"error is {self.error!r}; 'squared' or 'absolute' is needed.")
        _only_one(self)

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Measure the distance to the targets."""
        found, true, known = self._aligned(output, targets, loss)
        size = _mean(self._losses(found.double(), true.double()), known)
        size = size.sqrt() if self.error == "squared" else size
        details = {"error": size}
        if true.numel() == len(true):
            details |= {"true_value": true.reshape(-1), "predicted_value": found.reshape(-1)}
        return _judged(size, self.bound, _number(known) > 0, details)

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        return _above("error", self.bound if bound is None else bound, self.worst)

    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, ...]`` each."""
        found = _needed(output)
        if found.numel() == targets.numel() == len(targets):
            found, targets = found.reshape(-1, 1), targets.reshape(-1, 1)
        if found.shape != targets.shape:
            raise _unfit("regression", found, targets, "output and targets of one shape [N, ...]")
        known = torch.isfinite(targets)
        return found, targets.where(known, 0).to(found.dtype), known

    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        gap = found - true
        return gap.square() if self.error == "squared" else gap.abs()


@dataclass(frozen=True)
class SequenceLabelling(_ByEntries):
    """A class for each token: logits ``[N, T, K]``, targets ``[N, T]``.

    The loss is the mean cross-entropy over tokens with a label; those that are the loss's
    ``ignore_index``, or no class, such as -100, have none.

    Attributes:
        tolerated: A mistake has a larger share of wrong tokens; None takes the samples of the
            highest losses of each pass.
        worst: Share of a pass that its mistakes are, then.
        shift: Whether a position predicts the next token, as in causal language models.
    """

    name: ClassVar[str] = "sequence"
    tolerated: float | None = 0.0
    worst: float | None = WORST
    shift: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.tolerated is not None:
            if not 0 <= self.tolerated < 1:
                raise InputError(f"tolerated is {self.tolerated!r}; a share in [0, 1) is needed.")
            object.__setattr__(self, "worst", None)
        check_worst(self.worst)

    def read(self, output: Any, targets: Tensor, loss: Loss | None = None) -> Answers:
        """Count the wrong tokens."""
        logits, true, known = self._aligned(output, targets, loss)
        tokens = known.sum(1)
        wrong = ((_largest(logits) != true) & known).sum(1)
        details = {"wrong_tokens": wrong, "tokens": tokens}
        if self.tolerated is None:
            score = self.per_sample(output, targets, loss).detach()
            return _judged(score, None, tokens > 0, details)
        return _judged(wrong.double() / tokens, self.tolerated, tokens > 0, details)

    def rule(self, bound: float | None = None) -> str:
        """Say in words when a sample is a mistake."""
        if self.tolerated is None:
            return _above("loss", bound, self.worst)
        if self.tolerated == 0:
            return "a wrong token"
        return f"more than {100 * self.tolerated:.3g} % of the tokens wrong"

    def _aligned(
        self, output: Any, targets: Tensor, loss: Loss | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, K, T]``, and ``[N, T]`` twice."""
        logits = _needed(output)
        if logits.ndim != 3 or logits.shape[:2] != targets.shape:
            raise _unfit("sequence", logits, targets, "logits [N, T, K] and classes [N, T]")
        if self.shift:
            logits, targets = logits[:, :-1], targets[:, 1:]
        return (logits.movedim(2, 1), *_classes(targets, logits.shape[2], loss))

    def _losses(self, found: Tensor, true: Tensor) -> Tensor:
        return _entropy(found, true)


def check_worst(worst: float | None) -> None:
    """Refuse what is no share."""
    if worst is not None and not (isinstance(worst, int | float) and 0 < worst < 1):
        raise InputError(f"worst is {worst!r}; a share in (0, 1) is needed, such as 0.1.")


def _only_one(task: Segmentation | Regression) -> None:
    """Let a bound stand for itself."""
    if task.bound is not None:
        object.__setattr__(task, "worst", None)
    check_worst(task.worst)


def _above(name: str, bound: float | None, worst: float | None, how: str = "above") -> str:
    """A rule in words; the bound of a pass is known at its end."""
    end = "lowest" if how == "under" else "highest"
    share = "" if worst is None else f"the {end} {100 * worst:.3g} % of the pass"
    if bound is None:
        return f"{name} among {share}"
    return f"{name} {how} {bound:.3g}{share and ', '}{share}"


def _judged(
    score: Tensor, bound: float | None, labelled: Tensor, details: Mapping[str, Tensor]
) -> Answers:
    """By a score, and a bound if there is one; what has no score is as bad as can be."""
    score = score.double()
    score = score.masked_fill(torch.isnan(score), torch.inf)
    if bound is None:
        return Answers(labelled=labelled, wrong=labelled, score=score, details=details)
    return Answers(labelled=labelled, wrong=labelled & (score > bound), details=details)


def _needed(output: Any) -> Tensor:
    """What the network predicts."""
    found = prediction_of(output)
    if found is None:
        raise InputError(
            f"the network returned a {type(output).__name__} in which nothing says what it "
            "predicts; a tensor, a mapping or object with the entry 'logits' or 'out', or a tuple "
            "with one tensor of numbers is needed. Let forward return that, or give a salmon.Task."
        )
    return found


def _unfit(task: str, found: Tensor, targets: Tensor, needed: str) -> InputError:
    return InputError(
        f"the network gives {tuple(found.shape)} for targets {tuple(targets.shape)}; "
        f"task='{task}' needs {needed}."
    )


def _zeros_and_ones(targets: Tensor, logits: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """Targets in the type of the logits, and which of them are known."""
    targets = _comparable(targets)
    known = (targets == 0) | (targets == 1)
    fine = known | (targets < 0) | (targets != targets)
    if not bool(fine.all()):
        other = targets[~fine].flatten()[0].item()
        raise InputError(
            f"targets hold {other!r}; task='{task}' needs 0 and 1, and NaN or a negative number "
            "where nothing is known."
        )
    return (targets == 1).to(logits.dtype), known


def _classes(targets: Tensor, classes: int, loss: Loss | None) -> tuple[Tensor, Tensor]:
    """Class numbers, and which of them are known and not ignored."""
    targets = _comparable(targets)
    if targets.is_floating_point() and bool(targets.nan_to_num(0, 0, 0).frac().any()):
        raise InputError(
            f"targets are {targets.dtype} with fractions; class numbers are needed. Masks are "
            "resized by the nearest pixel (InterpolationMode.NEAREST)."
        )
    known, ignored = (targets >= 0) & (targets < classes), getattr(loss, "ignore_index", None)
    known = known if ignored is None else known & (targets != ignored)
    return targets.where(known, 0).long(), known


def _comparable(targets: Tensor) -> Tensor:
    """Unsigned ones lack comparisons."""
    odd = targets.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return targets.long() if odd else targets


def _entropy(logits: Tensor, true: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, true, reduction="none")


def _binary_entropy(logits: Tensor, true: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, true, reduction="none")


def _largest(logits: Tensor) -> Tensor:
    """``[N, ...]`` class of the largest logit of ``[N, K, ...]``, or NO_CLASS."""
    return logits.argmax(1).masked_fill(torch.isnan(logits).any(1), NO_CLASS)


def _number(flags: Tensor) -> Tensor:
    """``[N]`` how many of each sample."""
    return flags.long() if flags.ndim == 1 else flags.flatten(1).sum(1)


def _by_user(
    loss: Loss | None, output: Any, targets: Tensor, found: Tensor, true: Tensor
) -> Tensor | None:
    """The user's loss: a module of torch gets what it is made for, a function what there is."""
    if loss is None:
        return None
    if _is_of_torch(loss):
        own: Tensor = loss(found, true)
        return own
    # The gradient of a number that is then left out would be no number.
    return loss(output, targets.nan_to_num(0) if targets.is_floating_point() else targets)


def _is_of_torch(loss: Loss | None) -> TypeGuard[nn.Module]:
    return isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn.")


def _class_weights(loss: Loss | None, true: Tensor) -> Tensor | None:
    """``[N, ...]`` of the true classes, where the loss has some."""
    weight = loss.weight if isinstance(loss, nn.CrossEntropyLoss) else None
    return None if weight is None else weight[true]


def _mean(values: Tensor, known: Tensor, weights: Tensor | None = None) -> Tensor:
    """``[N]`` means over what is known; values that are one for each sample already stay."""
    if values.shape != known.shape or known.ndim == 1:
        return values.reshape(len(known)) if values.numel() == len(known) else values
    wide = torch.promote_types(values.dtype, torch.float32)
    count = known.to(wide) if weights is None else weights.to(wide) * known
    total = torch.where(known, values, 0).to(wide).flatten(1).sum(1)
    return total / count.flatten(1).sum(1)


def _mean_iou(true: Tensor, predicted: Tensor, known: Tensor, classes: int) -> Tensor:
    """``[N]`` float64 over the classes that a sample or its prediction has."""
    samples = len(true)
    first = torch.arange(samples, device=true.device) * classes
    first = first.view(-1, *[1] * (true.ndim - 1)).expand_as(true)

    def counts(numbers: Tensor, where: Tensor) -> Tensor:
        cells = (first + numbers)[where]
        return torch.bincount(cells, minlength=samples * classes).view(samples, classes).double()

    both = counts(true, known & (true == predicted))
    union = counts(true, known) + counts(predicted, known & (predicted >= 0)) - both
    has = union > 0
    return torch.where(has, both / union, 0).sum(1) / has.sum(1)


def _column(name: str, values: Any, targets: Tensor) -> Tensor:
    """``[N]``, checked."""
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(targets),):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"the task's {name} gave {found}; a tensor [{len(targets)}], one number for each "
            "sample, is needed."
        )
    column: Tensor = values.detach().to(targets.device)
    return column.long() if column.dtype == torch.bool else column


def _logits(found: Tensor, loss: Loss | None) -> Tensor:
    """What the network gives, where the loss says that these are probabilities their logits."""
    return found.logit() if isinstance(loss, nn.BCELoss) else found


def _in_unit(found: Tensor, loss: Loss | None) -> Tensor:
    """``[N]`` bool, where all numbers of a sample lie in [0, 1], as small logits do, too."""
    inside = _number(~((found >= 0) & (found <= 1))) == 0
    return torch.zeros_like(inside) if isinstance(loss, nn.BCELoss) else inside


def _pick(table: Tensor, columns: Tensor) -> Tensor:
    """``[N]`` entries of a ``[N, K]`` table."""
    return table.gather(1, columns.unsqueeze(1)).squeeze(1)


TASKS: dict[str, AnyTask] = {
    task.name: task
    for task in (
        Classification(), Binary(), Multilabel(), Segmentation(), Regression(), SequenceLabelling()
    )
}  # fmt: skip
"""By name, as they are by default."""


def task_named(task: Any) -> AnyTask | None:
    """Look a task up.

    Args:
        task: Its name, itself, or None.

    Returns:
        It; None for None, where the first batch tells.

    Raises:
        InputError: If there is none of this name, or it is something else.
    """
    if task is None or isinstance(task, AnyTask):
        return task
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    raise InputError(
        f"task is {task!r}; one of {', '.join(map(repr, TASKS))}, an object of salmon.tasks such "
        "as Multilabel(tolerance=1), a salmon.Task of your own, or None is needed."
    )


def recognise(output: Any, targets: Tensor) -> AnyTask:
    """Tell the task from a batch, where it leaves no doubt.

    Args:
        output: Of the network, for N samples.
        targets: ``[N, ...]``.

    Raises:
        InputError: If it could be several, or none.
    """
    found = prediction_of(output)
    if found is None or len(found) != len(targets):
        logits_of(output)  # it says what is needed
        found = _needed(output)
    whole = not (targets.is_floating_point() or targets.is_complex())
    flat, one = targets.numel() == len(targets), found.numel() == len(targets)
    same, table = found.shape == targets.shape, found.ndim == 2 and not one
    binary = bool(((targets == 0) | (targets == 1)).all())
    shares = table and same and bool(are_probabilities(targets).all())
    far = bool(((targets < 0) | (targets > 1)).any())
    fits = {
        "classification": table and ((whole and flat) or shares),
        "binary": one and flat and binary,
        "multilabel": table and same and binary and not shares,
        "segmentation": whole and found.ndim == 4
        and targets.shape == found.shape[:1] + found.shape[2:],
        "sequence": whole and found.ndim == 3 and targets.shape == found.shape[:2],
        "regression": not whole and not binary
        and ((one and flat) or (same and (far or not table) and not shares)),
    }  # fmt: skip
    names = [name for name, does in fits.items() if does]
    if len(names) == 1:
        return TASKS[names[0]]
    raise InputError(
        f"the network gives {tuple(found.shape)} for targets {tuple(targets.shape)} of "
        f"{targets.dtype}, which leaves open what a mistake is. One class for each sample needs "
        "logits [N, K] and integer class numbers [N], or probabilities [N, K] that add up to 1 "
        f"(unpack= can make them of the batch). Else give task=, one of {', '.join(TASKS)}, or a "
        "salmon.Task of your own."
    )


def same_task(one: AnyTask, other: AnyTask) -> bool:
    """Whether two are one and the same; one's own holds functions, and is not compared."""
    return isinstance(one, Task) or (type(one) is type(other) and vars(one) == vars(other))


def is_guess(task: AnyTask, targets: Tensor) -> bool:
    """Whether another batch could have told another task than the one recognised."""
    return not (task.name == "classification" and class_numbers(targets) is not None)


def mistakes_of(scores: Tensor, worst: float) -> tuple[Tensor, float]:
    """Tell the mistakes of a pass at its end.

    Args:
        scores: ``[n]`` of all its samples.
        worst: Share of them.

    Returns:
        ``[n]`` bool, true for those above the bound, which are at most ``ceil(worst * n)`` unless
        more tie at the highest score; and the bound.
    """
    if not len(scores):
        return scores > 0, float("nan")
    falling = scores.sort(descending=True).values
    bound = falling[min(len(scores) - 1, math.ceil(worst * len(scores)))]
    below = falling[falling < falling[0]]
    if bound == falling[0] and len(below):
        bound = below[0]
    return scores > bound, float(bound)
