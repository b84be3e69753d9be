"""From caught uses to sums of absolute per-sample gradients, each weight in the fastest right way.

- *fast*: one direct use; reduced as soon as its gradient arrives.
- *in pieces*: several, partial or derived uses; per-sample gradients of a few samples at a time.
- *one by one*: a weight that reaches the loss in another way too, or whose samples cannot be told
  apart in some input; one ``autograd.grad`` per sample. Slow, and always right.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from salmon.errors import UnsupportedError
from salmon.saliency.catch import Caught
from salmon.saliency.graph import survey
from salmon.saliency.reduce import GROUPED_ELEMENTS, channel_sums
from salmon.saliency.uses import Arrival, Layout, Use, fits, sample_codes

FAST = "fast"
IN_PIECES = "in pieces"
ONE_BY_ONE = "one by one"

LayoutKey = tuple[str, int, tuple[int, ...], int]
Layouts = MutableMapping[LayoutKey, Layout | None]
"""Layouts found so far, by weight name, number of the call, input shape and batch size; None where
no layout fits. A key ``(name, 0, (), 0)`` says that the layouts of this weight are not to be
trusted from batch to batch."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexedWeight:
    """A parameter whose filters are measured."""

    name: str
    parameter: Tensor
    groups: int  # of a transposed convolution; 0 where the first dimension counts channels


