"""Pruning and fine-tuning curves of ResNet-50 on ImageNet (figures 3 and 4).

    python -m examples.paper.imagenet_curves --data IMAGENET

Tails are fitted to the validation set, and its misclassified images are edited.
"""

from collections.abc import Sequence

from examples.paper.shared.options import make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import write_results
from examples.paper.shared.setups import on_imagenet
from examples.paper.shared.study import run_study
from salmon.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = make_parser(
        "Pruning and fine-tuning curves (figures 3, 4).", out="paper-results/imagenet-curves",
        data="folder of ImageNet that holds val/<wnid>/*.JPEG",
    )  # fmt: skip
    options = read_options(parser.parse_args(arguments))
    here = on_imagenet(options, "resnet50")
    parts = Parts(options.out, options.settings() | {"experiment": "imagenet-curves"})
    with Progress() as say:
        study = run_study(parts, here.model, here.index, here.images, here.images, options, say)
    write_results(
        "imagenet-curves", "ResNet-50 on ImageNet", options, [study.panel("ResNet-50")],
        {"ResNet-50": study.shares}, standin=here.standin,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
