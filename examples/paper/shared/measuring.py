"""Measuring: tails of a statistics set, mistakes on a target set, and the rankings of the mistakes.

Every step keeps what it found as parts, so that a second start goes on from there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.paper.shared.images import Images, batches, draw
from examples.paper.shared.options import Options
from examples.paper.shared.parts import Parts
from salmon import FilterIndex, InputError, Ranking, TailFit, Tails, filter_saliency, fit_tails
from salmon import rank_filters as rank
from salmon.ranking import filter_shares, group_shares

LEVEL = 0.90
KEEP_EVERY = 5000  # images between two notes of how far the statistics are

Say = Callable[[str, int, int], None]
_FIELDS = ("filters", "score", "saliency", "log_p", "z", "ranked")
_NUMBERS = ("samples", "dropped", "level", "top")


@dataclass(frozen=True, slots=True, eq=False)
class Mistakes:
    """Misclassified images of a target set, with their rankings."""

    images: int  # looked at
    wrong: int  # of these
    rows: Tensor  # [M] those that are edited, numbers in the set
    rankings: dict[str, Ranking]  # by name

    @property
    def accuracy(self) -> float:
        """Share of right images."""
        return 1 - self.wrong / self.images


def tails_of(
    parts: Parts, model: nn.Module, index: FilterIndex, images: Images, options: Options, say: Say
) -> TailFit:
    """Fit the tails of a statistics set.

    Args:
        parts: Where they are kept.
        model: In eval mode, on its device.
        index: The filters.
        images: The set.
        options: Of the experiment.
        say: Gets progress.

    Raises:
        InputError: If there are too few images for any fit.
    """

    def make() -> dict[str, Tensor]:
        rows = draw(torch.arange(len(images)), options.statistics, options.seed)
        # Enough of the largest values for the level, however many images there are.
        tails = Tails(len(index), capacity=max(1024, len(rows) // 9))
        started = parts.find("statistics-so-far")
        if started is not None:
            tails.load_state_dict(_plain(started, ("version", "capacity", "samples", "dropped")))
        done = tails.samples + tails.dropped
        for batch in batches(images, rows[done:], options.batch_size, options.workers):
            tails.update(profile_of(model, index, batch.inputs, batch.targets))
            before, done = done, done + len(batch)
            say("statistics", done, len(rows))
            if done // KEEP_EVERY > before // KEEP_EVERY and done < len(rows):
                parts.store("statistics-so-far", _tensors(tails.state_dict()))
        fit = fit_tails(tails, LEVEL)
        if not bool(fit.usable.any()):
            raise InputError(
                f"no filter could be fitted to {len(rows)} images for the statistics; at least "
                "about 100 are needed, and a network through which their gradients differ."
            )
        return _tensors(fit.state_dict())

    found = TailFit.from_state_dict(_plain(parts.tensors("fit", make), _NUMBERS))
    parts.forget("statistics-so-far")
    return found


def mistakes_of(
    parts: Parts, model: nn.Module, index: FilterIndex, fit: TailFit, images: Images,
    options: Options, say: Say,
) -> Mistakes:  # fmt: skip
    """Find the misclassified images of a target set, and rank the filters of each.

    Args:
        parts: Where they are kept.
        model: In eval mode, on its device.
        index: The filters.
        fit: Tails of the statistics set.
        images: The target set.
        options: Of the experiment.
        say: Gets progress.

    Raises:
        InputError: If no image is misclassified.
    """
    wrong = parts.tensors("wrong", lambda: {"rows": _wrong(model, images, options, say)})["rows"]
    if len(wrong) == 0:
        raise InputError(
            f"none of {len(images)} images is misclassified; there is nothing to rank."
        )
    rows = draw(wrong, options.limit, options.seed)
    names = {name: method_of(name, index) for name in options.rankings}

    def make() -> dict[str, Tensor]:
        found: dict[str, list[Ranking]] = {name: [] for name in names}
        done = 0
        for batch in batches(images, rows, options.batch_size, options.workers):
            profile = profile_of(model, index, batch.inputs, batch.targets)
            for name, method in names.items():
                # Other shuffles for every image: row i of a call has the seed's i-th.
                seed = options.seed * 1_000_003 + done
                found[name].append(rank(profile, fit, method, top_k=25, index=index, seed=seed))
            done += len(batch)
            say("ranking", done, len(rows))
        return {
            f"{name}.{field}": torch.cat([getattr(part, field) for part in parts_of])
            for name, parts_of in found.items()
            for field in _FIELDS
        }

    stored = parts.tensors("rankings", make)
    rankings = {
        name: Ranking(method=method, **{field: stored[f"{name}.{field}"] for field in _FIELDS})
        for name, method in names.items()
    }
    return Mistakes(len(images), len(wrong), rows, rankings)


def method_of(name: str, index: FilterIndex) -> str:
    """The ranking behind a name; ``last_group`` is magnitude within the last group.

    Args:
        name: One of the options' rankings.
        index: The filters.
    """
    return f"group:{index.groups[-1]}" if name == "last_group" else name


def profile_of(model: nn.Module, index: FilterIndex, inputs: Tensor, targets: Tensor) -> Tensor:
    """Saliency of a batch, on the CPU.

    Args:
        model: In eval mode.
        index: The filters.
        inputs: ``[N, 3, H, W]``.
        targets: ``[N]``.
    """
    device = next(model.parameters()).device
    return filter_saliency(model, inputs.to(device), targets.to(device), index).cpu()


def shares_of(mistakes: Mistakes, index: FilterIndex) -> dict[str, dict[str, float]]:
    """Shares of the groups among the top filters, by ranking, and among all filters.

    Args:
        mistakes: The ranked ones.
        index: The filters.
    """
    found = {"all filters": filter_shares(index)}
    for name in ("zscore", "pot"):
        if name in mistakes.rankings:
            found[name] = group_shares(mistakes.rankings[name], index)
    return found


def facts_of(fit: TailFit, mistakes: Mistakes) -> dict[str, Any]:
    """What to say of a measurement.

    Args:
        fit: Of the statistics set.
        mistakes: Of the target set.
    """
    pot = mistakes.rankings.get("pot")
    short = None if pot is None else float((pot.ranked < 25).double().mean())
    return asdict(Facts(fit.samples, mistakes.images, mistakes.wrong, len(mistakes.rows), short))


@dataclass(frozen=True, slots=True)
class Facts:
    """Numbers beside a result."""

    statistics: int  # images the tails were fitted to
    images: int  # of the target set
    wrong: int  # misclassified
    edited: int  # of these
    short: float | None  # share of the edited ones with fewer than 25 filters ranked by POT


@torch.no_grad()
def _wrong(model: nn.Module, images: Images, options: Options, say: Say) -> Tensor:
    """Numbers of the misclassified images."""
    device = next(model.parameters()).device
    found, done = [], 0
    rows = torch.arange(len(images))
    for batch in batches(images, rows, options.batch_size, options.workers):
        found.append(model(batch.inputs.to(device)).argmax(1).cpu() != batch.targets)
        done += len(batch)
        say("predicting", done, len(images))
    return torch.cat(found).nonzero().squeeze(1)


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """A state of tensors and numbers as tensors."""
    return {
        name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, value in state.items()
    }


def _plain(state: dict[str, Tensor], numbers: tuple[str, ...]) -> dict[str, Any]:
    """The inverse of :func:`_tensors`."""
    found: dict[str, Any] = dict(state)
    for name in numbers:
        value = float(found[name])
        found[name] = value if name == "level" else int(value)
    return found
