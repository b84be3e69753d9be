"""The stream of saliency profiles: exact largest values and moments of every filter.

``[N, F]`` profiles of any batch size go in; a fixed number C of largest values per filter stays,
with count, mean and sum of squared deviations for the z-score. The kept values are a multiset, so
any order and any split of the same rows, over any number of streams merged afterwards, keeps the
same ones bit for bit. Moments use the parallel update of Chan, Golub and LeVeque (1983), The
American Statistician 37(3), 242-247, in float64; they agree to rounding.

Nothing here waits for a GPU: counts stay on the device until somebody asks for them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from salmon.errors import InputError, StateError
from salmon.records import record_of, tensor_of

STATE_VERSION = 1

_MOMENT_COLUMNS = 2048
_LEAST_SQUARE = 1e-290  # squares below lose digits of the 53 that float64 has down to 2e-308
_SEEN_CONSTANT = 1e-132


class Tails:
    """Exact upper tails of ``F`` filters in ``F * 1.5 capacity`` numbers of memory."""

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

    def update(self, profile: Tensor, counted: Tensor | None = None) -> None:
        """Add samples.

        Args:
            profile: ``[N, F]`` saliency, one row per sample, on any device. Rows with a NaN or
                infinite value are counted as dropped and otherwise ignored.
            counted: ``[N]`` bool, on the same device; other rows are left out as if they had not
                come. None counts all.

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
        for part, here in zip(profile.split(self._spare), counted.split(self._spare), strict=True):
            if part.shape[0]:
                self._add(part, here)

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
        width = min(self.samples, self.capacity)
        columns = self._buffer[:, 1:]
        if filters is not None:
            columns = columns[filters.to(columns.device)]
        if columns.device.type == "cpu":  # NumPy sorts without keeping track of positions
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
    def _spare(self) -> int:
        """Columns beyond the capacity, filled between two compactions."""
        return min(max(self.capacity // 2, 64), 1 << 14)

    def _reset(self, device: torch.device, dtype: torch.dtype) -> None:
        # Filled from the right; the first column takes what is thrown away.
        width = 1 + self._spare + self.capacity
        self._buffer = torch.full((self.num_filters, width), -torch.inf, device=device, dtype=dtype)
        self._even = True  # all filters hold equally many values, and none was thrown away
        self._floor = torch.full_like(self._buffer[:, 0], -torch.inf)  # C-th largest, if known
        self._fill = torch.zeros(self.num_filters, device=device, dtype=torch.int64)
        self._bound = 0  # no fill is larger
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
        self._buffer, self._floor = self._buffer.to(device, dtype), self._floor.to(device, dtype)
        for name in ("_fill", "_count", "_dropped", "_mean", "_m2"):
            setattr(self, name, getattr(self, name).to(device))

    def _add(self, profile: Tensor, counted: Tensor) -> None:
        """Take up at most ``_spare`` samples."""
        profile, counted = profile.to(self._buffer.device), counted.to(self._buffer.device)
        finite = torch.isfinite(profile.sum(1)) & counted
        clean = profile.device.type == "cpu" and bool(finite.all())
        if not clean:  # a sum of finite values can overflow, too
            low, high = torch.aminmax(profile, dim=1)  # NaN wins both
            finite = torch.isfinite(low) & torch.isfinite(high) & counted
        count = finite.sum()
        row = finite.unsqueeze(1)
        means, m2s = [], []
        for part in profile.split(_MOMENT_COLUMNS, dim=1):  # small enough for the cache
            values = part.double() if clean else torch.where(row, part, 0.0).double()
            mean = values.sum(0) / count.clamp_min(1)
            values = values - mean if clean else torch.where(row, values - mean, 0.0)
            means.append(mean)
            m2s.append(values.square_().sum(0))
        self._combine(count, torch.cat(means), torch.cat(m2s))
        self._dropped += counted.sum() - count
        kept = profile.to(self._buffer.dtype)
        self._append(kept if clean else kept.masked_fill(~row, -torch.inf))

    def _combine(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Chan's update of the moments."""
        share = count.double() / (self._count + count).clamp_min(1)
        delta = mean - self._mean
        # Where one side is empty, the weights make the other side pass unchanged.
        self._m2 += m2 + delta.square() * (self._count * share)
        self._mean += delta * share
        self._count += count

    def _append(self, values: Tensor) -> None:
        """Take up ``[N, F]`` values that may belong to the largest, with ``N <= _spare``."""
        added, space = values.shape[0], self._buffer.shape[1] - 1
        if added == 0:
            return
        if self._bound + added > space:
            # The bound counts every sample; only now, rarely, is what there is worth a wait.
            arriving = added if self._even else (values > self._floor).sum(0)
            self._bound = int((self._fill + arriving).max()) - added
            if self._bound + added > space:
                self._compact()
        if self._even:
            end = space + 1 - self._bound
            self._buffer[:, end - added : end] = values.t()
            self._fill += added
        else:
            survives = values > self._floor
            ranks = survives.cumsum(0, dtype=torch.int16)  # N <= _spare <= 2^14
            if values.device.type == "cpu":
                sample, filter_number = survives.nonzero(as_tuple=True)
                place = self._fill[filter_number] + ranks[sample, filter_number]
                self._buffer[filter_number, space + 1 - place] = values[sample, filter_number]
            else:
                place = space + 1 - (self._fill + ranks)
                self._buffer.scatter_(1, place.masked_fill(~survives, 0).t(), values.t())
            self._fill += ranks[-1]
        self._bound += added

    def _compact(self) -> None:
        """Keep the C largest of every row, in the columns on the right."""
        columns, cut = self._buffer[:, 1:], self._spare
        if columns.device.type == "cpu":
            columns.numpy().partition(cut, axis=1)  # in place; much faster than topk
        else:
            columns.copy_(columns.sort(dim=1).values)
        columns[:, :cut] = -torch.inf
        self._floor = columns[:, cut].clone()
        self._even = False
        self._fill.fill_(self.capacity)
        short = self._floor == -torch.inf
        if bool(short.any()):  # dropped samples left places empty: move these out of the way
            columns[short] = columns[short].sort(dim=1).values
            self._fill[short] = (columns[short] > -torch.inf).sum(1)
        self._bound = self.capacity
