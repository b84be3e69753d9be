"""One pass over labelled samples: measure, stream, collect the mistakes; then fit and rank.

Free of Lightning, in the manner of torchmetrics: batches go into :meth:`Pass.update`, passes over
other parts of the data into :meth:`Pass.merge`, and :meth:`Pass.compute` gives a
:class:`~salmon.diagnosis.Diagnosis`. Any split of the samples into batches and passes gives the
same tails and the same mistakes.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salmon.diagnosis.blame import confusions
from salmon.diagnosis.choice import Choice
from salmon.diagnosis.diagnosis import Diagnosis, Mistakes
from salmon.diagnosis.evidence import Evidence, Step
from salmon.diagnosis.findings import find
from salmon.diagnosis.reservoir import Reservoir, priorities
from salmon.diagnosis.waiting import Chosen, at_once, divisible
from salmon.diagnosis.worst import Glimpse, WorstSamples
from salmon.errors import InputError, StateError, pass_on_interrupts
from salmon.filters import FilterIndex
from salmon.forward import call_network, eval_mode, no_trace
from salmon.gpd import TailFit
from salmon.ranking import Calibration, calibration, rank_filters
from salmon.saliency import (
    Coverage,
    Loss,
    Measurement,
    check_samples,
    class_numbers,
    coverage_of,
    measure,
    take_rows,
)
from salmon.tails import (
    CANDIDATES,
    Estimator,
    Tails,
    choose_level,
    example_excesses,
    example_filters,
    fit_tails,
    is_shrunk,
    load_fit,
)
from salmon.tasks import (
    Answers,
    AnyTask,
    Task,
    is_guess,
    mistakes_of,
    recognise,
    same_task,
    task_named,
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
        task: What a mistake is: the name of a task, one of :mod:`salmon.tasks`, or a
            :class:`~salmon.Task` of your own; None tells by the first batch.
        loss: ``(output, targets) -> [N]`` losses, or a loss module of torch, which is taken with
            ``reduction="none"``; None takes that of the task, the cross-entropy for classes.
        right_samples: Of a pass of more samples than this and ``max_mistakes``, measure the
            mistakes, right samples that the network is unsure of, and about so many others, chosen
            at random; each stands for its like in the tails. None measures all right samples.
        max_mistakes: Measure at most about so many mistakes of such a pass, chosen at random; None
            measures all.
        memory_mb: Budget for the profiles of mistakes and of right samples that they are compared
            with, in MiB; beyond it a random part is kept and ranked.
        seed: Of all random choices.
        estimator: ``"shrunk"``, where the filters of a layer inform each other's tails, or
            ``"ml"``, the maximum likelihood of each filter alone, as in the paper.
        calibrate: Whether to fit half of the samples, too, and to compare with the other half; all
            samples are measured then.

    Raises:
        InputError: If one of them is out of range, or of another type.
    """

    level: float | Literal["auto"] = 0.90
    max_exceedances: int = 1024
    top_k: int | None = None
    task: AnyTask | str | None = None
    loss: nn.Module | Loss | None = None
    right_samples: int | None = 500
    max_mistakes: int | None = 2000
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
        object.__setattr__(self, "task", task_named(self.task))
        if isinstance(self.task, Task) and self.loss is not None:
            raise InputError("loss is given beside a task that has its own; give one of them.")
        check_whole("max_exceedances", self.max_exceedances, 2)
        check_whole("memory_mb", self.memory_mb, 1)
        for name in ("top_k", "right_samples", "max_mistakes"):
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
    chosen: Chosen
    wrong: Tensor
    right: Tensor  # those that are compared with
    score: Tensor | None  # how bad each is, where the pass tells its mistakes at its end
    columns: dict[str, Tensor]  # those of Mistakes
    details: dict[str, Tensor]
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
        accuracy: float | None = None,
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
            expected: How many samples will come; None, if it is not known, measures all.
            accuracy: About which share of them is right, such as that of the last pass; None, if it
                is not known, measures all mistakes.
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
        self._task = task_named(self._settings.task)
        self._guessed = False  # by one batch, which may be no typical one
        self._forward_context = forward_context
        self._index = index
        self._reference: TailFit | None = None
        self._reference_source = reference
        if index is not None:
            self._reference = _loaded(reference, index)
        own = self._settings
        level = CANDIDATES[0] if own.level == "auto" else own.level
        self._choice = None if own.calibrate else Choice.of(
            seed=own.seed, right_samples=own.right_samples, max_mistakes=own.max_mistakes,
            expected=expected, accuracy=accuracy, tail=1 - level if reference is None else 0.0,
        )  # fmt: skip
        self._waiting: list[Chosen] = []
        self._largest = 0  # samples of a batch
        self._tails: Tails | None = None
        self._half: Tails | None = None  # of half the samples, if calibrate
        self._profiles: dict[str, Reservoir] = {}
        """Profiles of mistakes, "wrong"; of "right" samples; of all in the other half, "spare"."""
        self._mistakes: list[Mistakes] = []
        self._scores: list[Tensor] = []
        """Of as many samples as are in these, where the pass tells at its end which are wrong."""
        self._pending: list[_Batch] = []
        self._methods: list[str] = []
        self._seen = 0
        self._batches = 0
        self._by_class: Tensor | int = 0
        """``[2, K]`` samples and mistakes by true class; K is 1 where there are none."""
        self._measured: Tensor | int = 0
        self._others: list[Tensor] = []
        """``[M, 2]`` true and predicted class of mistakes that were not measured."""
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
        """Count a batch, and measure those of its samples that are chosen.

        Where not all are, they may wait until they fill a batch with those of later ones (128 of
        images of 64 pixels or less, where batches are smaller).

        Args:
            inputs: ``[N, ...]`` tensor, or a tuple or mapping of tensors that the network takes as
                positional or named arguments.
            targets: ``[N]`` class numbers, or what task and loss need.
            ids: ``[N]`` numbers or names of the samples; None takes their positions.
            id_source: Where ids come from, ``"batch"`` or ``"function"``.
            numbers: ``[N]`` int64 positions of the samples in the whole pass, no two the same over
                all passes that are merged; those below 0 are repeats, and not measured. None
                counts on.
            batch: Position of the batch; None counts on.
            step: What the user's own step did with the batch, to be compared, and to tell which
                samples are wrong.

        Raises:
            InputError: If inputs, targets or the network's output do not fit; the samples of this
                batch do not count. Where the measurement of those that waited fails, they are
                counted, but neither measured nor listed.
        """
        samples = check_samples(inputs, targets)
        if numbers is None:
            numbers = torch.arange(self._seen, self._seen + samples)
        self._seen, self._batches = self._seen + samples, self._batches + 1
        if class_numbers(targets) is not None:
            targets = targets.long()  # a GPU cannot choose rows of every other type
        if self._index is None:
            one = take_rows(inputs, slice(0, 1), samples)
            self._index = FilterIndex.from_model(self._model, inputs=one)
            self._reference = _loaded(self._reference_source, self._index)
        step = step or Step()
        self._evidence.ambiguous += step.ambiguous
        if not bool((numbers >= 0).any()):
            return
        chosen = self._chosen(inputs, targets, numbers, step, ids, batch)
        if not len(chosen.numbers):
            return
        if ids is not None:
            self._id_source = id_source
        if chosen.copies is None or len(chosen.numbers) == samples:
            self._measure(chosen)
            return
        self._largest = max(self._largest, samples)
        self._wait(chosen)
        if not self._methods:  # it is soon known what is measured, or why it cannot be
            self.flush()

    def _wait(self, chosen: Chosen) -> None:
        """Let samples wait for others, and measure them when they are enough."""
        if self._waiting and not chosen.alike(self._waiting[0]):
            self.flush()
        # All of one size: the convolutions of torch set up anew for every other one.
        room = at_once(chosen, self._largest) - sum(len(each.numbers) for each in self._waiting)
        if len(chosen.numbers) < room:
            self._waiting.append(chosen)
        else:
            first, rest = chosen.split(room)
            full, self._waiting = [*self._waiting, first], [rest] if len(rest.numbers) else []
            self._measure_together(full)

    def flush(self) -> None:
        """Measure the chosen samples that wait for a batch to be full.

        Call it before the network becomes another one, as at the end of a context in which it has
        other weights; :meth:`merge` and :meth:`compute` do it otherwise. Where the measurement of
        all at once fails, it is tried with those of each batch.

        Raises:
            InputError: As :meth:`update`, when the samples of the other batches are measured.
        """
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._measure_together(waiting)

    def _measure_together(self, parts: Sequence[Chosen]) -> None:
        """Measure at once; or else each, and raise the first error when all have had their turn."""
        errors, before = list[Exception](), sys.exception()
        try:
            self._measure(Chosen.joined(parts).two_at_least())
            return
        except (InputError, RuntimeError) as error:
            pass_on_interrupts(error, before)
            if len(parts) == 1:
                raise
        for part in parts:
            try:
                self._measure(part.two_at_least())
            except (InputError, RuntimeError) as error:
                pass_on_interrupts(error, before)
                errors.append(error)
        if errors:
            raise errors[0]

    def merge(self, other: "Pass") -> None:
        """Take over what another pass over other samples measured.

        Args:
            other: Of the same network and settings; it may come out of a pickle.

        Raises:
            InputError: If it measured other filters, or took its samples for another task.
        """
        self._collect()
        other._collect()
        if other._index is None:
            return
        self._check_alike(other)
        if self._index is None:
            self._index, self._reference = other._index, other._reference
        if self._task is None:
            self._task, self._guessed = other._task, other._guessed
        if self._seen == 0:
            self._choice = other._choice  # which depends on the task
        if other._tails is not None:
            self._own_tails().merge(other._tails)
        if other._half is not None:
            self._half_tails().merge(other._half)
        for kind, reservoir in other._profiles.items():
            self._reservoir(kind, reservoir.dtype).merge(reservoir)
        self._mistakes += other._mistakes
        self._scores += other._scores
        self._others += other._others
        if not int(self._measured):
            self._id_source = other._id_source
        for name in ("_by_class", "_measured", "_dropped", "_unlabelled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._evidence.add(other._evidence)
        self.worst.merge(other.worst)

    def _check_alike(self, other: "Pass") -> None:
        """Refuse a pass of another network or task."""
        if self._index is None or other._index is None:
            return
        if len(self._index) != len(other._index):
            raise InputError(
                f"the passes measured {len(self._index)} and {len(other._index)} filters; only "
                "passes of the same network can be merged."
            )
        mine, theirs = self._task, other._task
        if mine is not None and theirs is not None and not same_task(mine, theirs):
            raise InputError(
                f"the passes took their samples for the tasks {mine.name!r} and {theirs.name!r}; "
                "give task=, since the first batch of one of them told another."
            )

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
            stands_for = None
            if self._choice is not None:
                stands_for = self._choice.stood_for(int(self._counts()[0].sum())) - tails.dropped
            if level == "auto":
                choice = choose_level(tails, stands_for=stands_for)
                level, reason = choice.level, choice.reason
            fit = self._fitted(tails, level, stands_for)
            excesses = example_excesses(tails, example_filters(fit), fit)
            calibrated = self._calibrated(level)
        every, is_mistake, bound = self._told()
        counts, wrong = self._counts(), every.take(is_mistake.nonzero().squeeze(1))
        if self._scores:
            counts[1] = len(wrong.sample)
        numbers, profile, _ = self._kept("wrong")
        mistakes = wrong.take(torch.isin(wrong.sample, numbers).nonzero().squeeze(1))  # both ascend
        profile = profile[torch.isin(numbers, mistakes.sample)]
        numbers, right_profile, right_classes = self._kept("right")
        right_rows = ~torch.isin(numbers, wrong.sample)
        right_profile, right_classes = right_profile[right_rows], right_classes[right_rows]
        top_k = settings.places(len(self._index))
        rankings = {
            name: rank_filters(profile, fit, name, top_k=top_k, own=own) for name in METHODS
        }
        right = rank_filters(right_profile, fit, top_k=top_k, own=own)
        with_classes = counts.shape[1] > 1
        pairs = torch.cat([wrong.classes, *self._others]) if with_classes else wrong.classes[:0]
        return Diagnosis(
            index=self._index,
            fit=fit,
            class_samples=counts[0],
            class_mistakes=counts[1],
            measured=int(self._measured),
            confusions=confusions(pairs),
            dropped=int(self._dropped),
            unlabelled=int(self._unlabelled),
            doubts=self._evidence.doubts(counts[0] if with_classes else None),
            mistakes=mistakes,
            id_source=self._id_source,
            profile=profile,
            rankings=rankings,
            findings=find(
                mistakes,
                rankings["pot"],
                right,
                right_classes if with_classes else None,
                len(self._index),
                seed=settings.seed,
            ),
            task="" if self._task is None else self._task.name,
            rule="" if self._task is None else self._task.rule(bound),
            right=right,
            excesses=excesses,
            own=own,
            level_reason=reason,
            calibration=calibrated,
        )

    def _told(self) -> tuple[Mistakes, Tensor, float | None]:
        """What was listed, by position, which of it are mistakes, and the bound if there is one."""
        every = Mistakes.join(self._mistakes)
        order = every.sample.argsort()
        every, is_mistake = every.take(order), torch.ones(len(order), dtype=torch.bool)
        if not self._scores:
            return every, is_mistake, None
        if self._task is None or self._task.worst is None:
            raise InputError(
                "the pass came without its task, whose functions are not sent to other processes; "
                "merge it into one that has it, and compute that."
            )
        is_mistake, bound = mistakes_of(torch.cat(self._scores)[order], self._task.worst)
        return every, is_mistake, bound

    @property
    def task(self) -> AnyTask | None:
        """What a mistake is; None as long as nobody knows."""
        return self._task

    @property
    def compared(self) -> bool:
        """Whether outputs of the user's own step could be compared with what was measured."""
        return self._evidence.compared > 0

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to merge it: all but the network and the user's functions."""
        self._collect()
        plain = PassSettings(
            **{f.name: getattr(self._settings, f.name) for f in fields(PassSettings)}
            | {"loss": None, "task": None}
        )
        absent = {"_model": None, "_forward_context": nullcontext, "_settings": plain}
        if isinstance(self._task, Task):  # it holds functions
            absent |= {"_task": None}
        return vars(self) | absent | {"_reference_source": None}

    def _chosen(
        self, inputs: Any, targets: Tensor, numbers: Tensor, step: Step,
        ids: Sequence[int | str] | None, batch: int | None,
    ) -> Chosen:  # fmt: skip
        """Choose from a batch; where not all samples are measured, they are counted here."""
        samples, seen = len(targets), step.predictions(len(targets))
        rows, copies, said = (numbers >= 0).nonzero().squeeze(1), None, None
        if self._choice is not None:
            output = seen[0] if step.whole and seen else self._output(inputs)
            answers = self._read(output, targets)
            if answers.others is None:  # nothing says which samples the network is unsure of
                self._choice = None
            else:
                copies = self._copies(self._choice, answers, numbers)
                said = answers.predicted, answers.wrong
                if divisible(inputs, samples) or not bool(copies.any()):
                    rows = copies.nonzero().squeeze(1)
        return Chosen.of(
            (inputs, targets, seen, said), samples, rows, numbers=numbers,
            batch=self._batches - 1 if batch is None else batch, ids=ids, copies=copies,
        )  # fmt: skip

    def _copies(self, choice: Choice, answers: Answers, numbers: Tensor) -> Tensor:
        """Count the samples of a batch, and choose.

        Returns:
            ``[N]`` for how many samples each one stands, 0 if it is not measured.
        """
        assert answers.others is not None
        counted = (numbers >= 0).to(answers.wrong.device)
        self._count(answers, counted)
        labelled, wrong = answers.labelled & counted, answers.wrong & counted
        copies = choice.copies(numbers, wrong, answers.others)
        copies = copies.masked_fill(~labelled.cpu(), 0)
        if choice.wrong and answers.target is not None:  # then some mistakes are left out
            assert answers.predicted is not None
            both = torch.stack([answers.target, answers.predicted], 1)
            self._others.append(both[wrong & (copies == 0).to(wrong.device)].cpu())
        return copies

    def _task_of(self, output: Any, targets: Tensor) -> AnyTask:
        """What a mistake is, as the first batch tells if nobody says it."""
        if self._task is None:
            self._task = recognise(output, targets)
            self._guessed = is_guess(self._task, targets)
        return self._task

    def _read(self, output: Any, targets: Tensor) -> Answers:
        """Judge samples."""
        with self._fitting():
            return self._task_of(output, targets).read(output, targets, self._settings.loss)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Where samples do not fit a task that was guessed, the guess may have been wrong."""
        guessed = self._guessed
        try:
            yield
        except InputError:
            self._evidence.misfits += guessed
            raise

    def _output(self, inputs: Any) -> Any:
        """What the network says, without gradients."""
        with (
            torch.inference_mode(mode=False), torch.no_grad(), no_trace(self._model),
            eval_mode(self._model) as was_training, self._forward_context(),
        ):  # fmt: skip
            output = call_network(self._model, inputs)
        self.was_training |= was_training
        return output

    def _count(self, answers: Answers, counted: Tensor) -> None:
        """Count samples by class, and what may be wrong with them.

        Args:
            counted: ``[N]`` bool; others are not.
        """
        labelled, unlabelled = answers.labelled & counted, ~answers.labelled & counted
        both = torch.stack([labelled, answers.wrong & counted]).unsqueeze(2)
        if answers.target is not None:
            classes = torch.arange(answers.classes, device=both.device)
            both = both & (answers.target.unsqueeze(1) == classes)
        self._by_class = self._by_class + both.sum(1)
        self._unlabelled = self._unlabelled + unlabelled.sum()
        found = self._evidence
        found.samples = found.samples + (labelled | unlabelled).sum()
        for name in ("beyond", "probabilities", "extreme"):
            column = getattr(answers, name)
            if column is not None:
                setattr(found, name, getattr(found, name) + (column & counted).sum())

    def _measure(self, chosen: Chosen) -> None:
        """Measure chosen samples, and take up what came out."""
        assert self._index is not None
        inputs, targets, seen, said = chosen.values
        with eval_mode(self._model) as was_training:
            measurement = measure(
                self._model,
                inputs,
                targets,
                index=self._index,
                loss=self._losses,
                forward_context=self._forward_context,
            )
        self._methods = measurement.methods
        self.was_training |= was_training
        output = measurement.output
        answers = self._read(output, targets)
        if chosen.copies is not None:  # it was counted with what the step said
            predicted, wrong = said
            counts = (chosen.copies > 0).to(wrong.device)
            labelled = answers.labelled & counts
            answers = replace(answers, predicted=predicted, labelled=labelled, wrong=wrong & counts)
        self._add(measurement, answers, chosen, inputs, targets)
        self._evidence.weigh(self._task_of(output, targets).prediction(output), seen)

    def _losses(self, output: Any, targets: Tensor) -> Tensor:
        """``[N]``, NaN for samples without a label, so that these cost no others."""
        with self._fitting():
            task = self._task_of(output, targets)
            return task.labelled_losses(output, targets, self._settings.loss)

    def _add(
        self, measurement: Measurement, answers: Answers, chosen: Chosen, inputs: Any,
        targets: Tensor,
    ) -> None:  # fmt: skip
        """Take up what was measured of chosen samples."""
        profile, losses = measurement.profile, measurement.losses.double()
        labelled, numbers = answers.labelled, chosen.numbers
        if self._reference is None:
            self._stream(profile, labelled, chosen)
        if self._choice is None:
            self._count(answers, torch.ones_like(labelled))
        finite = torch.isfinite(profile).all(1)
        self._measured = self._measured + labelled.sum()
        self._dropped = self._dropped + (labelled & ~finite).sum()
        wrong, nothing = answers.wrong, torch.zeros_like(labelled, dtype=torch.int64)
        right = labelled & finite
        if answers.score is None:
            right &= ~wrong
        if self._choice is not None:
            right &= self._choice.by_chance(numbers).to(right.device, non_blocking=True)
        badness = losses if answers.score is None else answers.score
        self._pending.append(
            _Batch(
                profile=profile,
                chosen=chosen.without_rows(),
                wrong=wrong,
                right=right,
                score=answers.score,
                columns={
                    "target": nothing if answers.target is None else answers.target,
                    "predicted": nothing if answers.predicted is None else answers.predicted,
                    "loss": losses,
                },
                details=dict(answers.details),
                glimpse=self.worst.look(inputs, targets, badness, wrong, right, numbers),
            )
        )
        if sum(one.nbytes for one in self._pending) >= PENDING_MB * BYTES_PER_MB:
            self._collect_pending()

    def _stream(self, profile: Tensor, labelled: Tensor, chosen: Chosen) -> None:
        """Feed the tails; a sample that stands for several comes so many times."""
        if self._settings.calibrate:  # then each stands for itself
            fitted = ~self._spare(chosen.numbers).to(labelled.device, non_blocking=True)
            self._half_tails().update(profile, labelled & fitted)
        self._own_tails().update(profile, labelled, chosen.copies)

    def _collect(self) -> None:
        """Bring in all that waits."""
        self.flush()
        self._collect_pending()

    def _collect_pending(self) -> None:
        """Look for the mistakes of the pending batches, the only wait for a GPU of many passes."""
        for one in self._pending:
            chosen = one.chosen
            if one.glimpse is not None:
                self.worst.keep(one.glimpse, chosen.numbers)
            is_right, wrong = one.right.cpu(), one.wrong.nonzero().squeeze(1)
            self._keep("right", one, is_right)
            if self._half is not None:
                self._keep("spare", one, (is_right | one.wrong.cpu()) & self._spare(chosen.numbers))
            rows = wrong.cpu()
            if len(rows) == 0:
                continue
            self._mistakes.append(
                Mistakes(
                    sample=chosen.numbers[rows],
                    ids=[chosen.ids[row] for row in rows.tolist()],
                    batch=chosen.batches[rows],
                    details={name: column[wrong].cpu() for name, column in one.details.items()},
                    **{name: column[wrong].cpu() for name, column in one.columns.items()},
                )
            )
            if one.score is not None:
                self._scores.append(one.score[wrong].cpu())
            self._keep("wrong", one, one.wrong.cpu())
        self._pending.clear()

    def _keep(self, kind: str, batch: _Batch, wanted: Tensor) -> None:
        """Offer profiles of some samples to a reservoir."""
        reservoir = self._reservoir(kind, batch.profile.dtype)
        numbers = batch.chosen.numbers
        rows = (wanted & reservoir.admits(numbers)).nonzero().squeeze(1)
        if len(rows):
            there = rows.to(batch.profile.device)
            profile, classes = batch.profile[there].cpu(), batch.columns["target"][there].cpu()
            scores = batch.score if kind == "wrong" else None
            worst_first = None if scores is None else scores[there].cpu()
            reservoir.offer(numbers[rows], profile, classes, worst_first)

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
        """``[2, K]`` samples and mistakes by true class, on the CPU."""
        return torch.zeros((2, 1), dtype=torch.int64) + torch.as_tensor(self._by_class).cpu()

    def _fitted(self, tails: Tails, level: float, stands_for: int | None = None) -> TailFit:
        """Fits as the settings say."""
        own = self._settings
        return fit_tails(
            tails, level, index=self._index, estimator=own.estimator, stands_for=stands_for
        )

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
