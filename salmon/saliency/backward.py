"""From caught uses to sums of absolute per-sample gradients, each weight in the fastest right way.

- *fast*: one direct use; reduced as soon as its gradient arrives.
- *in pieces*: several, partial or derived uses; per-sample gradients of a few samples at a time.
- *one by one*: a weight that reaches the loss in another way too, or whose samples cannot be told
  apart in some input; one ``autograd.grad`` per sample. Slow, and always right.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from salmon.errors import UnsupportedError
from salmon.filters import FilterLayer
from salmon.saliency.catch import Catcher, Layout, Use
from salmon.saliency.reduce import (
    GROUPED_ELEMENTS,
    channel_sums,
    filter_sums,
    linear_sums,
    weight_gradients,
)
from salmon.torch_internals import is_reentrant, leaf_of, leaves_first, nodes_before

_CODE_TOLERANCE = 1e-2  # neighbouring codes differ by a factor of 2 at least

_LayoutKey = tuple[str, int, int, tuple[Layout, ...]]
"""Weight name, number of the call, dimensions of the input, and layouts that its shape allows."""

Known = dict[_LayoutKey, Layout]


@dataclass(slots=True)
class Layouts:
    """What was found out about where the samples are in the inputs of one network's layers."""

    known: Known = field(default_factory=dict)
    doubted: set[str] = field(default_factory=set)  # weights to look at again in every batch


class LayoutError(Exception):
    """Samples are elsewhere in this batch than in those before; measure it once more."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexedWeight:
    """A parameter whose filters are measured."""

    layer: FilterLayer
    parameter: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A use whose output gradient has arrived, both with the samples in front."""

    use: Use
    inputs: Tensor  # [N, C, *S] of a convolution, [N, P, C] of a linear; or [N, m, ...] of both
    grad: Tensor  # [N, O, *P], [N, P, O]; or [N, m, ...]
    folded: bool  # whether there is a dimension m, whose rows belong to one sample

    @classmethod
    def of(cls, use: Use, grad: Tensor, layout: Layout, samples: int) -> "Arrival":
        """Put the samples in front; half precision becomes float32, of what was really read."""
        wide = torch.float64 if use.dtype == torch.float64 else torch.float32
        inputs = _samples_first(use.inputs.to(use.dtype).to(wide), layout, samples)
        grad = _samples_first(grad.detach().to(wide), layout, samples)
        folded = layout in (Layout.MAJOR, Layout.MINOR)
        if use.geometry is None:
            inputs, grad = _as_positions(inputs), _as_positions(grad)
            folded = False
        return cls(use, inputs, grad, folded)

    def sums(self) -> Tensor:
        """``[N, R]`` sums of ``|per-sample gradient|`` over each of the R rows that were read."""
        if self.use.geometry is None:
            return linear_sums(self.inputs, self.grad)
        return filter_sums(self.inputs, self.grad, self.use.geometry)

    def gradients(self, part: slice) -> Tensor:
        """``[n, *parameter shape]`` per-sample gradients of a few samples."""
        inputs, grad = self.inputs[part], self.grad[part]
        if self.use.geometry is None:
            return self.use.lift(torch.bmm(grad.transpose(1, 2), inputs))
        if not self.folded:
            return self.use.lift(weight_gradients(inputs, grad, self.use.geometry))
        each = weight_gradients(inputs.flatten(0, 1), grad.flatten(0, 1), self.use.geometry)
        return self.use.lift(each.unflatten(0, (len(inputs), -1)).sum(1))


