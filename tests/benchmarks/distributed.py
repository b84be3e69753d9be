"""What several processes pay at the end of a pass: seconds and memory of merging and fitting tails.

``python -m tests.benchmarks.distributed [--write docs/scaling.md]`` starts 2 and 4 processes by
torchrun on the tails of ResNet-50's 26,560 filters with 1,024 values each. Takes about a minute.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

FILTERS, CAPACITY, SAMPLES = 26_560, 1024, 1_024  # samples of each process
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"


def worker() -> None:
    """One of the processes: fill tails, merge and fit them with the others, print its costs."""
    import torch
    import torch.distributed as dist

    from salmon import Tails, fit_tails
    from salmon.monitor.distributed import Processes

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size())
    generator = torch.Generator().manual_seed(processes.rank)
    tails = Tails(FILTERS, CAPACITY)
    for _ in range(SAMPLES // 64):
        tails.update(torch.rand(64, FILTERS, generator=generator).pow_(4))
    dist.barrier()
    before, start = _peak_mb(), time.perf_counter()
    processes.reduce(tails, tails.merge)
    merged = time.perf_counter() - start
    processes.on_first(lambda: fit_tails(tails, 0.9))
    row = {
        "merge": merged, "all": time.perf_counter() - start, "tails": tails.nbytes / 1e6,
        "grown": _peak_mb() - before,
    }  # fmt: skip
    print("ROW " + json.dumps(row), flush=True)
    dist.destroy_process_group()


def _peak_mb() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(size: int) -> dict[str, float]:
    """Run so many processes; the worst one counts."""
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [
        str(torchrun), "--standalone", "--nproc-per-node", str(size),
        "-m", "tests.benchmarks.distributed", "--worker",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # Processes that print at the same time may share a line.
    rows = [json.loads(part) for part in re.findall(r"ROW (\{.*?\})", done.stdout)]
    assert len(rows) == size
    return {name: max(row[name] for row in rows) for name in rows[0]}


def table() -> str:
    """The table of the page."""
    lines = [
        "| processes | filters | merge, s | merge and fit, s | tails of each, MB | more, MB |",
        "|---|---|---|---|---|---|",
    ]
    for size in (2, 4):
        row = measured(size)
        lines.append(
            f"| {size} | {FILTERS} | {row['merge']:.1f} | {row['all']:.1f} | {row['tails']:.0f} | "
            f"{row['grown']:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print, or put into a page."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.distributed")
    parser.add_argument("--write", type=Path, help="put the table into this markdown file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    text = table()
    print(text)
    if options.write:
        page = options.write.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
