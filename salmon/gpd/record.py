"""What a fit of the tails hands on: parameters, their errors and a status for every filter."""

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from salmon.errors import StateError
from salmon.gpd.posterior import Posterior
from salmon.records import record_of, tensor_of

POSTERIOR = tuple(field.name for field in fields(Posterior) if field.init)
PREFIX = "posterior."  # of its fields in a state

CONSTANT_BELOW = 1e-12
"""A filter whose std is below this share of its mean counts as constant: its z-score uses 1."""


class FitStatus(IntEnum):
    """Why a filter has, or has not, a fitted tail. Only the first three are ranked."""

    OK = 0  # interior maximum of the likelihood
    EXPONENTIAL = 1  # xi = 0 within rounding
    BOUNDARY = 2  # no interior maximum beats xi = -1, sigma = max(excess)
    TOO_FEW = 3  # fewer excesses than a fit needs
    DEGENERATE = 4  # all excesses equal, or excesses of zero: the likelihood has no maximum

    @property
    def label(self) -> str:
        """Lower-case name for logs and files."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TailFit:
    """One fitted tail per filter; tensors are ``[F]`` on the CPU, NaN where no fit was possible."""

    samples: int  # n, samples seen
    dropped: int  # samples left out because their profile was not finite
    level: float  # quantile level asked for, in (0, 1)
    threshold: Tensor  # u, in the unit of the saliency
    rate: Tensor  # of samples above the threshold: N_k / n, with a posterior (N_k + 1) / (n + 1)
    exceedances: Tensor  # int64 N_k
    xi: Tensor
    sigma: Tensor  # > 0, in the unit of the saliency
    xi_se: Tensor  # standard errors from the observed information; NaN for xi <= -1/2
    sigma_se: Tensor
    log_likelihood: Tensor  # of the N_k excesses
    status: Tensor  # int8, FitStatus
    ad_p: Tensor  # p-value of the Anderson-Darling test of the fit; NaN where it does not apply
    mean: Tensor  # of all samples, for the z-score
    std: Tensor  # with n - 1
    top: int  # k, excesses per filter before ties with the threshold were removed
    posterior: Posterior | None = None  # None under maximum likelihood

    @property
    def effective_level(self) -> float:
        """Level ``1 - k/n`` that the thresholds really stand for; NaN without samples."""
        return 1 - self.top / self.samples if self.samples else float("nan")

    @property
    def estimator(self) -> str:
        """``"shrunk"`` or ``"ml"``."""
        return "ml" if self.posterior is None else "shrunk"

    def as_ml(self) -> "TailFit":
        """The same fits by maximum likelihood alone, as in the paper."""
        return replace(self, posterior=None, rate=self.exceedances.double() / max(self.samples, 1))

    @property
    def usable(self) -> Tensor:
        """``[F]`` bool of filters with a fitted tail."""
        return self.status <= FitStatus.BOUNDARY

    @property
    def scale(self) -> Tensor:
        """``[F]`` unit of the z-score, the std, or 1 where a filter is constant."""
        return torch.where(self.std <= CONSTANT_BELOW * self.mean.abs(), 1.0, self.std)

    def counts(self) -> dict[FitStatus, int]:
        """Count the filters of each status.

        Returns:
            A number for every status, zeros included.
        """
        numbers = torch.bincount(self.status.long(), minlength=len(FitStatus)).tolist()
        return {status: numbers[status] for status in FitStatus}

    def state_dict(self) -> dict[str, Any]:
        """Hand out the record as plain values and tensors.

        Returns:
            A dictionary that ``torch.load(weights_only=True)`` reads back.
        """
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "posterior"}
        if self.posterior is not None:
            state |= {PREFIX + name: value for name, value in self.posterior.columns().items()}
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "TailFit":
        """Rebuild a record, checking names, shapes and ranges.

        Args:
            state: What :meth:`state_dict` gave.

        Raises:
            StateError: If names are missing or unknown, or the tensors do not fit together.
        """
        where, found = "saved fit", record_of(dict[str, Any], state, "saved fit")
        names = {field.name for field in fields(cls)} - {"posterior"}
        shrunk = {PREFIX + name for name in POSTERIOR}
        if set(found) not in (names, names | shrunk):
            raise StateError(
                f"a saved fit has the fields {sorted(names | shrunk)} but {sorted(found)} came; it "
                "was written by another version or is not a fit. Make the fit anew."
            )
        for name in ("samples", "dropped", "top"):
            record_of(int, found[name], f"{where}: {name}")
        record_of(float, found["level"], f"{where}: level")
        size = len(found["xi"]) if isinstance(found["xi"], Tensor) and found["xi"].ndim else None
        special = {"status": torch.int8, "exceedances": torch.int64}
        for name in names - {"samples", "dropped", "top", "level"}:
            dtype = special.get(name, torch.float64)
            found[name] = tensor_of(found[name], f"{where}: {name}", (size,), dtype)
        points = found.get(PREFIX + "xi")
        width = points.shape[-1] if isinstance(points, Tensor) and points.ndim else None
        columns = {
            name: tensor_of(
                found.pop(PREFIX + name), f"{where}: {PREFIX}{name}",
                (size, width) if name in ("xi", "sigma", "log_weight") else (size,), torch.float64,
            )
            for name in POSTERIOR
            if set(found) > names
        }  # fmt: skip
        fit = cls(**found, posterior=Posterior(**columns) if columns else None)
        fit._check_ranges()
        return fit

    def _check_ranges(self) -> None:
        """Refuse numbers that no fit gives, since rankings would be wrong without a sign of it."""
        nan, fitted = torch.isnan, self.usable
        possible = {
            "level": torch.tensor(0 < self.level < 1),
            "samples": torch.tensor(
                min(self.samples, self.dropped, self.top, len(self.xi) - 1) >= 0
            ),
            "status": (self.status >= 0) & (self.status < len(FitStatus)),
            "exceedances": (self.exceedances >= 0) & (self.exceedances <= self.top),
            "top": torch.tensor(self.top <= self.samples),
            "rate": (self.rate >= 0) & (self.rate <= 1) & ((self.rate > 0) | ~fitted),
            "threshold": torch.isfinite(self.threshold) | (nan(self.threshold) & ~fitted),
            "xi": (torch.isfinite(self.xi) & (self.xi >= -1)) | ~fitted,
            "sigma": (torch.isfinite(self.sigma) & (self.sigma > 0)) | ~fitted,
            "ad_p": nan(self.ad_p) | ((self.ad_p >= 0) & (self.ad_p <= 1)),
            "mean": nan(self.mean) | torch.isfinite(self.mean),
            "std": nan(self.std) | (self.std >= 0),
        }
        if self.posterior is not None:
            held = self.posterior.take(fitted)
            possible |= {
                "posterior": torch.isfinite(held.xi) & (held.sigma > 0) & (held.log_weight <= 0),
                "largest excess": held.top > 0,
            }
        for name, good in possible.items():
            if not bool(good.all()):
                raise StateError(
                    f"saved fit: {name} holds a number that no fit gives; it is damaged. Make the "
                    "fit anew."
                )
