"""What the processes of a trainer measured, put together as if one process had measured it all.

Tails go by filter shards: each rank merges and fits F/size filters, and only the small fits are
handed to all. Of the samples, only mistakes are, with at most ``memory_mb`` of profiles together.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from salmon.gpd import TailFit
from salmon.monitor.ranks import Ranks
from salmon.monitor.trust import Evidence
from salmon.monitor.worst import WorstSamples
from salmon.ranking import Mistakes, priorities
from salmon.tails import Tails, example_excesses, example_filters, fit_tails


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Samples and mistakes of one rank, or of all."""

    measured: int
    dropped: int
    unlabelled: int
    evidence: Evidence
    mistakes: Mistakes  # all of them, by position
    ids: dict[int, int | str]  # of mistakes, by position
    id_source: str
    numbers: Tensor  # [M] positions of those whose profiles were kept
    profile: Tensor  # [M, F]


def fit_together(tails: Tails, level: float, ranks: Ranks) -> tuple[TailFit, dict[int, Tensor]]:
    """Fit the tails of all ranks' samples.

    Args:
        tails: Of this rank.
        level: Quantile level of the thresholds.
        ranks: All ranks.

    Returns:
        The same fits on every rank, and the excesses of a few filters.
    """
    if ranks.size == 1:
        fit = fit_tails(tails, level)
        return fit, example_excesses(tails, example_filters(fit), fit)
    merged = merged_shard(tails, ranks)
    start, end = shard_of(tails.num_filters, ranks.size, ranks.rank)
    part = ranks.together(lambda: fit_tails(merged, level, warn=ranks.first))
    fit = _joined_fit(part, end - start, ranks)
    own = {
        number: place
        for number in example_filters(fit).tolist()
        if 0 <= (place := number - start) < end - start
    }
    excesses = ranks.together(
        lambda: example_excesses(merged, torch.tensor(list(own.values()), dtype=torch.int64), part)
    )
    found = {number: excesses[place] for number, place in own.items()}
    everyone = {k: v for each in ranks.objects(found) for k, v in each.items()}
    return fit, {number: everyone[number] for number in example_filters(fit).tolist()}


def merged_shard(tails: Tails, ranks: Ranks) -> Tails:
    """Merge the tails of this rank's shard of the filters.

    Args:
        tails: Of this rank's samples.
        ranks: All ranks.

    Returns:
        The tails of the shard over all ranks' samples. A rank whose shard is empty gets those of
        the first filter, since it has to know the numbers of samples, too.
    """
    state = ranks.together(tails.state_dict)
    shards = (shard_of(tails.num_filters, ranks.size, rank) for rank in range(ranks.size))
    cuts = [(a, b) if b > a else (0, 1) for a, b in shards]
    # The types differ where a rank has no sample, or another precision.
    dtypes = ranks.objects((state["samples"], state["dropped"], state["largest"].dtype))
    wide = torch.float32
    for _, _, dtype in dtypes:
        wide = torch.promote_types(wide, dtype)
    largest = ranks.exchange([state["largest"][a:b].to(wide) for a, b in cuts])
    moments = torch.stack([state["mean"], state["m2"]], 1)
    moments_here = ranks.exchange([moments[a:b] for a, b in cuts])
    start, end = cuts[ranks.rank]

    def merge() -> Tails:
        whole = Tails(end - start, tails.capacity)
        for (samples, dropped, _), values, pair in zip(dtypes, largest, moments_here, strict=True):
            part = Tails(end - start, tails.capacity)
            part.load_state_dict(
                state | {
                    "samples": samples, "dropped": dropped, "largest": values,
                    "mean": pair[:, 0].contiguous(), "m2": pair[:, 1].contiguous(),
                }
            )  # fmt: skip
            whole.merge(part)
        return whole

    return ranks.together(merge)


def shard_of(filters: int, size: int, rank: int) -> tuple[int, int]:
    """First filter of a rank's shard, and the one behind its last.

    Args:
        filters: F.
        size: Number of ranks; with more ranks than filters, some have none.
        rank: Which.

    Returns:
        Numbers of filters; shards differ by one filter at most.
    """
    return filters * rank // size, filters * (rank + 1) // size


def _joined_fit(part: TailFit, own: int, ranks: Ranks) -> TailFit:
    """Fits of all shards, of so many filters here, under each other."""
    names = [f.name for f in fields(part) if isinstance(getattr(part, f.name), Tensor)]
    columns = torch.stack([getattr(part, name).double() for name in names], 1)[:own]
    whole = ranks.gather_rows(columns)
    values = {
        name: whole[:, i].to(getattr(part, name).dtype).contiguous() for i, name in enumerate(names)
    }
    others = {f.name: getattr(part, f.name) for f in fields(part) if f.name not in names}
    state: dict[str, Any] = others | values
    return TailFit(**state)


def join_found(found: Found, ranks: Ranks, memory: int, seed: int) -> Found:
    """Put together what all ranks found.

    Args:
        found: On this rank.
        ranks: All ranks.
        memory: Bytes of profiles that are kept, over all ranks.
        seed: Of the choice of mistakes whose profiles are kept.

    Returns:
        The same on every rank, in ascending order of position.
    """
    if ranks.size == 1:
        return found
    small = ranks.objects(
        (found.measured, found.dropped, found.unlabelled, found.mistakes, found.ids,
         found.numbers, found.profile.dtype, found.id_source, found.evidence.counts())
    )  # fmt: skip
    evidence = Evidence()
    for each in small:
        evidence.add(each[8])
    mistakes = Mistakes.join([each[3] for each in small])
    ids = {number: name for each in small for number, name in each[4].items()}
    offered = torch.cat([each[5] for each in small])
    wide = torch.float32
    for each in small:
        wide = torch.promote_types(wide, each[6])
    room = max(1, memory // (wide.itemsize * found.profile.shape[1]))
    kept = offered[priorities(offered, seed).argsort()[:room]].sort().values
    stays = torch.isin(found.numbers, kept)
    profile = ranks.gather_rows(found.profile[stays].to(wide))
    numbers = ranks.gather_rows(found.numbers[stays])
    order = numbers.argsort()
    return Found(
        measured=sum(each[0] for each in small),
        dropped=sum(each[1] for each in small),
        unlabelled=sum(each[2] for each in small),
        evidence=evidence,
        mistakes=mistakes.take(mistakes.sample.argsort()),
        ids=ids,
        id_source=next((each[7] for each in small if each[0]), found.id_source),
        numbers=numbers[order],
        profile=profile[order],
    )


def join_worst(worst: WorstSamples, ranks: Ranks) -> None:
    """Keep the worst mistakes of all ranks, on every rank.

    Args:
        worst: Of this rank; updated.
        ranks: All ranks.
    """
    if ranks.size == 1:
        return
    scores = ranks.objects(worst.scores())
    worst.restrict(scores)
    for rank, entries in enumerate(ranks.objects(worst.entries())):
        if rank != ranks.rank:
            worst.take(entries)
