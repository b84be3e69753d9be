"""ResNet-18 on photos, paintings, cartoons and sketches, one of them left out (figure 11).

    python -m examples.paper.pacs --data PACS

Trained from scratch on 80 % of three domains; the other 20 % choose the epoch and give the tails;
the misclassified images of the fourth domain are edited. Splits are named as in the paper: the last
letter is the domain left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision import transforms
from torchvision.models import resnet18

from examples.paper.shared.folders import DOMAINS, pacs, same_classes
from examples.paper.shared.networks import index_of
from examples.paper.shared.options import Options, make_parser, read_options, run_script
from examples.paper.shared.parts import Parts
from examples.paper.shared.results import write_results
from examples.paper.shared.study import Study, run_study
from examples.paper.shared.training import Recipe, adam, trained
from salmon.progress import Progress

SPLITS = {"PACS": "sketch", "PASC": "cartoon", "PCSA": "art_painting", "ACSP": "photo"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment for every split asked for."""
    parser = make_parser(
        "PACS, one domain left out (figure 11).", out="paper-results/pacs", weights="",
        edits=("plain", "normalised"), data="folder of PACS, <domain>/<class>/*",
    )  # fmt: skip
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which")
    parser.add_argument("--epochs", type=int, default=30, help="of the training; the paper does "
                        "not say")  # fmt: skip
    parser.add_argument("--training-batch", type=int, default=64, help="the same")
    found = parser.parse_args(arguments)
    options = read_options(found)
    studies = {}
    for split in found.splits:
        own = replace(options, out=options.out / split)
        studies[split] = _run(own, split, found.epochs, found.training_batch)
    write_results(
        "pacs", "ResNet-18 on PACS", options,
        [study.panel(split) for split, study in studies.items()],
        {split: study.shares for split, study in studies.items()},
    )  # fmt: skip


def _run(options: Options, split: str, epochs: int, batch: int) -> Study:
    """One split."""
    transform = transforms.Compose([
        transforms.Resize((options.size, options.size)),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    assert options.data is not None  # the parser requires it
    folders = {domain: pacs(options.data, domain, transform) for domain in DOMAINS}
    classes = same_classes(folders)
    settings = {"experiment": "pacs", "split": split, "epochs": epochs, "training_batch": batch}
    parts = Parts(options.out, options.settings() | settings)
    left_out = SPLITS[split]
    known: ConcatDataset[tuple[torch.Tensor, int]] = ConcatDataset(
        [folder for domain, folder in folders.items() if domain != left_out]
    )
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(options.seed))
    cut = round(0.8 * len(known))
    train, held_out = (Subset(known, rows.tolist()) for rows in (order[:cut], order[cut:]))
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=len(classes)).to(options.device)
    recipe = Recipe(optimizer=adam, epochs=epochs, batch=batch, seed=options.seed)
    with Progress() as say:
        trained(parts, model, train, held_out, recipe, say)
        index = index_of(model, "resnet18", shortcuts=options.shortcuts)
        return run_study(parts, model, index, held_out, folders[left_out], options, say)


if __name__ == "__main__":
    run_script(main)
