"""What findings tell and what they cannot: flags drawn at random, and filters that are broken."""

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor, nn

from salmon import FilterIndex, Pass, Tails, filter_saliency, fit_tails, rank_filters
from salmon.diagnosis import Mistakes, find
from salmon.diagnosis.chance import excesses
from salmon.ranking import Ranking
from tests.benchmarks.repairs import subject

SEEDS = 100
MISTAKES = (10, 20, 50, 100, 500)
DRAWS = 30  # of each case
BROKEN = 10
TRIES = 400
COST = 0.10  # of accuracy, by which a broken filter counts
LOUDER = 5.0  # norm of its random weights, in that of the old ones
TOP_K = 25


def rows() -> list[dict[str, Any]]:
    """Both on the demo's network (seed 0) and its held-out images."""
    model, _, held_out = subject(0)
    images, labels = held_out.inputs, held_out.targets
    ranking = ranked(model, images, labels)
    return [
        honesty(model, images, labels, ranking), *power(model, images, labels, ranking),
        *broken(model, images[:1000], labels[:1000]),
    ]  # fmt: skip


def ranked(model: nn.Module, images: Tensor, labels: Tensor) -> Ranking:
    """The filters of every sample, by tails of all of them."""
    index = FilterIndex.from_model(model)
    profile = torch.cat([
        filter_saliency(model, some, some_labels, index)
        for some, some_labels in zip(images.split(256), labels.split(256), strict=True)
    ])  # fmt: skip
    tails = Tails(len(index))
    tails.update(profile)
    return rank_filters(profile, fit_tails(tails, index=index), top_k=TOP_K, own=True)


def honesty(model: nn.Module, images: Tensor, labels: Tensor, ranking: Ranking) -> dict[str, Any]:
    """Passes with a finding, where who is wrong is drawn and nothing else is changed."""
    predicted = _predicted(model, images)
    filters = len(FilterIndex.from_model(model))
    wrong_ones, found = int((predicted != labels).sum()), 0
    for seed in range(SEEDS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        wrong, right = order[:wrong_ones], order[wrong_ones : wrong_ones + 500]
        real = torch.zeros(len(wrong), dtype=torch.float64)
        mistakes = Mistakes(
            sample=wrong, ids=wrong.tolist(), batch=wrong, target=labels[wrong],
            predicted=predicted[wrong], loss=real,
        )  # fmt: skip
        of_right = ranking.take(right), labels[right]
        findings = find(mistakes, ranking.take(wrong), *of_right, filters, seed=seed)
        found += bool(findings.found)
    return {"case": "flags drawn at random", "passes with a finding": f"{found} of {SEEDS}"}


def power(
    model: nn.Module, images: Tensor, labels: Tensor, ranking: Ranking
) -> list[dict[str, Any]]:
    """In how many of M mistakes a filter has to be, to be found in nine of ten draws.

    Right samples play the mistakes; a filter drawn by the seed takes the last place of some.
    """
    filters = len(FilterIndex.from_model(model))
    right = ranking.filters[_predicted(model, images) == labels]
    found = []
    for mistakes in MISTAKES:

        def seen(planted: int, mistakes: int = mistakes) -> float:
            return sum(
                _is_found(right, filters, mistakes, planted, seed) for seed in range(DRAWS)
            ) / DRAWS  # fmt: skip

        enough = bisect_left(range(1, mistakes + 1), 0.9, key=seen) + 1
        text = f"{enough} of {mistakes}" if enough <= mistakes else "never"
        found.append({"case": f"{mistakes} mistakes", "found from": text})
    return found


def _is_found(right: Tensor, filters: int, mistakes: int, planted: int, seed: int) -> bool:
    """Whether a filter that so many mistakes blame is found."""
    random = torch.Generator().manual_seed(seed)
    order, number = torch.randperm(len(right), generator=random), _any(filters, random)
    wrong = right[order[:mistakes]].clone()
    wrong[:planted, -1] = torch.where((wrong[:planted] == number).any(1), -1, number)
    others = right[order[mistakes : mistakes + 500]]
    (excess,) = excesses([(wrong, others)], filters, seed=seed)
    return bool(2 * excess.p[number] <= 0.05)


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(some).argmax(1) for some in images.split(256)])


def broken(model: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Where a filter with random weights stands among all, by three orders; the first is place 1.

    ``own tails``: mistakes against right samples, as the monitor finds. ``earlier tails``: those
    of the network before the damage rank its mistakes, held against the mistakes made before.
    ``magnitude``: by the largest saliency.
    """
    before = _pass(model, images, labels).compute()
    index, random = before.index, torch.Generator().manual_seed(0)
    weights, found = dict(model.named_parameters()), list[dict[str, Any]]()
    was = _right(model, images, labels)
    for _ in range(TRIES):
        of_layer = (index.layer_of == _any(len(index.layers), random)).nonzero().squeeze(1)
        number = int(of_layer[_any(len(of_layer), random)])
        layer, channel = index.locate(number)
        row = weights[layer.weight].data[channel]
        old, noise = row.clone(), torch.randn(row.shape, generator=random)
        row.copy_(noise * (LOUDER * old.norm() / noise.norm()))
        now = _right(model, images, labels)
        if now <= was - COST:
            after = _pass(model, images, labels).compute()
            earlier = rank_filters(after.profile, before.fit, top_k=TOP_K)
            (since,) = excesses([(earlier.filters, before.rankings["pot"].filters)], len(index))
            own = after.findings
            blamed = torch.bincount(
                after.rankings["pot"].filters.flatten().clamp_min(0), minlength=len(index)
            )
            largest = after.profile.topk(TOP_K).indices.flatten()
            orders = {
                "own tails": blamed - own.expected.nan_to_num(0),
                "earlier tails": since.mistakes - since.expected.nan_to_num(0),
                "magnitude": torch.bincount(largest, minlength=len(index)).double(),
            }
            places = {n: 1 + int((each > each[number]).sum()) for n, each in orders.items()}
            label = f"broken: {index.label(number)}"
            found.append(
                {"case": label, "right, %": f"{100 * was:.1f} to {100 * now:.1f}"} | places
            )
        row.copy_(old)
        if len(found) == BROKEN:
            break
    return found


def _any(number: int, random: torch.Generator) -> int:
    """One of so many."""
    return int(torch.randint(number, (), generator=random))


def _pass(model: nn.Module, images: Tensor, labels: Tensor) -> Pass:
    own = Pass(model)
    for some, some_labels in zip(images.split(250), labels.split(250), strict=True):
        own.update(some, some_labels)
    return own


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of them that the network gets right, by the first 300."""
    with torch.no_grad():
        return float((model(images[:300]).argmax(1) == labels[:300]).double().mean())