class Backward:
    """The backward of one batch."""

    def __init__(
        self, caught: Caught, weights: Sequence[IndexedWeight], samples: int, layouts: Layouts
    ) -> None:
        """Prepare.

        Args:
            weights: ``[L]`` indexed weights, in index order.
            samples: N, the batch size.
            layouts: Where to look up and keep what was found out about the layout of inputs.
        """
        self._caught = caught
        self._weights = weights
        self._samples = samples
        self._layouts = layouts
        self._expected: Counter[int] = Counter()
        self._waiting: dict[int, list[Arrival]] = defaultdict(list)
        self.sums: dict[int, Tensor] = {}
        """By layer number, ``[N, R]`` sums of ``|per-sample weight gradient|`` over each output
        channel or row; a layer without an entry has no influence on the loss."""
        self.methods: dict[int, str] = {}
        """By layer number, how it was measured, and why so."""

    def run(self, losses: Tensor) -> None:
        """Measure every weight that the losses depend on.

        Args:
            losses: ``[N]`` losses of the forward that was caught.
        """
        if self._samples == 0:
            return
        # Under autocast the reductions would run in half precision.
        with torch.autocast(losses.device.type, enabled=False):
            self._run(losses)

    def _run(self, losses: Tensor) -> None:
        """Survey the graph, then choose a way for each weight."""
        caught = self._caught
        watched = {id(weight.parameter): i for i, weight in enumerate(self._weights)}
        aliases = {id(use.alias): use.position for use in caught.uses.values()}
        found = survey(losses.sum(), caught.nodes, watched, aliases)
        roots = [caught.edges[node] for node in found.roots]
        numbers = [number for node in found.reached for number in caught.nodes[node]]
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
        for position in list(self._waiting):
            self.sums[position] = self._in_pieces(self._waiting.pop(position))

    def _refuse_blind(self, seen: set[int]) -> None:
        """Refuse weights that ran without gradients only."""
        blind = self._caught.blind - seen
        if blind:
            names = ", ".join(self._weights[i].name for i in sorted(blind))
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
        unsure: dict[int, LayoutKey] = {}
        calls: Counter[int] = Counter()
        for number in sorted(numbers):
            use = self._caught.uses[number]
            calls[use.position] += 1
            key = (
                self._weights[use.position].name,
                calls[use.position],
                tuple(use.inputs.shape),
                self._samples,
            )
            if not use.layouts:
                continue
            if self._samples == 1:
                decided[number] = use.layouts[0]
            elif key in self._layouts and (key[0], 0, (), 0) not in self._layouts:
                known = self._layouts[key]
                if known is not None:
                    decided[number] = known
            else:
                unsure[number] = key
        if unsure:
            codes = sample_codes(self._samples).to(losses)
            plain = self._gradient_sizes(losses.sum(), roots, unsure)
            coded = self._gradient_sizes((losses * codes).sum(), roots, unsure)
            for number, key in unsure.items():
                self._judge(number, key, decided, (plain.get(number), coded.get(number)), codes)
        return decided

    def _judge(
        self,
        number: int,
        key: LayoutKey,
        decided: dict[int, Layout],
        sizes: tuple[Tensor | None, Tensor | None],
        codes: Tensor,
    ) -> None:
        """Accept the layout under which every position's gradient bears its sample's code."""
        plain, coded = sizes
        layouts = self._caught.uses[number].layouts
        if plain is None or coded is None or not bool(plain.any()):
            decided[number] = layouts[0]  # no gradient, so any layout gives zero
            return
        fitting = [layout for layout in layouts if fits(layout, plain, coded, codes)]
        if fitting:
            decided[number] = fitting[0]
        found = decided.get(number)
        if found in (Layout.MAJOR, Layout.MINOR):
            # Ragged data can look so by chance: look again in every batch.
            self._layouts[key[0], 0, (), 0] = None
        self._layouts[key] = found

    def _gradient_sizes(
        self, loss: Tensor, roots: list[GradientEdge], wanted: Container[int]
    ) -> dict[int, Tensor]:
        """By use, the sum of ``|gradient|`` over the channels of its output."""
        sizes: dict[int, Tensor] = {}

        def listen(number: int, grad: Tensor) -> None:
            if number in wanted:
                linear = self._caught.uses[number].geometry is None
                dims = (-1,) if linear else tuple(range(1, grad.ndim))
                # Slower than abs and sum, but without a copy of the gradient.
                wide = torch.promote_types(grad.dtype, torch.float32)
                sizes[number] = torch.linalg.vector_norm(grad.detach(), 1, dims, dtype=wide)

        self._caught.listener = listen
        torch.autograd.grad(loss, roots, retain_graph=True, allow_unused=True)
        self._caught.listener = None
        return sizes

    def _take(self, layouts: dict[int, Layout], number: int, grad: Tensor) -> None:
        """Reduce a use whose gradient arrived, or keep it for later."""
        use = self._caught.uses.pop(number)  # else its input would outlive its place in the graph
        position = use.position
        if position not in self._expected:
            return
        if use.inputs._version != use.version:
            raise UnsupportedError(
                f"the input of {self._weights[position].name} was changed in place after it was "
                "read, so its gradient is lost; use an out-of-place operation."
            )
        arrival = Arrival.of(use, grad, layouts[number], self._samples)
        if self._expected[position] == 1 and use.whole and not arrival.folded:
            self.sums[position] = arrival.sums()
            self.methods[position] = FAST
        else:
            self._waiting[position].append(arrival)

    def _in_pieces(self, arrivals: list[Arrival]) -> Tensor:
        """Per-sample gradients of a few samples at a time, of all uses together."""
        use = arrivals[0].use
        parts = []
        step = max(1, GROUPED_ELEMENTS // use.parameter.numel())
        for start in range(0, self._samples, step):
            part = slice(start, start + step)
            first, *others = (arrival.gradients(part) for arrival in arrivals)
            for other in others:
                first = first + other
            parts.append(channel_sums(first.abs(), self._weights[use.position].groups))
        why = [f"{len(arrivals)} uses"] if len(arrivals) > 1 else []
        why += ["computed from the weight"] if use.derived is not None else []
        why += ["some of its rows"] if use.rows is not None else []
        why += ["several inputs per sample"] if arrivals[0].folded else []
        self.methods[use.position] = f"{IN_PIECES} ({', '.join(why)})"
        return torch.cat(parts)

    def _one_by_one(self, losses: Tensor, slow: Mapping[int, str]) -> None:
        """Differentiate some weights for each sample."""
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
                total = torch.zeros_like(weight.parameter) if own is None else own
                for use in uses[position]:
                    through = next(grads)
                    if through is not None:
                        total = total + use.lift(through.detach().unsqueeze(0))[0]
                rows[position].append(channel_sums(total.abs().unsqueeze(0), weight.groups))
        for position, why in slow.items():
            self.sums[position] = torch.cat(rows[position]).detach()
            self.methods[position] = f"{ONE_BY_ONE} ({why})"
