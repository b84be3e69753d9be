"""From caught uses to sums of absolute per-sample gradients, each weight in the fastest right way.

- *fast*: one direct use; reduced as soon as its gradient arrives.
- *in pieces*: several, partial or derived uses; per-sample gradients of a few samples at a time.
- *one by one*: a weight that reaches the loss in another way too, or whose samples cannot be told
  apart in some input; one ``autograd.grad`` per sample. Slow, and always right.
"""

from collections import Counter, defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from salmon.errors import UnsupportedError
from salmon.saliency.catch import Caught
from salmon.saliency.graph import survey
from salmon.saliency.reduce import GROUPED_ELEMENTS, channel_sums
from salmon.saliency.uses import Arrival, Layout, Use, fits

FAST = "fast"
IN_PIECES = "in pieces"
ONE_BY_ONE = "one by one"

Layouts = MutableMapping[tuple[str, tuple[int, ...], int], Layout]
"""Layouts found so far, by weight name, input shape and batch size."""


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
            caught: What the forward used.
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

        Raises:
            UnsupportedError: If the gradient of an indexed weight was switched off in forward, or
                an input was overwritten.
        """
        if self._caught.blind:
            names = ", ".join(self._weights[i].name for i in sorted(self._caught.blind))
            raise UnsupportedError(
                f"{names} ran without gradients (torch.no_grad or a re-entrant checkpoint in "
                "forward?), so its saliency is unknown; leave its layer out with exclude=, or "
                "enable gradients there (checkpoint(..., use_reentrant=False))."
            )
        if self._samples == 0:
            return
        # Under autocast the reductions would run in half precision.
        with torch.autocast(losses.device.type, enabled=False):
            self._run(losses)

    def _run(self, losses: Tensor) -> None:
        """Survey the graph, then choose a way for each weight."""
        watched = {id(weight.parameter): i for i, weight in enumerate(self._weights)}
        found = survey(losses.sum(), self._caught.nodes, watched)
        roots = [self._caught.edges[node] for node in found.roots]
        by_position: dict[int, list[int]] = defaultdict(list)
        for node in found.reached:
            for number in self._caught.nodes[node]:
                by_position[self._caught.uses[number].position].append(number)
        slow = {watched[leaf]: "used outside convolutions and linears" for leaf in found.stray}
        numbers = [number for uses in by_position.values() for number in uses]
        layouts = self._decide_layouts(losses, roots, numbers)
        for position, uses in by_position.items():
            if any(number not in layouts for number in uses):
                slow.setdefault(position, "samples cannot be told apart in its input")
        for position, why in slow.items():
            self.methods[position] = f"{ONE_BY_ONE} ({why})"
            self.sums[position] = self._one_by_one(losses, position, by_position[position])
        self._expected = Counter(
            {position: len(uses) for position, uses in by_position.items() if position not in slow}
        )
        if self._expected:
            self._caught.listener = partial(self._take, layouts)
            torch.autograd.grad(losses.sum(), roots, allow_unused=True)
            self._caught.listener = None
        for position in list(self._waiting):
            self.sums[position] = self._in_pieces(self._waiting.pop(position))

    def _decide_layouts(
        self, losses: Tensor, roots: list[GradientEdge], numbers: list[int]
    ) -> dict[int, Layout]:
        """The layout of each use, where it is sure; asks the data where shapes do not tell."""
        decided: dict[int, Layout] = {}
        unsure: list[int] = []
        for number in numbers:
            use = self._caught.uses[number]
            if len(use.layouts) == 1:
                decided[number] = use.layouts[0]
            elif self._key(use) in self._layouts:
                decided[number] = self._layouts[self._key(use)]
            elif use.layouts:
                unsure.append(number)
        if not unsure:
            return decided
        touched: dict[int, Tensor] = {}

        def listen(number: int, grad: Tensor) -> None:
            linear = self._caught.uses[number].geometry is None
            touched[number] = (grad != 0).any(-1) if linear else (grad != 0).flatten(1).any(1)

        self._caught.listener = listen
        # Where the gradient of the last sample alone arrives, there the last sample is.
        torch.autograd.grad(losses[-1], roots, retain_graph=True, allow_unused=True)
        self._caught.listener = None
        for number in unsure:
            use = self._caught.uses[number]
            mask = touched.get(number)
            if mask is None or not bool(mask.any()):
                continue
            possible = [layout for layout in use.layouts if fits(layout, mask, self._samples)]
            if len(possible) == 1:
                decided[number] = self._layouts[self._key(use)] = possible[0]
        return decided

    def _key(self, use: Use) -> tuple[str, tuple[int, ...], int]:
        """Under which the layout of a use is kept."""
        return self._weights[use.position].name, tuple(use.inputs.shape), self._samples

    def _take(self, layouts: dict[int, Layout], number: int, grad: Tensor) -> None:
        """Reduce a use whose gradient arrived, or keep it for later."""
        use = self._caught.uses[number]
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

    def _one_by_one(self, losses: Tensor, position: int, numbers: list[int]) -> Tensor:
        """Differentiate one weight for each sample."""
        weight = self._weights[position]
        uses = [self._caught.uses[number] for number in numbers]
        leaves = [weight.parameter, *(use.alias for use in uses)]
        rows = []
        for loss in losses:
            own, *through = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            total = torch.zeros_like(weight.parameter) if own is None else own
            for use, grad in zip(uses, through, strict=True):
                if grad is not None:
                    total = total + use.lift(grad.unsqueeze(0))[0]
            rows.append(channel_sums(total.abs().unsqueeze(0), weight.groups))
        return torch.cat(rows)
