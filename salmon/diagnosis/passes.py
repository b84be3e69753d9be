"""One pass over labelled samples: measure, stream, collect the mistakes; then fit and rank.

Free of Lightning, in the manner of torchmetrics: batches go into :meth:`Pass.update`, passes over
other parts of the data into :meth:`Pass.merge`, and :meth:`Pass.compute` gives a
:class:`~salmon.diagnosis.Diagnosis`. Any split of the samples into batches and passes gives the
same tails and the same mistakes.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salmon.diagnosis.blame import confusions
from salmon.diagnosis.diagnosis import NO_CLASS, Diagnosis, Mistakes
from salmon.diagnosis.evidence import Evidence, Step, differing
from salmon.diagnosis.findings import find
from salmon.diagnosis.reservoir import Reservoir, priorities
from salmon.diagnosis.worst import Glimpse, WorstSamples
from salmon.errors import InputError, StateError
from salmon.filters import FilterIndex
from salmon.forward import eval_mode
from salmon.gpd import TailFit
from salmon.ranking import Calibration, calibration, rank_filters
from salmon.saliency import (
    Coverage,
    Loss,
    Measurement,
    are_probabilities,
    check_samples,
    class_numbers,
    coverage_of,
    labels_of,
    logits_of,
    measure,
    nan_where_unlabelled,
    take_rows,
)
from salmon.tails import (
    Estimator,
    Tails,
    choose_level,
    example_excesses,
    example_filters,
    fit_tails,
    is_shrunk,
    load_fit,
)

METHODS = ("pot", "zscore")
TOP_K = 25
BYTES_PER_MB = 2**20
PENDING_MB = 64  # of profiles whose mistakes were not looked for yet
RIGHT_SAMPLES = 500  # right ones at most that mistakes are compared with
SPARE_SAMPLES = 2000  # at most that tails are held against if calibrate


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a pass measures and ranks.

    Attributes:
        level: Quantile level of each filter's threshold, in (0, 1), or ``"auto"``, which takes one
            of 0.80, 0.85, 0.90, 0.95 for all by goodness of fit.
        max_exceedances: Largest values kept per filter; the fit is exact at ``level`` for up to
            ``(max_exceedances - 1) / (1 - level)`` samples and at a higher level beyond.
        top_k: Filters reported per sample and batch; None takes 25, and a tenth of all filters
            where these are fewer than 250, since the top of a small network is no finding.
        loss: ``(output, targets) -> [N]`` losses, or a loss module of torch, which is taken with
            ``reduction="none"``; None takes the cross-entropy.
        max_samples: Measure at most so many samples, chosen at random with ``seed``; None measures
            all.
        memory_mb: Budget for the profiles of mistakes and of right samples that they are compared
            with, in MiB; beyond it a random part is kept and ranked.
        seed: Of all random choices.
        estimator: ``"shrunk"``, where the filters of a layer inform each other's tails, or
            ``"ml"``, the maximum likelihood of each filter alone, as in the paper.
        calibrate: Whether to fit half of the samples, too, and to compare with the other half.

    Raises:
        InputError: If one of them is out of range, or of another type.
    """

    level: float | Literal["auto"] = 0.90
    max_exceedances: int = 1024
    top_k: int | None = None
    loss: nn.Module | Loss | None = None
    max_samples: int | None = None
    memory_mb: int = 256
    seed: int = 0
    estimator: Estimator = "shrunk"
    calibrate: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        number = isinstance(self.level, int | float) and 0 < self.level < 1
        if not number and self.level != "auto":
            raise InputError(
                f"level is {self.level!r}; a number in (0, 1) (90 % is 0.9) or 'auto' is needed."
            )
        is_shrunk(self.estimator)
        if not isinstance(self.calibrate, bool):
            raise InputError(f"calibrate is {self.calibrate!r}; True or False is needed.")
        if self.loss is not None and not callable(self.loss):
            raise InputError(
                f"loss is {self.loss!r}; a function or None is needed, such as "
                "torch.nn.CrossEntropyLoss(reduction='none')."
            )
        object.__setattr__(self, "loss", per_sample(self.loss))
        check_whole("max_exceedances", self.max_exceedances, 2)
        check_whole("memory_mb", self.memory_mb, 1)
        for name in ("top_k", "max_samples"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if not isinstance(self.seed, int):
            raise InputError(f"seed is {self.seed!r}; a whole number is needed.")

    def places(self, filters: int) -> int:
        """How many of a network's filters are reported per sample."""
        return min(TOP_K, max(1, filters // 10)) if self.top_k is None else self.top_k


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or too small."""
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; a whole number >= {least} is needed.")


def per_sample(loss: Any) -> Any:
    """A copy with ``reduction="none"`` of a loss module that would average or add up."""
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "none") in ("mean", "sum"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    return loss


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """A measured batch on its device, ``[M]`` each but the profile."""

    profile: Tensor  # [M, F]
    numbers: Tensor  # positions of the samples in the pass, on the CPU
    batch: int
    ids: list[int | str] | None
    wrong: Tensor
    right: Tensor
    columns: dict[str, Tensor]  # those of Mistakes
    glimpse: Glimpse | None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.profile.nbytes + (0 if self.glimpse is None else self.glimpse.nbytes)


class Pass:
    """Measures the filters of a network over labelled samples, and finds those behind mistakes."""

    def __init__(
        self,
        model: nn.Module,
        settings: PassSettings | None = None,
        *,
        index: FilterIndex | None = None,
        reference: TailFit | str | Path | None = None,
        expected: int | None = None,
        pictures: int = 0,
        thumbnails: int = 0,
        id_source: str = "position",
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start empty.

        Args:
            model: Run in eval mode, and left as it was.
            settings: None takes the defaults.
            index: What to measure; None takes the convolutions that the first batch goes through.
            reference: Tails of other data to rank with, or a file of them; None fits those of this
                pass.
            expected: How many samples will come, if known; ``max_samples`` are then chosen among
                all of them, else they are the first ones.
            pictures: How many of the worst mistakes to keep with their inputs.
            thumbnails: How many to keep a small image of.
            id_source: What positions are, where no ids come: ``"position"``, or ``"sampler"`` if
                they are those in the dataset.
            forward_context: Makes a context for forward and loss, such as autocast.

        Raises:
            StateError: If the reference is of another network.
        """
        self._model = model
        self._settings = settings or PassSettings()
        self._forward_context = forward_context
        self._index = index
        self._reference: TailFit | None = None
        self._reference_source = reference
        if index is not None:
            self._reference = _loaded(reference, index)
        self._chosen = self._choose(expected)
        self._tails: Tails | None = None
        self._half: Tails | None = None  # of half the samples, if calibrate
        self._profiles: dict[str, Reservoir] = {}
        """Profiles of mistakes, "wrong"; of "right" samples; of all in the other half, "spare"."""
        self._mistakes: list[Mistakes] = []
        self._pending: list[_Batch] = []
        self._methods: list[str] = []
        self._seen = 0
        self._batches = 0
        self._by_class: Tensor | int = 0
        """``[2, K]`` measured samples and mistakes by true class."""
        self._dropped: Tensor | int = 0
        self._unlabelled: Tensor | int = 0
        self._evidence = Evidence()
        self._id_source = id_source
        self.worst = WorstSamples(pictures, thumbnails, self._settings.seed)
        """The worst mistakes, with what the network got."""
        self.was_training = False
        """Whether modules were found in train mode."""

    @property
    def coverage(self) -> Coverage | None:
        """What is measured, and how; None before the first batch."""
        if self._index is None or not self._methods:
            return None
        return coverage_of(self._model, self._index, self._methods)

    def update(
        self,
        inputs: Any,
        targets: Tensor,
        ids: Sequence[int | str] | None = None,
        *,
        id_source: str = "batch",
        numbers: Tensor | None = None,
        batch: int | None = None,
        step: Step | None = None,
    ) -> None:
        """Measure a batch.

        Args:
            inputs: ``[N, ...]`` tensor, or a tuple or mapping of tensors that the network takes as
                positional or named arguments.
            targets: ``[N]`` class numbers, or what the loss needs.
            ids: ``[N]`` numbers or names of the samples; None takes their positions.
            id_source: Where ids come from, ``"batch"`` or ``"function"``.
            numbers: ``[N]`` int64 positions of the samples in the whole pass, no two the same over
                all passes that are merged; those below 0 are repeats, and not measured. None
                counts on.
            batch: Position of the batch; None counts on.
            step: What the user's own step did with the batch, to be compared.

        Raises:
            InputError: If inputs, targets or the network's output do not fit; the samples of this
                batch do not count.
        """
        samples = check_samples(inputs, targets)
        if numbers is None:
            numbers = torch.arange(self._seen, self._seen + samples)
        self._seen, self._batches = self._seen + samples, self._batches + 1
        number = self._batches - 1 if batch is None else batch
        if class_numbers(targets) is not None:
            targets = targets.long()  # a GPU cannot choose rows of every other type
        if self._index is None:
            one = take_rows(inputs, slice(0, 1), samples)
            self._index = FilterIndex.from_model(self._model, inputs=one)
            self._reference = _loaded(self._reference_source, self._index)
        rows = self._among_chosen(numbers).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        if len(rows) < samples:
            inputs, targets = take_rows((inputs, targets), rows, samples)
        with eval_mode(self._model) as was_training:
            measurement = measure(
                self._model,
                inputs,
                targets,
                index=self._index,
                loss=nan_where_unlabelled(self._settings.loss),
                forward_context=self._forward_context,
            )
        self._methods = measurement.methods
        self.was_training |= was_training
        of_rows = None
        if ids is not None:
            of_rows, self._id_source = [ids[row] for row in rows.tolist()], id_source
        self._add(measurement, inputs, targets, numbers[rows], number, of_rows)
        if step is not None:
            off = differing(measurement.output, step.outputs, rows, samples)
            self._evidence.weigh(step, off, len(rows))

    def merge(self, other: "Pass") -> None:
        """Take over what another pass over other samples measured.

        Args:
            other: Of the same network and settings; it may come out of a pickle.

        Raises:
            InputError: If it measured other filters.
        """
        self._collect()
        other._collect()
        if other._index is None:
            return
        if self._index is None:
            self._index, self._reference = other._index, other._reference
        elif len(self._index) != len(other._index):
            raise InputError(
                f"the passes measured {len(self._index)} and {len(other._index)} filters; only "
                "passes of the same network can be merged."
            )
        if other._tails is not None:
            self._own_tails().merge(other._tails)
        if other._half is not None:
            self._half_tails().merge(other._half)
        for kind, reservoir in other._profiles.items():
            numbers, profile, classes = reservoir.kept()
            self._reservoir(kind, profile.dtype).offer(numbers, profile, classes)
        self._mistakes += other._mistakes
        if not self._counts().any():
            self._id_source = other._id_source
        self._by_class, self._dropped, self._unlabelled = (
            self._by_class + other._by_class,
            self._dropped + other._dropped,
            self._unlabelled + other._unlabelled,
        )
        self._evidence.add(other._evidence)
        self.worst.merge(other.worst)

    def compute(self) -> Diagnosis:
        """Fit the tails, or take the reference, and rank the kept mistakes.

        Returns:
            The diagnosis; the pass may go on afterwards.

        Raises:
            InputError: If no sample was measured.
        """
        self._collect()
        if self._index is None:
            raise InputError("the pass has no sample; update it with a batch first.")
        settings, fit, own = self._settings, self._reference, self._reference is None
        excesses, reason, calibrated = dict[int, Tensor](), "", None
        if fit is None:
            tails, level = self._own_tails(), settings.level
            if level == "auto":
                choice = choose_level(tails)
                level, reason = choice.level, choice.reason
            fit = self._fitted(tails, level)
            excesses = example_excesses(tails, example_filters(fit), fit)
            calibrated = self._calibrated(level)
        every = Mistakes.join(self._mistakes)
        every = every.take(every.sample.argsort())
        numbers, profile, _ = self._kept("wrong")
        mistakes = every.take(torch.isin(every.sample, numbers).nonzero().squeeze(1))  # both ascend
        _, right_profile, right_classes = self._kept("right")
        top_k = settings.places(len(self._index))
        rankings = {
            name: rank_filters(profile, fit, name, top_k=top_k, own=own) for name in METHODS
        }
        right = rank_filters(right_profile, fit, top_k=top_k, own=own)
        counts = self._counts()
        return Diagnosis(
            index=self._index,
            fit=fit,
            class_samples=counts[0],
            class_mistakes=counts[1],
            confusions=confusions(every),
            dropped=int(self._dropped),
            unlabelled=int(self._unlabelled),
            doubts=self._evidence.doubts(),
            mistakes=mistakes,
            id_source=self._id_source,
            profile=profile,
            rankings=rankings,
            findings=find(
                mistakes,
                rankings["pot"],
                right,
                right_classes,
                len(self._index),
                seed=settings.seed,
            ),
            right=right,
            excesses=excesses,
            own=own,
            level_reason=reason,
            calibration=calibrated,
        )

    @property
    def compared(self) -> bool:
        """Whether outputs of the user's own step could be compared with what was measured."""
        return self._evidence.compared > 0

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to merge it: all but the network and the user's functions."""
        self._collect()
        plain = PassSettings(
            **{f.name: getattr(self._settings, f.name) for f in fields(PassSettings)}
            | {"loss": None}
        )
        absent = {"_model": None, "_forward_context": nullcontext, "_settings": plain}
        return vars(self) | absent | {"_reference_source": None}

    def _choose(self, expected: int | None) -> Tensor | None:
        """``[expected]`` bool, the samples that are measured; None where all are, or the first."""
        most = self._settings.max_samples
        if most is None or expected is None:
            return None
        generator = torch.Generator().manual_seed(self._settings.seed)
        chosen = torch.zeros(expected, dtype=torch.bool)
        chosen[torch.randperm(expected, generator=generator)[:most]] = True
        return chosen

    def _among_chosen(self, numbers: Tensor) -> Tensor:
        """``[N]`` bool, which samples are measured."""
        wanted = numbers >= 0
        if self._chosen is not None:
            last = len(self._chosen) - 1
            wanted &= (numbers <= last) & self._chosen[numbers.clamp(0, last)]
        elif self._settings.max_samples is not None:
            wanted &= numbers < self._settings.max_samples
        return wanted

    def _add(
        self, measurement: Measurement, inputs: Any, targets: Tensor, numbers: Tensor, batch: int,
        ids: list[int | str] | None,
    ) -> None:  # fmt: skip
        """Take up what was measured of the chosen samples of a batch."""
        profile = measurement.profile
        logits = logits_of(measurement.output).double()
        classes, labelled = labels_of(targets, logits, self._settings.loss)
        if self._reference is None:
            self._own_tails().update(profile, labelled)
            if self._settings.calibrate:
                fitted = ~self._spare(numbers).to(labelled.device, non_blocking=True)
                self._half_tails().update(profile, labelled & fitted)
        confidence = logits.softmax(1)
        predicted = logits.argmax(1).masked_fill(torch.isnan(confidence).any(1), NO_CLASS)
        finite = torch.isfinite(profile).all(1)
        self._unlabelled = self._unlabelled + (~labelled).sum()
        self._dropped = self._dropped + (labelled & ~finite).sum()
        found = self._evidence
        found.samples += len(logits)
        found.beyond = found.beyond + ((classes >= logits.shape[1]) & ~labelled).sum()
        if self._settings.loss is None:
            found.probabilities = (
                found.probabilities + are_probabilities(logits_of(measurement.output)).sum()
            )
        wrong = (predicted != classes) & labelled
        right = labelled & ~wrong & finite
        of_class = classes.unsqueeze(1) == torch.arange(logits.shape[1], device=classes.device)
        counted = torch.stack([labelled, wrong]).unsqueeze(2) & of_class
        self._by_class = self._by_class + counted.sum(1)
        self._pending.append(
            _Batch(
                profile=profile,
                numbers=numbers,
                batch=batch,
                ids=ids,
                wrong=wrong,
                right=right,
                columns={
                    "target": classes,
                    "predicted": predicted,
                    "confidence_target": _pick(confidence, classes.where(labelled, 0)),
                    "confidence_predicted": _pick(confidence, predicted.clamp_min(0)),
                    "loss": measurement.losses.double(),
                },
                glimpse=self.worst.look(inputs, targets, measurement.losses, wrong, right, numbers),
            )
        )
        if sum(one.nbytes for one in self._pending) >= PENDING_MB * BYTES_PER_MB:
            self._collect()

    def _collect(self) -> None:
        """Look for the mistakes of the pending batches; on a GPU, the only wait for the device."""
        for one in self._pending:
            if one.glimpse is not None:
                self.worst.keep(one.glimpse, one.numbers)
            is_right, wrong = one.right.cpu(), one.wrong.nonzero().squeeze(1)
            self._keep("right", one, is_right)
            if self._half is not None:
                self._keep("spare", one, (is_right | one.wrong.cpu()) & self._spare(one.numbers))
            rows = wrong.cpu()
            if len(rows) == 0:
                continue
            numbers = one.numbers[rows]
            ids = numbers.tolist() if one.ids is None else [one.ids[row] for row in rows.tolist()]
            columns = {name: column[wrong].cpu() for name, column in one.columns.items()}
            batch = torch.full_like(numbers, one.batch)
            self._mistakes.append(Mistakes(sample=numbers, ids=ids, batch=batch, **columns))
            self._keep("wrong", one, one.wrong.cpu())
        self._pending.clear()

    def _keep(self, kind: str, batch: _Batch, wanted: Tensor) -> None:
        """Offer profiles of some samples to a reservoir."""
        reservoir = self._reservoir(kind, batch.profile.dtype)
        rows = (wanted & reservoir.admits(batch.numbers)).nonzero().squeeze(1)
        if len(rows):
            there = rows.to(batch.profile.device)
            profile, classes = batch.profile[there].cpu(), batch.columns["target"][there].cpu()
            reservoir.offer(batch.numbers[rows], profile, classes)

    def _kept(self, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the samples in a reservoir, ascending, their profiles, and classes."""
        return self._reservoir(kind, torch.float32).kept()

    def _reservoir(self, kind: str, dtype: torch.dtype) -> Reservoir:
        """A reservoir of one kind of samples; the budget is that of all kinds."""
        if kind not in self._profiles:
            assert self._index is not None
            width = len(self._index)
            room = self._settings.memory_mb * BYTES_PER_MB // (dtype.itemsize * width)
            right = min(RIGHT_SAMPLES, room // 4)
            spare = min(SPARE_SAMPLES, room // 4) if self._settings.calibrate else 0
            rows = {"right": right, "spare": spare, "wrong": room - right - spare}[kind]
            self._profiles[kind] = Reservoir(max(1, rows), width, self._settings.seed)
        return self._profiles[kind]

    def _spare(self, numbers: Tensor) -> Tensor:
        """``[N]`` bool, which samples the half that is fitted by itself is held against."""
        return priorities(numbers, self._settings.seed + 1) < 0

    def _counts(self) -> Tensor:
        """``[2, K]`` measured samples and mistakes by true class, on the CPU."""
        return torch.zeros((2, 1), dtype=torch.int64) + torch.as_tensor(self._by_class).cpu()

    def _fitted(self, tails: Tails, level: float) -> TailFit:
        """Fits as the settings say."""
        return fit_tails(tails, level, index=self._index, estimator=self._settings.estimator)

    def _calibrated(self, level: float) -> Calibration | None:
        """Fits of one half on the other; None if not asked, or nothing could be fitted."""
        if self._half is None:
            return None
        fit, (_, spare, _) = self._fitted(self._half, level), self._kept("spare")
        return calibration(spare, fit) if len(spare) and bool(fit.usable.any()) else None

    def _own_tails(self) -> Tails:
        """The stream of this pass."""
        if self._tails is None:
            self._tails = self._empty_tails()
        return self._tails

    def _half_tails(self) -> Tails:
        """The stream of half of its samples."""
        if self._half is None:
            self._half = self._empty_tails()
        return self._half

    def _empty_tails(self) -> Tails:
        """A stream of the measured filters."""
        assert self._index is not None
        return Tails(len(self._index), self._settings.max_exceedances)


def _loaded(source: TailFit | str | Path | None, index: FilterIndex) -> TailFit | None:
    """The fits to rank with, if they are given."""
    if source is None:
        return None
    fit = source if isinstance(source, TailFit) else load_fit(source, index)
    if fit.threshold.numel() != len(index):
        raise StateError(
            f"reference fits {fit.threshold.numel()} filters but this network has {len(index)}; "
            "use the network, include= and exclude= it was made with."
        )
    return fit


def _pick(table: Tensor, columns: Tensor) -> Tensor:
    """``[M]`` entries of a ``[M, K]`` table."""
    return table.gather(1, columns.unsqueeze(1)).squeeze(1)
