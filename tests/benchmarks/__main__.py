"""Run the benchmarks: ``python -m tests.benchmarks [--quick] [--json FILE]``.

Prints markdown tables. ``--quick`` takes about a minute and fails if a ratio is worse than 1.5
times the recorded one. Threads are bound (``OMP_PROC_BIND=true``): unbound ones make the figures
meaningless beside any other process.
"""

import argparse
import json
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

RECORDED = {  # by --quick on 2 cores without a GPU; 1.5 times as much is allowed
    "resnet18-32-b64: salmon / limit": 1.3,
    "mobilenet_v3_small-224-b16: salmon / limit": 1.3,
    "with monitor / (plain + limit)": 1.6,
}
FACTOR = 1.5


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(names)} |", f"{'|---' * len(names)}|"]
    lines += [f"| {' | '.join(cell(row.get(name, '')) for name in names)} |" for row in rows]
    return "\n".join(lines)


def _ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The ratios of a run that are recorded."""
    ratios = {f"{row['case']}: salmon / limit": row["salmon / limit"] for row in found["Saliency"]}
    return ratios | {
        name: row[name] for row in found["Callback"] for name in row if name in RECORDED
    }


def main() -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="a minute, with a regression check")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if os.environ.get("OMP_PROC_BIND") != "true":
        bound = os.environ | {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:]], bound)

    import torch

    from tests.benchmarks import saliency, statistics

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    quick = options.quick
    found: dict[str, list[dict[str, Any]]] = {
        "Saliency": saliency.rows(quick=quick),
        "Fit": [statistics.fit_row(quick=quick)],
        "Stream": [statistics.stream_row(quick=quick)],
        "Callback": [statistics.callback_row(quick=quick)],
    }
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, {'GPU' if torch.cuda.is_available() else 'no GPU'}"
    )
    for title, rows in found.items():
        print(f"\n## {title}\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if not quick:
        return 0
    ratios = _ratios(found)
    if any(ratio > FACTOR * RECORDED[name] for name, ratio in ratios.items()):
        # Perhaps something else kept the machine busy: what is slow stays slow.
        again = _ratios(
            {
                "Saliency": saliency.rows(quick=True),
                "Callback": [statistics.callback_row(quick=True)],
            }
        )
        ratios = {name: min(ratio, again[name]) for name, ratio in ratios.items()}
    worse = {n: r for n, r in ratios.items() if r > FACTOR * RECORDED[n]}
    for name, ratio in worse.items():
        print(f"\nSlower than recorded: {name} is {ratio:.2f}, recorded {RECORDED[name]}.")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
