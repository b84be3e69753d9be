"""Checkpoints: state loads safely, and a resumed run goes on as if it had not stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file

from salmon import FilterIndex, InputError, SaliencyMonitor, StateError
from salmon.monitor.memory import ViewMemory, checked_state
from salmon.views import Blamed
from salmon.views.record import FilterRow
from tests.records import hand_record
from tests.trainers import Module, digits, loader, trainer


def fit(folder: Path, monitor: SaliencyMonitor, epochs: int, resume: Path | None = None) -> Module:
    """Train without shuffling, with a checkpoint at the end."""
    seed_everything(2, verbose=False)
    module = Module()
    module.net.head[0] = torch.nn.Dropout(0.0)  # random numbers do not resume
    work = trainer(
        folder, monitor, ModelCheckpoint(folder, save_last=True, filename="best"),
        max_epochs=epochs, enable_checkpointing=True,
    )  # fmt: skip
    work.fit(module, loader(digits(64)), loader(), ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # of ModelCheckpoint
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "whole", whole, 5)
    first = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "first", first, 2)
    second = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "second", second, 5, tmp_path / "first" / "last.ckpt")

    def files(folder: str) -> dict[str, str]:
        return {p.name: p.read_text() for p in (tmp_path / folder / "salmon_logs").glob("*.jsonl")}

    # Passes 0, 2 and 4 are measured: the first one before the stop, the others after it.
    assert sorted(files("first") | files("second")) == sorted(files("whole"))
    assert files("first") | files("second") == files("whole")
    assert second.state_dict()["finished"] == whole.state_dict()["finished"] == {"validation": 5}
    for scope, state in whole.state_dict()["fits"].items():
        other = second.state_dict()["fits"][scope]["fit"]
        torch.testing.assert_close(other["xi"], state["fit"]["xi"], rtol=0, atol=0, equal_nan=True)


def test_checkpoints_load_without_unpickling_and_give_the_fits_back(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    module = fit(tmp_path, monitor, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"][monitor.state_key]
    fresh = SaliencyMonitor(level=0.7)
    fresh.load_state_dict(state)
    torch.testing.assert_close(
        fresh.last_fit(module).xi, monitor.last_fit(module).xi, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning")
def test_validating_a_checkpoint_measures_its_weights(tmp_path: Path) -> None:
    fit(tmp_path, SaliencyMonitor(level=0.7), 1)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor)
    other = Module()
    other.net.head[0] = torch.nn.Dropout(0.0)
    work.validate(other, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    trained = load_file(tmp_path / "salmon_logs" / "fit-validation.safetensors")
    torch.testing.assert_close(
        monitor.results["validation"].fit.threshold, trained["threshold"], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    "state", [{"version": 7}, {"version": 2, "finished": {"validation": 3}}, {"version": None}, {}]
)
def test_state_of_another_version_is_left_out_with_a_warning(
    state: Any, log: pytest.LogCaptureFixture
) -> None:
    monitor = SaliencyMonitor()
    monitor.load_state_dict(state)
    assert monitor.state_dict()["finished"] == {}
    assert "makes its state anew (StateError: the checkpoint holds" in log.text
    with pytest.raises(StateError, match=r"of version .+ but 3 is needed"):
        SaliencyMonitor(strict=True).load_state_dict(state)


def test_a_fit_that_was_not_made_is_not_handed_out() -> None:
    with pytest.raises(InputError, match="no pass 'validation' was measured"):
        SaliencyMonitor().last_fit(Module())


def replaced(*path: str, by: Any) -> Callable[[dict[str, Any]], None]:
    """Puts something else into a state, behind these keys."""

    def replace(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = by

    return replace


HISTORY = ("histories", "validation")
THREE = torch.tensor([1, 1, 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced("finished", by=None), r"Expected `object`, got `null` - at `\$.finished`"),
        (replaced("finished", "validation", by="2"), "Expected `int`, got `str`"),
        (replaced("finished", "validation", by=-1), "finished passes"),
        (replaced("fits", by=[1]), "Expected `object`, got `array`"),
        (replaced("run", by=3), r"Expected `str`, got `int` - at `\$.run`"),
        (replaced("histories", by=THREE), "the monitor's state: "),
        (
            replaced("blamed", "validation", by={"mistakes": 1, "filters": {"a[1]": 1.5}}),
            "Expected `int`, got `float`",
        ),
        (replaced("filters", "validation", by=[("a", 1)]), "Expected `array` of length 3"),
        (replaced(*HISTORY, by={"layers": []}), "saved history has no"),
        (replaced(*HISTORY, "layers", by=[("a", "b", 4)]), r"int64 \[2, 1\] is needed"),
        (replaced(*HISTORY, "counts", "pot", by=THREE), r"int64 \[2, 3\] is needed"),
        (replaced(*HISTORY, "passes", by=[0, 1]), "passes is list"),
        (replaced(*HISTORY, "passes", by=torch.tensor([1, 0])), "not in order"),
        (replaced(*HISTORY, "samples", by=torch.ones(2)), "samples is torch.float32"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    torch.save(_state_of_two_passes(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    monitor = SaliencyMonitor(strict=True)
    monitor.load_state_dict(state)  # before the damage it is taken
    before = str(monitor.state_dict())
    damage(state)
    with pytest.raises(StateError, match=message):
        monitor.load_state_dict(state)
    assert str(monitor.state_dict()) == before


def _state_of_two_passes() -> dict[str, Any]:
    """What a monitor hands to a checkpoint, small and by hand."""
    memory, index = ViewMemory(), FilterIndex.from_model(Module())
    for number in (0, 1):
        memory.take("validation", hand_record(number, filters=[BLAMED]), index)
    return {
        "version": 3, "finished": {"validation": 2}, "fits": {"validation": {"fit": {}}},
        **memory.state_dict(),
    }  # fmt: skip


BLAMED = FilterRow(
    label="net.a.0[1]", group="early", mistakes=9, expected=2.0, p=0.5, significant=1, median_p=0.1
)


class Wider(Module):
    """Layers of the same names with more filters, or with filters of another size."""

    def __init__(self, filters: int = 8, kernel: int = 3) -> None:
        super().__init__()
        self.net.features[4] = torch.nn.Conv2d(6, filters, kernel, padding=kernel // 2)
        self.net.features[7] = torch.nn.Conv2d(filters, 10, 3)


@pytest.mark.parametrize("other", [Wider(filters=12), Wider(kernel=5)])
def test_passes_of_another_network_are_not_put_beside_new_ones(
    tmp_path: Path, other: Module
) -> None:
    first = SaliencyMonitor(level=0.7, strict=True)
    fit(tmp_path, first, 2)
    resumed = SaliencyMonitor(level=0.7, strict=True)
    resumed.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][
        first.state_key
    ])  # fmt: skip
    with pytest.raises(StateError, match="the fit of 'validation' was made for 24 filters"):
        resumed.last_fit(other)
    trainer(tmp_path, resumed).validate(other, loader(), verbose=False)
    state = resumed.state_dict()
    assert state["finished"] == {"validation": 3}
    assert state["histories"]["validation"]["passes"].tolist() == [2]
    assert resumed.last_fit(other).threshold.numel() == len(FilterIndex.from_model(other))


def test_changes_are_not_told_against_another_network() -> None:
    memory = ViewMemory()
    memory.take_over(checked_state(_state_of_two_passes()))
    history, before = memory.take("validation", hand_record(2), FilterIndex.from_model(Module()))
    assert (history.passes.tolist(), before) == ([0, 1, 2], Blamed(20, {"net.a.0[1]": 9}))
    memory.take_over(checked_state(_state_of_two_passes()))
    other = FilterIndex.from_model(Wider(kernel=5))
    history, before = memory.take("validation", hand_record(2), other)
    assert (history.passes.tolist(), before) == ([2], None)


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning")
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # of ModelCheckpoint
@pytest.mark.parametrize("selection", [{"include": ["*.4", "*.7"]}, {"exclude": ["*.0"]}])
def test_a_run_that_goes_on_with_other_filters_begins_its_history_anew(
    tmp_path: Path, selection: Any
) -> None:
    fit(tmp_path / "first", SaliencyMonitor(level=0.7, strict=True), 2)
    monitor = SaliencyMonitor(level=0.7, strict=True, **selection)
    module = fit(tmp_path / "second", monitor, 3, tmp_path / "first" / "last.ckpt")
    state = monitor.state_dict()
    assert state["finished"] == {"validation": 1}
    assert state["histories"]["validation"]["passes"].tolist() == [0]
    assert monitor.last_fit(module).threshold.numel() == 18


def test_fits_of_another_network_are_not_handed_out(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    with pytest.raises(StateError, match="the fit of 'validation' was made for 24 filters"):
        monitor.last_fit(torch.nn.Conv2d(3, 3, 3))


def test_several_monitors_live_side_by_side(tmp_path: Path) -> None:
    monitors = [SaliencyMonitor(level=0.7), SaliencyMonitor(level=0.5)]
    seed_everything(2, verbose=False)
    work = trainer(tmp_path, *monitors, ModelCheckpoint(tmp_path), enable_checkpointing=True)
    work.fit(Module(), loader(), loader())
    assert [m.results["validation"].fit.level for m in monitors] == [0.7, 0.5]


def test_its_metrics_reach_early_stopping_and_checkpoints(tmp_path: Path) -> None:
    stop = EarlyStopping("salmon/mistakes", patience=1, min_delta=1000)
    keep = ModelCheckpoint(tmp_path, monitor="salmon/mistakes")
    work = trainer(
        tmp_path, SaliencyMonitor(level=0.7), stop, keep,
        max_epochs=5, enable_checkpointing=True,
    )  # fmt: skip
    work.fit(Module(), loader(), loader())
    assert work.current_epoch == 2
    assert keep.best_model_score is not None
    assert 0 < keep.best_model_score.item() <= 40
