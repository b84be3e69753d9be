"""Is saliency normal, and do the methods predict how often it is exceeded?

D'Agostino and Stephens (1986), Goodness-of-Fit Techniques, section 4.8 and table 4.9, have the
Anderson-Darling test with mean and deviation estimated; D'Agostino and Pearson (1973), Biometrika
60(3), that of skewness and kurtosis; Benjamini and Hochberg (1995), JRSS B 57(1), the rejections.
A profile is the ``[N, F]`` saliency of N images and F filters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import special, stats
from torch import Tensor

from examples.paper.data import Images
from examples.paper.figures import Row, draw_calibration, save_figure
from examples.paper.results import band, table, write_csv, write_page
from examples.paper.study import LEVEL, Subject, Values, batches, cached, draw
from salmon import FilterIndex, InputError, TailFit, Tails, fit_tails, rank_filters
from salmon.ranking import log_tail_probability, z_score

PROBABILITIES = (0.05, 0.01, 0.001, 0.0001)
METHODS = ("normal", "pot_ml", "pot")
SMALL_E = (1, 0.1, 0.01)
LEAST = 200  # images, so that each half has 10 beyond its threshold
VALUES = 250_000_000  # at most; filters are drawn at random: all of 1,000 images, 5,000 of 50,000


def write_normality(subject: Subject, sets: Mapping[str, Images]) -> None:
    """Measure, test and write."""
    folder, seed = subject.folder, subject.options.seed
    most = VALUES // max(subject.options.statistics or len(images) for images in sets.values())
    filters = draw(torch.arange(len(subject.index)), most, seed)
    index, names = _some_of(subject.index, filters), subject.index.labels()
    labels = [names[number] for number in filters.tolist()]
    tests: list[Row] = []
    rates: list[Row] = []
    rarest: list[Row] = []
    files = []
    for name, images in sets.items():
        make = partial(_profile, subject, images, filters)
        found = cached(folder / f"profile-{name}.safetensors", make)
        profile = found["profile"].double()
        tests += test_rows(name, profile, seed)
        own = rate_rows(name, profile, index, seed)
        rates += own
        rarest += rarest_rows(name, profile, found["wrong"], index, seed)
        draw_calibration(folder / f"calibration-{name}", own)
        _draw_quantiles(folder / f"quantiles-{name}", profile, labels)
        files += [folder / f"{kind}-{name}.png" for kind in ("calibration", "quantiles")]
    write_csv(folder / "tests.csv", tests)
    write_csv(folder / "calibration.csv", rates)
    write_csv(folder / "rarest.csv", rarest)
    page = [
        "# The normal assumption",
        "Share of filters for which a hypothesis is rejected at a false discovery rate of 5 % "
        "(Benjamini-Hochberg):",
        table([{**row, "rejected": f"{row['rejected']:.1%}"} for row in tests]),
        "Rates of exceedance on the half of the images that the fit did not see, both ways; "
        "observed over predicted, with 95 % bootstrap intervals over images:",
        _ratios(rates),
        "The rarest filter of an image, by shrunk tails: its probability p, and E = p * filters, "
        "how many filters of an ordinary image chance makes as rare; medians, and shares of the "
        "images. They are judged by tails of the half of the images that they are not in, or by "
        "tails of all, each image left out of its own:",
        table(rarest),
    ]
    write_page(subject.options, page, files)


def _profile(subject: Subject, images: Images, filters: Tensor) -> dict[str, Tensor]:
    """Saliency of some filters, and whether the class is wrong, of all images or those drawn."""
    options = subject.options
    rows = draw(torch.arange(len(images)), options.statistics, options.seed)
    if len(rows) < LEAST:
        raise InputError(f"{len(rows)} images came; at least {LEAST} are needed.")
    profile, wrong = [], []
    for x, y in batches(images, rows, options, "measuring"):
        profile.append(subject.saliency(x, y)[:, filters])
        with torch.no_grad():
            wrong.append(subject.model(x.to(options.device)).argmax(1).cpu() != y)
    return {"profile": torch.cat(profile), "wrong": torch.cat(wrong)}


def anderson_darling(values: Values) -> Values:
    """``[F]`` statistics A^2 of the columns against normals with their own mean and deviation."""
    count = len(values)
    odd = 2 * np.arange(1, count + 1) - 1
    found = []
    for column in values.T:
        z = np.sort((column - column.mean()) / column.std(ddof=1))
        terms = special.log_ndtr(z) + special.log_ndtr(-z[::-1])
        found.append(-count - (odd * terms).sum() / count)
    return np.array(found)


def anderson_darling_p(statistic: Values, count: int) -> Values:
    """p-values of the statistics of as many values."""
    a = np.minimum(statistic * (1 + 0.75 / count + 2.25 / count**2), 12.0)  # the fit ends there
    pieces = [
        np.exp(1.2937 - 5.709 * a + 0.0186 * a**2),
        np.exp(0.9177 - 4.279 * a - 1.38 * a**2),
        1 - np.exp(-8.318 + 42.796 * a - 59.938 * a**2),
        1 - np.exp(-13.436 + 101.14 * a - 223.73 * a**2),
    ]
    return np.asarray(np.select([a >= 0.6, a > 0.34, a > 0.2, a <= 0.2], pieces))


def test_rows(name: str, profile: Tensor, seed: int) -> list[Row]:
    """Tests of normality, also with as many values as a tail has, and of the tails."""
    few = draw(torch.arange(len(profile)), max(20, len(profile) // 10), seed)
    found = []
    for kept in (profile.numpy(), profile[few].numpy()):
        values = kept[:, kept.std(0) > 1e-12 * np.abs(kept.mean(0))]  # constant ones have no test
        count = len(values)
        p = anderson_darling_p(anderson_darling(values), count)
        found.append(("normal", "Anderson-Darling", count, p))
        found.append(("normal", "D'Agostino-Pearson", count, stats.normaltest(values).pvalue))
    fit = fitted(profile)
    p = fit.ad_p.double().numpy()
    count = int(fit.exceedances.double().median())
    found.append(("generalized Pareto tail", "Anderson-Darling", count, p[~np.isnan(p)]))
    return [
        {
            "set": name, "hypothesis": hypothesis, "test": test, "values": count,
            "filters": len(p), "rejected": (stats.false_discovery_control(p) <= 0.05).mean(),
        }
        for hypothesis, test, count, p in found
    ]  # fmt: skip


def fitted(profile: Tensor, index: FilterIndex | None = None) -> TailFit:
    """Tails and moments of a profile; without an index by maximum likelihood as in the paper."""
    tails = Tails(profile.shape[1], capacity=max(1024, len(profile) // 9))
    tails.update(profile)
    return fit_tails(tails, LEVEL, index=index, estimator="shrunk" if index else "ml")


def halves(count: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two halves of so many images: one to fit and the other to count, both ways."""
    one, other = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).chunk(2)
    return (one, other), (other, one)


