"""Quantiles of the Anderson-Darling statistic of fitted generalized Pareto tails, by simulation.

    python -m tests.benchmarks.goodness_table [--count N] [--rows N]

Prints the constants ``LEVELS`` and ``QUANTILES`` of ``salmon.gpd.goodness``: for every true ``xi``
of the grid, rows of excesses are drawn, fitted by :func:`salmon.gpd.fit` and measured. Fits on the
boundary have no statistic and are left out; ``--count`` shows how little the quantiles depend on
the number of excesses. The seed is fixed, and all ``xi`` share their random numbers, so that the
table is smooth in ``xi``. Takes about three minutes on 2 cores.
"""

import argparse

import torch
from torch import Tensor

from salmon import gpd

COUNT = 500  # excesses per row
ROWS = 200_000  # 200 of them lie beyond the last level: 7 % of its probability
CHUNK = 10_000
SEED = 0
LEVELS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001)
XI = (-0.9, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5)


def statistics(xi: float, exponential: Tensor) -> Tensor:
    """``[F]`` statistics of fits to generalized Pareto excesses made of exponential ones."""
    excess = torch.expm1(xi * exponential) / xi if xi else exponential
    found = gpd.fit(excess)
    return gpd.anderson_darling(excess, found.xi, found.sigma)


def simulate(count: int, rows: int) -> dict[float, list[float]]:
    """The quantiles at ``LEVELS`` for every ``xi``."""
    generator = torch.Generator().manual_seed(SEED)
    found: dict[float, list[Tensor]] = {xi: [] for xi in XI}
    for start in range(0, rows, CHUNK):
        drawn = torch.empty(min(CHUNK, rows - start), count, dtype=torch.float64)
        drawn = drawn.exponential_(generator=generator).sort(dim=1, descending=True).values
        for xi in XI:
            found[xi].append(statistics(xi, drawn))
    at = 1 - torch.tensor(LEVELS, dtype=torch.float64)
    quantiles = {}
    for xi, parts in found.items():
        values = torch.cat(parts)
        quantiles[xi] = torch.quantile(values[~torch.isnan(values)], at).tolist()
    return quantiles


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.goodness_table")
    parser.add_argument("--count", type=int, default=COUNT, help="excesses per row")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows per xi")
    options = parser.parse_args()
    quantiles = simulate(options.count, options.rows)
    print(f"LEVELS = {LEVELS}")
    print("QUANTILES = {")
    for xi, values in quantiles.items():
        print(f"    {xi}: ({', '.join(str(round(1000 * value)) for value in values)}),")
    print("}")


if __name__ == "__main__":
    main()
