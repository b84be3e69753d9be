"""Orders of the filters, each against a plain loop, and the same share of every layer."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import log, log1p

import pytest
import torch
from torch import Tensor, nn

from salmon import FilterIndex, InputError, Tails, fit_tails
from salmon.gpd import TailFit, predictive_log_survival
from salmon.repairs.orders import ORDERS, SPREAD, check_order, filter_order

NETWORK = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 12, 3), nn.ConvTranspose2d(12, 8, 3))
INDEX = FilterIndex.from_model(NETWORK, groups=lambda layer: f"at{layer}")
SAMPLES = 7


@cache
def fit() -> TailFit:
    random = torch.Generator().manual_seed(0)
    tails = Tails(len(INDEX))
    scale = torch.rand(len(INDEX), generator=random) + 0.5
    tails.update(scale * torch.rand(200, len(INDEX), generator=random).log().neg())
    return fit_tails(tails, 0.9)


def profile() -> Tensor:
    """``[SAMPLES, F]``; some filters are above their threshold in some samples, others in none."""
    random = torch.Generator().manual_seed(1)
    found = 3 * torch.rand(SAMPLES, len(INDEX), generator=random, dtype=torch.float64).square()
    found[:, ::6] *= 0.1
    return found


def weights() -> dict[str, Tensor]:
    return {name: value.detach() for name, value in NETWORK.named_parameters()}


def gradients() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)
    return {
        layer.weight: torch.randn(weights()[layer.weight].shape, generator=random).double()
        for layer in INDEX.layers
    }


def order_of(name: str, *, index: FilterIndex = INDEX, seed: int = 0) -> list[int]:
    if index is INDEX:
        found = filter_order(name, index, fit(), profile(), gradients(), weights(), seed)
    else:  # where only the profile is asked for
        random = torch.Generator().manual_seed(3)
        saliency = torch.rand(4, len(index), generator=random, dtype=torch.float64)
        found = filter_order(name, index, fit(), saliency, {}, {}, seed)
    assert found.dtype == torch.int64
    return found.tolist()


def best_first(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda number: -scores[number])


def ml_log_p(value: float, number: int) -> float:
    """By the survival function of the generalised Pareto distribution."""
    tail = fit()
    xi, sigma = float(tail.xi[number]), float(tail.sigma[number])
    excess = value - float(tail.threshold[number])
    rate = float(tail.exceedances[number]) / tail.samples
    if abs(xi) < 1e-12:
        return log(rate) - excess / sigma
    inside = xi * excess / sigma
    return max(-700.0, log(rate) - log1p(inside) / xi) if inside > -1 else -700.0


def shrunk_log_p(value: float, number: int) -> float:
    """By the posterior of the fit, without its table."""
    tail = fit()
    assert tail.posterior is not None
    excess = torch.tensor([value], dtype=torch.float64) - tail.threshold[number]
    survival = predictive_log_survival(tail.posterior, excess, torch.tensor([number]), own=False)
    return log(float(tail.rate[number])) + float(survival)


def raised_sums(log_p: dict[tuple[int, int], float]) -> dict[int, float]:
    sums: dict[int, float] = {}
    for (_, number), value in log_p.items():
        sums[number] = sums.get(number, 0.0) - value
    return sums


def above() -> list[tuple[int, int]]:
    """Samples and filters above the threshold."""
    return [
        (sample, number)
        for sample, row in enumerate(profile().tolist())
        for number, value in enumerate(row)
        if value > float(fit().threshold[number])
    ]


def test_the_example_has_tails_with_some_filters_above_and_some_not() -> None:
    assert bool(fit().usable.all())
    assert 5 < len({number for _, number in above()}) < len(INDEX)
    assert all(ml_log_p(float(profile()[s, f]), f) > -700 for s, f in above())


def test_pot_sums_log_p_over_the_samples_above_the_threshold() -> None:
    values = profile()
    sums = raised_sums({(s, f): shrunk_log_p(float(values[s, f]), f) for s, f in above()})
    found = order_of("pot")
    assert set(found) == set(sums)
    for earlier, later in pairwise(found):
        assert sums[earlier] >= sums[later] * (1 - 0.004)  # the table is good to 0.2 % of log S


def test_pot_ml_does_so_by_maximum_likelihood() -> None:
    values = profile()
    sums = raised_sums({(s, f): ml_log_p(float(values[s, f]), f) for s, f in above()})
    assert order_of("pot-ml") == best_first(sums)


def test_filters_without_a_tail_come_in_no_order_by_pot() -> None:
    without = replace(fit(), status=fit().status.clone())
    first = order_of("pot")[0]
    without.status[first] = 3
    found = filter_order("pot", INDEX, without, profile(), gradients(), weights(), 0)
    assert found.tolist() == order_of("pot")[1:]


def test_zscore_takes_the_mean_deviation() -> None:
    columns = list(zip(*profile().tolist(), strict=True))
    scores = {
        number: sum((v - float(fit().mean[number])) / float(fit().std[number]) for v in column)
        for number, column in enumerate(columns)
    }
    assert order_of("zscore") == best_first(scores)


def means() -> dict[int, float]:
    return {f: sum(c) / SAMPLES for f, c in enumerate(zip(*profile().tolist(), strict=True))}


def test_magnitude_takes_the_mean_saliency() -> None:
    assert order_of("magnitude") == best_first(means())


def test_gradient_takes_the_gradient_relative_to_the_filter() -> None:
    scores: dict[int, float] = {}
    for name in ("0.weight", "1.weight", "2.weight"):
        for channel in range(weights()[name].shape[1 if name == "2.weight" else 0]):
            g, w = (
                (t[:, channel] if name == "2.weight" else t[channel]).double()
                for t in (gradients()[name], weights()[name])
            )
            ratio = g.square().sum().sqrt() / w.square().sum().sqrt()
            scores[len(scores)] = float(ratio)
    assert order_of("gradient") == best_first(scores)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("group", range(17, 25)),
        ("group:at2", range(17, 25)),
        ("group:at0", range(5)),
        ("group:at1", range(5, 17)),
    ],
)
def test_group_takes_the_filters_of_one_group_by_magnitude(name: str, members: range) -> None:
    assert order_of(name) == best_first({f: m for f, m in means().items() if f in members})


def test_random_draws_differ_and_repeat_with_the_seed() -> None:
    names = ("random", "random:1", "random:2", "random:17")
    draws = [order_of(name, seed=seed) for name in names for seed in (0, 1)]
    assert all(sorted(draw) == list(range(len(INDEX))) for draw in draws)
    assert len(set(map(tuple, draws))) == len(draws)
    assert draws == [order_of(name, seed=seed) for name in names for seed in (0, 1)]


def test_an_order_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    order_of("random:3")
    assert torch.equal(torch.get_rng_state(), before)


def index_of(*widths: int) -> FilterIndex:
    layers = [nn.Conv2d(1, width, 1) for width in widths]
    return FilterIndex.from_model(nn.ModuleList(layers))


def furthest(index: FilterIndex, order: list[int]) -> float:
    """The largest distance of a layer's count in some first filters from its share of them."""
    sizes = torch.tensor([layer.filters for layer in index.layers]).double()
    hot = nn.functional.one_hot(index.layer_of[torch.tensor(order)], len(sizes)).double()
    share = torch.arange(1, len(order) + 1).double() / len(order)
    return float((hot.cumsum(0) - share.unsqueeze(1) * sizes).abs().max())


