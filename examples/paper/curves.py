"""Pruning and fine-tuning curves, the paper's protocol (figures 3 to 5).

For each misclassified image by itself: its filters are ranked, then edited one after another, the
first k of them for k = 1, 2, ...; the gradient is that of this image at the original weights; the
weights are put back after each image. Reported are means over the images.

Gradient and first prediction of an image serve all rankings and kinds of edits. Its edited networks
run in one forward where they can: the image is repeated once per edit, a convolution runs with its
weight as it is, and then the output channels that an edit changes are computed anew from the input
of that edit's row. So the cost of an edit is that of one more image in a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from salmon import FilterIndex, InputError, Ranking, Samples
from salmon.filters import CONVOLUTIONS, filter_rows, parameters_by_name
from salmon.forward import call_network, eval_mode, no_trace
from salmon.repairs import Edit, edited, to_device
from salmon.repairs.edit import Change, by_layer, channel_rows, state_of, step_edit
from salmon.repairs.evidence import loss_gradients
from salmon.saliency import logits_of

KINDS = ("plain", "normalised", "prune")


@dataclass(frozen=True, slots=True)
class Step:
    """A kind of edit and its size."""

    kind: str  # "plain", "normalised" or "prune"
    rate: float = 0.0  # learning rate; pruning has none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """M misclassified images after 0, 1, ... edited filters, and the means over them."""

    filters: tuple[int, ...]  # [S] numbers of edited filters, from 0
    each_predicted: Tensor  # [M, S] change of the confidence of the class predicted at first
    each_target: Tensor  # [M, S] change of the confidence of the true class
    each_corrected: Tensor  # [M, S] bool: now classified right

    @property
    def predicted_change(self) -> Tensor:
        """``[S]`` mean change of the confidence of the class predicted at first."""
        return self.each_predicted.mean(0)

    @property
    def target_change(self) -> Tensor:
        """``[S]`` mean change of the confidence of the true class."""
        return self.each_target.mean(0)

    @property
    def corrected(self) -> Tensor:
        """``[S]`` share of images now classified right."""
        return self.each_corrected.double().mean(0)


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
        rate: Learning rate of a step.
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
        samples: M misclassified samples.
        rankings: Of the same samples, with K filters each, by name.
        steps: Kinds of edits.
        counts: As of :func:`edit_curves`.
        batch_size: Edited networks that run in one forward.

    Returns:
        Curves by name of the ranking and step.

    Raises:
        InputError: As of :func:`edit_curves`.
    """
    _check(step.kind for step in steps)
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
    join = True
    for row in range(len(samples)):
        one = samples.take(torch.tensor([row]))
        ranked = {
            name: r.filters[row][r.filters[row] >= 0].tolist() for name, r in rankings.items()
        }
        cells = [(step, tuple(ranked[name][:count])) for name, step in keys for count in counts]
        edits = _edits(model, one, index, cells)
        parts = []
        for start in range(0, len(edits), batch_size):
            part = list(edits.values())[start : start + batch_size]
            joined = _joined_logits(model, one, part) if join else None
            join = joined is not None
            parts.append(_single_logits(model, one, part) if joined is None else joined)
        logits_of_cell = dict(zip(edits, torch.cat(parts), strict=True))
        logits = torch.stack([logits_of_cell[cell] for cell in cells])
        logits = logits.unflatten(0, (len(keys), len(counts)))
        before = _logits(model, one)
        target = int(one.targets)
        pair = [int(before.argmax()), target]
        confidence[row] = logits.softmax(-1)[..., pair]
        confidence[row, :, 0] = before.softmax(1)[0, pair]
        corrected[row] = (logits.argmax(-1) == target) & torch.isfinite(logits).all(-1)
        corrected[row, :, 0] = pair[0] == target and bool(torch.isfinite(before).all())
        if progress is not None:
            progress(row + 1, len(samples))
    change = confidence - confidence[:, :, :1]
    return {
        key: Curves(
            filters=counts,
            each_predicted=change[:, place, :, 0],
            each_target=change[:, place, :, 1],
            each_corrected=corrected[:, place],
        )
        for place, key in enumerate(keys)
    }


def sample_effects(
    model: nn.Module, samples: Samples, index: FilterIndex, kinds: Sequence[str]
) -> dict[str, Tensor]:
    """Measure what an edit of each filter would do to the loss of each sample by itself.

    To first order: a plain step lowers the loss by ``lr * |G|^2``, a normalised one by
    ``lr * |W| * |G|``, and pruning lowers or raises it by ``|sum(W * G)|``; here ``lr`` is 1.

    Returns:
        ``[N, F]`` float64 effects, at least 0, by kind of edit.
    """
    _check(kinds)
    with loss_gradients(model, [layer.weight for layer in index.layers]) as measure:
        each = [
            [_effects(model, index, gradients, kind) for kind in kinds]
            for gradients in map(measure, samples.batches(1))
        ]
    return dict(zip(kinds, map(torch.stack, zip(*each, strict=True)), strict=True))


