"""What each command takes: one record a command, from which its options and its help are made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)

from salmon.comparison import Gates
from salmon.errors import InputError
from salmon.repairs import RepairSettings
from salmon.tails import Estimator


def reason_of(error: BaseException) -> str:
    """What jsonargparse says of an argument that does not fit, without the types that it tried."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value type", "- Expected a <class")
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line.removeprefix("- ") for line in lines if line and not line.startswith(noise)]
    return " ".join(told)[:400]


@dataclass(frozen=True, kw_only=True)
class ProjectOptions:
    """The project, and which of its data are looked at.

    Attributes:
        config: YAML of LightningCLI, such as the config.yaml that a training left; several may be
            given, and the later ones win.
        cli: ``package.module:name`` of the project's own subclass of LightningCLI, where it links
            arguments or adds some; or of a function that takes ``args`` and ``run`` and returns
            one.
        model: ``package.module:name`` of a class, or of a function that makes the network. A class
            gets the hyperparameters that the checkpoint holds.
        data: The same of a LightningDataModule, or of a function that returns a mapping of loaders.
        ckpt_path: Checkpoint with the weights, or "none" where the project itself loads them.
        weights_only: Whether the checkpoint may hold nothing but tensors and plain values; loading
            anything else can run code of whoever wrote it.
        new: The new data: "test" or "val", or a name in the mapping of loaders. Of several loaders
            one is named as in the monitor's results, such as "val/loader1".
        reference: The data that the network serves already, named in the same way, or "none".
        task: What a mistake is; by default that of the config's SaliencyMonitor, or as the first
            batch tells.
        device: "auto", "cpu" or "cuda"; "auto" leaves it to the config.
        out: New folder for what is written; -o is short for it.
        force: Replace what --out holds.
        quiet: No progress, no tables.
    """

    config: str | list[str] | None = None
    cli: str | None = None
    model: str | None = None
    data: str | None = None
    ckpt_path: str | None = None
    weights_only: bool = True
    new: str = "test"
    reference: str = "val"
    task: Literal[
        "classification", "binary", "multilabel", "segmentation", "regression", "sequence"
    ] | None = None  # fmt: skip
    device: str = "auto"
    out: Path
    force: bool = False
    quiet: bool = False

    @property
    def checkpoint(self) -> Path | None:
        """The file with the weights, if it is one."""
        return None if self.ckpt_path in (None, "none") else Path(str(self.ckpt_path))

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The names of the data that the command needs."""
        return (self.new,) if self.reference == "none" else (self.new, self.reference)

    def __post_init__(self) -> None:
        """Refuse data that are their own reference."""
        if self.new == self.reference:
            raise InputError(
                f"new and reference are both {self.new!r}; use --reference none where one set "
                "serves as both."
            )


@dataclass(frozen=True, kw_only=True)
class DiagnosisGates:
    """What a network must keep, so that a diagnosis is a check; a gate that is None is open.

    Attributes:
        min_accuracy: Least share of the new samples that are no mistakes.
        max_findings: Most filters that mistakes blame beyond chance.
        max_miscalibration: Factor, such as 2, by which filters may exceed a value more often, or
            less often, than their p says, on held-out samples of the data that the tails are of;
            beyond it must lie the whole 90 % band at a probability. All of them are measured then.
    """

    min_accuracy: ClosedUnitInterval | None = None
    max_findings: NonNegativeInt | None = None
    max_miscalibration: PositiveFloat | None = None

    def __post_init__(self) -> None:
        """Refuse a factor that nothing can keep."""
        if self.max_miscalibration is not None and self.max_miscalibration < 1:
            raise InputError(
                f"max_miscalibration is {self.max_miscalibration!r}; a factor of at least 1 is "
                "needed, such as 2."
            )


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(ProjectOptions):
    """A project, and what to do with it.

    Attributes:
        fit: Fits to rank with, such as fit-validation.safetensors of a training.
        level: Quantile level of thresholds, or "auto"; by default that of the config's
            SaliencyMonitor, or 0.9.
        top_k: Filters reported per sample; by default likewise, or 25, at most a tenth of all.
        estimator: "shrunk", where the filters of a layer inform each other's tails, or "ml"; by
            default likewise, or "shrunk".
        seed: Of random choices, where the config has no seed_everything.
        gate: What the network must keep; without one the exit code is 0 whatever is found.
    """

    out: Path = Path("salmon-diagnosis")
    fit: str | None = None
    level: OpenUnitInterval | Literal["auto"] | None = None
    top_k: PositiveInt | None = None
    estimator: Estimator | None = None
    seed: int = 0
    gate: DiagnosisGates = field(default_factory=DiagnosisGates)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The new data alone where their tails are given."""
        return super().looked_at if self.fit is None else (self.new,)

    def __post_init__(self) -> None:
        """Refuse also a gate on tails that are not fitted here."""
        super().__post_init__()
        if self.fit is not None and self.gate.max_miscalibration is not None:
            raise InputError(
                "--gate.max_miscalibration needs tails that are fitted to a half of the data and "
                "held against the other; leave out --fit."
            )


