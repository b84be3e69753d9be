"""The user's project, built as Lightning builds it, and run through a trainer of its own.

With a config, LightningCLI builds network, data and trainer; with names alone, the network is made
with the hyperparameters in the checkpoint, as ``load_from_checkpoint`` does. Every run of a trainer
gets a project built anew from the same seed, so that random splits are those of a training.
"""

import importlib
import inspect
import json
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import jsonargparse
import pytorch_lightning
import yaml
from torch import nn

from salmon.cli.checkpoints import Checkpoint, load_weights, read_checkpoint
from salmon.cli.options import ProjectOptions, reason_of
from salmon.errors import InputError, StateError
from salmon.files import read_text
from salmon.monitor import SaliencyMonitor
from salmon.monitor.bases import CallbackBase
from salmon.monitor.sampling import SampleCollector
from salmon.monitor.settings import Settings
from salmon.progress import Progress
from salmon.repairs import RepairSettings, Samples

_OLD_WAYS = r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|was deprecated in v4\.\d)"
"""In warnings on what LightningCLI asks of jsonargparse."""

_WHERE = ("out", "force", "quiet", "repair", "dry_run", "write_checkpoint", "pictures")
"""Options that say where results go, and how many."""

STAGES = {"test": "test", "val": "validation"}
"""Names of data, and what the monitor calls them."""


@dataclass(frozen=True, slots=True, eq=False)
class Project:
    """What was built."""

    module: Any  # LightningModule of either package
    data: Any  # data module, mapping of loaders, or None where the module has its own
    trainer: Callable[..., Any]  # makes one with the project's options, and others given by name
    callbacks: list[Any]  # of the project
    repair: Mapping[str, Any]  # the section of that name in the config
    checkpoint: Checkpoint | None

    @property
    def name(self) -> str:
        """Of the class of the network."""
        network = self.module.network if isinstance(self.module, _Host) else self.module
        return type(network).__name__

    @property
    def settings(self) -> Settings:
        """Those of the project's own monitor, or the defaults."""
        own = [each for each in self.callbacks if isinstance(each, SaliencyMonitor)]
        return own[0].settings if own else Settings()


def load_project(options: ProjectOptions, seed: int) -> Project:
    """Build the project.

    Args:
        seed: Where the config has none.

    Raises:
        InputError: If something does not fit.
        StateError: If the checkpoint cannot be read.
    """
    checkpoint = None
    if options.checkpoint is not None:
        checkpoint = read_checkpoint(options.checkpoint, weights_only=options.weights_only)
    here = str(Path.cwd())
    if here not in sys.path:  # as ``python -m`` does, for the user's own modules
        sys.path.insert(0, here)
    with _quiet_lightning():
        if options.config is not None or options.cli is not None:
            project = _from_config(options, checkpoint, seed)
        else:
            project = _from_names(options, checkpoint, seed)
    if options.ckpt_path is None:
        raise InputError(
            f"no --ckpt_path is given, so that {project.name} would have the weights it is built "
            "with; name a checkpoint, or --ckpt_path none where the project itself loads them."
        )
    for name in options.looked_at:
        _check_name(project.data, name)
    return project


