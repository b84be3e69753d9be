"""The command ``salmon``: arguments and exit codes.

Exit codes: 0 done, accepted, or nothing to repair; 1 repair not accepted; 2 usage or input error
with one clear line, or an error in the user's own code with its traceback.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from salmon import __version__
from salmon.cli.settings import JobSettings, PatchSettings, config_sections
from salmon.errors import SalmonError
from salmon.repairs import RepairSettings

OK, ERROR = 0, 2

_Record = TypeVar("_Record")


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run a command.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser, commands = _parsers()
        if given[:1] == ["repair"]:
            repair = config_sections(_value_of("--config", given)).get("repair")
            if isinstance(repair, dict):
                commands["repair"].set_defaults({f"repair.{k}": v for k, v in repair.items()})
        options = parser.parse_args(given)
        command = _COMMANDS[options.subcommand][2]
        return command(options[options.subcommand])
    except SalmonError as error:
        print(f"salmon: {error}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001
        # Of the user's model or data. Python's own exit code 1 would say "not accepted".
        traceback.print_exc()
        print(f"salmon: {type(error).__name__}: {error}", file=sys.stderr)
    return ERROR


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the program, and those of its commands."""
    parser = ArgumentParser(
        prog="salmon",
        description="Find the filters behind a network's mistakes, and repair them.",
        version=__version__,
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    found = {}
    for name, (text, fill, _) in _COMMANDS.items():
        found[name] = ArgumentParser(prog=f"salmon {name}", description=text)
        fill(found[name])
        commands.add_subcommand(name, found[name], help=text)
    return parser, found


def _value_of(flag: str, given: Sequence[str]) -> str | None:
    """The last value of an option, before anything is parsed."""
    value = None
    for word, following in zip(given, [*given[1:], None], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _record(kind: type[_Record], options: Namespace) -> _Record:
    """A settings record out of options of the same names."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _output_arguments(parser: ArgumentParser, default: str | None, what: str) -> None:
    """``--out``, ``--force`` and ``--quiet``."""
    parser.add_argument("--out", type=Path, default=default and Path(default), help=what)
    parser.add_argument("--force", action="store_true", help="replace what --out holds")
    parser.add_argument("--quiet", action="store_true", help="no progress, no tables")


def _demo_arguments(parser: ArgumentParser) -> None:
    """Of ``salmon demo``."""
    parser.add_argument("--out", type=Path, default=Path("salmon-demo"), help="new folder for logs")
    parser.add_argument("--epochs", type=PositiveInt, default=10, help="epochs of training")
    parser.add_argument("--seed", type=int, default=0, help="of weights, split and order")
    parser.add_argument(
        "--images", type=PositiveInt | None, default=None, help="use only so many of each set"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _demo(options: Namespace) -> int:
    """Run ``salmon demo``."""
    # Imported here and below, so that help and usage errors do not wait for Lightning.
    from salmon.cli.demo import DemoSettings, run_demo

    run_demo(
        DemoSettings(
            folder=options.out,
            epochs=options.epochs,
            seed=options.seed,
            images=options.images,
            progress=not options.quiet,
        )
    )
    return OK


def _diagnose_arguments(parser: ArgumentParser) -> None:
    """Of ``salmon diagnose``."""
    parser.add_class_arguments(JobSettings)
    _output_arguments(parser, "salmon-diagnosis", "new folder for flags, fits and summary")
    parser.add_argument(
        "--fit", type=str, default=None, help="fits to rank with, fit-*.safetensors"
    )
    parser.add_argument("--level", type=float, default=0.9, help="quantile level of thresholds")
    parser.add_argument("--top_k", type=int, default=25, help="filters reported per sample")
    parser.add_argument("--seed", type=int, default=0, help="of random choices")


def _diagnose(options: Namespace) -> int:
    """Run ``salmon diagnose``."""
    from salmon.cli.diagnose import run_diagnose

    return run_diagnose(_record(JobSettings, options), options)


def _repair_arguments(parser: ArgumentParser) -> None:
    """Of ``salmon repair``."""
    parser.add_class_arguments(JobSettings)
    _output_arguments(parser, "salmon-repair", "new folder for the reports and the patch")
    parser.add_argument(
        "--fit", type=str, default=None, help="fits of the reference data, fit-*.safetensors"
    )
    parser.add_argument("--dry-run", action="store_true", help="load and split, then stop")
    parser.add_argument("--seed", type=int, default=None, help="the same as --repair.seed")
    parser.add_argument(
        "--write_checkpoint", action="store_true", help="also write the repaired checkpoint"
    )
    parser.add_class_arguments(RepairSettings, "repair")


def _repair(options: Namespace) -> int:
    """Run ``salmon repair``."""
    from salmon.cli.repair import run_repair

    chosen = dict(vars(options.repair))
    if options.seed is not None:
        chosen["seed"] = options.seed
    return run_repair(_record(JobSettings, options), RepairSettings(**chosen), options)


def _patch_arguments(parser: ArgumentParser) -> None:
    """Of ``salmon apply`` and ``salmon revert``."""
    parser.add_class_arguments(PatchSettings)
    parser.add_argument("--force", action="store_true", help="replace the file --out")


def _patch(options: Namespace, *, new: bool) -> int:
    """Run ``salmon apply`` or ``salmon revert``."""
    from salmon.cli.patches import run_patch

    run_patch(_record(PatchSettings, options), new=new, force=options.force)
    return OK


def _report_arguments(parser: ArgumentParser) -> None:
    """Of ``salmon report``."""
    parser.add_argument("run", type=str, help="folder of a logger or diagnosis, or one above them")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page")
    parser.add_argument("--force", action="store_true", help="replace the file --out")
    parser.add_argument("--quiet", action="store_true", help="one line only")


def _report(options: Namespace) -> int:
    """Run ``salmon report``."""
    from salmon.cli.report import run_report

    return run_report(options)


_Fill = Callable[[ArgumentParser], None]
_Run = Callable[[Namespace], int]
_COMMANDS: dict[str, tuple[str, _Fill, _Run]] = {
    "demo": (
        "Train on MNIST digits; diagnose and repair on optical digits.",
        _demo_arguments,
        _demo,
    ),
    "diagnose": ("Find the filters behind a network's mistakes.", _diagnose_arguments, _diagnose),
    "repair": ("Look for a repair, judge it, write a patch.", _repair_arguments, _repair),
    "report": ("Make one page of the files of a run.", _report_arguments, _report),
    "apply": ("Put a patch on a checkpoint.", _patch_arguments, lambda o: _patch(o, new=True)),
    "revert": ("Take a patch off a checkpoint.", _patch_arguments, lambda o: _patch(o, new=False)),
}
