"""One measured pass in plain values: what charts, tables, files and reports are made from.

A record holds no tensor and no profile, so that it takes a few kilobytes, goes to JSON and back,
and is all that a picture of the pass needs.
"""

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from salmon import gpd
from salmon.diagnosis import FEWEST, Confusion, Diagnosis, most_blamed
from salmon.errors import StateError
from salmon.filters import FilterIndex
from salmon.gpd import FitStatus, TailFit
from salmon.ranking import ALPHA, Calibration, Ranking, layer_counts, share_intervals
from salmon.records import Number
from salmon.tasks import class_name

SCHEMA = "salmon.pass/3"

MOST_ROWS = 50
"""Rows of a table at most: TensorBoard shows all texts of a tag at once."""

_LETTERS = 200  # of a class

MOST_FINDINGS = 500
MOST_PAIRS = 500
"""In a record."""

METHODS = ("pot", "zscore")
"""Rankings that every record has."""

XI_EDGES = tuple(round(-1.0 + 0.1 * i, 1) for i in range(31))
"""Bins of the histograms of xi; values beyond the ends count in the first and last."""

DOUBTFUL_BELOW = 0.05
"""A fit is doubtful where its Anderson-Darling p-value is lower; of good fits, as many are."""

CLASS_DETAILS = ("confidence_target", "confidence_predicted")
"""What is said of a mistake that takes a class for another."""