def _effects(
    model: nn.Module, index: FilterIndex, gradients: Mapping[str, Tensor], kind: str
) -> Tensor:
    """``[F]`` of one sample, on the CPU."""
    parameters = parameters_by_name(model)
    found = []
    for layer in index.layers:
        gradient = filter_rows(gradients[layer.weight].detach(), layer)
        weight = filter_rows(parameters[layer.weight].detach(), layer).to(gradient)
        if kind == "prune":
            effect = (weight * gradient).sum(1).abs().double()
        else:
            norm = gradient.norm(dim=1).double()
            effect = norm * (norm if kind == "plain" else weight.norm(dim=1))
        found.append(effect.cpu())
    return torch.cat(found)


def _check(kinds: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"edit is {kind!r}; one of {', '.join(KINDS)} is needed.")


_Cell = tuple[Step, tuple[int, ...]]
"""A kind of edit and the filters that it touches."""


def _edits(
    model: nn.Module, one: Samples, index: FilterIndex, cells: Sequence[_Cell]
) -> dict[_Cell, Edit]:
    """Edits of one sample, each once, cut out of an edit of all the ranked filters by each step."""
    wanted = sorted({number for _, filters in cells for number in filters})
    names = [layer.weight for layer, _ in by_layer(index, wanted)]
    gradients: dict[str, Tensor] = {}
    if names and any(step.kind != "prune" for step, _ in cells):
        with loss_gradients(model, names) as measure:
            gradients = measure((one.inputs, one.targets))
    whole = {
        step: {c.layer: c for c in _edit(model, index, wanted, gradients, step).changes}
        for step in {step for step, _ in cells}
    }
    found = {}
    for step, filters in dict.fromkeys(cells):
        changes = []
        for layer, channels in by_layer(index, filters):
            change = whole[step][layer]
            at = torch.searchsorted(change.channels, channels)
            changes.append(Change(layer, channels, change.values[at]))
        found[step, filters] = Edit(tuple(changes))
    return found


def _edit(
    model: nn.Module,
    index: FilterIndex,
    filters: Sequence[int],
    gradients: Mapping[str, Tensor],
    step: Step,
) -> Edit:
    """One step on some filters, or zeros in them."""
    state = state_of(model)
    if step.kind != "prune":
        normalised = step.kind == "normalised"
        return step_edit(state, index, filters, gradients, step.rate, normalised=normalised)
    changes = []
    for layer, channels in by_layer(index, filters):
        old = channel_rows(state[layer.weight], layer, channels)
        changes.append(Change(layer, channels, torch.zeros_like(old)))
    return Edit(tuple(changes))


def _single_logits(model: nn.Module, one: Samples, edits: Sequence[Edit]) -> Tensor:
    """``[E, K]`` logits of edited networks: each edit is written, run, and undone."""
    found = []
    for edit in edits:
        with edited(model, edit):
            found.append(_logits(model, one))
    return torch.cat(found)


def _logits(model: nn.Module, samples: Samples) -> Tensor:
    """``[N, K]`` float64 on the CPU, in eval mode."""
    with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
        output = call_network(model, to_device(samples.inputs, model))
    return logits_of(output).double().cpu()


def _joined_logits(model: nn.Module, one: Samples, edits: Sequence[Edit]) -> Tensor | None:
    """The same in one forward; None where a weight is read otherwise than that needs."""
    repeated = one.take(torch.zeros(len(edits), dtype=torch.int64))
    with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
        inputs = to_device(repeated.inputs, model)
        with _EditedRows(model, edits) as rows:
            output = call_network(model, inputs)
        return logits_of(output).double().cpu() if rows.complete else None


class _EditedRows(TorchFunctionMode):
    """Context of one forward, in which row i of the batch sees the weights of edit i."""

    def __init__(self, model: nn.Module, edits: Sequence[Edit]) -> None:
        """Sort the changes by weight."""
        super().__init__()
        self._rows = len(edits)
        self._changes: dict[int, list[tuple[int, Change]]] = {}
        parameters = parameters_by_name(model)
        for row, edit in enumerate(edits):
            for change in edit.changes:
                weight = parameters[change.layer.weight]
                self._changes.setdefault(id(weight), []).append((row, change))
        self._reads: list[int] = []  # of edited weights, by plain convolutions
        self._fits = True

    @property
    def complete(self) -> bool:
        """Whether every change took effect, once."""
        return self._fits and sorted(self._reads) == sorted(self._changes)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass every call on; redo the edited channels of convolutions.

        Args:
            types: Of the arguments that override; unused.
        """
        read = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if id(leaf) in self._changes]
        output = func(*args, **(kwargs or {}))
        for weight in read:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            call = dict(zip(names, args, strict=False)) | (kwargs or {})
            self._redo(func, call, weight, output)
        return output

    def _redo(
        self, func: Callable[..., Any], call: dict[str, Any], weight: Tensor, output: Any
    ) -> None:
        """Compute the edited channels of a convolution anew, in place."""
        plain = func in CONVOLUTIONS and call["weight"] is weight and call.get("groups", 1) == 1
        if not plain or call["input"].ndim != CONVOLUTIONS[func] + 2 or len(output) != self._rows:
            self._fits = False
            return
        self._reads.append(id(weight))
        for row, change in self._changes[id(weight)]:
            channels = change.channels.to(weight.device)
            own = {
                "input": call["input"][row : row + 1],
                "weight": change.values.to(weight).reshape(len(channels), *weight.shape[1:]),
                "bias": None if call.get("bias") is None else call["bias"][channels],
            }
            output[row, channels] = func(**(call | own))[0]