def exceeded(profile: Tensor, index: FilterIndex, seed: int) -> dict[tuple[str, float], Values]:
    """Fit on one half of the images and count on the other, both ways.

    By method and probability the ``[N, 1]`` share of the filters whose tail beyond the image's
    saliency has at most that probability, of every image; filters without a tail are left out.
    """
    found: dict[tuple[str, float], list[Values]] = {}
    for known, counted in halves(len(profile), seed):
        ml, values = fitted(profile[known]), profile[counted]
        laws = (
            torch.special.log_ndtr(-z_score(values, ml)),
            log_tail_probability(values, ml),
            log_tail_probability(values, fitted(profile[known], index)),
        )
        for method, log_p in zip(METHODS, laws, strict=True):
            for probability in PROBABILITIES:
                usable = ml.usable & (ml.rate >= probability)
                over = log_p[:, usable] <= math.log(probability)
                share = over.double().mean(1, keepdim=True).numpy()
                found.setdefault((method, probability), []).append(share)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def rate_rows(name: str, profile: Tensor, index: FilterIndex, seed: int) -> list[Row]:
    """Observed rates of exceedance."""
    rows = []
    for (method, probability), shares in exceeded(profile, index, seed).items():
        low, high = (float(end[0]) / probability for end in band([shares], seed))
        observed = float(shares.mean())
        rows.append({
            "set": name, "method": method, "predicted": probability, "observed": observed,
            "ratio": observed / probability, "low": low, "high": high,
        })  # fmt: skip
    return rows


