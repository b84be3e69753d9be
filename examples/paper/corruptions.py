"""ResNet-50 on corrupted images, ImageNet-C (figure 10).

    python -m examples.paper.corruptions --data IMAGENET --corrupted IMAGENET-C

Tails are fitted to ImageNet's validation set; the misclassified images of each corruption and
severity are edited. A picture shows one corruption, all severities together.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.paper.shared.editing import Curves
from examples.paper.shared.folders import CORRUPTIONS, SEVERITIES, imagenet_c, same_classes
from examples.paper.shared.options import make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import Panel, write_results
from examples.paper.shared.setups import on_imagenet
from examples.paper.shared.study import Study, run_study
from salmon.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment for every corruption and severity asked for."""
    parser = make_parser(
        "Corrupted images (figure 10).", out="paper-results/corruptions",
        edits=("plain", "normalised"), data="folder of ImageNet that holds val/<wnid>/*.JPEG",
    )  # fmt: skip
    parser.add_argument("--corrupted", type=Path, required=True,
                        help="folder of ImageNet-C")  # fmt: skip
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS, help="which")
    parser.add_argument("--severities", nargs="+", type=int, default=SEVERITIES, help="which")
    found = parser.parse_args(arguments)
    options = read_options(found)
    here = on_imagenet(options, "resnet50")
    sets = {
        (name, level): imagenet_c(found.corrupted, name, level, here.transform)
        for name in found.corruptions
        for level in found.severities
    }
    same_classes({"ImageNet": here.images} | {f"{n}/{level}": s for (n, level), s in sets.items()})
    settings = options.settings() | {
        "experiment": "corruptions", "corrupted": str(found.corrupted.resolve())
    }  # fmt: skip
    fit_parts = Parts(options.out / "statistics", settings)
    studies: dict[str, dict[int, Study]] = {}
    for (name, level), images in sets.items():
        own = replace(options, out=options.out / name / str(level))
        parts = Parts(own.out, settings | {"corruption": name, "severity": level})
        with Progress() as say:
            study = run_study(
                parts, here.model, here.index, here.images, images, own, say, fit_parts=fit_parts
            )
        studies.setdefault(name, {})[level] = study
    panels = []
    for name, by_level in studies.items():
        panels.append(Panel(name, [_together([s.curves for s in by_level.values()])]))
        panels += [s.panel(f"{name} {level}", drawn=False) for level, s in by_level.items()]
    write_results(
        "corruptions", "ResNet-50 on ImageNet-C", options, panels,
        {f"{name} {level}": s.shares for name, by in studies.items() for level, s in by.items()},
        standin=here.standin,
    )  # fmt: skip


def _together(curves: Sequence[Curves]) -> Curves:
    """The images of several studies as those of one."""
    return {key: np.concatenate([own[key] for own in curves]) for key in curves[0]}


if __name__ == "__main__":
    run_script(main)
