"""The reservoir: uniform, bounded, and the same for every order and split."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from salmon.diagnosis.reservoir import Reservoir, priorities


@given(
    total=st.integers(0, 200),
    capacity=st.integers(1, 80),
    seed=st.integers(0, 2**63),
    size=st.integers(1, 50),
)
def test_any_order_and_split_keeps_the_same_samples(
    total: int, capacity: int, seed: int, size: int
) -> None:
    rows = torch.arange(total * 2.0).view(total, 2)
    numbers = torch.arange(total)
    straight = Reservoir(capacity, 2, seed)
    straight.offer(numbers, rows, numbers % 7)
    shuffled = Reservoir(capacity, 2, seed)
    for part in torch.randperm(total).split(size):
        shuffled.offer(numbers[part], rows[part], numbers[part] % 7)
    kept, kept_rows, classes = straight.kept()
    again, again_rows, _ = shuffled.kept()
    assert torch.equal(kept, again)
    assert torch.equal(kept_rows, again_rows)
    assert torch.equal(kept_rows, rows[kept])
    assert torch.equal(classes, kept % 7)
    assert len(kept) == min(total, capacity)
    assert kept.tolist() == sorted(kept.tolist())


def test_every_sample_has_the_same_chance() -> None:
    hits = torch.zeros(100)
    for seed in range(2000):
        hits[priorities(torch.arange(100), seed).argsort()[:20]] += 1
    # Binomial(2000, 0.2): mean 400, standard deviation 18; chi-squared with 99 degrees of freedom
    # (inclusion without replacement shrinks it by 0.8).
    chi2 = float(((hits - 400) ** 2 / 400).sum())
    assert 50 < chi2 < 130


def test_wider_numbers_widen_the_rows() -> None:
    reservoir = Reservoir(10, 3, 0)
    one = torch.tensor([1])
    reservoir.offer(one, torch.ones(1, 3), one)
    reservoir.offer(one - 1, torch.full((1, 3), 1 + 1e-12, dtype=torch.float64), one)
    _, rows, _ = reservoir.kept()
    assert rows.dtype == torch.float64
    assert rows[0, 0].item() == 1 + 1e-12
