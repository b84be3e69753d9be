"""Pruning and fine-tuning curves, the paper's protocol (figures 3 to 5).

For each misclassified image by itself: its filters are ranked, then edited one after another, the
first k of them for k = 1, 2, ...; the gradient is that of this image at the original weights; the
weights are put back after each image. Reported are means over the images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.ranking import Ranking
from salmon.repairs.edit import Directions, edited
from salmon.repairs.evaluate import predict
from salmon.repairs.gradient import mean_gradients
from salmon.repairs.samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """Means over M misclassified images after 0, 1, ... edited filters."""

    filters: tuple[int, ...]  # [S] numbers of edited filters, from 0
    predicted_change: Tensor  # [S] change of the confidence of the class predicted at first
    target_change: Tensor  # [S] change of the confidence of the true class
    corrected: Tensor  # [S] share of images now classified right
    each_predicted: Tensor  # [M, S] the same for every image
    each_target: Tensor
    each_corrected: Tensor  # bool


def edit_curves(
    model: nn.Module,
    samples: Samples,
    ranking: Ranking,
    index: FilterIndex,
    *,
    edit: str = "plain",
    rate: float = 0.001,
    counts: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Follow the paper's protocol for one ranking.

    Args:
        model: The network; as before when this returns.
        samples: M misclassified samples.
        ranking: Of the same samples, with K filters each.
        index: The filters of the ranking.
        edit: ``"plain"`` for one gradient step, ``"normalised"`` for one of equal relative
            size on each filter, ``"prune"`` for zeros.
        rate: Learning rate of a step.
        counts: Numbers of filters to look at; None looks at 1 to K. A sample with fewer ranked
            filters keeps those it has.
        progress: Gets the numbers of finished and of all samples.

    Returns:
        The curves.

    Raises:
        InputError: If samples and ranking differ in number, there are none, or ``edit`` is
            unknown.
    """
    if len(samples) != len(ranking.filters) or len(samples) == 0:
        raise InputError(
            f"there are {len(samples)} samples and rankings of {len(ranking.filters)}; as many, "
            "and at least one, are needed."
        )
    steps = (0, *(counts or range(1, ranking.filters.shape[1] + 1)))
    names = [layer.weight for layer in index.layers]
    confidence = torch.zeros(len(samples), len(steps), 2, dtype=torch.float64)
    corrected = torch.zeros(len(samples), len(steps), dtype=torch.bool)
    for row in range(len(samples)):
        one = samples.take(torch.tensor([row]))
        order = ranking.filters[row]
        order = order[order >= 0]
        directions = Directions(model, index, mean_gradients(model, one, names, 1))
        first = int(predict(model, one, 1).logits.argmax())
        for column, count in enumerate(steps):
            chosen = order[:count]
            with edited(model, directions.edit(chosen, edit, rate)):
                found = predict(model, one, 1)
            confidence[row, column] = found.logits.softmax(1)[0, [first, int(one.targets)]]
            corrected[row, column] = found.right[0]
        if progress is not None:
            progress(row + 1, len(samples))
    change = confidence - confidence[:, :1]
    return Curves(
        filters=steps,
        predicted_change=change[..., 0].mean(0),
        target_change=change[..., 1].mean(0),
        corrected=corrected.double().mean(0),
        each_predicted=change[..., 0],
        each_target=change[..., 1],
        each_corrected=corrected,
    )
