"""Trainers whose networks tell something else than one class for each image."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import SaliencyMonitor, Task, ViewSettings
from salmon.cli import main
from salmon.diagnosis import Diagnosis
from salmon.views import detail_name, guess_normalisation
from salmon.views.files import read_pictures
from salmon.views.pictures import coloured, enlarged
from tests.networks import PlainNet, batch
from tests.trainers import Module, trainer

IMAGES = batch(48, seed=4)[0]
RANDOM = torch.Generator().manual_seed(0)


class Maps(PlainNet):
    def forward(self, x: Tensor) -> Tensor:
        small = self.features(x)[:, :3]
        return nn.functional.interpolate(small, scale_factor=2.0)


class OneOutput(PlainNet):
    def __init__(self) -> None:
        super().__init__(1)


CASES: dict[str, tuple[type[PlainNet], Tensor, list[str]]] = {
    "binary": (
        OneOutput, torch.randint(2, (48,), generator=RANDOM).float(),
        ["confidence_target", "confidence_predicted"],
    ),
    "multilabel": (
        PlainNet, torch.randint(2, (48, 4), generator=RANDOM).float(),
        ["wrong_labels", "missed", "spurious"],
    ),
    "segmentation": (
        Maps, torch.randint(3, (48, 4, 4), generator=RANDOM), ["mean_iou", "pixel_accuracy"],
    ),
    "regression": (
        OneOutput, torch.randn(48, generator=RANDOM), ["error", "true_value", "predicted_value"],
    ),
}  # fmt: skip


class Silent(Module):
    """Its step only runs the network."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def validated(folder: Path, name: str, **options: Any) -> Diagnosis:
    net, targets, _ = CASES[name]
    module = Silent()
    torch.manual_seed(3)
    module.net = net()
    monitor = SaliencyMonitor(level=0.7, **({"strict": True} | options))
    data = DataLoader(TensorDataset(IMAGES, targets), 8)
    trainer(folder, monitor, logger=True).validate(module, data, verbose=False)
    return monitor.results["validation"]


@pytest.mark.parametrize("name", CASES)
def test_flags_overview_and_report_speak_of_the_task(
    tmp_path: Path, log: pytest.LogCaptureFixture, name: str
) -> None:
    found = validated(tmp_path, name)
    assert found.task == name
    assert f"takes this for the task '{name}': a mistake is" in log.text
    (path,) = tmp_path.rglob("flagged-*.jsonl")
    flags = [json.loads(line) for line in path.read_text().splitlines()]
    samples = [flag for flag in flags if flag["kind"] == "sample"]
    assert len(samples) == found.misclassified > 0
    assert set(CASES[name][2]) <= set(samples[0])
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--out", str(page)]) == 0
    html = page.read_text()
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", html, flags=re.S)
    for column in CASES[name][2]:
        assert detail_name(column) in shown
    if name == "binary":
        assert found.has_classes
        return
    assert "target" not in samples[0]
    assert f"A mistake is: {found.rule}" in shown.replace("&#39;", "'")
    words = re.findall(r"\b(?:mis)?class(?:es|ified)?\b[^.]{0,60}", f"{shown} {log.text}")
    assert words == []


def test_pictures_show_the_true_mask_and_the_predicted_one(tmp_path: Path) -> None:
    found = validated(tmp_path, "segmentation", views=ViewSettings(pictures=3))
    (path,) = tmp_path.rglob("pictures-*.jsonl")
    shown = [one for one in read_pictures(path) if one.kind == "flagged"]
    assert len(shown) == 3
    torch.manual_seed(3)
    network, each = Maps().eval(), IMAGES.transpose(0, 1).flatten(1)
    how = guess_normalisation(each.amin(1).tolist(), each.amax(1).tolist())
    for one in shown:
        true, predicted = CASES["segmentation"][1][one.sample], network(IMAGES[[one.sample]])
        given = how.pixels(IMAGES[one.sample])
        for image, mask in zip(one.masks, (true, predicted[0].argmax(0)), strict=True):
            expected = enlarged(coloured(given, mask), 192)
            stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.data))).convert("RGB"))
            assert np.abs(stored.astype(int) - expected).mean() < 6  # it is a JPEG
        assert "second image: the true mask; third: the predicted one" in one.caption
    assert found.misclassified >= 3
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().count('alt="Predicted mask of sample') == 3


def test_a_bound_tells_mistakes_without_a_look_at_the_others(tmp_path: Path) -> None:
    from salmon.tasks import Regression, Segmentation

    found = validated(tmp_path, "regression", task=Regression(bound=0.5))
    assert bool((found.mistakes.details["error"] > 0.5).all())
    assert found.rule == "error above 0.5"
    low = validated(tmp_path / "low", "segmentation", task=Segmentation("accuracy", bound=0.3))
    assert bool((low.mistakes.details["pixel_accuracy"] < 0.3).all())
    assert low.rule == "pixel accuracy under 0.3"


def test_a_task_of_one_s_own_holds_functions_that_need_not_be_sent(tmp_path: Path) -> None:
    task = Task(
        losses=lambda out, y: (out[:, 0] - y).square(),
        score=lambda out, y: (out[:, 0] - y).abs().detach(),
    )
    own = validated(tmp_path, "regression", task=task)
    usual = validated(tmp_path / "usual", "regression")
    assert own.mistakes.ids == usual.mistakes.ids
    match = re.fullmatch(r"score above (\S+), the highest 10 % of the pass", own.rule)
    assert match is not None
    assert float(match[1]) <= float(own.mistakes.details["score"].amin()) + 1e-2
