"""Is saliency normal, and do the methods predict how often it is exceeded?

D'Agostino and Stephens (1986), Goodness-of-Fit Techniques, section 4.8 and table 4.9, have the
Anderson-Darling test with mean and deviation estimated; D'Agostino and Pearson (1973), Biometrika
60(3), that of skewness and kurtosis; Benjamini and Hochberg (1995), JRSS B 57(1), the rejections.
A profile is the ``[N, F]`` saliency of N images and F filters.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from examples.paper.data import Images
from examples.paper.results import Row, band, table
from examples.paper.study import Subject, Values, batches, cached, draw
from salmon import TailFit, gpd, rank_filters
from salmon.files import write_all
from salmon.ranking import log_tail_probability, z_score

PROBABILITIES = (0.05, 0.01, 0.001, 0.0001)
SMALL_E = (1, 0.1, 0.01)
VALUES = 100_000_000  # at most: of larger sets, so many images are drawn at random

Fits = Sequence[tuple[TailFit, Tensor]]
"""Each with the numbers of the images that are held against it."""


def write_normality(subject: Subject, sets: Mapping[str, Images]) -> None:
    """Measure, test and write."""
    tests, rates, rarest = [], [], []
    for name, images in sets.items():
        profile, wrong = measured(subject, name, images)
        generator = torch.Generator().manual_seed(subject.options.seed)
        halves = torch.randperm(len(profile), generator=generator).chunk(2)
        parts = [torch.arange(len(profile)), *halves]
        fit, *fits = [subject.tails([profile[rows]], len(rows)) for rows in parts]
        crossed = list(zip(fits, reversed(halves), strict=True))
        tests += test_rows(name, profile, fit, subject.options.seed)
        rates += rate_rows(name, profile, crossed, subject.options.seed)
        rarest += rarest_rows(name, profile, wrong, crossed)
        rarest += rarest_rows(name, profile, wrong, [(fit, parts[0])], own=True)
    page = [
        "# The normal assumption",
        "Share of filters for which a hypothesis is rejected at a false discovery rate of 5 % "
        "(Benjamini-Hochberg):",
        table(tests),
        "Rates of exceedance on the half of the images that the fit did not see, both ways; "
        "observed over predicted, with 95 % bootstrap intervals over images:",
        table(rates),
        "The rarest filter of an image, by shrunk tails: its probability p, and E = p * filters, "
        "how many filters of an ordinary image chance makes as rare; medians, and shares of the "
        "images. They are judged by tails of the half of the images that they are not in, or by "
        "tails of all, each image left out of its own:",
        table(rarest),
    ]
    write_all(subject.folder, {"results.md": "\n\n".join(page) + "\n"})


def measured(subject: Subject, name: str, images: Images) -> tuple[Tensor, Tensor]:
    """Profile of all images or those drawn, and whether the class is wrong."""
    rows = draw(torch.arange(len(images)), VALUES // len(subject.index), subject.options.seed)

    def measure() -> dict[str, Tensor]:
        every = batches(images, subject.options, "measuring", rows)
        found = [(subject.saliency(x, y), subject.wrong(x, y)) for x, y in every]
        profile, wrong = map(torch.cat, zip(*found, strict=True))
        return {"profile": profile, "wrong": wrong}

    kept = cached(subject.folder / f"profile-{name}.safetensors", measure)
    return kept["profile"].double(), kept["wrong"]


def anderson_darling(values: Values) -> tuple[Values, Values]:
    """``[F]`` statistics A^2 of the columns against normals of their own, and p-values."""
    count = len(values)
    odd = 2 * np.arange(1, count + 1)[:, None] - 1
    z = np.sort(stats.zscore(values, ddof=1), axis=0)
    terms = special.log_ndtr(z) + special.log_ndtr(-z[::-1])
    statistic = -count - (odd * terms).sum(0) / count
    a = np.minimum(statistic * (1 + 0.75 / count + 2.25 / count**2), 12.0)  # the fit ends there
    pieces = [
        np.exp(1.2937 - 5.709 * a + 0.0186 * a**2),
        np.exp(0.9177 - 4.279 * a - 1.38 * a**2),
        1 - np.exp(-8.318 + 42.796 * a - 59.938 * a**2),
        1 - np.exp(-13.436 + 101.14 * a - 223.73 * a**2),
    ]
    return statistic, np.select([a >= 0.6, a > 0.34, a > 0.2, a <= 0.2], pieces)


def test_rows(name: str, profile: Tensor, fit: TailFit, seed: int) -> list[Row]:
    """Tests of normality, also with as many values as a tail has, and of the tails."""
    few = draw(torch.arange(len(profile)), max(20, len(profile) // 10), seed)
    found = []
    for kept in (profile.numpy(), profile[few].numpy()):
        values = kept[:, kept.std(0) > 1e-12 * np.abs(kept.mean(0))]  # constant ones have no test
        count = len(values)
        found.append(("normal", "Anderson-Darling", count, anderson_darling(values)[1]))
        found.append(("normal", "D'Agostino-Pearson", count, stats.normaltest(values).pvalue))
    p = fit.ad_p[enough(fit) & ~fit.ad_p.isnan()].double().numpy()
    count = int(fit.exceedances.double().median())
    found.append(("generalized Pareto tail", "Anderson-Darling", count, p))
    rows = []
    for hypothesis, test, count, p in found:
        rejected = stats.false_discovery_control(p) <= 0.05
        rows.append({
            "set": name, "hypothesis": hypothesis, "test": test, "values": count,
            "filters": len(p), "rejected": f"{rejected.mean():.1%}",
        })  # fmt: skip
    return rows


def enough(fit: TailFit) -> Tensor:
    """``[F]`` whether maximum likelihood has enough excesses, of which shrunk tails need fewer."""
    return fit.usable & (fit.exceedances >= gpd.MIN_COUNT)


def rate_rows(name: str, profile: Tensor, fits: Fits, seed: int) -> list[Row]:
    """Observed over predicted rates of exceedance, with 95 % intervals.

    Of every image it is the share of the filters whose tail beyond its saliency has at most the
    probability; filters without a tail are left out.
    """
    parts = []
    for fit, rows in fits:
        values, ml = profile[rows], fit.as_ml()
        laws = (
            torch.special.log_ndtr(-z_score(values, ml)),
            log_tail_probability(values, ml),
            log_tail_probability(values, fit),
        )
        shares = [
            (log_p[:, enough(ml) & (ml.rate >= rate)] <= math.log(rate)).double().mean(1)
            for log_p in laws
            for rate in PROBABILITIES
        ]
        parts.append(torch.stack(shares, 1).unflatten(1, (len(laws), len(PROBABILITIES))))
    ratios = torch.cat(parts).numpy() / PROBABILITIES
    low, high = band([ratios], seed)
    cells = np.stack([ratios.mean(0), low, high], -1)
    return [
        {"set": name, "method": method}
        | {
            f"{100 * rate:g} %": "{:.2f} [{:.2f}, {:.2f}]".format(*cell)
            for rate, cell in zip(PROBABILITIES, line, strict=True)
        }
        for method, line in zip(("normal", "pot_ml", "pot"), cells, strict=True)
    ]


def rarest_rows(
    name: str, profile: Tensor, wrong: Tensor, fits: Fits, *, own: bool = False
) -> list[Row]:
    """Each image's rarest filter: what the mistakes have beside what right images have."""
    p = torch.ones(len(profile), dtype=torch.float64)  # where nothing is in its tail
    tested = torch.zeros_like(p)
    for fit, held in fits:
        first = rank_filters(profile[held], fit, top_k=1, own=own)
        p[held] = first.p[:, 0].nan_to_num(nan=1.0)
        tested[held] = first.tested
    tails = "of all" if own else "of the other half"
    rows = []
    for kind, chosen in (("mistakes", wrong), ("right", ~wrong)):
        e = (p * tested)[chosen]
        rows.append({
            "set": name, "tails": tails, "images": kind, "number": len(e),
            "median p": float(p[chosen].median()), "median E": float(e.median()),
            **{f"E < {most:g}, %": 100 * float((e < most).double().mean()) for most in SMALL_E},
        })  # fmt: skip
    return rows