def run_pass(
    project: Project, options: ProjectOptions, name: str, callback: Any,
    *, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """Let a trainer validate or test a project, which is left with the weights of the checkpoint.

    Args:
        project: Built for this pass alone.
        name: Of the data, as of ``ProjectOptions.new``.
        callback: Looks on.
        folder: Root of what the trainer writes.
        progress: Gets the numbers of batches.

    Raises:
        InputError: If something does not fit.
        StateError: If the checkpoint is of another network.
    """
    checkpoint, given = project.checkpoint, dict[str, Any]()
    kept = [each for each in project.callbacks if not _replaced(each)]
    callbacks = [*kept, callback, _Progress(name, progress)]
    if checkpoint is not None and checkpoint.plain:
        callbacks.insert(0, _Weights(checkpoint, str(options.ckpt_path)))
    elif checkpoint is not None:
        given["ckpt_path"] = options.ckpt_path
    accelerator = {} if options.device == "auto" else {"accelerator": options.device}
    with _quiet_lightning():
        stage, data = _data_of(project, name)
        _give_step(project.module, stage)
        try:
            trainer = project.trainer(
                callbacks=callbacks, logger=False, enable_progress_bar=False,
                enable_model_summary=False, devices=1, num_nodes=1, strategy="auto",
                fast_dev_run=False, default_root_dir=folder, **accelerator,
            )  # fmt: skip
            run = trainer.test if stage == "test" else trainer.validate
            if not options.weights_only and "weights_only" in inspect.signature(run).parameters:
                given["weights_only"] = False  # Lightning before 2.6 takes objects anyway
            run(project.module, **data, **given, verbose=False)
        except Exception as error:
            clear = _in_a_line(error, project, options)
            if clear is None:
                raise
            raise clear from error
        project.module.to(trainer.strategy.root_device)  # where a repair goes on


def collected(
    project: Project, options: ProjectOptions, name: str,
    *, most: int, seed: int, progress: Progress, columns: Sequence[str] = (),
) -> tuple[Samples, dict[str, list[object]]]:  # fmt: skip
    """The samples of one pass of a project's trainer, as its network gets them.

    Args:
        project: Built for this pass alone; it is left with the weights of the checkpoint.
        name: Of the data, as of ``ProjectOptions.new``.
        most: Keep at most so many.
        seed: Of their choice.
        columns: Entries of the batches.

    Returns:
        N samples, and ``[N]`` values of each column.
    """
    collector = SampleCollector(project.settings, most=most, seed=seed, columns=columns)
    run_pass(project, options, name, collector, folder=options.out.parent, progress=progress)
    found = collector.book.gathered
    scope = chosen(found, name)
    samples, noted = found[scope].samples(), collector.columns.get(scope, {})
    rows = [noted[each] for each in samples.ids] if columns else []
    return samples, {column: [row[i] for row in rows] for i, column in enumerate(columns)}


def stage_of(name: str) -> str:
    """What the monitor calls some data of a project: ``validation``, or ``test``."""
    return STAGES.get(name.partition("/")[0], "test")


def chosen(found: Mapping[str, Any], name: str) -> str:
    """The scope of some data among those that a trainer's loaders gave.

    Args:
        name: Of the data, as of ``ProjectOptions.new``.
    """
    first, _, loader = name.partition("/")
    scope = stage_of(name) + (f"/{loader}" if loader and first in STAGES else "")
    if scope in found:
        return scope
    if not found:
        raise InputError(f"the {name} data gave no sample that could be used; see above.")
    names = ", ".join(f"{first}/{each.partition('/')[2]}" for each in found)
    raise InputError(f"the {first} data have several loaders; name one of {names}.")


def remake(command: str, options: ProjectOptions, repair: Mapping[str, Any] | None = None) -> str:
    """The command line that was given.

    Args:
        repair: Settings of a repair that it named.
    """
    words = ["salmon", command]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _WHERE or value == field.default:
            continue
        if is_dataclass(value):
            parts = {part.name: (getattr(value, part.name), part.default) for part in fields(value)}
            for part, (own, default) in parts.items():
                words += [] if own == default else [f"--{field.name}.{part}", str(own)]
            continue
        if field.default_factory is list:
            words += [f"--{field.name}", json.dumps(value)] if value else []
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{field.name}", str(each).lower() if isinstance(each, bool) else str(each)]
    for name, value in (repair or {}).items():
        words += [f"--repair.{name}", json.dumps(value) if not isinstance(value, str) else value]
    return shlex.join(words)


def _from_names(options: ProjectOptions, checkpoint: Checkpoint | None, seed: int) -> Project:
    """Made by classes or functions, with the hyperparameters of the checkpoint."""
    makers = {}
    for what, name in (("model", options.model), ("data", options.data)):
        if name is None:
            raise InputError(
                f"no {what} is given; use --config with the config of a training, or --{what} "
                "package.module:name."
            )
        makers[what] = _imported(what, name)
    pytorch_lightning.seed_everything(seed, workers=True, verbose=False)
    hyper = {} if checkpoint is None or checkpoint.plain else checkpoint.content
    found = _made("data", makers, hyper.get("datamodule_hyper_parameters"), options)
    module = _made("model", makers, hyper.get("hyper_parameters"), options)
    if not isinstance(module, nn.Module):
        raise InputError(f"model gave a {type(module).__name__}; a torch.nn.Module is needed.")
    if not hasattr(module, "configure_optimizers"):
        module = _Host(module)
    if not isinstance(found, Mapping) and not hasattr(found, "prepare_data"):
        raise InputError(
            f"data gave a {type(found).__name__}; a LightningDataModule, or a mapping of loaders "
            "by name, is needed."
        )
    return Project(module, found, _lightning_of(type(module)).Trainer, [], {}, checkpoint)


def _made(what: str, makers: Mapping[str, Any], hyper: Any, options: ProjectOptions) -> Any:
    """What a class or function makes."""
    found = makers[what]
    if not callable(found):
        raise InputError(f"--{what} is a {type(found).__name__}; a class or function is needed.")
    if hyper is not None and hasattr(found, "load_from_checkpoint"):
        allowed = inspect.signature(found.load_from_checkpoint).parameters
        given = {"weights_only": options.weights_only} if "weights_only" in allowed else {}
        return found.load_from_checkpoint(options.ckpt_path, map_location="cpu", **given)
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(
            f"--{what} needs arguments ({error}), and no checkpoint with its "
            "hyper_parameters is given; use --config, or name a function without arguments."
        ) from error
    return found()


def _from_config(options: ProjectOptions, checkpoint: Checkpoint | None, seed: int) -> Project:
    """Built by LightningCLI."""
    paths = [options.config] if isinstance(options.config, str) else list(options.config or [])
    configs, nested = zip(*map(read_config, paths), strict=True) if paths else ((), ())
    classes = [
        None if name is None else _imported(what, name)
        for what, name in (("model", options.model), ("data", options.data))
    ]
    base = _cli_of(options, classes[0], configs)
    with tempfile.TemporaryDirectory() as folder:
        arguments: list[str] = []
        for number, path in enumerate(map(Path, paths)):
            copy = Path(folder) / f"{number}.yaml"
            if nested[number]:
                copy.write_text(yaml.safe_dump(configs[number]), encoding="utf-8")
            arguments += ["--config", str(copy if nested[number] else path)]
        try:
            if not isinstance(base, type):
                cli = base(args=arguments, run=False)
            else:
                cli = _with_repair(base)(
                    *classes, save_config_callback=None, seed_everything_default=seed,
                    parser_kwargs={"exit_on_error": False}, args=arguments, run=False,
                )  # fmt: skip
        except (jsonargparse.ArgumentError, SystemExit) as error:
            names = ", ".join(paths)
            unnamed = classes == [None, None] and not any(map(_names_class, configs))
            advice = " It names no class: give --model and --data, too." if unnamed else ""
            raise InputError(f"config {names} does not fit: {reason_of(error)}{advice}") from error
    trainer = cli.config_init.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    repair = cli.config.get("repair")
    return Project(
        cli.model, cli.datamodule, cli.instantiate_trainer, callbacks,
        {} if repair is None else vars(repair), checkpoint,
    )  # fmt: skip


def _cli_of(options: ProjectOptions, model: Any, configs: Sequence[Mapping[str, Any]]) -> Any:
    """The project's own LightningCLI, or that of the package its network is made with."""
    if options.cli is not None:
        return _imported("cli", options.cli)
    for config in configs:
        if model is None and _names_class(config):
            module, _, name = str(config["model"]["class_path"]).rpartition(".")
            with suppress(ImportError, ValueError):  # LightningCLI says what is wrong
                model = getattr(importlib.import_module(module), name, None)
    return _lightning_of(model).cli.LightningCLI


def _names_class(config: Mapping[str, Any]) -> bool:
    section = config.get("model")
    return isinstance(section, Mapping) and "class_path" in section


def _with_repair(base: type) -> Any:
    """A LightningCLI that also reads what a training saved with its options, and ``repair``."""

    class ProjectCLI(base):  # type: ignore[misc]
        def add_arguments_to_parser(self, parser: Any) -> None:
            super().add_arguments_to_parser(parser)
            for name in ("ckpt_path", "weights_only", "verbose"):
                parser.add_argument(f"--{name}", type=Any, default=None)
            parser.add_class_arguments(RepairSettings, "repair")

    return ProjectCLI


def read_config(path: str) -> tuple[dict[str, Any], bool]:
    """Look into a config before LightningCLI reads it.

    Returns:
        Its sections, and whether they lie in one named by a subcommand, ``fit``.
    """
    try:
        found = yaml.load(read_text(Path(path)), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except StateError as error:
        raise InputError(f"config {error}") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        line = str(error).partition("\n")[0][:200]
        raise InputError(f"config {path} cannot be read ({line}); YAML is needed.") from error
    if not isinstance(found, dict):
        raise InputError(f"config {path} is no mapping; the config of a training is needed.")
    nested = isinstance(found.get("fit"), dict) and "model" not in found
    return (found["fit"] if nested else found), nested


def _data_of(project: Project, name: str) -> tuple[str, dict[str, Any]]:
    """The stage in which a trainer looks at some data, and the arguments that name them."""
    data = project.data
    if isinstance(data, Mapping):
        return stage_of(name), {"dataloaders": data[name]}
    stage = name.partition("/")[0]
    if stage == "val" and data is not None:
        _made_by_fit(data)
    return STAGES[stage], {"datamodule": data}


def _check_name(data: Any, name: str) -> None:
    """Refuse the name of data that a project does not have."""
    if isinstance(data, Mapping):
        if name not in data:
            raise InputError(
                f"data gave the loaders {sorted(data)}, but not {name!r}; name them with --new and "
                "--reference ('none' where there is none)."
            )
    elif name.partition("/")[0] not in STAGES:
        raise InputError(f"the data {name!r} are not known; 'test' or 'val' is needed.")


def _made_by_fit(data: Any) -> None:
    """Let a data module whose validation set only ``setup("fit")`` makes be set up for fit."""
    own = data.val_dataloader
    if getattr(own, "__module__", "").startswith(("lightning.", "pytorch_lightning.")):
        return  # there is none

    @wraps(own)
    def val_dataloader() -> Any:
        try:
            return own()
        except (AttributeError, TypeError, ValueError):  # what a missing data set leads to
            data.setup("fit")
            return own()

    data.val_dataloader = val_dataloader


def _give_step(module: Any, stage: str) -> None:
    """Let a module without a step for a stage take that of the other one, or only its forward."""
    steps = [f"{stage}_step", "validation_step" if stage == "test" else "test_step"]
    missing, other = (
        getattr(type(module), name).__module__.startswith(("lightning.", "pytorch_lightning."))
        for name in steps
    )
    if missing:
        step = (lambda *_args: None) if other else getattr(module, steps[1])
        setattr(module, steps[0], step)


def _replaced(callback: Any) -> bool:
    """Whether a command brings its own."""
    names = {base.__name__ for base in type(callback).__mro__}
    return bool(names & {"SaliencyMonitor", "ProgressBar"})


def _in_a_line(error: Exception, project: Project, options: ProjectOptions) -> Exception | None:
    """What Lightning says of a project or checkpoint that does not fit, as an error of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "MisconfigurationException":  # of either package
        return InputError(" ".join(lines))
    if isinstance(error, RuntimeError) and "Error(s) in loading state_dict" in str(error):
        return StateError(
            f"checkpoint {options.ckpt_path} does not fit {project.name}: {' '.join(lines[1:3])}"
        )
    return None


def _lightning_of(model: Any) -> Any:
    """The package, ``pytorch_lightning`` or ``lightning.pytorch``, that a class is made with."""
    names = [base.__module__ for base in getattr(model, "__mro__", ())]
    package = "pytorch_lightning"
    if any(name.startswith("lightning.pytorch") for name in names):
        package = "lightning.pytorch"
    importlib.import_module(f"{package}.cli")
    return importlib.import_module(package)


def _imported(what: str, name: str) -> Any:
    """What ``package.module:name`` names."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"--{what} is {name!r}; package.module:name is needed.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--{what} {name} cannot be imported ({error}); package.module:name, to be found from "
            "this folder or installed, is needed."
        ) from error


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave Lightning's advice and its lines on devices out; the monitor's lines stay."""
    names = (
        "pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero",
        "lightning_fabric", "lightning.fabric",
    )  # fmt: skip
    loggers = list(map(logging.getLogger, names))
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LightningCLI's args parameter", UserWarning)
            warnings.filterwarnings("ignore", ".*does not have many workers", UserWarning)
            warnings.filterwarnings("ignore", _OLD_WAYS, DeprecationWarning)
            warnings.filterwarnings("ignore", ".*sampler has shuffling enabled", UserWarning)
            # A pass of the project's own callbacks is no training to be gone on with.
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")
            warnings.filterwarnings("ignore", ".*dirpath has changed")
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class _Host(pytorch_lightning.LightningModule):
    """A plain network as a module of Lightning, with the same names of parameters."""

    def __init__(self, network: nn.Module) -> None:
        """Share everything with the network, which stays in eval mode."""
        super().__init__()
        network.eval()
        self.network: Any
        vars(self)["network"] = network  # no child, whose parameters would have other names
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(network)[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        return self.network(*args, **kwargs)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: the monitor runs the network."""


class _Weights(CallbackBase):
    """Loads a plain state dict where a trainer would load its checkpoint."""

    def __init__(self, checkpoint: Checkpoint, source: str) -> None:
        """Take note."""
        super().__init__()
        self._checkpoint, self._source = checkpoint, source

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Load them."""
        load_weights(pl_module, self._checkpoint, source=self._source)

    on_test_start = on_validation_start


class _Progress(CallbackBase):
    """Shows how far a pass is."""

    def __init__(self, name: str, progress: Progress) -> None:
        """Take note."""
        super().__init__()
        self._name, self._progress = name, progress

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Say so."""
        counts = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        total = counts[dataloader_idx]
        done = batch_idx + 1
        self._progress(f"reading {self._name} data", done, max(done, int(min(total, 1e15))))

    on_test_batch_end = on_validation_batch_end
