"""The command ``salmon``: arguments and exit codes.

Exit codes: 0 done, 2 usage or input error with one clear line.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salmon import __version__
from salmon.errors import SalmonError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        # Imported here, so that help and usage errors do not wait for Lightning.
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
    except SalmonError as error:
        print(f"salmon: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="salmon", description="Find the filters behind a network's mistakes."
    )
    parser.add_argument("--version", action="version", version=f"salmon {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train on MNIST digits, diagnose on optical digits",
        description="Train ResNet-18 on 4,000 MNIST digits with the monitor in its trainer, then "
        "diagnose it on 1,797 optical digits of other writers. Needs the extra 'demo'.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("salmon-demo"), help="new folder for logs")
    demo.add_argument("--epochs", type=_positive, default=10, help="epochs of training")
    demo.add_argument("--seed", type=int, default=0, help="of weights, split and order")
    demo.add_argument("--images", type=_positive, help="use only so many images of each set")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; at least 1 is needed")
    return number
