"""The stream of saliency profiles: exact largest values and moments of every filter.

``[N, F]`` profiles of any batch size go in; a fixed number C of largest values per filter stays,
with count, mean and sum of squared deviations for the z-score. The kept values are a multiset, so
any order and any split of the same rows, over any number of streams merged afterwards, keeps the
same ones bit for bit. Moments use the parallel update of Chan, Golub and LeVeque (1983), The
American Statistician 37(3), 242-247, in float64; they agree to rounding.

Nothing here waits for a GPU: counts stay on the device until somebody asks for them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from salmon.errors import InputError, StateError
from salmon.records import record_of, tensor_of

STATE_VERSION = 1

_Array = npt.NDArray[Any]
_Rows = tuple[_Array, _Array]
"""``[N, F]`` values, and ``[N]`` how often each row comes."""

_BLOCK = 1 << 17  # values, small enough for the cache
_LEAST_SQUARE = 1e-290  # squares below lose digits of the 53 that float64 has down to 2e-308
_SEEN_CONSTANT = 1e-132


class Tails:
    """Exact upper tails of ``F`` filters in ``F * 2 capacity`` numbers of memory."""

    def __init__(self, num_filters: int, capacity: int = 1024) -> None:
        """Start an empty stream.

        Args:
            num_filters: F.
            capacity: C, how many of the largest values are kept per filter. A fit at level q is the
                exact one for up to ``(C - 1) / (1 - q)`` samples.

        Raises:
            InputError: If ``num_filters < 1`` or ``capacity < 2``.
        """
        if num_filters < 1 or capacity < 2:
            raise InputError(
                f"num_filters is {num_filters} and capacity is {capacity}; at least 1 filter and 2 "
                "values (a threshold and one excess) are needed."
            )
        self.num_filters = num_filters
        self.capacity = capacity
        self._reset(torch.device("cpu"), torch.float32)

    @property
    def samples(self) -> int:
        """Number of finite samples seen."""
        return int(self._count)

    @property
    def dropped(self) -> int:
        """Number of samples left out because a value was NaN or infinite."""
        return int(self._dropped)

    @property
    def nbytes(self) -> int:
        """Memory of the kept values, in bytes; it does not grow with the samples."""
        return self._buffer.nbytes

    @property
    def mean(self) -> Tensor:
        """``[F]`` float64 mean; NaN before the first sample, and where it is too large."""
        held = (self._count > 0) & torch.isfinite(self._mean)
        return torch.where(held, self._mean, torch.nan)

    @property
    def std(self) -> Tensor:
        """``[F]`` float64 standard deviation with ``n - 1``; NaN below two samples.

        NaN also where float64 cannot hold its square: values of different size below about 1e-145,
        or beyond 1e150. (Their tails are fitted all the same.)
        """
        freedom = self._count - 1
        variance = self._m2 / freedom
        size = self._mean.abs()
        # Above the second size, a variance as small as this is that of a constant filter anyway.
        lost = (variance < _LEAST_SQUARE) & (size > 0) & (size < _SEEN_CONSTANT)
        held = (freedom > 0) & ~lost & torch.isfinite(variance)
        return torch.where(held, variance.sqrt(), torch.nan)

    def update(
        self, profile: Tensor, counted: Tensor | None = None, copies: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            profile: ``[N, F]`` saliency, one row per sample, on any device. Rows with a NaN or
                infinite value are counted as dropped and otherwise ignored.
            counted: ``[N]`` bool, on the same device; other rows are left out as if they had not
                come. None counts all.
            copies: ``[N]`` int64 on the CPU, how many samples each row stands for; None: itself.

        Raises:
            InputError: If ``profile`` is no floating matrix with F columns.
        """
        if profile.ndim != 2 or profile.shape[1] != self.num_filters:
            raise InputError(
                f"profile has shape {tuple(profile.shape)} but [samples, {self.num_filters}] is "
                "needed; give one row per sample and one column per filter of the index."
            )
        if not profile.is_floating_point():
            raise InputError(f"profile is {profile.dtype}; a floating type is needed.")
        profile = profile.detach()
        if counted is None:
            counted = torch.ones_like(profile[:, 0], dtype=torch.bool)
        self._prepare(profile)
        order = torch.arange(len(profile))
        if copies is not None:
            order = order.repeat_interleave(copies)
        for some in order.split(self._spare) if len(order) else ():
            if self._here:
                rows, times = some.unique_consecutive(return_counts=True)
                self._add_here(profile[rows].cpu(), counted[rows].cpu(), times)
            else:
                rows = some.to(profile.device, non_blocking=True)
                self._add_there(profile[rows], counted[rows])

    def merge(self, other: "Tails") -> None:
        """Add all samples of another stream; the other one stays as it is.

        Args:
            other: A stream of the same filters and capacity.

        Raises:
            InputError: If the two differ in filters or capacity.
        """
        if (other.num_filters, other.capacity) != (self.num_filters, self.capacity):
            raise InputError(
                f"a stream of {other.num_filters} filters and capacity {other.capacity} came, but "
                f"{self.num_filters} and {self.capacity} are needed; build both from one index "
                "with one capacity."
            )
        theirs = other.largest()
        self._prepare(theirs)
        device = self._buffer.device
        for part in theirs.t().to(self._buffer).split(self._spare):
            self._append(part)
        self._combine(other._count.to(device), other._mean.to(device), other._m2.to(device))
        self._dropped += other._dropped.to(device)

    def largest(self, filters: Tensor | None = None) -> Tensor:
        """Hand out the kept values.

        Args:
            filters: ``[K]`` numbers of those wanted; None wants all.

        Returns:
            ``[F, min(n, C)]``, or with K rows, each in descending order, in the type of the
            profiles.
        """
        self._settle()
        width = min(self.samples, self.capacity)
        columns = self._buffer[:, 1:]
        if filters is not None:
            columns = columns[filters.to(columns.device)]
        if self._here:  # NumPy sorts without keeping track of positions
            rising = torch.from_numpy(np.sort(columns.numpy(), axis=1))
        else:
            rising = columns.sort(dim=1).values
        return rising[:, rising.shape[1] - width :].flip(1)

    def state_dict(self) -> dict[str, Any]:
        """Hand out the whole state as plain values and CPU tensors.

        Returns:
            A dictionary that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "version": STATE_VERSION,
            "capacity": self.capacity,
            "samples": self.samples,
            "dropped": self.dropped,
            "largest": self.largest().cpu(),
            "mean": self._mean.cpu(),
            "m2": self._m2.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the whole state; on an error nothing changes.

        Args:
            state: What :meth:`state_dict` gave for the same filters and capacity.

        Raises:
            StateError: If the state is of another version, shape or capacity, or inconsistent.
        """
        fresh = self._checked(state)
        largest = fresh["largest"]
        self._reset(torch.device("cpu"), largest.dtype)
        for part in largest.t().split(self._spare):
            self._append(part)
        self._count.fill_(fresh["samples"])
        self._dropped.fill_(fresh["dropped"])
        self._mean.copy_(fresh["mean"])
        self._m2.copy_(fresh["m2"])

    def _checked(self, state: Any) -> dict[str, Any]:
        """A saved stream, if it is one of these filters and this capacity."""
        where = "saved stream"
        found = record_of(dict[str, Any], state, where)
        names = set(Tails(1).state_dict())
        if set(found) != names or found["version"] != STATE_VERSION:
            raise StateError(
                f"a saved stream has the fields {sorted(names)} and version {STATE_VERSION}; this "
                "one was written by another version or is none. Collect the statistics anew."
            )
        counts = [record_of(int, found[n], f"{where}: {n}") for n in ("samples", "dropped")]
        if found["capacity"] != self.capacity:
            raise StateError(
                f"the saved stream has capacity {found['capacity']}; capacity {self.capacity} is "
                f"needed. Use max_exceedances={found['capacity']}."
            )
        kept = (self.num_filters, max(0, min(counts[0], self.capacity)))
        floats = (torch.float32, torch.float64)
        found["largest"] = tensor_of(found["largest"], f"{where}: largest", kept, *floats)
        for name in ("mean", "m2"):
            shape = (self.num_filters,)
            found[name] = tensor_of(found[name], f"{where}: {name}", shape, torch.float64)
        falling = not bool((found["largest"].diff(dim=1) > 0).any())
        finite = bool(torch.isfinite(found["largest"]).all())
        if min(counts) < 0 or not falling or not finite or bool((found["m2"] < 0).any()):
            raise StateError(
                f"{where}: a count is negative, the largest values are not finite and in "
                "descending order, or a sum of squares is negative; it is damaged."
            )
        return found

    @property
    def _here(self) -> bool:
        """Whether values can be looked at without waiting for them."""
        return self._buffer.device.type == "cpu"

    @property
    def _spare(self) -> int:
        """Columns beyond the capacity, filled between two compactions."""
        return min(max(self.capacity // 2, 64), 1 << 14)

    @property
    def _width(self) -> int:
        """Columns of the buffer; the first one takes what a GPU throws away."""
        return 1 + self._spare + self.capacity

    def _reset(self, device: torch.device, dtype: torch.dtype) -> None:
        # Filled from the right.
        shape = self.num_filters, self._width
        self._buffer = torch.full(shape, -torch.inf, device=device, dtype=dtype)
        self._even = True  # all filters hold equally many values, and none was thrown away
        self._floor = torch.full_like(self._buffer[:, 0], -torch.inf)  # C-th largest, if known
        self._fill = torch.zeros(self.num_filters, device=device, dtype=torch.int64)
        self._bound = 0  # no fill is larger; not kept up to date on the CPU, where it is known
        self._waiting: list[_Rows] = []  # on the CPU, to be written together
        self._waits = 0  # samples that these rows stand for
        self._count = torch.zeros((), device=device, dtype=torch.int64)
        self._dropped = torch.zeros((), device=device, dtype=torch.int64)
        self._mean = torch.zeros(self.num_filters, device=device, dtype=torch.float64)
        self._m2 = torch.zeros_like(self._mean)

    def _prepare(self, incoming: Tensor) -> None:
        """Move to the device of the first values, and widen the type where they are wider."""
        dtype = torch.promote_types(self._buffer.dtype, incoming.dtype)
        device = incoming.device if self._bound == 0 else self._buffer.device
        if (dtype, device) == (self._buffer.dtype, self._buffer.device):
            return
        self._settle()
        self._buffer, self._floor = self._buffer.to(device, dtype), self._floor.to(device, dtype)
        for name in ("_fill", "_count", "_dropped", "_mean", "_m2"):
            setattr(self, name, getattr(self, name).to(device))

    def _add_here(self, profile: Tensor, counted: Tensor, times: Tensor) -> None:
        """On the CPU, where a look costs nothing: rows that stand for ``[N]`` samples each."""
        finite = torch.isfinite(profile.sum(1))
        if not bool(finite.all()):  # a sum of finite values can overflow, too
            finite = torch.isfinite(profile).all(1)
        self._dropped += (times * (counted & ~finite)).sum()
        good = counted & finite
        if not bool(good.all()):
            profile, times = profile[good], times[good]
        if not len(profile):
            return
        count, weights, moments = times.sum(), times.double(), []
        for part in profile.split(max(1, _BLOCK // len(profile)), dim=1):
            values = part.double()
            mean = weights @ values / count
            moments.append(torch.stack([mean, weights @ (values - mean).square_()]))
        self._combine(count, *torch.cat(moments, 1))
        self._append(profile.to(self._buffer.dtype), times)

    def _add_there(self, profile: Tensor, counted: Tensor) -> None:
        """On a GPU, without waiting for it."""
        profile, counted = profile.to(self._buffer.device), counted.to(self._buffer.device)
        low, high = torch.aminmax(profile, dim=1)  # NaN wins both
        finite = torch.isfinite(low) & torch.isfinite(high) & counted
        count, row = finite.sum(), finite.unsqueeze(1)
        values = torch.where(row, profile, 0.0).double()
        mean = values.sum(0) / count.clamp_min(1)
        m2 = torch.where(row, values - mean, 0.0).square_().sum(0)
        self._combine(count, mean, m2)
        self._dropped += counted.sum() - count
        self._append(profile.to(self._buffer.dtype).masked_fill(~row, -torch.inf))

    def _combine(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Chan's update of the moments."""
        share = count.double() / (self._count + count).clamp_min(1)
        delta = mean - self._mean
        # Where one side is empty, the weights make the other side pass unchanged.
        self._m2 += m2 + delta.square() * (self._count * share)
        self._mean += delta * share
        self._count += count

    def _append(self, values: Tensor, times: Tensor | None = None) -> None:
        """Take up ``[N, F]`` values that may belong to the largest.

        Args:
            times: ``[N]`` how often each row comes, ``_spare`` times altogether at most; None: once
                each. On the CPU only.
        """
        added = len(values) if times is None else int(times.sum())
        space = self._buffer.shape[1] - 1
        if self._even and self._bound + added <= space:
            end = space + 1 - self._bound
            rows = values if times is None else values.repeat_interleave(times, 0)
            self._buffer[:, end - added : end] = rows.t()
            self._fill += added
            self._bound += added
            return
        self._even = False
        if self._here:
            if self._waits + added > self._spare:
                self._settle()
            often = np.ones(added, int) if times is None else times.numpy()
            self._waiting.append((values.numpy(), often))
            self._waits += added
            return
        if self._bound + added > space:
            # The bound counts every sample; only now, rarely, is what there is worth a wait.
            arriving = (values > self._floor).sum(0)
            self._bound = int((self._fill + arriving).max()) - added
            if self._bound + added > space:
                self._compact()
        survives = values > self._floor
        ranks = survives.cumsum(0, dtype=torch.int16)  # N <= _spare <= 2^14
        place = space + 1 - (self._fill + ranks)
        self._buffer.scatter_(1, place.masked_fill(~survives, 0).t(), values.t())
        self._fill += ranks[-1]
        self._bound += added

    def _settle(self) -> None:
        """Write what waits on the CPU into the buffer, a few filters at a time."""
        waiting, self._waiting, self._waits = self._waiting, [], 0
        if not waiting:
            return
        times = np.concatenate([often for _, often in waiting])
        high = max(1, _BLOCK // len(times))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            blocks = (slice(at, at + high) for at in range(0, self.num_filters, high))
            list(pool.map(lambda block: self._place(waiting, times, block), blocks))

    def _place(self, waiting: Sequence[_Rows], times: _Array, block: slice) -> None:
        """Write what lies above the floors of some filters."""
        floor, fill = self._floor.numpy()[block, None], self._fill.numpy()[block]
        mine, width = np.concatenate([rows[:, block].T for rows, _ in waiting], 1), self._width
        once = len(times) == times.sum()
        for _ in range(2):
            survives = mine > floor
            numbers = np.count_nonzero(survives, axis=1) if once else survives @ times
            if (fill + numbers).max() < width:
                break
            # Then there is room for as many as may wait.
            columns = self._buffer.numpy()[block, 1:]
            columns.partition(self._spare, axis=1)  # in place; much faster than topk
            columns[:, : self._spare] = -np.inf
            floor[:, 0], fill[:] = columns[:, self._spare], self.capacity
        kept = mine[survives]
        if not once:
            kept = kept.repeat(np.broadcast_to(times, mine.shape)[survives])
        firsts = np.arange(block.start, block.start + len(mine)) * width + width - 1 - fill
        firsts += numbers.cumsum() - numbers
        self._buffer.view(-1).numpy()[firsts.repeat(numbers) - np.arange(len(kept))] = kept
        fill += numbers

    def _compact(self) -> None:
        """Keep the C largest of every row, in the columns on the right, on a GPU."""
        columns, cut = self._buffer[:, 1:], self._spare
        columns.copy_(columns.sort(dim=1).values)
        columns[:, :cut] = -torch.inf
        self._floor = columns[:, cut].clone()
        self._fill.fill_(self.capacity)
        short = self._floor == -torch.inf
        if bool(short.any()):  # dropped samples left places empty: move these out of the way
            columns[short] = columns[short].sort(dim=1).values
            self._fill[short] = (columns[short] > -torch.inf).sum(1)
        self._bound = self.capacity
