"""Loaders in any nesting that Lightning takes, each with results of its own."""

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from salmon import RepairInTraining, RepairSettings, SaliencyMonitor
from salmon.monitor.loaders import loader_names
from tests.trainers import Module, digits, loader, trainer


class Each(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    test_step = validation_step


def of(samples: int) -> DataLoader[Any]:
    return loader(digits(samples))


NESTED: dict[str, tuple[Any, dict[str, int]]] = {
    "one": (of(40), {"": 40}),
    "a list of one": ([of(40)], {"": 40}),
    "a list": ([of(40), of(24)], {"/loader0": 40, "/loader1": 24}),
    "a mapping": ({"photo": of(40), "sketch": of(24)}, {"/loader_photo": 40, "/loader_sketch": 24}),
    "a mapping in a mapping": (
        {"x": {"a": of(40), "b": of(24)}, "y": of(16)},
        {"/loader_x.a": 40, "/loader_x.b": 24, "/loader_y": 16},
    ),
    "lists in a list": ([[of(40)], [of(24), of(16)]], {
        "/loader0.0": 40, "/loader1.0": 24, "/loader1.1": 16,
    }),
    "a list in a mapping": ({"x": [of(40), of(24)]}, {"/loader_x.0": 40, "/loader_x.1": 24}),
    "odd names": ({"a/b ../c": of(40), "a b c": of(24)}, {
        "/loader_a-b-c": 40, "/loader_a-b-c-1": 24,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("stage", ["validation", "test"])
def test_each_loader_of_any_nesting_has_its_results(tmp_path: Path, kind: str, stage: str) -> None:
    loaders, expected = NESTED[kind]
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor)
    run = work.validate if stage == "validation" else work.test
    run(Each(), loaders, verbose=False)
    assert {s: d.samples for s, d in monitor.results.items()} == {
        f"{stage}{name}": samples for name, samples in expected.items()
    }
    records = {p.name for p in (tmp_path / "salmon_logs").glob("pass-*.json")}
    assert records == {f"pass-{stage}{n.replace('/', '-')}-000000.json" for n in expected}
    prefix = "salmon_details" if stage == "validation" else "salmon_details/test"
    for name, samples in expected.items():
        assert work.callback_metrics[f"{prefix}{name}/samples"].item() == samples


def test_no_two_loaders_have_one_name() -> None:
    names = loader_names({"a.b": 1, "a": {"b": 2}, "a/b": 3, "c": 4})
    assert len(set(names)) == 4


def test_a_repair_takes_the_first_two_of_nested_loaders_or_those_that_are_named(
    tmp_path: Path,
) -> None:
    data = {"x": {"a": of(40), "b": of(24)}, "y": of(16)}
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (24, 40)),
        ({"new": "loader_y", "reference": "loader_x.b"}, (16, 24)),
        ({"new": "loader_x.a", "reference": "loader_x.a"}, (40, 40)),
    ]
    for names, sizes in cases:
        settings = RepairSettings(prefer="step", order="random", min_split=1, level=0.5)
        wanted = RepairInTraining(settings=settings, after="validation", **names)
        monitor = SaliencyMonitor(level=0.5, repair=wanted)
        trainer(tmp_path, monitor).validate(Each(), data, verbose=False)
        assert monitor.outcome is not None
        found = monitor.outcome.sizes
        assert tuple(sum(found[name].values()) for name in ("new", "reference")) == sizes


def test_a_repair_says_which_loaders_there_are(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    wanted = RepairInTraining(after="validation", new="night")
    monitor = SaliencyMonitor(level=0.7, repair=wanted)
    trainer(tmp_path, monitor).validate(Each(), {"day": of(16), "dusk": of(16)}, verbose=False)
    assert "names the loader 'night'; the validation has ['loader_day', 'loader_dusk']" in log.text