@dataclass(frozen=True, kw_only=True)
class RepairOptions(ProjectOptions):
    """A project, and what to do with it.

    Attributes:
        fit: Fits of the reference data, such as fit-validation.safetensors of a training.
        batch_size: Samples at a time.
        seed: The same as --repair.seed.
        dry_run: Load and split, then stop.
        write_checkpoint: Also write the repaired checkpoint.
        pictures: Also write the images that turned right and wrong; artifacts may be public.
        exit_nothing: The exit code where there is nothing to repair.
        repair: Settings of the repair; a section ``repair`` of the config may hold them, too.
    """

    out: Path = Path("salmon-repair")
    fit: str | None = None
    batch_size: PositiveInt = 64
    seed: int | None = None
    dry_run: bool = False
    write_checkpoint: bool = False
    pictures: bool = False
    exit_nothing: NonNegativeInt = 0
    repair: RepairSettings = field(default_factory=RepairSettings)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ProjectOptions):
    """A project with the network that is served now, and the one that may take its place.

    Attributes:
        candidate: Checkpoint of the new network, or a patch.
        slices: Entries of the batches, such as camera, by whose values samples are told apart, too.
        fit: Tails of the old network, such as fit-validation.safetensors of its training.
        batch_size: Samples at a time.
        max_samples: Most samples taken, chosen at random.
        pictures: Also draw images that turned right and wrong; artifacts may be public.
        seed: Of random choices, where the config has no seed_everything.
        gate: What the new network must keep; without one, only that it predicts something.
    """

    candidate: str
    reference: str = "none"
    out: Path = Path("salmon-comparison")
    slices: list[str] = field(default_factory=list)
    fit: str | None = None
    batch_size: PositiveInt = 64
    max_samples: PositiveInt = 20000
    pictures: bool = False
    seed: int = 0
    gate: Gates = field(default_factory=Gates)


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """A patch and a checkpoint.

    Attributes:
        patch: The patch file.
        ckpt_path: Checkpoint of Lightning or torch, or a safetensors file.
        out: File for the changed checkpoint, in the format of its name.
        weights_only: Whether the checkpoint may hold nothing but tensors and plain values; loading
            anything else can run code of whoever wrote it.
        force: Replace the file --out.
    """

    patch: str
    ckpt_path: str
    out: Path
    weights_only: bool = True
    force: bool = False


@dataclass(frozen=True)
class ReportOptions:
    """Runs and a page.

    Attributes:
        run: Folder of a logger or diagnosis, or one above several of them.
        other: Another such folder; the page then shows the last passes of both beside each other.
            Each may also be the file of one pass, such as pass-validation-000003.json, so that two
            epochs of a run are.
        out: The page.
        force: Replace the file --out.
        quiet: One line only.
    """

    run: Path
    other: Path | None = None
    out: Path = Path("report.html")
    force: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class ExportOptions:
    """Runs and a table of their flagged samples.

    Attributes:
        run: Folder of a logger or diagnosis, or one above several of them.
        out: The table, as comma-separated values.
        force: Replace the file --out.
    """

    run: Path
    out: Path = Path("flagged.csv")
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Of the demo.

    Attributes:
        out: New folder for logs; -o is short for it.
        epochs: Of the training.
        seed: Of weights, split and order.
        images: Use only so many of each set.
        quiet: No progress bars.
    """

    out: Path = Path("salmon-demo")
    epochs: PositiveInt = 10
    seed: int = 0
    images: PositiveInt | None = None
    quiet: bool = False