class Backward:
    """The backward of one batch."""

    def __init__(
        self,
        caught: Catcher,
        weights: Sequence[IndexedWeight],
        samples: int,
        layouts: Layouts,
        probe: Callable[[], Known] = dict,
    ) -> None:
        """Take ``[L]`` indexed weights, in index order, and the batch size.

        Args:
            probe: Finds out of a few samples of the batch where the samples are, as :meth:`look`
                does.
        """
        self._probe = probe
        self._caught = caught
        self._weights = weights
        self._samples = samples
        self._layouts = layouts
        self._codes = _sample_codes(samples)
        self._expected: Counter[int] = Counter()
        self._coded: dict[int, Tensor] = {}  # by use, what a layout is still to be checked with
        self._checks: list[Tensor] = []  # whether it fits
        self._waiting: dict[int, list[Arrival]] = defaultdict(list)
        self.sums: dict[int, Tensor] = {}
        """By layer number, ``[N, R]`` sums of ``|per-sample weight gradient|`` over each output
        channel or row; a layer without an entry has no influence on the loss."""
        self.methods = ["no influence on the loss"] * len(weights)
        """How each layer was measured, and why so."""

    def run(self, losses: Tensor) -> None:
        """Measure every weight that the ``[N]`` losses depend on.

        Raises:
            LayoutError: If layouts of earlier batches do not fit; they are forgotten.
        """
        if self._samples == 0:
            return
        # Under autocast the reductions would run in half precision.
        with torch.autocast(losses.device.type, enabled=False):
            self._run(losses)

    def look(self, losses: Tensor) -> Known:
        """Where the samples are in the inputs of all uses that do not depend on chance."""
        with torch.autocast(losses.device.type, enabled=False):
            _, roots, numbers = self._reach(losses)
            self._decide_layouts(losses, roots, numbers)
        return {k: v for k, v in self._layouts.known.items() if k[0] not in self._layouts.doubted}

    def _reach(self, losses: Tensor) -> tuple["_Survey", list[GradientEdge], list[int]]:
        """What the losses depend on: a survey, the edges to go back to, and the uses."""
        caught = self._caught
        watched = {id(weight.parameter): i for i, weight in enumerate(self._weights)}
        aliases = {id(use.alias): use.position for use in caught.uses.values()}
        found = _survey(losses.sum(), caught.nodes, watched, aliases)
        roots = [caught.edges[node] for node in found.roots]
        return found, roots, [n for node in found.reached for n in caught.nodes[node]]

    def _run(self, losses: Tensor) -> None:
        caught = self._caught
        found, roots, numbers = self._reach(losses)
        slow = dict.fromkeys(found.stray, "used outside convolutions and linears")
        reached = {caught.uses[number].position for number in numbers}
        self._refuse_blind(reached | set(slow))
        if found.reentrant:
            raise UnsupportedError(
                "forward uses a re-entrant checkpoint, through which no gradient of a part of the "
                "network can be taken; use checkpoint(..., use_reentrant=False)."
            )
        layouts = self._decide_layouts(losses, roots, numbers)
        for number in numbers:
            if number not in layouts:
                position = caught.uses[number].position
                slow.setdefault(position, "samples cannot be told apart in its input")
        self._one_by_one(losses, slow)
        self._expected = Counter(
            caught.uses[number].position
            for number in numbers
            if caught.uses[number].position not in slow
        )
        if self._expected:
            caught.listener = partial(self._take, layouts)
            torch.autograd.grad(losses.sum(), roots, allow_unused=True)
            caught.listener = None
        if self._checks and not bool(torch.stack(self._checks).all()):
            known = self._layouts.known
            self._layouts.known = {
                k: v for k, v in known.items() if k[0] not in self._layouts.doubted
            }
            raise LayoutError
        for position in list(self._waiting):
            self.sums[position] = self._in_pieces(self._waiting.pop(position))

    def _refuse_blind(self, seen: set[int]) -> None:
        blind = self._caught.blind - seen
        if blind:
            names = ", ".join(self._weights[i].layer.weight for i in sorted(blind))
            raise UnsupportedError(
                f"{names} ran without gradients (torch.no_grad or a re-entrant checkpoint in "
                "forward?), so its saliency is unknown; leave its layer out with exclude=, or "
                "enable gradients there (checkpoint(..., use_reentrant=False))."
            )

    def _decide_layouts(
        self, losses: Tensor, roots: list[GradientEdge], numbers: list[int]
    ) -> dict[int, Layout]:
        """The layout of each use, where the data bear it out."""
        decided: dict[int, Layout] = {}
        unsure: dict[int, _LayoutKey] = {}
        doubted: set[int] = set()
        calls: Counter[int] = Counter()
        for number in sorted(numbers):
            use = self._caught.uses[number]
            calls[use.position] += 1
            name = self._weights[use.position].layer.weight
            key = (name, calls[use.position], use.inputs.ndim, use.layouts)
            if not use.layouts:
                continue
            if self._samples == 1:
                decided[number] = use.layouts[0]
            elif key in self._layouts.known:
                decided[number] = self._layouts.known[key]
                doubted |= {number} if name in self._layouts.doubted else set()
            else:
                unsure[number] = key
        probed = self._probe() if unsure else {}
        for number, key in list(unsure.items()):
            if key in probed:
                decided[number] = self._layouts.known[key] = probed[key]
                del unsure[number]
        if unsure:
            self._check_layouts(losses, roots, unsure, decided)
        if doubted:  # the other half of the check comes with the measurement
            coded = losses * self._codes.to(losses)
            self._coded = self._gradient_sizes(coded.sum(), roots, doubted)
        return decided

    def _check_layouts(
        self,
        losses: Tensor,
        roots: list[GradientEdge],
        unsure: Mapping[int, _LayoutKey],
        decided: dict[int, Layout],
    ) -> None:
        """Decide by all samples of the batch, with two backwards."""
        codes = self._codes.to(losses)
        plain = self._gradient_sizes(losses.sum(), roots, unsure)
        coded = self._gradient_sizes((losses * codes).sum(), roots, unsure)
        for number, key in unsure.items():
            possible = self._caught.uses[number].layouts
            a, b = plain.get(number), coded.get(number)
            if a is None or b is None or not bool(a.any()):
                decided[number] = possible[0]  # no gradient, so any layout gives zero
                continue
            layout = next((each for each in possible if bool(_fits(each, a, b, codes))), None)
            if layout is None:
                continue
            decided[number] = self._layouts.known[key] = layout
            if layout in (Layout.MAJOR, Layout.MINOR):
                # Ragged data can look so by chance: look again in every batch.
                self._layouts.doubted.add(key[0])

    def _gradient_sizes(
        self, loss: Tensor, roots: list[GradientEdge], wanted: Container[int]
    ) -> dict[int, Tensor]:
        """By use, the sum of ``|gradient|`` over the channels of its output."""
        sizes: dict[int, Tensor] = {}

        def listen(number: int, grad: Tensor) -> None:
            if number in wanted:
                sizes[number] = _sizes(grad, self._caught.uses[number])

        self._caught.listener = listen
        torch.autograd.grad(loss, roots, retain_graph=True, allow_unused=True)
        self._caught.listener = None
        return sizes

    def _take(self, layouts: dict[int, Layout], number: int, grad: Tensor) -> None:
        use = self._caught.uses.pop(number)  # else its input would outlive its place in the graph
        position = use.position
        if number in self._coded:
            plain, coded = _sizes(grad, use), self._coded.pop(number)
            self._checks.append(_fits(layouts[number], plain, coded, self._codes.to(plain)))
        if position not in self._expected:
            return
        if use.inputs._version != use.version:
            name = self._weights[position].layer.weight
            raise UnsupportedError(
                f"the input of {name} was changed in place after it was read, so its gradient is "
                "lost; use an out-of-place operation."
            )
        arrival = Arrival.of(use, grad, layouts[number], self._samples)
        if self._expected[position] == 1 and use.whole and not arrival.folded:
            self.sums[position] = arrival.sums()
            self.methods[position] = "fast"
        else:
            self._waiting[position].append(arrival)

    def _in_pieces(self, arrivals: list[Arrival]) -> Tensor:
        """Per-sample gradients of a few samples at a time, of all uses together."""
        use = arrivals[0].use
        groups = self._weights[use.position].layer.transposed_groups
        parts = []
        step = max(1, GROUPED_ELEMENTS // use.parameter.numel())
        for start in range(0, self._samples, step):
            part = slice(start, start + step)
            first, *others = (arrival.gradients(part) for arrival in arrivals)
            for other in others:
                first = first + other
            parts.append(channel_sums(first.abs(), groups))
        why = [f"{len(arrivals)} uses"] if len(arrivals) > 1 else []
        why += ["computed from the weight"] if use.derived is not None else []
        why += ["some of its rows"] if use.rows is not None else []
        why += ["several inputs per sample"] if arrivals[0].folded else []
        self.methods[use.position] = f"in pieces ({', '.join(why)})"
        return torch.cat(parts)

    def _one_by_one(self, losses: Tensor, slow: Mapping[int, str]) -> None:
        if not slow:
            return
        leaves = {position: [self._weights[position].parameter] for position in slow}
        uses: dict[int, list[Use]] = {position: [] for position in slow}
        for use in self._caught.uses.values():
            if use.position in slow:
                uses[use.position].append(use)
                leaves[use.position].append(use.alias)
        every = [leaf for some in leaves.values() for leaf in some]
        rows: dict[int, list[Tensor]] = {position: [] for position in slow}
        for loss in losses:
            grads = iter(torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True))
            for position in slow:
                weight, own = self._weights[position], next(grads)
                groups = weight.layer.transposed_groups
                total = torch.zeros_like(weight.parameter) if own is None else own
                for use in uses[position]:
                    through = next(grads)
                    if through is not None:
                        total = total + use.lift(through.detach().unsqueeze(0))[0]
                rows[position].append(channel_sums(total.abs().unsqueeze(0), groups))
        for position, why in slow.items():
            self.sums[position] = torch.cat(rows[position]).detach()
            self.methods[position] = f"one by one ({why})"


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a loss depends on."""

    reached: list[Node]  # caught nodes that the loss depends on
    roots: list[Node]  # those of them with no caught node between them and the inputs
    reentrant: bool  # whether it passes through a re-entrant checkpoint
    stray: set[int]  # values of watched leaves, and of aliases, that it depends on in another way


def _survey(
    total: Tensor, caught: Collection[Node], watched: Mapping[int, int], aliases: Mapping[int, int]
) -> _Survey:
    """Find which caught nodes and leaves a loss depends on.

    Args:
        watched: Values by id of leaf: leaves that the loss should not depend on.
        aliases: Values by id of leaf: leaves that it should depend on through one caught node only.
    """
    after: dict[Node, list[Node]] = defaultdict(list)
    leaves: list[tuple[Node, int]] = []
    stray: set[int] = set()
    fed: dict[Node, bool] = {}  # node -> a caught node lies between it and the inputs
    for node in leaves_first(total.grad_fn):
        before = nodes_before(node)
        fed[node] = any(each in caught or fed[each] for each in before)
        for each in before:
            after[each].append(node)
        leaf = id(leaf_of(node))
        if leaf in watched:
            stray.add(watched[leaf])
        if leaf in aliases:
            leaves.append((node, aliases[leaf]))
    stray |= {value for node, value in leaves if not _leads_to(caught, node, after)}
    reached = [node for node in caught if node in fed]
    roots = [node for node in reached if not fed[node]]
    reentrant = any(fed[node] and is_reentrant(node) for node in fed)
    return _Survey(reached, roots, reentrant, stray)


def _leads_to(caught: Collection[Node], node: Node, after: Mapping[Node, list[Node]]) -> bool:
    """Whether the only way from a node towards the loss passes through a caught node."""
    while node not in caught:
        above = after.get(node, [])
        if len(above) != 1:
            return False
        node = above[0]
    return True


def _sizes(grad: Tensor, use: Use) -> Tensor:
    """Sums of ``|gradient|`` over the channels of an output."""
    dims = (-1,) if use.geometry is None else tuple(range(1, grad.ndim))
    # Slower than abs and sum, but without a copy of the gradient.
    wide = torch.promote_types(grad.dtype, torch.float32)
    sizes: Tensor = torch.linalg.vector_norm(grad.detach(), 1, dims, dtype=wide)
    return sizes


def _sample_codes(samples: int) -> Tensor:
    """``[N]`` powers of two by which samples are told apart, other ones for neighbours.

    They lie between 2^-8 and 2^7. A gradient scales with such a factor without rounding.
    """
    number = torch.arange(samples)
    return torch.pow(2.0, (number + 7 * (number // 16)) % 16 - 8)


def _fits(layout: Layout, plain: Tensor, coded: Tensor, codes: Tensor) -> Tensor:
    """Whether the gradient at every position scales with the code of the position's sample.

    Positions without a gradient do, and those without a finite one.

    Args:
        plain: Sizes of the gradient at every position.
        coded: The same for the losses times ``codes``.
    """
    a, b = (
        _samples_first(sizes, layout, len(codes)).reshape(len(codes), -1)
        for sizes in (plain, coded)
    )
    expected = a * codes.to(a).unsqueeze(1)
    close = (b - expected).abs() <= _CODE_TOLERANCE * expected
    every: Tensor = (close | ~(torch.isfinite(a) | torch.isfinite(b))).all()
    return every


def _samples_first(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """A view with N in front."""
    if layout is Layout.MAJOR:
        tensor = tensor.unflatten(0, (samples, -1))
    if layout is Layout.MINOR:
        tensor = tensor.unflatten(0, (-1, samples)).transpose(0, 1)
    if layout is Layout.SECOND:
        return tensor.transpose(0, 1)
    return tensor


def _as_positions(values: Tensor) -> Tensor:
    """``[N, ..., C]`` to ``[N, P, C]``."""
    return values.unsqueeze(1) if values.ndim == 2 else values.flatten(1, -2)
