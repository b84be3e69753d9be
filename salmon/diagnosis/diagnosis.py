"""What one pass over labelled samples found: the records that views and files are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking import Calibration, Ranking, filter_shares, group_shares

_SHOWN = 3  # findings in a representation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mistakes:
    """Samples that are mistakes; tensors are ``[M]`` on the CPU."""

    sample: Tensor  # int64 position among the samples of the pass
    ids: list[int | str]  # [M]
    batch: Tensor  # int64
    target: Tensor  # int64 true class; 0 where there are no classes
    predicted: Tensor  # int64, or NO_CLASS
    loss: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)
    """What the task says of each, such as ``confidence_target`` and ``confidence_predicted``."""

    @property
    def classes(self) -> Tensor:
        """``[M, 2]`` true and predicted classes."""
        return torch.stack([self.target, self.predicted], 1)

    def columns(self) -> dict[str, Tensor]:
        """Tensors by name, without the details."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def take(self, rows: Tensor) -> "Mistakes":
        """Select some of them, in the order of the row numbers ``[K]``."""
        return Mistakes(
            ids=[self.ids[row] for row in rows.tolist()],
            details={name: each[rows] for name, each in self.details.items()},
            **{name: each[rows] for name, each in self.columns().items()},
        )

    @classmethod
    def join(cls, parts: Sequence["Mistakes"]) -> "Mistakes":
        """Put any number of them together, in order."""
        parts = [part for part in parts if len(part.ids)]
        if not parts:
            whole, real = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
            return cls(sample=whole, ids=[], batch=whole, target=whole, predicted=whole, loss=real)
        return cls(
            ids=list(chain.from_iterable(part.ids for part in parts)),
            details={
                name: torch.cat([part.details[name] for part in parts]) for name in parts[0].details
            },
            **{name: torch.cat([getattr(p, name) for p in parts]) for name in _COLUMNS},
        )


