"""The command ``salmon``: arguments and exit codes.

Exit codes: 0 done, accepted, passed, or nothing to repair; 1 repair rejected, or a gate failed;
2 usage or input error with one clear line, or an error in the user's own code with its traceback.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from salmon import __version__
from salmon.cli.options import (
    CompareOptions,
    DemoOptions,
    DiagnoseOptions,
    ExportOptions,
    PatchOptions,
    RepairOptions,
    ReportOptions,
    reason_of,
)
from salmon.errors import InputError


class _Command(NamedTuple):
    """A command: its help, what it takes, and ``module:function``, loaded when it is run."""

    text: str
    options: type[Any]
    runner: str


_COMMANDS = {
    "demo": _Command(
        "Train on MNIST digits; diagnose and repair on optical digits.",
        DemoOptions, "salmon.cli.demo:run_demo",
    ),
    "diagnose": _Command(
        "Find the filters behind a network's mistakes.",
        DiagnoseOptions, "salmon.cli.diagnose:run_diagnose",
    ),
    "repair": _Command(
        "Look for a repair, judge it, write a patch.",
        RepairOptions, "salmon.cli.repair:run_repair",
    ),
    "compare": _Command(
        "Compare two versions of a network, and judge the new one.",
        CompareOptions, "salmon.cli.compare:run_compare",
    ),
    "report": _Command(
        "Make one page of the files of a run.", ReportOptions, "salmon.cli.pages:run_report"
    ),
    "export": _Command(
        "Make one table of the flagged samples of a run.",
        ExportOptions, "salmon.cli.pages:run_export",
    ),
    "apply": _Command(
        "Put a patch on a checkpoint.", PatchOptions, "salmon.cli.checkpoints:apply_patch"
    ),
    "revert": _Command(
        "Take a patch off a checkpoint.", PatchOptions, "salmon.cli.checkpoints:revert_patch"
    ),
}  # fmt: skip


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run a command.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    given = list(map(_spelled, sys.argv[1:] if arguments is None else arguments))
    parser = _parser()
    try:
        options = parser.parse_args(given)
    except ArgumentError as error:
        known = [name for name in given[:1] if name in _COMMANDS]
        about = " ".join(["salmon", *known, "--help"])
        raise InputError(f"{reason_of(error)} (See {about}.)") from error
    name = options.subcommand
    command = _COMMANDS[name]
    record = parser.instantiate(options)[name]
    values = {field.name: record[field.name] for field in fields(command.options)}
    module, _, function = command.runner.partition(":")
    runner = getattr(importlib.import_module(module), function)
    if command.options is RepairOptions:  # what the config says counts where this does not
        explicit = parser.parse_args(given, defaults=False)[name].get("repair")
        return int(runner(RepairOptions(**values), {} if explicit is None else vars(explicit)))
    return int(runner(command.options(**values)))


def _parser() -> ArgumentParser:
    """The parser of the program, with a subcommand for each command."""
    parser = ArgumentParser(
        prog="salmon",
        description="Find the filters behind a network's mistakes, and repair them.",
        version=__version__,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, command in _COMMANDS.items():
        own = ArgumentParser(prog=f"salmon {name}", description=command.text, exit_on_error=False)
        switches = {field.name for field in fields(command.options) if field.default is False}
        second = {"other"} if command.options is ReportOptions else set()
        own.add_class_arguments(
            command.options, skip=switches | second, as_positional=name in ("report", "export")
        )
        texts = _attributes(command.options)
        for other in second:
            own.add_argument(other, nargs="?", type=Path, help=texts[other])
        for switch in sorted(switches):
            own.add_argument(f"--{switch}", action="store_true", help=texts[switch])
        commands.add_subcommand(name, own, help=command.text)
    return parser


def _attributes(options: type[Any]) -> dict[str, str]:
    """The sentences on each attribute in the docstrings of a record and its bases."""
    from docstring_parser import parse

    return {
        param.arg_name: (param.description or "").replace("\n", " ")
        for base in reversed(options.__mro__)
        for param in parse(base.__doc__ or "").params
    }


def _spelled(word: str) -> str:
    """An option with underscores for hyphens in its name; ``-o`` is short for ``--out``."""
    if word == "-o":
        return "--out"
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else word