WIDTHS = {
    "small": (5, 12, 8),
    "alike": (16, 16, 16, 16),
    "growing": (16, 32, 64, 128, 256),
    "resnet18": (64,) * 5 + (128,) * 5 + (256,) * 5 + (512,) * 5,
}


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("order", ["spread:magnitude", "spread:random:4"])
def test_any_first_filters_of_a_spread_order_are_the_same_share_of_every_layer(
    name: str, order: str
) -> None:
    index = index_of(*WIDTHS[name])
    found = order_of(order, index=index)
    assert sorted(found) == list(range(len(index)))
    assert furthest(index, found) <= 1  # filter


@pytest.mark.parametrize("order", [name for name in ORDERS if name != "group"])
def test_a_spread_order_keeps_the_order_inside_each_layer(order: str) -> None:
    plain, spread = order_of(order), order_of(SPREAD + order)
    assert sorted(spread) == sorted(plain)
    for position in range(len(INDEX.layers)):
        own = [[f for f in each if INDEX.layer_of[f] == position] for each in (plain, spread)]
        assert own[0] == own[1]


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_known_with_and_without_spread(name: str) -> None:
    assert check_order(name)
    assert check_order(SPREAD + name)


UNKNOWN = (
    "", "all", "POT", "pot:1", "spread", "spread:", "spread:spread:pot", "spread:pot:2",
    "gradient:layer1", "pot-mle", "random 3", "random:x", "random:1.5", "random:", "group:",
    "zscore:", "spread:pot:",
)  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_orders_are_refused(name: str) -> None:
    assert not check_order(name)


def test_random_draws_and_groups_have_names() -> None:
    assert all(map(check_order, ("random:12", "group:conv5_x", "spread:random:0", "spread:group")))


@pytest.mark.parametrize("name", ["group:at3", "spread:group:at"])
def test_an_unknown_group_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(InputError, match=r"names no group of this network; it has at0, at1, at2\."):
        order_of(name)
