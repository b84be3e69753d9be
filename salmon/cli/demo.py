"""``salmon demo``: a real domain shift, from training to repair, in a few minutes on two cores.

ResNet-18 learns MNIST digits; the monitor fits the tails on held-out MNIST images; then it
diagnoses the same network on optical digits, with these fits, and a repair is looked for.
"""

import logging
import time
import warnings

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from salmon.cli.diagnose import print_shares
from salmon.cli.digits import CLASSES, mnist_split, optical_digits
from salmon.cli.options import DemoOptions
from salmon.cli.pages import write_page
from salmon.cli.repair import print_outcome
from salmon.errors import InputError
from salmon.monitor import SaliencyMonitor
from salmon.progress import Progress
from salmon.repairs import RepairSettings, Samples, headline, repair, write_outcome

TRAINING_IMAGES = 3000
SHARES = (0.005, 0.01, 0.02)
"""Of the filters, that a repair may change."""
BATCH = 256

Batch = list[Tensor]


class DigitNet(LightningModule):
    """An ordinary module: nothing in it knows of the monitor."""

    def __init__(self) -> None:
        """Build torchvision's ResNet-18 for ten classes."""
        super().__init__()
        self.net = resnet18(num_classes=CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: ``[N, 3, 32, 32]`` in [-1, 1].

        Returns:
            ``[N, 10]`` logits.
        """
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        logits = self(batch[0])
        loss = torch.nn.functional.cross_entropy(logits, batch[1])
        right = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({"loss": loss, "accuracy": right}, prog_bar=True, batch_size=len(logits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Choose the optimizer.

        Returns:
            Gradient descent with the rate and momentum of the paper's experiment.
        """
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


def run_demo(options: DemoOptions) -> int:
    """Train, monitor, diagnose, print."""
    folder = options.out
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} already holds files; a new or empty folder is needed. Choose one with --out."
        )
    began = time.perf_counter()
    # Lightning's advice on its other products is left out; the monitor's lines stay.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)  # Lightning's own
    seed_everything(options.seed, verbose=False)
    train, held_out = mnist_split(TRAINING_IMAGES, options.seed)
    digits = optical_digits()
    if options.images is not None:
        train, held_out, digits = (_first(s, options.images) for s in (train, held_out, digits))
    print(f"1/3  Training ResNet-18 on {len(train)} MNIST images; {len(held_out)} are held out.")
    model, monitor = DigitNet(), SaliencyMonitor()
    shuffled = DataLoader(train, BATCH, shuffle=True)
    trainer = _trainer(options, "mnist", monitor, epochs=options.epochs)
    trainer.fit(model, shuffled, DataLoader(held_out, BATCH))
    source = float(trainer.callback_metrics["accuracy"])
    print(f"2/3  Diagnosing it on {len(digits)} optical digits, with the fits of the MNIST images.")
    judge = SaliencyMonitor(reference=monitor.last_fit(model))
    diagnoser = _trainer(options, "optical-digits", judge)
    diagnoser.validate(model, DataLoader(digits, BATCH), verbose=False)
    target = float(diagnoser.callback_metrics["accuracy"])
    diagnosis = judge.results["validation"]
    print(f"\nRight: {source:.1%} of the MNIST images, {target:.1%} of the optical digits.\n")
    print_shares(diagnosis)
    _repair(model, digits, held_out, options)
    seconds = time.perf_counter() - began
    print(f"\nDone in {seconds:.0f} s. To look closer:")
    print(f"  salmon report {folder}")
    print(f"  tensorboard --logdir {folder}")
    return 0


def _repair(
    model: DigitNet, digits: TensorDataset, held_out: TensorDataset, options: DemoOptions
) -> None:
    """Look for a repair on the optical digits that the MNIST images vouch for."""
    print("\n3/3  Looking for a repair: some filters, chosen by POT, and what else one would do.")
    new, reference = (Samples.collect(DataLoader(s, BATCH)) for s in (digits, held_out))
    try:
        with Progress(quiet=options.quiet) as progress:
            outcome = repair(
                model, new, reference, RepairSettings(seed=options.seed, shares=SHARES),
                batch_size=BATCH, progress=progress,
            )  # fmt: skip
    except InputError as error:  # with --images
        print(f"No repair: {error}")
        return
    pictures = {"new": new, "reference": reference}
    folder = options.out / "repair"
    write_outcome(folder, outcome, {"model": "DigitNet"})
    write_page(folder, "salmon: DigitNet", outcome.sets, pictures)
    print_outcome(outcome, quiet=False)
    print(f"Repair: {outcome.status}. {headline(outcome)} Written: {folder}")


def _trainer(options: DemoOptions, name: str, monitor: SaliencyMonitor, epochs: int = 1) -> Trainer:
    """An ordinary trainer with the monitor in its callbacks."""
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[monitor],
        logger=TensorBoardLogger(options.out, name=name, version=""),
        enable_progress_bar=not options.quiet,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def _first(data: TensorDataset, count: int) -> TensorDataset:
    """The first images of a set."""
    return TensorDataset(*(tensor[:count] for tensor in data.tensors))
