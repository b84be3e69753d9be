"""Fine-tuning curves of VGG-19 and of the attention heads of ViT-B/16 (figures 8 and 9).

    python -m examples.paper.other_networks --data IMAGENET --network vgg19
    python -m examples.paper.other_networks --data IMAGENET --network vit_b_16

A filter of ViT is what one attention head takes of a query, key or value weight.
"""

from collections.abc import Sequence

from examples.paper.shared.options import make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import write_results
from examples.paper.shared.setups import on_imagenet
from examples.paper.shared.study import run_study
from salmon.progress import Progress

NETWORKS = {"vgg19": "VGG-19", "vit_b_16": "ViT-B/16"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment for one network."""
    parser = make_parser(
        "Fine-tuning curves of other networks (figures 8, 9).",
        out="paper-results/other-networks", edits=("plain", "normalised"),
        data="folder of ImageNet that holds val/<wnid>/*.JPEG",
    )  # fmt: skip
    parser.add_argument("--network", default="vgg19", choices=NETWORKS, help="the network")
    found = parser.parse_args(arguments)
    options = read_options(found)
    here = on_imagenet(options, found.network)
    settings = {"experiment": "other-networks", "network": found.network}
    parts = Parts(options.out, options.settings() | settings)
    with Progress() as say:
        study = run_study(parts, here.model, here.index, here.images, here.images, options, say)
    name = NETWORKS[found.network]
    write_results(
        f"other-networks-{found.network}", f"{name} on ImageNet", options, [study.panel(name)],
        {name: study.shares}, standin=here.standin,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
