"""What a network says of samples: logits, predictions, confidences, calibration."""

from dataclasses import dataclass
from typing import Any

import torch
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
        return (self.logits.argmax(1) == self.targets) & self._known

    @property
    def _known(self) -> Tensor:
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

        known = self._known
        if not bool(known.any()):
            return float("nan")
        error = multiclass_calibration_error(
            self.logits[known].softmax(1),
            self.targets[known],
            num_classes=self.logits.shape[1],
            n_bins=CALIBRATION_BINS,
        )
        return float(error)


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


def to_device(values: Any, model: nn.Module) -> Any:
    """Move inputs to where a network is."""
    device = next(model.parameters()).device
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)
