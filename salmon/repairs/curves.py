"""Pruning and fine-tuning curves, the paper's protocol (figures 3 to 5).

For each misclassified image by itself: its filters are ranked, then edited one after another, the
first k of them for k = 1, 2, ...; the gradient is that of this image at the original weights; the
weights are put back after each image. Reported are means over the images.

Gradient and first prediction of an image serve all rankings and kinds of edits, and its edited
networks run in one forward where they can (``salmon.repairs.variants``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex, FilterLayer, filter_rows, parameters_by_name
from salmon.ranking import Ranking
from salmon.repairs.edit import Change, Edit, by_layer, check_kind, stepped
from salmon.repairs.evaluate import predict
from salmon.repairs.gradient import sample_gradients
from salmon.repairs.samples import Samples
from salmon.repairs.variants import can_join, variant_logits


@dataclass(frozen=True, slots=True)
class Step:
    """A kind of edit and its size."""

    kind: str  # "plain", "normalised" or "prune"
    rate: float = 0.0  # learning rate; pruning has none


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
        edit: ``"plain"`` for one gradient step, ``"normalised"`` for one of equal relative
            size on each filter, ``"prune"`` for zeros.
        counts: Numbers of filters to look at; None looks at 1 to K. A sample with fewer ranked
            filters keeps those it has.
        progress: Gets the numbers of finished and of all samples.

    Raises:
        InputError: If samples and ranking differ in number, there are none, or ``edit`` is
            unknown.
    """
    step = Step(edit, rate)
    found = many_edit_curves(
        model, samples, {"ranking": ranking}, index, (step,), counts=counts, progress=progress
    )
    return found["ranking", step]


def many_edit_curves(
    model: nn.Module,
    samples: Samples,
    rankings: Mapping[str, Ranking],
    index: FilterIndex,
    steps: Sequence[Step],
    *,
    counts: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, Step], Curves]:
    """Follow the paper's protocol for several rankings and kinds of edits at once.

    Args:
        model: The network; as before when this returns.
        samples: M misclassified samples.
        rankings: Of the same samples, with K filters each, by name.
        batch_size: Edited networks that run in one forward.
        progress: Gets the numbers of finished and of all samples.

    Returns:
        Curves by name of the ranking and step.

    Raises:
        InputError: As of :func:`edit_curves`.
    """
    for step in steps:
        check_kind(step.kind)
    for ranking in rankings.values():
        if len(samples) != len(ranking.filters) or len(samples) == 0:
            raise InputError(
                f"there are {len(samples)} samples and rankings of {len(ranking.filters)}; as "
                "many, and at least one, are needed."
            )
    width = max(ranking.filters.shape[1] for ranking in rankings.values())
    counts = (0, *(counts or range(1, width + 1)))
    keys = [(name, step) for name in rankings for step in steps]
    confidence = torch.zeros(len(samples), len(keys), len(counts), 2, dtype=torch.float64)
    corrected = torch.zeros(len(samples), len(keys), len(counts), dtype=torch.bool)
    join = can_join(model, samples.take(torch.tensor([0])), index)
    for row in range(len(samples)):
        one = samples.take(torch.tensor([row]))
        chosen = {
            name: _prefixes(ranking.filters[row], counts) for name, ranking in rankings.items()
        }
        cells = [(step, filters) for name, step in keys for filters in chosen[name]]
        order = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
        edits = list(_edits(model, one, index, list(order)))
        logits = variant_logits(model, one, edits, join=join, batch_size=batch_size)
        logits = logits[[order[cell] for cell in cells]].unflatten(0, (len(keys), len(counts)))
        before = predict(model, one, 1)
        target = int(one.targets)
        pair = [int(before.logits.argmax()), target]
        confidence[row] = logits.softmax(-1)[..., pair]
        confidence[row, :, 0] = before.logits.softmax(1)[0, pair]
        corrected[row] = (logits.argmax(-1) == target) & torch.isfinite(logits).all(-1)
        corrected[row, :, 0] = before.right
        if progress is not None:
            progress(row + 1, len(samples))
    change = confidence - confidence[:, :, :1]
    return {
        key: Curves(
            filters=counts,
            predicted_change=change[:, place, :, 0].mean(0),
            target_change=change[:, place, :, 1].mean(0),
            corrected=corrected[:, place].double().mean(0),
            each_predicted=change[:, place, :, 0],
            each_target=change[:, place, :, 1],
            each_corrected=corrected[:, place],
        )
        for place, key in enumerate(keys)
    }


def _prefixes(order: Tensor, counts: Sequence[int]) -> list[tuple[int, ...]]:
    """The first filters of a ranking, by count."""
    ranked = order[order >= 0].tolist()
    return [tuple(ranked[:count]) for count in counts]


def _edits(
    model: nn.Module,
    one: Samples,
    index: FilterIndex,
    cells: Sequence[tuple[Step, tuple[int, ...]]],
) -> Iterator[Edit]:
    """Edits of one sample, all from one gradient, with rows of the ranked filters only."""
    wanted = sorted({number for _, filters in cells for number in filters})
    layers = list(by_layer(index, wanted))
    names = (
        [layer.weight for _, layer, _ in layers] if any(s.kind != "prune" for s, _ in cells) else []
    )
    gradients = sample_gradients(model, one, names) if names else {}
    parameters = parameters_by_name(model)
    news: dict[tuple[int, Step], Tensor] = {}
    olds, channels_of = {}, {}
    for position, layer, channels in layers:
        olds[position] = _rows(parameters[layer.weight], layer, channels)
        gradient = gradients.get(layer.weight)
        slope = (
            torch.zeros(olds[position].shape, dtype=torch.float64)
            if gradient is None
            else _rows(gradient, layer, channels).double()
        )
        channels_of[position] = channels
        for step in dict.fromkeys(step for step, _ in cells):
            news[position, step] = (
                torch.zeros_like(olds[position])
                if step.kind == "prune"
                else stepped(olds[position], slope, step.rate, normalised=step.kind == "normalised")
            )
    for step, filters in cells:
        changes = []
        for position, layer, channels in by_layer(index, filters):
            at = torch.searchsorted(channels_of[position], channels)
            changes.append(Change(layer, channels, olds[position][at], news[position, step][at]))
        yield Edit(tuple(changes))


def _rows(values: Tensor, layer: FilterLayer, channels: Tensor) -> Tensor:
    """``[m, size]`` rows of some channels of a weight or gradient, on the CPU."""
    return filter_rows(values.detach(), layer)[channels.to(values.device)].cpu()