def rarest_rows(
    name: str, profile: Tensor, wrong: Tensor, index: FilterIndex, seed: int
) -> list[Row]:
    """Each image's rarest filter: what the mistakes have beside what right images have."""
    every = torch.arange(len(profile))
    splits = {"of the other half": halves(len(profile), seed), "of all": ((every, every),)}
    rows = []
    for tails, pairs in splits.items():
        p = torch.ones(len(profile), dtype=torch.float64)  # where nothing is in its tail
        tested = torch.zeros_like(p)
        for known, judged in pairs:
            own = known is judged
            first = rank_filters(profile[judged], fitted(profile[known], index), top_k=1, own=own)
            p[judged] = first.p[:, 0].nan_to_num(nan=1.0)
            tested[judged] = first.tested
        for kind, chosen in (("mistakes", wrong), ("right", ~wrong)):
            e = (p * tested)[chosen]
            rows.append({
                "set": name, "tails": tails, "images": kind, "number": int(chosen.sum()),
                "median p": float(p[chosen].median()), "median E": float(e.median()),
                **{f"E < {most:g}, %": 100 * float((e < most).double().mean()) for most in SMALL_E},
            })  # fmt: skip
    return rows


def _some_of(index: FilterIndex, filters: Tensor) -> FilterIndex:
    """Some filters in rising order, in the layers that they are of."""
    counts = torch.bincount(index.layer_of[filters], minlength=len(index.layers)).tolist()
    pairs = zip(index.layers, counts, strict=True)
    layers = tuple(replace(layer, filters=count) for layer, count in pairs if count)
    return replace(index, layers=layers)


def _ratios(rates: Sequence[Row]) -> str:
    """A line per set and method, with a column per probability."""
    lines: dict[tuple[str, str], Row] = {}
    for row in rates:
        key = (row["set"], row["method"])
        cell = "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**row)
        line = lines.setdefault(key, dict(zip(("set", "method"), key, strict=True)))
        line[f"{100 * row['predicted']:g} %"] = cell
    return table(list(lines.values()))


def _draw_quantiles(stem: Path, profile: Tensor, labels: Sequence[str]) -> None:
    """Quantiles of the filters nearest to, in the middle of, and farthest from a normal."""
    values, fit = profile.numpy(), fitted(profile)
    usable = np.flatnonzero(fit.usable.numpy())
    order = usable[np.argsort(anderson_darling(values[:, usable]))]
    chosen = {"nearest": order[0], "median": order[len(order) // 2], "farthest": order[-1]}
    figure = Figure(figsize=(9.9, 6.2), layout="constrained")
    grid = figure.subplots(2, 3)
    for column, (what, number) in enumerate(chosen.items()):
        own = np.sort(values[:, number])
        z = (own - float(fit.mean[number])) / float(fit.scale[number])
        excess = (own - float(fit.threshold[number])) / float(fit.sigma[number])
        excess = excess[excess > 0]
        tail = stats.genpareto(float(fit.xi[number]))
        for row, law, observed in ((0, stats.norm, z), (1, tail, excess)):
            expected = law.ppf((np.arange(len(observed)) + 0.5) / len(observed))
            grid[row, column].plot(expected, observed, ".", ms=3)
            grid[row, column].axline((0, 0), slope=1, color="#bbbbbb", lw=0.8, zorder=0)
        grid[0, column].set_title(f"{what}: {labels[number]}", fontsize=9, loc="left")
    grid[0, 0].set(xlabel="quantile of the normal, deviations", ylabel="observed")
    grid[1, 0].set(xlabel="quantile of the generalized Pareto, sigma", ylabel="observed")
    save_figure(figure, stem)