_QUANTILES = 64
_KINDS = ((), ("only",), ("best", "worst"), ("best", "median", "worst"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A layer, in network order."""

    layer: str
    group: str
    filters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRow:
    """A filter that mistakes blame."""

    label: str
    group: str
    mistakes: int
    expected: Number  # as many, if mistakes named filters as right samples do
    p: Number  # adjusted for all filters; NaN where nothing could be compared
    significant: int  # mistakes in which it is significant
    median_p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """A filter that mistakes blame beyond chance."""

    label: str
    mistakes: int
    expected: float
    p: float
    target: int | None  # of mistakes of this true class only
    predicted: int | None  # of those taken for this one only


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """Observed by predicted exceedance of held-out samples at one probability."""

    p: float
    ratio: float
    low: float
    high: float
    rivals: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitExample:
    """Quantiles of a filter's excesses against those of its fit, both in units of sigma."""

    kind: str  # "best", "median" or "worst"; "only" where there is but one
    label: str
    xi: float
    xi_se: Number  # standard error
    p: Number  # Anderson-Darling
    fitted: list[float]
    observed: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """A measured pass."""

    run: str  # its name, which tells it from others in one folder
    time: float  # when it was concluded, in seconds since 1970
    stage: str
    loader: int
    number: int  # of the pass in its stage, from 0
    step: int  # of the trainer
    samples: int
    measured: int  # of these; they stand for the others
    dropped: int
    misclassified: int
    kept: int  # mistakes whose filters were ranked
    top_k: int
    level: Number  # that the thresholds stand for; NaN without samples
    given_fit: bool  # whether the tails are those of other data
    seconds: float  # for measuring and fitting, without pictures and views
    share: float | None  # that these seconds are of the whole pass, where there was one
    classes: list[str] | None  # names, by class number
    class_samples: list[int]  # by class number
    class_mistakes: list[int]  # of these, misclassified
    layers: list[LayerRow]
    counts: dict[str, list[int]]  # by method: ranked filters per layer
    fits: dict[str, int]  # filters per status
    doubtful: float | None  # share of fitted filters whose fit is doubtful
    xi: dict[str, list[int]]  # by group: fitted filters per bin of XI_EDGES
    examples: list[FitExample]
    filters: list[FilterRow]
    pairs: list[Confusion]
    estimator: str  # "shrunk" or "ml"
    tested: int  # filters with a fitted tail
    significant: int | None  # ranked mistakes that have a significant filter
    striking: int | None  # ranked mistakes rarer than 95 % of the right samples
    right: int  # right samples that mistakes are compared with
    beyond: int | None  # filters that all mistakes blame beyond chance; None where not compared
    findings: list[FindingRow]  # those furthest above what is expected first
    group_intervals: list[list[Number]]  # 95 % low and high end of each share by POT
    layer_intervals: list[list[Number]]
    level_reason: str = ""
    calibration: list[CalibrationRow] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # about what was measured
    origin: dict[str, str] = field(default_factory=dict)  # network, data, settings, by name
    task: str = "classification"
    rule: str = ""  # when a sample is a mistake
    details: list[str] = field(default_factory=lambda: [*CLASS_DETAILS])  # in the flags

    @property
    def has_classes(self) -> bool:
        """Whether each sample has a true class."""
        return len(self.class_samples) > 1

    def class_name(self, number: int) -> str:
        """Name a class."""
        return class_name(number, self.classes)


def check_record(record: PassRecord, where: str) -> None:
    """Refuse a record whose parts do not fit together, so that nothing could be drawn of it."""
    layers, bins = len(record.layers), len(XI_EDGES) - 1
    whole = [
        record.number, record.step, record.samples, record.misclassified,
        *(n for row in [*record.counts.values(), *record.xi.values()] for n in row),
        *record.fits.values(), *record.class_samples, *record.class_mistakes,
    ]  # fmt: skip
    trouble = {
        "layers": layers == 0 or any(layer.filters < 1 for layer in record.layers),
        "counts": not set(METHODS) <= set(record.counts)
        or any(len(row) != layers for row in record.counts.values()),
        "fits": set(record.fits) != set(STATUSES) or sum(record.fits.values()) == 0,
        "classes": len(record.class_samples) != len(record.class_mistakes)
        or any(map(operator.lt, record.class_samples, record.class_mistakes))
        or any(max(p.target, p.predicted) >= len(record.class_samples) for p in record.pairs),
        "xi": any(len(row) != bins for row in record.xi.values()),
        "intervals": len(record.layer_intervals) != layers
        or len(record.group_intervals) != len({layer.group for layer in record.layers})
        or any(len(ends) != 2 for ends in [*record.layer_intervals, *record.group_intervals]),
        "examples": any(len(each.fitted) != len(each.observed) for each in record.examples),
        "numbers": min(whole) < 0,
    }
    for name, wrong in trouble.items():
        if wrong:
            raise StateError(
                f"{where}: its {name} do not fit together; it is damaged or was written by another "
                "version. Make the file anew."
            )


def record_pass(
    diagnosis: Diagnosis,
    *,
    run: str,
    stage: str,
    number: int = 0,
    step: int = 0,
    loader: int = 0,
    seconds: float = 0.0,
    share: float | None = None,
    classes: Sequence[str] | None = None,
    origin: Mapping[str, str] | None = None,
) -> PassRecord:
    """Boil a diagnosis down.

    Args:
        stage: Such as ``"validation"``.
        number: Of the pass in its stage, from 0.
        origin: What was measured, with what, such as the network, the data and the settings.
    """
    index, fit, ranking = diagnosis.index, diagnosis.fit, diagnosis.rankings["pot"]
    found = diagnosis.findings
    tested = ~torch.isnan(fit.ad_p)
    doubtful = (fit.ad_p[tested] < DOUBTFUL_BELOW).double().mean()
    return PassRecord(
        run=run,
        time=time.time(),
        stage=stage,
        loader=loader,
        number=number,
        step=step,
        samples=diagnosis.samples,
        measured=diagnosis.measured,
        dropped=diagnosis.dropped,
        misclassified=diagnosis.misclassified,
        kept=len(diagnosis.mistakes.sample),
        top_k=ranking.filters.shape[1],
        level=fit.effective_level,
        given_fit=not diagnosis.own,
        seconds=seconds,
        share=share,
        classes=None if classes is None else [str(name)[:_LETTERS] for name in classes],
        class_samples=diagnosis.class_samples.tolist(),
        class_mistakes=diagnosis.class_mistakes.tolist(),
        layers=[
            LayerRow(layer=each.layer, group=each.group, filters=each.filters)
            for each in index.layers
        ],
        counts={m: layer_counts(diagnosis.rankings[m], index).tolist() for m in METHODS},
        fits={status.label: count for status, count in fit.counts().items()},
        doubtful=float(doubtful) if bool(tested.any()) else None,
        xi=_xi_histograms(fit, index),
        examples=_examples(diagnosis),
        filters=_filter_rows(diagnosis),
        pairs=diagnosis.confusions[:MOST_PAIRS],
        estimator=fit.estimator,
        tested=ranking.tested,
        significant=_count(ranking.significant, lambda n: n > 0),
        striking=_count(diagnosis.sample_p, lambda p: p <= ALPHA),
        right=len(diagnosis.right.filters),
        beyond=len(found.filters) if found.compared else None,
        findings=[
            FindingRow(
                label=index.label(each.filter), mistakes=each.mistakes, expected=each.expected,
                p=each.p, target=each.target, predicted=each.predicted,
            )
            for each in found.found[:MOST_FINDINGS]
        ],
        group_intervals=_intervals(ranking, index.group_of, len(index.groups)),
        layer_intervals=_intervals(ranking, index.layer_of, len(index.layers)),
        level_reason=diagnosis.level_reason,
        calibration=_calibration_rows(diagnosis.calibration),
        doubts=list(diagnosis.doubts),
        origin=dict(origin or {}),
        task=diagnosis.task,
        rule=diagnosis.rule,
        details=list(diagnosis.mistakes.details),
    )  # fmt: skip


def _filter_rows(diagnosis: Diagnosis) -> list[FilterRow]:
    """The filters that most mistakes blame."""
    blame, index = most_blamed(diagnosis.rankings["pot"], MOST_ROWS), diagnosis.index
    found = diagnosis.findings
    columns = (each.tolist() for each in (
        blame.filters, blame.mistakes, found.expected[blame.filters], found.p[blame.filters],
        blame.significant, blame.median_p,
    ))  # fmt: skip
    return [
        FilterRow(
            label=index.label(number),
            group=index.locate(number)[0].group,
            mistakes=mistakes,
            expected=usual,
            p=adjusted,
            significant=significant,
            median_p=None if median != median else median,  # NaN
        )
        for number, mistakes, usual, adjusted, significant, median in zip(*columns, strict=True)
    ]


def _count(
    values: torch.Tensor | None, wanted: Callable[[torch.Tensor], torch.Tensor]
) -> int | None:
    """How many samples have a wanted value; None where it is not known."""
    known = values is not None and not bool(torch.isnan(values).any())
    return int(wanted(values).sum()) if known and values is not None else None


def _calibration_rows(found: Calibration | None) -> list[CalibrationRow]:
    """Those of a calibration, if it was asked for."""
    if found is None:
        return []
    columns = zip(*(x.tolist() for x in (found.p, found.ratio, found.low, found.high)), strict=True)
    return [
        CalibrationRow(
            p=p, ratio=ratio, low=low, high=high,
            rivals={name: float(each[i]) for name, each in found.rivals.items()},
        )
        for i, (p, ratio, low, high) in enumerate(columns)
    ]  # fmt: skip


def _intervals(ranking: Ranking, part_of: torch.Tensor, parts: int) -> list[list[Number]]:
    """Ends of the shares of layers or groups; NaN where they are of too few samples to tell."""
    if len(ranking.filters) < FEWEST:
        return [[math.nan, math.nan]] * parts
    found: list[list[Number]] = share_intervals(ranking, part_of, parts).tolist()
    return found


def _xi_histograms(fit: TailFit, index: FilterIndex) -> dict[str, list[int]]:
    """Fitted filters per bin of xi, by group."""
    inner = torch.tensor(XI_EDGES[1:-1], dtype=torch.float64)
    width = len(XI_EDGES) - 1
    usable = fit.usable & ~torch.isnan(fit.xi)
    place = index.group_of[usable] * width + torch.bucketize(fit.xi[usable], inner, right=True)
    counts = torch.bincount(place, minlength=width * len(index.groups)).view(-1, width)
    return dict(zip(index.groups, counts.tolist(), strict=True))


def _examples(diagnosis: Diagnosis) -> list[FitExample]:
    """Quantiles of the filters whose excesses were kept, which are in order of their fit."""
    fit, found = diagnosis.fit, []
    excesses: Mapping[int, torch.Tensor] = diagnosis.excesses
    for kind, (number, excess) in zip(_KINDS[len(excesses)], excesses.items(), strict=True):
        xi, sigma = fit.xi[number], fit.sigma[number]
        n = len(excess)
        rows = torch.linspace(0, n - 1, min(n, _QUANTILES)).round().long()
        fitted = gpd.quantile((rows.double() + 0.5) / n, xi, torch.ones_like(sigma))
        found.append(
            FitExample(
                kind=kind,
                label=diagnosis.index.label(number),
                xi=float(xi),
                xi_se=Number(float(fit.xi_se[number])),
                p=float(fit.ad_p[number]),
                fitted=fitted.tolist(),
                observed=(excess[rows].double() / sigma).tolist(),
            )
        )
    return found


STATUSES = tuple(status.label for status in FitStatus)
"""In the order in which they are shown: fits first."""
