"""The Lightning callback: which hook does what, and what goes into a checkpoint.

Order of hooks in Lightning: setup, on_validation_start, on_validation_batch_end,
on_validation_epoch_end, on_validation_end, state_dict, teardown; on an exception only on_exception.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from torch import nn

from salmon.diagnosis import Diagnosis
from salmon.errors import InputError
from salmon.gpd import TailFit
from salmon.monitor.bases import CallbackBase, logger, tolerated
from salmon.monitor.batches import SampleIds, Unpack, unpack_batch
from salmon.monitor.clock import Clock
from salmon.monitor.collector import Collector
from salmon.monitor.context import PassContext
from salmon.monitor.distributed import Processes
from salmon.monitor.memory import STATE_VERSION, ViewMemory, checked_state
from salmon.monitor.output import hand_in_report
from salmon.monitor.repairing import RepairInTraining, repair_in_training
from salmon.monitor.sampling import SampleBook
from salmon.monitor.settings import Settings
from salmon.monitor.trainers import check_trainer
from salmon.repairs import Outcome
from salmon.saliency import Coverage, Loss
from salmon.tails import Estimator, fit_from_state, fit_state
from salmon.tasks import AnyTask
from salmon.views import ViewSettings


class _Results(dict[str, Diagnosis]):
    """What was found, by scope."""

    def __missing__(self, scope: str) -> Diagnosis:
        """Say why there is none.

        Raises:
            KeyError: Always.
        """
        raise KeyError(
            f"no pass {scope!r} was measured; there are {sorted(self)}. Where one was to be, the "
            "log says what kept it from being measured."
        )


class SaliencyMonitor(CallbackBase):
    """Find the filters behind the mistakes of a network, in every validation and test.

    For mistakes and some right samples it measures the mean absolute loss gradient of every
    convolution filter (a forward and a backward of their own), fits a generalized Pareto tail to
    each filter at the end of the epoch, and ranks the filters of every misclassified sample by how
    improbable their saliency is. Training goes on as if the monitor were not there, bit for bit.

    Results: metrics ``salmon/...`` through ``self.log``, files in ``salmon_logs`` beside those
    of the logger, and :attr:`results`. See docs/parameters.md for each argument by its consequence.
    """

    def __init__(
        self,
        level: float | Literal["auto"] = 0.90,
        max_exceedances: int = 1024,
        top_k: int | None = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = (),
        groups: Callable[[str], str] | None = None,
        units: Sequence[str] = ("conv",),
        unpack: Unpack = unpack_batch,
        task: AnyTask | str | None = None,
        loss: nn.Module | Loss | None = None,
        sample_ids: SampleIds | None = None,
        reference: TailFit | str | Path | None = None,
        every_n_validations: int = 1,
        right_samples: int | None = 500,
        max_mistakes: int | None = 2000,
        memory_mb: int = 256,
        seed: int = 0,
        estimator: Estimator = "shrunk",
        calibrate: bool = False,
        write_files: bool = True,
        views: ViewSettings | None = None,
        strict: bool = False,
        repair: RepairInTraining | None = None,
    ) -> None:
        """Set up; nothing is measured before the first validation.

        Args:
            level: Quantile level of each filter's threshold, in (0, 1), or ``"auto"``, which takes
                one of 0.80, 0.85, 0.90, 0.95 for all by goodness of fit.
            max_exceedances: Largest values kept per filter; the fit is exact at ``level`` for up
                to ``(max_exceedances - 1) / (1 - level)`` samples and at a higher level beyond.
            top_k: Filters reported per sample and batch; None takes 25, or a tenth of all filters
                where that is less.
            include: Shell patterns of module paths to measure; None measures all convolutions.
            exclude: Shell patterns to leave out, such as ``salmon.SHORTCUTS``.
            groups: Names the group of a module path; None recognises residual stages and blocks
                between poolings.
            units: What to measure: ``"conv"``, ``"heads"`` (attention), ``"linear"``.
            unpack: ``batch -> (inputs, targets)``; the default takes pairs and the usual mappings.
            task: What a mistake is: ``"classification"``, ``"binary"``, ``"multilabel"``,
                ``"segmentation"``, ``"regression"`` or ``"sequence"``, one of ``salmon.tasks`` with
                arguments, or a ``salmon.Task`` of your own; None tells by the first batch.
            loss: ``(output, targets) -> [N]`` losses; None takes that of the task, such as the
                cross-entropy. A loss module of torch is taken with ``reduction="none"``; labels
                that are its ``ignore_index``, or no class of the network, are left out.
            sample_ids: ``batch -> [N]`` numbers or names of its samples, for the flags; None takes
                those of mappings (``"id"`` and the like), else the index in the dataset where the
                loader keeps its order, else the position in the pass.
            reference: Fits of other data to rank with, or a file of them; None fits each validation
                by itself.
            every_n_validations: Measure the first validation and every n-th after it.
            right_samples: Of a pass of more samples than this and ``max_mistakes``, measure the
                mistakes, right samples that the network is unsure of, and about so many others,
                chosen at random; each stands for its like in the tails. None measures all right
                samples.
            max_mistakes: Measure at most about so many mistakes of such a pass, chosen at random
                once a pass before it told how many there are; None measures all.
            memory_mb: Budget for the profiles of mistakes and of right samples that they are
                compared with, in MiB; beyond it a random part is kept and ranked.
            seed: Of all random choices.
            estimator: ``"shrunk"``, where the filters of a layer inform each other's tails, or
                ``"ml"``, the maximum likelihood of each filter alone, as in the paper.
            calibrate: Whether to fit half of the samples, too, and to show how well its
                probabilities hold on the other half.
            write_files: Whether to write flagged samples, fits and what the report is made of.
            views: What is shown, and how; None takes the defaults of ``salmon.ViewSettings``.
            repair: Look for a repair after fit, or after every validation; None does not.
            strict: Whether trouble with the data or the network raises; else it is logged and the
                training goes on.

        Raises:
            InputError: If an argument is out of range, or of another type.
        """
        super().__init__()
        self.settings = Settings(
            level=level,
            max_exceedances=max_exceedances,
            top_k=top_k,
            include=include,
            exclude=exclude,
            groups=groups,
            units=units,
            unpack=unpack,
            task=task,
            loss=loss,
            sample_ids=sample_ids,
            reference=reference,
            every_n_validations=every_n_validations,
            right_samples=right_samples,
            max_mistakes=max_mistakes,
            memory_mb=memory_mb,
            seed=seed,
            estimator=estimator,
            calibrate=calibrate,
            write_files=write_files,
            views=ViewSettings() if views is None else views,
            strict=strict,
        )
        if repair is not None and not isinstance(repair, RepairInTraining):
            raise InputError(
                f"repair is {repair!r}; RepairInTraining is needed, such as "
                "salmon.RepairInTraining(after='fit'), or None."
            )
        self.results: dict[str, Diagnosis] = _Results()
        """What the last measured pass of each kind found, by ``"validation"``, ``"test"``; with
        several loaders ``"validation/loader1"`` and so on, or their names in a mapping, such as
        ``"validation/loader_photo"``."""
        self.outcome: Outcome | None = None
        """Of the last repair."""
        self._repair = repair
        self._finished: dict[str, int] = {}  # passes, by stage
        self._fits: dict[str, dict[str, Any]] = {}  # states of the last fits, by scope
        self._pass: Collector | None = None
        self._book: SampleBook | None = None  # samples of the last validation, for a repair
        self._coverage: Coverage | None = None  # last announced
        self._memory = ViewMemory()

    @property
    def state_key(self) -> str:
        """Name of this monitor's state in a checkpoint."""
        return self._generate_state_key(
            level=self.settings.level,
            include=self.settings.include,
            exclude=self.settings.exclude,
            units=self.settings.units,
            reference=self.settings.reference is not None,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could never be measured, before a training begins.

        Raises:
            UnsupportedError: If the trainer shards parameters, or has several processes by
                something else than DDP.
            InputError: If the file ``reference`` is missing.
        """
        check_trainer(trainer)
        reference = self.settings.reference
        if isinstance(reference, str | Path) and not Path(reference).is_file():
            raise InputError(
                f"reference is {str(reference)!r}, which is no file; that of a training is "
                "salmon_logs/fit-validation.safetensors in its folder of logs."
            )
        all_of_them = [one for one in trainer.callbacks if isinstance(one, SaliencyMonitor)]  # type: ignore[attr-defined]
        if len(all_of_them) > 1 and all_of_them[0] is self:
            logger.warning(
                "the trainer has %d SaliencyMonitors, whose metrics, charts and files go under the "
                "same names and replace each other; give it one at a time.", len(all_of_them),
            )  # fmt: skip

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the first validation would stumble over, an epoch earlier."""
        with tolerated("cannot measure", strict=self.settings.strict):
            self.settings.check_patterns(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass."""
        if not trainer.sanity_checking:
            self._start(trainer, pl_module, "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass."""
        self._start(trainer, pl_module, "test")

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Watch what the step does with a batch."""
        if self._pass is not None:
            self._pass.begin(batch)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure a batch."""
        if self._pass is not None:
            self._pass.measure(batch, batch_idx, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit, rank, log and write."""
        if not trainer.sanity_checking:
            self._finish("validation")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit, rank, log and write."""
        self._finish("test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a repair, if asked to after validations."""
        self._look_for_repair(trainer, pl_module, "validation")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a repair, if asked to after fit; give the report to loggers that keep files.

        Also say so if nothing was measured.
        """
        self._look_for_repair(trainer, pl_module, "fit")
        if "validation" not in self._finished and trainer.is_global_zero:
            logger.warning(
                "SaliencyMonitor measured nothing: the training ended without a validation. It "
                "needs a validation_step and data for it, and as many epochs as "
                "check_val_every_n_epoch."
            )
        hand_in_report(trainer, self.settings, self._memory)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Drop a pass that an exception ended."""
        self._drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop what is left of a pass."""
        self._drop()

    def state_dict(self) -> dict[str, Any]:
        """Hand out the numbers of finished passes and the last fits.

        Returns:
            Plain values and tensors that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "version": STATE_VERSION,
            "finished": dict(self._finished),
            "fits": dict(self._fits),
            **self._memory.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        State of another version, or damaged, is left out with a warning, and the training goes on;
        ``strict`` raises.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        with tolerated("makes its state anew", strict=self.settings.strict):
            state = checked_state(state_dict)
            self._memory.take_over(state)
            self._finished, self._fits = dict(state.finished), dict(state.fits)

    def last_fit(self, model: nn.Module, scope: str = "validation") -> TailFit:
        """Hand out the fits of the last measured pass, also after a resume.

        Args:
            model: The network the fits are wanted for.
            scope: A key of :attr:`results`.

        Raises:
            InputError: If no pass of this scope was measured.
            StateError: If the fits belong to another network.
        """
        if scope not in self._fits:
            raise InputError(
                f"no pass {scope!r} was measured yet; there are {sorted(self._fits)}. Run "
                "trainer.fit or trainer.validate first."
            )
        # Weights that only a forward shows are in the index of a pass, but not in a new one.
        known = self.results[scope].index if scope in self.results else None
        index = known if known is not None and known.fits(model) else None
        index = index or self.settings.build_index(model)
        return fit_from_state(self._fits[scope], index, source=f"the fit of {scope!r}")

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a pass, unless it is not the turn of this one."""
        number = self._finished.get(stage, 0)
        self._pass = None
        if number % self.settings.every_n_validations == 0:
            if stage == "validation" and self._repair is not None:
                wanted = self._repair.settings
                self._book = SampleBook(most=wanted.max_samples, seed=wanted.seed)
            with tolerated("could not start", strict=self.settings.strict):
                context = PassContext(
                    settings=self.settings,
                    stage=stage,
                    number=number,
                    trainer=trainer,
                    model=pl_module,
                    memory=self._memory,
                    processes=Processes.of(trainer),
                    clock=Clock(),
                    book=self._book if stage == "validation" else None,
                )
                self._pass = Collector(context, self._coverage)

    def _drop(self) -> None:
        """Forget a pass that has not ended."""
        if self._pass is not None:
            self._pass.close()
        self._pass = None

    def _look_for_repair(self, trainer: Trainer, pl_module: LightningModule, when: str) -> None:
        """Repair if this is the time for it; trouble is logged, unless ``strict``."""
        if self._repair is None or self._repair.after != when or trainer.sanity_checking:
            return
        book, self._book = self._book, None
        if book is None and when == "validation":
            return  # it was not the turn of this one
        with tolerated("could not look for a repair", strict=self.settings.strict):
            self._check_trust()
            if book is None:
                raise InputError("no validation was measured whose samples it could look at.")
            self.outcome = repair_in_training(
                trainer,
                pl_module,
                self.settings,
                self._repair,
                self._memory,
                Processes.of(trainer),
                book,
            )

    def _check_trust(self) -> None:
        """Refuse to repair another function than the one that is validated."""
        for scope, found in self.results.items():
            if not scope.startswith("validation"):
                continue
            if not found.trusted:
                raise InputError(f"the diagnosis {scope!r} is not to be trusted. {found.doubts[0]}")

    def _finish(self, stage: str) -> None:
        """End a pass and keep what it found."""
        self._finished[stage] = self._finished.get(stage, 0) + 1
        measured, self._pass = self._pass, None
        if measured is not None:
            found = measured.finish()
            self._coverage = measured.coverage
            if stage == "validation" and not found:
                self._book = None  # which may hold a part of the samples only
            self.results |= found
            self._fits |= {scope: fit_state(d.fit, d.index) for scope, d in found.items()}