_COLUMNS = ("sample", "batch", "target", "predicted", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Mistakes that took one class for another."""

    target: int
    predicted: int
    mistakes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A filter that mistakes blame beyond chance."""

    filter: int
    mistakes: int  # that have the filter among their top K
    expected: float  # as many, if mistakes named filters as right samples do
    p: float  # adjusted for everything that was compared, at most 0.05
    target: int | None = None  # only of mistakes of this true class
    predicted: int | None = None  # only of those that are taken for this one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """What stands out among the F filters of a pass, with what is ordinary."""

    expected: Tensor  # [F] float64, of all mistakes; NaN without right samples
    p: Tensor  # [F] float64 adjusted, of all mistakes; NaN where nothing could be compared
    found: tuple[Finding, ...]  # those furthest above what is expected first

    @property
    def compared(self) -> bool:
        """Whether there were mistakes and right samples to be compared."""
        return not bool(torch.isnan(self.p).any())

    @property
    def filters(self) -> tuple[Finding, ...]:
        """Those of all mistakes."""
        return tuple(each for each in self.found if each.target is None)


def mistakes_text(found: "Diagnosis") -> str:
    """How many mistakes there are, in a word or by which rule."""
    if found.has_classes:
        return f"{found.misclassified} misclassified"
    return f"{found.misclassified} mistakes ({found.rule})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Diagnosis:
    """What one pass found. Tensors are on the CPU."""

    index: FilterIndex
    fit: TailFit  # from these samples, or the given reference
    task: str  # name of the task
    rule: str  # when a sample is a mistake, in words
    class_samples: Tensor  # [K] int64, samples by true class; [1] where there are none
    class_mistakes: Tensor  # [K] int64, those that are mistakes
    measured: int  # of the samples
    confusions: list[Confusion]  # of all mistakes, most frequent first
    dropped: int  # of the samples, without a finite profile
    unlabelled: int  # left out, since their label is ignored or no class of the network
    mistakes: Mistakes  # those whose profiles were kept, by position
    id_source: str  # "function", "batch", "sampler" (index in the dataset) or "position"
    profile: Tensor  # [M, F] their saliency
    rankings: dict[str, Ranking]  # by method, of the kept mistakes
    findings: Findings  # by POT
    right: Ranking
    """What is ordinary, by POT of right samples chosen at random."""
    excesses: Mapping[int, Tensor] = field(default_factory=dict)
    """Sorted excesses of a few filters, those with the best, median and worst fit; none where the
    fit is a given one."""
    own: bool = True  # whether the fit is from these samples
    level_reason: str = ""  # why this level, where it was to be chosen
    calibration: Calibration | None = None  # of half the samples on the other half, if asked
    doubts: tuple[str, ...] = ()
    """Why the numbers may be about another function than the user validates, with what to do."""

    @property
    def samples(self) -> int:
        """How many came, with a label that counts."""
        return int(self.class_samples.sum())

    @property
    def has_classes(self) -> bool:
        """Whether each sample has a true class."""
        return len(self.class_samples) > 1

    @property
    def misclassified(self) -> int:
        """How many of them are mistakes."""
        return int(self.class_mistakes.sum())

    @property
    def sample_p(self) -> Tensor:
        """``[M]`` share of right samples whose rarest filter is as rare as the mistake's.

        It counts the mistake itself in, so that it is a p-value whatever the filters have in
        common; NaN without right samples.
        """
        first = self.rankings["pot"].log_p[:, 0]
        if len(self.right.log_p) == 0:
            return torch.full_like(first, torch.nan)
        mine, theirs = (
            torch.where(torch.isnan(x), 0.0, x) for x in (first, self.right.log_p[:, 0])
        )
        rarer = torch.searchsorted(theirs.sort().values, mine, right=True)
        return (1 + rarer.double()) / (1 + len(theirs))

    @property
    def trusted(self) -> bool:
        """Whether nothing was found that speaks against the numbers."""
        return not self.doubts

    def __repr__(self) -> str:
        """What was found, in a few lines."""
        ranking, fit, found = self.rankings["pot"], self.fit, self.findings
        sizes = filter_shares(self.index)
        shares = [
            f"{group} {100 * share:.1f} ({100 * sizes[group]:.1f})"
            for group, share in group_shares(ranking, self.index).items()
            if share == share  # not NaN
        ]
        lines = [
            f"{self.samples} samples, {mistakes_text(self)}, {self.dropped} without "
            f"a finite profile, {self.unlabelled} unlabelled, {self.measured} measured",
            f"{len(self.index)} filters in {len(self.index.layers)} layers, the first "
            f"{ranking.filters.shape[1]} of each of {len(self.mistakes.ids)} mistakes ranked",
            f"tails of {'these' if self.own else 'other'} samples, {fit.estimator}, level "
            f"{fit.effective_level:.3g}: "
            + ", ".join(f"{n} {status.label}" for status, n in fit.counts().items() if n),
            "blamed by POT (of all filters), %: " + (", ".join(shares) or "none ranked"),
            f"filters beyond chance, against {len(self.right.filters)} right samples: "
            + (str(len(found.filters)) if found.compared else "not compared"),
            *(
                f"  {self.index.label(each.filter)}: {each.mistakes} mistakes, "
                f"{each.expected:.3g} expected, p {each.p:.2g}"
                for each in found.filters[:_SHOWN]
            ),
            *(f"not to be trusted: {doubt}" for doubt in self.doubts),
        ]
        return "\n  ".join(["Diagnosis:", *lines])

    def to_dataframe(self) -> Any:
        """Every ranked filter of every kept mistake, for pandas.

        Returns:
            A ``pandas.DataFrame`` with a row per mistake and place, and one for a mistake without
            any. Its columns are those of a flag (docs/flagged.md) and of the entries of its
            ``top``; ``place`` counts from 1.

        Raises:
            ImportError: If pandas is not installed.
        """
        import pandas as pd

        from salmon.diagnosis.flags import flat_rows, sample_flags

        table = pd.DataFrame([row for flag in sample_flags(self) for row in flat_rows(flag)])
        whole = {name: "Int64" for name in ("place", "filter") if name in table}  # may be missing
        return table.astype(whole)
