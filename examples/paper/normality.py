"""Is saliency normal, and do the methods predict how often it is exceeded?

D'Agostino and Stephens (1986), Goodness-of-Fit Techniques, section 4.8 and table 4.9, have the
Anderson-Darling test with mean and deviation estimated; D'Agostino and Pearson (1973), Biometrika
60(3), that of skewness and kurtosis; Benjamini and Hochberg (1995), JRSS B 57(1), the rejections.
A profile is the ``[N, F]`` saliency of N images and F filters.
"""

from collections.abc import Mapping, Sequence
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
from salmon import InputError, TailFit, Tails, fit_tails, gpd

PROBABILITIES = (0.05, 0.01, 0.001, 0.0001)
METHODS = ("normal", "pot")
LEAST = 200  # images, so that each half has 10 beyond its threshold
FILTERS = 5000  # at most, drawn at random


def write_normality(subject: Subject, sets: Mapping[str, Images]) -> None:
    """Measure, test and write."""
    folder, seed = subject.folder, subject.options.seed
    filters = draw(torch.arange(len(subject.index)), FILTERS, seed)
    labels = [subject.index.labels()[number] for number in filters.tolist()]
    tests: list[Row] = []
    rates: list[Row] = []
    files = []
    for name, images in sets.items():
        make = partial(_profile, subject, images, filters)
        profile = cached(folder / f"profile-{name}.safetensors", make)["profile"].double()
        tests += test_rows(name, profile, seed)
        own = rate_rows(name, profile, seed)
        rates += own
        draw_calibration(folder / f"calibration-{name}", own)
        _draw_quantiles(folder / f"quantiles-{name}", profile, labels)
        files += [folder / f"{kind}-{name}.png" for kind in ("calibration", "quantiles")]
    write_csv(folder / "tests.csv", tests)
    write_csv(folder / "calibration.csv", rates)
    page = [
        "# The normal assumption",
        "Share of filters for which a hypothesis is rejected at a false discovery rate of 5 % "
        "(Benjamini-Hochberg):",
        table(tests),
        "Exceedance rates on the half of the images that the fit did not see, both ways, and "
        "observed over predicted with 95 % bootstrap intervals over images:",
        table(rates),
    ]
    write_page(subject.options, page, files)


def _profile(subject: Subject, images: Images, filters: Tensor) -> dict[str, Tensor]:
    """Saliency of some filters for all images, or those drawn."""
    options = subject.options
    rows = draw(torch.arange(len(images)), options.statistics, options.seed)
    if len(rows) < LEAST:
        raise InputError(f"{len(rows)} images came; at least {LEAST} are needed.")
    found = batches(images, rows, options, "measuring")
    return {"profile": torch.cat([subject.saliency(x, y)[:, filters] for x, y in found])}


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


def fitted(profile: Tensor) -> TailFit:
    """Tails, by maximum likelihood as in the paper, and moments of a profile."""
    tails = Tails(profile.shape[1], capacity=max(1024, len(profile) // 9))
    tails.update(profile)
    return fit_tails(tails, LEVEL, estimator="ml")


def bound(fit: TailFit, method: str, probability: float) -> Tensor:
    """``[F]`` saliency exceeded with a probability below 0.1; NaN where there is no tail."""
    if method == "normal":
        return fit.mean + fit.scale * float(stats.norm.isf(probability))
    inside = 1 - probability / fit.rate.double()
    found = fit.threshold.double() + gpd.quantile(inside.clamp_min(0), fit.xi, fit.sigma)
    return torch.where(fit.usable & (inside >= 0), found, torch.nan)


def exceeded(profile: Tensor, seed: int) -> dict[tuple[str, float], Values]:
    """Fit on one half of the images and count on the other, both ways.

    By method and probability the ``[N, 1]`` share of the filters that exceed their bound, of every
    image; filters without a tail are left out of both methods.
    """
    halves = torch.randperm(len(profile), generator=torch.Generator().manual_seed(seed)).chunk(2)
    found: dict[tuple[str, float], list[Values]] = {}
    for known, counted in (halves, halves[::-1]):
        fit = fitted(profile[known])
        for method in METHODS:
            for probability in PROBABILITIES:
                usable = ~torch.isnan(bound(fit, "pot", probability))
                over = profile[counted][:, usable] > bound(fit, method, probability)[usable]
                share = over.double().mean(1, keepdim=True).numpy()
                found.setdefault((method, probability), []).append(share)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def rate_rows(name: str, profile: Tensor, seed: int) -> list[Row]:
    """Observed rates of exceedance."""
    rows = []
    for (method, probability), shares in exceeded(profile, seed).items():
        low, high = (float(end[0]) / probability for end in band([shares], seed))
        observed = float(shares.mean())
        rows.append({
            "set": name, "method": method, "predicted": probability, "observed": observed,
            "ratio": observed / probability, "low": low, "high": high,
        })  # fmt: skip
    return rows


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
