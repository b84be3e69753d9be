"""What a network says of samples, and what a change of it fixes and breaks."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from scipy import special
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.forward import call_network, eval_mode, no_trace
from salmon.repairs.samples import Samples
from salmon.saliency import check_labels, logits_of

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of N samples, on the CPU."""

    logits: Tensor  # [N, K] float64
    targets: Tensor  # [N]

    @property
    def right(self) -> Tensor:
        """``[N]`` bool: classified right; a sample whose probabilities are NaN is wrong."""
        return (self.logits.argmax(1) == self.targets) & self.known

    @property
    def known(self) -> Tensor:
        """``[N]`` bool: has probabilities; a logit of minus infinity, as of a mask, is one of 0."""
        return ~torch.isnan(self.logits.softmax(1)).any(1)

    @property
    def accuracy(self) -> float:
        """Share of right samples; NaN of none."""
        return float(self.right.double().mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 bins of equal width; NaN without probabilities."""
        # Imported here, since it takes longer than all else that the command line needs.
        from torchmetrics.functional.classification import multiclass_calibration_error

        known = self.known
        if not bool(known.any()):
            return float("nan")
        probabilities, targets = self.logits[known].softmax(1), self.targets[known]
        classes = self.logits.shape[1]
        return float(
            multiclass_calibration_error(probabilities, targets, classes, CALIBRATION_BINS)
        )


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


def predict(model: nn.Module, samples: Samples, batch_size: int) -> Predictions:
    """Run a network on samples, in eval mode, leaving no trace."""
    found = []
    with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
        for inputs, _ in samples.batches(batch_size):
            output = call_network(model, to_device(inputs, model))
            found.append(logits_of(output).double().cpu())
    logits = torch.cat(found)
    check_labels(samples.targets, logits.shape[1])
    return Predictions(logits, samples.targets)


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
