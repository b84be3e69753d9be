"""Run the benchmarks: ``python -m tests.benchmarks [--quick | --only TABLE ...] [--write FILE]``.

Prints markdown tables. ``--quick`` takes about a minute and fails if a ratio is worse than 1.5
times the recorded one. Threads are bound (``OMP_PROC_BIND=true``): unbound ones make the figures
meaningless beside any other process. Rivals that are not installed are left out; the extra
``benchmarks`` has them.
"""

import argparse
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = {  # by --quick on 2 cores without a GPU; 1.5 times as much is allowed
    "resnet18-32-b64: salmon / limit": 1.15,
    "mobilenet_v3_small-224-b16: salmon / limit": 1.08,
    "fit, in passes of log1p": 19.0,
    "with monitor / (plain + limit)": 1.45,
}
FACTOR = 1.5
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"
Tables = dict[str, list[dict[str, Any]]]


def markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """Rows as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(names)} |", f"{'|---' * len(names)}|"]
    lines += [f"| {' | '.join(cell(row.get(name, '')) for name in names)} |" for row in rows]
    return "\n".join([f"## {title}", "", *lines, ""])


def ratios_of(found: Tables) -> dict[str, float]:
    """The ratios of a run that are recorded."""
    ratios = {
        f"{row['case']}: salmon / limit": row["salmon / limit"].ratio for row in found["Saliency"]
    }
    ratios["fit, in passes of log1p"] = found["Fit"][0]["in passes of log1p"].ratio
    name = "with monitor / (plain + limit)"
    return ratios | {name: found["Callback"][0][name].ratio}


def main() -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a minute, with a regression check")
    which.add_argument(
        "--only", metavar="TABLE", nargs="+", help="of the full run, by their titles"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--write", type=Path, help="put the tables into this markdown file")
    options = parser.parse_args()
    if os.environ.get("OMP_PROC_BIND") != "true":
        bound = os.environ | {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:]], bound)

    for name in ("pytorch_lightning", "lightning.pytorch", "salmon"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    tasks = _tasks(quick=options.quick)
    wanted = options.only or list(tasks)
    if unknown := [title for title in wanted if title not in tasks]:
        parser.error(f"--only is {unknown[0]!r}; one of {', '.join(tasks)} is needed")
    found = _made({title: tasks[title] for title in tasks if title in wanted}, options)
    if not options.quick:
        return 0
    ratios = ratios_of(found)
    if any(ratio > FACTOR * RECORDED[name] for name, ratio in ratios.items()):
        # Perhaps something else kept the machine busy: what is slow stays slow.
        again = ratios_of({title: tasks[title]() for title in ("Saliency", "Fit", "Callback")})
        ratios = {name: min(ratio, again[name]) for name, ratio in ratios.items()}
    worse = {n: r for n, r in ratios.items() if r > FACTOR * RECORDED[n]}
    for name, ratio in worse.items():
        print(f"\nSlower than recorded: {name} is {ratio:.2f}, recorded {RECORDED[name]}.")
    return 1 if worse else 0


def _made(tasks: dict[str, Callable[[], list[dict[str, Any]]]], options: Any) -> Tables:
    """Make tables, and keep each as soon as it is made."""
    from tests.benchmarks.measure import machine

    print(machine(), end="\n\n")
    found: Tables = {}
    for title, task in tasks.items():
        found[title] = task()
        table = markdown(title, found[title])
        print(table, flush=True)
        if options.json:
            everything = {"machine": machine()} | found
            options.json.write_text(json.dumps(everything, indent=1, default=vars_of))
        if options.write:
            _write(options.write, title, table)
    if options.write and options.only is None:
        _name_machine(options.write, machine())
    return found


def _tasks(*, quick: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What makes each table."""
    import torch

    from tests.benchmarks import (
        calibration,
        choice,
        comparison,
        findings,
        repairs,
        saliency,
        statistics,
        views,
    )

    tasks: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "Saliency": lambda: saliency.rows(quick=quick),
        "Fit": lambda: statistics.fit_rows(quick=quick),
        "Callback": lambda: statistics.callback_rows(quick=quick),
        "Stream": lambda: statistics.stream_rows(quick=quick),
    }
    if not quick:
        tasks |= {
            "Mistakes first": choice.rows,
            "Memory": saliency.memory_rows,
            "Views": views.rows,
            "Saliency by batch and input": saliency.curve_rows,
            "Fit by filters and excesses": statistics.fit_curve_rows,
            "Posterior": statistics.posterior_rows,
            "Calibration": calibration.rows,
            "Findings": findings.rows,
            "Repair": repairs.rows,
            "Orders of filters": repairs.order_rows,
            "Noise": repairs.noise_rows,
            "Comparison": comparison.rows,
        }
        if torch.cuda.is_available():
            tasks["Saliency on a GPU"] = saliency.gpu_rows
    return tasks


def _write(path: Path, title: str, table: str) -> None:
    """Put a table into a file, in place of the one of its title."""
    before, rest = path.read_text().split(BEGIN)
    inside, after = rest.split(END)
    old = re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
    inside, count = old.subn(table.replace("\\", r"\\"), inside)
    inside += "" if count else f"\n{table}"
    path.write_text(f"{before}{BEGIN}{inside}{END}{after}")


def _name_machine(path: Path, machine: str) -> None:
    """Say before the tables which machine made them all."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{machine}\n\n{rest[rest.index('## ') :]}")


def vars_of(timing: Any) -> dict[str, float]:
    """A timing as plain values."""
    return {name: getattr(timing, name) for name in timing.__slots__}


if __name__ == "__main__":
    sys.exit(main())
