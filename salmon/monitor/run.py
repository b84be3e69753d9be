"""One pass over the samples of one loader: stream, collect the mistakes, fit, rank.

Free of Lightning: measurements go in, a :class:`Diagnosis` comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.monitor.numbering import Numbering
from salmon.monitor.ranks import ALONE, Ranks
from salmon.monitor.settings import Settings
from salmon.monitor.trust import Evidence
from salmon.monitor.union import Found, fit_together, join_found, join_worst
from salmon.monitor.worst import Glimpse, WorstSamples
from salmon.ranking import NO_CLASS, Diagnosis, Mistakes, Reservoir, rank_filters
from salmon.saliency import Measurement, are_probabilities, labels_of, logits_of
from salmon.tails import Tails

METHODS = ("pot", "zscore")
BYTES_PER_MB = 2**20
PENDING_MB = 64  # of profiles whose mistakes were not looked for yet


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """A measured batch on its device, ``[M]`` each but the profile."""

    profile: Tensor  # [M, F]
    numbers: Tensor  # positions of the samples in the pass, on the CPU
    batch: int
    ids: list[int | str] | None
    wrong: Tensor
    columns: dict[str, Tensor]  # those of Mistakes
    glimpse: Glimpse | None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.profile.nbytes + (0 if self.glimpse is None else self.glimpse.nbytes)


class Run:
    """Collects the measurements of one loader."""

    def __init__(
        self,
        index: FilterIndex,
        settings: Settings,
        *,
        reference: TailFit | None = None,
        expected: int | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        """Start empty.

        Args:
            index: The filters.
            settings: Of the run.
            reference: Tails to rank with; None fits those of this run.
            expected: How many samples the loader will give, if known; ``max_samples`` are then
                chosen among all of them, else they are the first ones.
            numbering: Where the samples stand in the pass; None counts them.
        """
        self._numbering = numbering or Numbering()
        self._index = index
        self._settings = settings
        self._reference = reference
        self._chosen: Tensor | None = None
        if settings.max_samples is not None and expected is not None:
            generator = torch.Generator().manual_seed(settings.seed)
            self._chosen = torch.zeros(expected, dtype=torch.bool)
            picks = torch.randperm(expected, generator=generator)[: settings.max_samples]
            self._chosen[picks] = True
        self._tails = None if reference else Tails(len(index), settings.max_exceedances)
        self._reservoir: Reservoir | None = None  # made when the type of the profiles is known
        self._mistakes: list[Mistakes] = []
        self._pending: list[_Batch] = []
        views = settings.views
        self.worst = WorstSamples(views.pictures, views.thumbnails)
        """The worst mistakes, with what the network got."""
        self._ids: dict[int, int | str] = {}  # of mistakes, by position
        self.id_source = "position"
        """Where the ids of samples come from: position, sampler, batch or function."""
        self.evidence = Evidence()
        """Whether it is the user's own function that is measured."""
        self._seen = 0
        self._measured: Tensor | int = 0
        self._dropped: Tensor | int = 0
        self._unlabelled: Tensor | int = 0

    def choose(self, samples: int) -> Tensor:
        """Take note of a batch and say which of its samples to measure.

        Args:
            samples: N, its size.

        Returns:
            ``[M]`` row numbers, in order.
        """
        numbers = self._numbering.of(self._seen, samples)
        fresh = self._numbering.fresh(numbers)
        if self._chosen is not None:
            last = len(self._chosen) - 1
            fresh &= (numbers <= last) & self._chosen[numbers.clamp(max=last)]
        elif self._settings.max_samples is not None:
            fresh &= numbers < self._settings.max_samples
        rows = fresh.nonzero().squeeze(1)
        self._seen += samples
        return rows

    def add(
        self,
        measurement: Measurement,
        targets: Tensor,
        rows: Tensor,
        samples: int,
        batch: int,
        ids: Sequence[int | str] | None = None,
        inputs: Any = None,
    ) -> None:
        """Take up the measurement of a batch.

        Args:
            measurement: Of its chosen samples.
            targets: ``[M, ...]`` their labels.
            rows: What :meth:`choose` gave for the batch.
            samples: N, the size of the whole batch.
            batch: Its number in the loader.
            ids: ``[N]`` of the samples of the whole batch, where they are known.
            inputs: Of the chosen samples, if some are to be looked at later.
        """
        profile, output = measurement.profile, measurement.output
        logits = logits_of(output).double()
        classes, labelled = labels_of(targets, logits, self._settings.loss)
        if self._tails is not None:
            self._tails.update(profile, labelled)
        confidence = logits.softmax(1)
        predicted = logits.argmax(1).masked_fill(torch.isnan(confidence).any(1), NO_CLASS)
        finite = torch.isfinite(profile).all(1)
        self._measured = self._measured + labelled.sum()
        self._unlabelled = self._unlabelled + (~labelled).sum()
        self._dropped = self._dropped + (labelled & ~finite).sum()
        self._weigh(logits_of(output), classes, labelled)
        wrong = (predicted != classes) & labelled
        glimpse = None
        if inputs is not None:
            glimpse = self.worst.look(inputs, targets, measurement.losses, wrong)
        self._pending.append(
            _Batch(
                profile=profile,
                numbers=self._numbering.of(self._seen - samples, samples)[rows],
                batch=self._numbering.batch(batch),
                ids=None if ids is None else [ids[row] for row in rows.tolist()],
                wrong=wrong,
                columns={
                    "target": classes,
                    "predicted": predicted,
                    "confidence_target": _pick(confidence, classes.where(labelled, 0)),
                    "confidence_predicted": _pick(confidence, predicted.clamp_min(0)),
                    "loss": measurement.losses.double(),
                },
                glimpse=glimpse,
            )
        )
        held = sum(one.nbytes for one in self._pending)
        if held >= PENDING_MB * BYTES_PER_MB:
            self._collect()

    def _weigh(self, logits: Tensor, classes: Tensor, labelled: Tensor) -> None:
        """Count what speaks for other outputs or labels than logits and classes."""
        found = self.evidence
        found.samples += len(logits)
        found.beyond = found.beyond + ((classes >= logits.shape[1]) & ~labelled).sum()
        if self._settings.loss is None:
            found.probabilities = found.probabilities + are_probabilities(logits).sum()

    def _collect(self) -> None:
        """Look for the mistakes of the pending batches; on a GPU, the only wait for the device."""
        for one in self._pending:
            if one.glimpse is not None:
                self.worst.keep(one.glimpse, one.numbers)
            wrong = one.wrong.nonzero().squeeze(1)
            rows = wrong.cpu()
            if len(rows) == 0:
                continue
            numbers = one.numbers[rows]
            columns = {name: column[wrong].cpu() for name, column in one.columns.items()}
            batch = torch.full_like(numbers, one.batch)
            self._mistakes.append(Mistakes(sample=numbers, batch=batch, **columns))
            if one.ids is not None:
                for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                    self._ids[number] = one.ids[row]
            if self._reservoir is None:
                width = len(self._index)
                size = one.profile.element_size() * width
                room = self._settings.memory_mb * BYTES_PER_MB // size
                self._reservoir = Reservoir(max(1, room), width, self._settings.seed)
            self._reservoir.offer(numbers, one.profile[wrong].cpu())
        self._pending.clear()

    def finish(self, ranks: Ranks = ALONE) -> Diagnosis:
        """Fit the tails, or take the reference, and rank the kept mistakes.

        Args:
            ranks: All processes that measured a part of the samples.

        Returns:
            The diagnosis, the same on every rank.
        """
        ranks.together(self._collect)
        fit, excesses = self._reference, dict[int, Tensor]()
        if self._tails is not None:
            fit, excesses = fit_together(self._tails, self._settings.level, ranks)
        assert fit is not None
        memory = self._settings.memory_mb * BYTES_PER_MB
        found = join_found(ranks.together(self._found), ranks, memory, self._settings.seed)
        join_worst(self.worst, ranks)
        every, numbers, profile = found.mistakes, found.numbers, found.profile
        # Both are in ascending order of position.
        kept = torch.isin(every.sample, numbers).nonzero().squeeze(1)
        top_k = self._settings.top_k
        rankings = ranks.together(
            lambda: {name: rank_filters(profile, fit, name, top_k=top_k) for name in METHODS}
        )
        return Diagnosis(
            index=self._index,
            fit=fit,
            samples=found.measured,
            dropped=found.dropped,
            unlabelled=found.unlabelled,
            misclassified=len(every.sample),
            doubts=found.evidence.doubts(),
            as_loaded=found.evidence.prepared == 0,
            mistakes=every.take(kept),
            ids=[found.ids.get(number, number) for number in numbers.tolist()],
            id_source=found.id_source,
            profile=profile,
            rankings=rankings,
            excesses=excesses,
        )

    def _found(self) -> Found:
        """What this process found."""
        reservoir = self._reservoir or Reservoir(1, len(self._index), self._settings.seed)
        numbers, profile = reservoir.kept()
        return Found(
            measured=int(self._measured),
            dropped=int(self._dropped),
            unlabelled=int(self._unlabelled),
            evidence=Evidence(**self.evidence.counts()),
            mistakes=Mistakes.join(self._mistakes),
            ids=self._ids,
            id_source=self.id_source,
            numbers=numbers,
            profile=profile,
        )


def _pick(table: Tensor, columns: Tensor) -> Tensor:
    """``[M]`` entries of a ``[M, K]`` table."""
    return table.gather(1, columns.unsqueeze(1)).squeeze(1)
