"""What a network says of samples, and what a change of it fixes and breaks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from statistics import NormalDist
from typing import Any

import torch
from scipy import special
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.diagnosis import PassSettings
from salmon.errors import InputError
from salmon.forward import call_network, eval_mode, no_trace
from salmon.repairs.samples import Samples
from salmon.saliency import Loss
from salmon.tasks import TASKS, AnyTask, mistakes_of, recognise, task_named

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What the loss of a sample is, and when it is a mistake."""

    task: AnyTask = TASKS["classification"]
    loss: Loss | None = None  # the user's
    bound: float | None = None  # of the score, where the task takes the worst of many samples

    def losses(self, output: Any, targets: Tensor) -> Tensor:
        """``[N]`` with their graph; NaN for samples without a label."""
        return self.task.labelled_losses(output, targets, self.loss)

    def read(self, output: Any, targets: Tensor) -> "Predictions":
        """Judge N samples.

        Raises:
            InputError: If labels are no classes of the network.
        """
        answers = self.task.read(output, targets, self.loss)
        if answers.target is not None and answers.beyond is not None:
            ignored = getattr(self.loss, "ignore_index", None)
            beyond = (
                answers.beyond if ignored is None else answers.beyond & (answers.target != ignored)
            )
            if bool(beyond.any()):
                raise InputError(
                    f"{int(beyond.sum())} labels of a batch are higher than the classes of the "
                    "network; class numbers that count from 0 are needed."
                )
        told = {name: getattr(answers, name) for name in _OF_ANSWERS}
        columns = {
            **answers.details,  # first, since what a task describes decides nothing
            "loss": self.losses(output, targets).detach().double(),
            **{name: values for name, values in told.items() if values is not None},
        }
        return Predictions(
            {name: values.cpu() for name, values in columns.items()},
            tuple(answers.details),
            self.bound,
        )


_OF_ANSWERS = ("labelled", "wrong", "score", "target", "predicted", "probabilities", "extreme")


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of N samples, on the CPU."""

    columns: Mapping[str, Tensor]
    """``[N]`` each: losses, answers (:class:`~salmon.tasks.Answers`), and their details."""
    details: tuple[str, ...]  # names of these
    bound: float | None = None  # of the score
    classes: tuple[str, ...] = ()  # names, by class number, where they are known

    def take(self, rows: Tensor) -> "Predictions":
        """Those of ``[M]`` row numbers."""
        taken = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, columns=taken)

    def joined(self, other: "Predictions") -> "Predictions":
        """These, and then others of the same objective."""
        columns = {n: torch.cat([own, other.columns[n]]) for n, own in self.columns.items()}
        return replace(self, columns=columns)

    def check_logits(self) -> None:
        """Refuse a network that gives probabilities where its loss takes logits.

        Raises:
            InputError: If all outputs can be such, and one would be sure.
        """
        shares, sure = self.columns.get("probabilities"), self.columns.get("extreme")
        if shares is not None and sure is not None and bool(shares.all() & sure.any()):
            raise InputError(
                "the network gives probabilities where logits are needed, so that its gradients "
                "would be those of another loss; let forward return logits, or give loss=, such "
                "as torch.nn.BCELoss() for yes or no."
            )

    @property
    def losses(self) -> Tensor:
        """``[N]`` float64."""
        return self.columns["loss"]

    @property
    def right(self) -> Tensor:
        """``[N]`` bool: no mistake; a sample without a loss, such as one of NaN logits, is one."""
        wrong = self.columns["wrong"]
        if self.bound is not None:
            wrong = self.columns["score"] > self.bound
        return ~wrong & self.known

    @property
    def known(self) -> Tensor:
        """``[N]`` bool: has a loss, which may be infinite, as of a class that is masked."""
        return ~torch.isnan(self.losses)

    @property
    def accuracy(self) -> float:
        """Share of right samples; NaN of none."""
        return float(self.right.double().mean())

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error over 15 bins of equal width.

        NaN where no sample has a loss; None where the task has no confidence.
        """
        # Imported here, since it takes longer than all else that the command line needs.
        from torchmetrics.functional.classification import binary_calibration_error

        confidence = self.columns.get("confidence_predicted")
        if confidence is None:
            return None
        known = self.known
        if not bool(known.any()):
            return float("nan")
        right = self.right[known].long()
        return float(binary_calibration_error(confidence[known], right, CALIBRATION_BINS))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same samples before and after a change."""

    samples: int
    before: float  # accuracy
    after: float
    fixed: int  # wrong before, right after
    broken: int  # right before, wrong after

    @property
    def gain(self) -> float:
        """Accuracy won."""
        return self.after - self.before

    @property
    def p(self) -> float:
        """Of the exact one-sided McNemar test that no more are fixed than broken."""
        return mcnemar(self.fixed, self.broken)

    @property
    def broken_per_fixed(self) -> float:
        """Infinite where samples are broken and none is fixed."""
        if self.fixed:
            return self.broken / self.fixed
        return math.inf if self.broken else 0.0

    def loss_bound(self, confidence: float) -> float:
        """Upper bound of the accuracy lost, from paired counts (Wald, as for McNemar's test).

        Args:
            confidence: One-sided; 0.5 gives the observed loss.

        Returns:
            The bound; with nothing changed, that of one broken sample at a confidence above 0.5.
        """
        more = self.broken - self.fixed
        lost = more / self.samples
        if confidence == 0.5:
            return lost
        changed = max(self.fixed + self.broken, 1)
        error = math.sqrt(max(changed - more**2 / self.samples, 0.0)) / self.samples
        return lost + NormalDist().inv_cdf(confidence) * error


def predict(
    model: nn.Module, samples: Samples, batch_size: int, objective: Objective | None = None
) -> Predictions:
    """Run a network on samples, in eval mode, leaving no trace.

    Args:
        objective: None takes that of classification.
    """
    objective = objective or Objective()
    found = []
    with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
        for batch in samples.batches(batch_size):
            inputs, targets = to_device(batch, model)
            found.append(objective.read(call_network(model, inputs), targets))
    return replace(reduce(Predictions.joined, found), classes=samples.classes)


def objective_of(
    model: nn.Module, samples: Samples, settings: PassSettings, batch_size: int
) -> Objective:
    """The task and the loss of some settings; without a task, what a few of the samples tell.

    Raises:
        InputError: If these leave it open.
    """
    task = task_named(settings.task)
    if task is None:
        inputs, targets = to_device(next(iter(samples.batches(batch_size))), model)
        with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
            task = recognise(call_network(model, inputs), targets)
    return Objective(task=task, loss=settings.loss)


def bound_of(found: Sequence[Predictions], worst: float) -> float:
    """Score beyond which a sample is among the worst of all of these."""
    return mistakes_of(torch.cat([each.columns["score"] for each in found]), worst)[1]


def compare(before: Predictions, after: Predictions) -> Comparison:
    """Count what changed."""
    was, now = before.right, after.right
    fixed, broken = int((~was & now).sum()), int((was & ~now).sum())
    return Comparison(
        samples=len(was),
        before=before.accuracy,
        after=after.accuracy,
        fixed=fixed,
        broken=broken,
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Exact one-sided McNemar test (McNemar 1947, Psychometrika 12; binomial form).

    The probability of at least so many fixed among the changed ones if either were as likely.
    """
    if fixed + broken == 0:
        return 1.0
    return float(special.bdtrc(fixed - 1, fixed + broken, 0.5))


def to_device(values: Any, model: nn.Module) -> Any:
    """Move inputs to where a network is."""
    device = next(model.parameters()).device
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)
