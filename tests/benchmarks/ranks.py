"""What several processes exchange: bytes, seconds and memory of merging and fitting tails.

``python -m tests.benchmarks.ranks [--write docs/scaling.md]`` starts 2 and 4 processes by torchrun
on the tails of ResNet-50's 26,560 filters with 1,024 values each, measures unit costs of the
other stages, and works out what larger runs take. Takes about three minutes on two cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FILTERS, CAPACITY = 26_560, 1024
SMALL = (2_000, 4_000)  # filters, samples per rank of the model's check
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"
FIT_COLUMNS = 12  # float64 numbers per filter of a fit that goes to all ranks


def worker(filters: int, samples: int) -> None:
    """One of the processes: fill tails, merge and fit them with the others, print its costs."""
    import torch
    import torch.distributed as dist
    from salmon.monitor.ranks import Ranks
    from salmon.monitor.union import fit_together

    from salmon import Tails

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    counted = _count_bytes(dist)
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    tails = Tails(filters, CAPACITY)
    for _ in range(samples // 64):
        tails.update(torch.rand(64, filters, generator=generator).pow_(4))
    dist.barrier()
    before = _peak_mb()
    start = time.perf_counter()
    fit_together(tails, 0.9, Ranks(rank, size))
    seconds = time.perf_counter() - start
    row = {
        "rank": rank, "seconds": seconds, "sent_mb": counted["bytes"] / 1e6,
        "grown_mb": _peak_mb() - before, "tails_mb": tails.nbytes / 1e6,
    }  # fmt: skip
    print("ROW " + json.dumps(row), flush=True)
    dist.destroy_process_group()


def _count_bytes(dist: Any) -> dict[str, float]:
    """Count what this process sends to others from now on."""
    counted = {"bytes": 0.0}
    exchange, gather = dist.all_to_all_single, dist.all_gather

    def exchanged(out: Any, sent: Any, outs: Any, ins: Any, **options: Any) -> Any:
        own = ins[dist.get_rank()]
        counted["bytes"] += (sum(ins) - own) * sent.element_size()
        return exchange(out, sent, outs, ins, **options)

    def gathered(parts: Any, part: Any, **options: Any) -> Any:
        counted["bytes"] += part.numel() * part.element_size() * (len(parts) - 1)
        return gather(parts, part, **options)

    dist.all_to_all_single, dist.all_gather = exchanged, gathered
    return counted


def _peak_mb() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(size: int, filters: int, samples: int) -> dict[str, float]:
    """Run so many processes; the worst rank counts."""
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [
        str(torchrun), "--standalone", "--nproc-per-node", str(size),
        "-m", "tests.benchmarks.ranks", "--worker", str(filters), str(samples),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    assert len(rows) == size
    return {name: max(row[name] for row in rows) for name in rows[0]}


def unit_costs() -> dict[str, float]:
    """Seconds of one thread per unit of each stage."""
    import torch

    from salmon import Tails, fit_tails

    torch.set_num_threads(1)
    filters, samples = 4_000, 4_096
    tails = Tails(filters, CAPACITY)
    values = torch.rand(64, filters).pow_(4)
    start = time.perf_counter()
    for _ in range(samples // 64):
        tails.update(values.mul_(1.0001))
    stream = (time.perf_counter() - start) / samples / filters
    tails = Tails(filters, CAPACITY)
    tails.update(torch.rand(samples, filters).pow_(4))
    start = time.perf_counter()
    fit_tails(tails, 0.9)
    fit = (time.perf_counter() - start) / filters
    other = Tails(filters, CAPACITY)
    other.update(torch.rand(samples, filters).pow_(4))
    start = time.perf_counter()
    tails.merge(other)
    return {"stream": stream, "fit": fit, "merge": (time.perf_counter() - start) / filters}


def model(
    filters: int, samples: int, size: int, unit: dict[str, float], bandwidth: float
) -> dict[str, float]:
    """Bytes, seconds and memory of the end of a pass on one rank."""
    kept = min(CAPACITY, -(-samples // size))
    shard = -(-filters // size)
    sent = (filters - shard) * (4 * kept + 16) + (size - 1) * shard * FIT_COLUMNS * 8
    taken = sent if size > 1 else 0
    return {
        "sent_mb": sent / 1e6 if size > 1 else 0.0,
        "exchange_s": (sent + taken) / bandwidth if size > 1 else 0.0,
        "merge_s": unit["merge"] * shard * size * kept / CAPACITY if size > 1 else 0.0,
        "fit_s": unit["fit"] * shard,
        "tails_mb": filters * 1.5 * CAPACITY * 4 / 1e6,
        # What is sent, what comes, and the shard that is merged, beside the tails themselves.
        "grown_mb": (3 * filters * kept + 2 * shard * 1.5 * CAPACITY) * 4 / 1e6,
    }


def tables() -> str:
    """All tables of the page."""
    unit = unit_costs()
    cases = [(2, FILTERS, 1_024), (4, FILTERS, 1_024), (2, *SMALL), (4, *SMALL)]
    found = {case: measured(*case) for case in cases}
    # Bandwidth of this machine's loopback, from one case; the others check it.
    first = found[cases[0]]
    rest = model(FILTERS, 2 * 1_024, 2, unit, 1.0)
    spare = max(0.1, first["seconds"] - rest["merge_s"] - rest["fit_s"])
    bandwidth = rest["exchange_s"] / spare
    lines = [
        "## Unit costs", "",
        "| stage | one thread |", "|---|---|",
        f"| stream | {1e9 * unit['stream']:.1f} ns per sample and filter |",
        f"| merge of two tails | {1e6 * unit['merge']:.0f} us per filter |",
        f"| fit with its test | {1e6 * unit['fit']:.0f} us per filter |",
        f"| exchange between processes of this machine | {bandwidth / 1e6:.0f} MB/s |", "",
        "## Measured, and the model beside it", "",
        "| ranks | filters | samples per rank | sent per rank, MB | model | merge and fit, s | "
        "model | memory grown, MB | model |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (size, filters, samples), row in found.items():
        guess = model(filters, size * samples, size, unit, bandwidth)
        # Two cores serve all processes of this machine.
        crowd = max(1.0, size / (os.cpu_count() or 1))
        total = guess["exchange_s"] + (guess["merge_s"] + guess["fit_s"]) * crowd
        lines.append(
            f"| {size} | {filters} | {samples} | {row['sent_mb']:.1f} | {guess['sent_mb']:.1f} | "
            f"{row['seconds']:.1f} | {total:.1f} | {row['grown_mb']:.0f} | "
            f"{guess['grown_mb']:.0f} |"
        )
    lines += [
        "", "## Larger runs, by the model", "",
        "| run | ranks | stream per rank, s | sent per rank, MB | exchange at 1 GB/s, s | "
        "merge, s | fit, s | tails per rank, MB | more at the end, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, samples, size in (
        ("ImageNet, ResNet-50", 50_000, 1), ("ImageNet, ResNet-50", 50_000, 8),
        ("10 million, ResNet-50", 10_000_000, 64), ("10 million, ResNet-50", 10_000_000, 1024),
    ):  # fmt: skip
        guess = model(FILTERS, samples, size, unit, 1e9)
        stream = unit["stream"] * FILTERS * samples / size
        lines.append(
            f"| {name}, {samples} samples | {size} | {stream:.0f} | {guess['sent_mb']:.0f} | "
            f"{guess['exchange_s']:.2f} | {guess['merge_s']:.1f} | {guess['fit_s']:.1f} | "
            f"{guess['tails_mb']:.0f} | {guess['grown_mb'] if size > 1 else 0:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print, or put into a page."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks")
    parser.add_argument("--write", type=Path, help="put the tables into this markdown file")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    text = tables()
    print(text)
    if options.write:
        page = options.write.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
