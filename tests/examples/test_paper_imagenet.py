"""The experiments on image folders, end to end on small stand-ins in the published layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VisionTransformer, resnet18, resnet50, vgg
from torchvision.transforms._presets import ImageClassification

from examples.paper import __main__ as paper
from examples.paper import data
from salmon import FilterIndex, InputError
from tests.paper_data import check_results, image_folder, small_network

pytestmark = pytest.mark.slow

WNIDS = ("n01440764", "n01443537")
SMALL = [
    "--limit", "2", "--counts", "[1, 4]", "--edits", "[plain]", "--rankings", "[pot, zscore]",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes whose colours tell nothing."""
    root = tmp_path_factory.mktemp("imagenet")
    image_folder(root / "val", WNIDS, 51, bright=0)
    return root


def slim(name: str, *, num_classes: int, weights: None = None) -> nn.Module:
    """A network of the same layers under the same names, but narrow."""
    torch.manual_seed(0)
    network: nn.Module
    if name == "efficientnet_lite0":
        network = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        network(torch.rand(32, 3, 32, 32))  # statistics, without which nothing comes through
    elif name == "resnet50":
        network = resnet50(num_classes=num_classes, width_per_group=4)
    elif name == "vgg19":
        layers = [size if size == "M" else int(size) // 16 for size in vgg.cfgs["E"]]
        network = vgg.VGG(vgg.make_layers(layers), num_classes=num_classes)
        network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(32, num_classes)
    else:
        network = VisionTransformer(
            image_size=32, patch_size=16, num_layers=12, num_heads=12, hidden_dim=48, mlp_dim=96,
            num_classes=num_classes,
        )  # fmt: skip
        nn.init.normal_(network.get_parameter("heads.head.weight"))  # zero at first
    return network


def small(_: str, *, num_classes: int, weights: None = None) -> nn.Module:
    """Two convolutions under any name."""
    return small_network(num_classes)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a file of weights of a slim network, which is loaded for images of 32x32 pixels."""
    real = data.load_network

    def load(*args: Any) -> tuple[nn.Module, Any]:
        return real(*args)[0], ImageClassification(crop_size=32, resize_size=36)

    def write(network: str, build: Any = slim) -> list[str]:
        monkeypatch.setattr(data, "load_network", load)
        monkeypatch.setattr(data, "get_model", build)
        torch.save(build(network, num_classes=2).state_dict(), tmp_path / "weights.pt")
        return ["--network", network, "--weights", str(tmp_path / "weights.pt")]

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "filters"),
    [("resnet50", 19_480), ("vgg19", 344), ("vit_b_16", 432), ("efficientnet_lite0", 21_008)],
)
def test_networks(imagenet: Path, tmp_path: Path, weights: Any, network: str, filters: int) -> None:
    places = ["--data", str(imagenet), "--out", str(tmp_path / "out")]
    paper.main(["imagenet", *places, *weights(network), *SMALL])
    out = tmp_path / "out" / f"imagenet-{network}"
    rows = check_results(out, [network], edits=1)
    assert {row["images"] for row in rows} == {"2"}
    assert {row["ranking"] for row in rows} == {"pot", "zscore"}
    ranked = load_file(out / "images" / "000000.safetensors")["zscore"]
    assert ranked.shape == (2, 25)
    assert len(load_file(out / "fit.safetensors")["threshold"]) == filters


def test_corruptions_share_the_statistics(imagenet: Path, tmp_path: Path, weights: Any) -> None:
    choice = weights("resnet50", small)
    root = tmp_path / "c"
    folders = [root / name / number for name in data.CORRUPTIONS for number in "12"]
    for number, folder in enumerate(folders):
        image_folder(folder, WNIDS, 6, seed=number, bright=0, shape=(32, 32))
    command = [
        "corruptions", "--data", str(imagenet), "--corrupted", str(root), "--out", str(tmp_path),
        *SMALL, *choice,
    ]  # fmt: skip
    with pytest.raises(InputError, match="holds no images by class"):
        paper.main([*command, "--data", str(tmp_path)])  # still nothing that other settings harm
    paper.main([*command, "--severities", "[1, 2]"])
    out = tmp_path / "corruptions-resnet50"
    cases = [f"{name}{end}" for name in data.CORRUPTIONS for end in ("", " 1", " 2")]
    rows = check_results(out, cases, edits=1)
    assert {row["images"] for row in rows if row["case"] == "snow"} == {"4"}
    assert len(list(out.rglob("fit.safetensors"))) == 1
    with pytest.raises(InputError, match=r"holds no images by class.*docs/experiments.md"):
        paper.main([*command, "--severities", "[1, 3]"])


def test_images_are_corrupted_when_they_are_read(
    imagenet: Path, tmp_path: Path, weights: Any
) -> None:
    choice = weights("resnet50", small)
    command = [
        "corruptions", "--data", str(imagenet), "--out", str(tmp_path), "--severities", "[1, 5]",
        *SMALL, *choice,
    ]  # fmt: skip
    paper.main(command)
    out = tmp_path / "corruptions-resnet50"
    cases = [f"{name}{end}" for name in data.CORRUPTIONS for end in ("", " 1", " 5")]
    rows = check_results(out, cases, edits=1)
    assert {row["images"] for row in rows if row["case"] == "snow"} == {"4"}
    with pytest.raises(SystemExit):
        paper.main([*command, "--severities", "[6]"])


def test_a_corrupted_image_is_the_clean_one_but_for_the_corruption(imagenet: Path) -> None:
    transform = ImageClassification(crop_size=32, resize_size=36)
    images = data.image_folder(imagenet / "val", transform)

    def corrupted(name: str, severity: int, seed: int = 0) -> torch.Tensor:
        found = data.Corrupted(images, name, severity, seed)
        assert len(found) == len(images)
        assert found[60][1] == images[60][1] == 1
        return found[60][0]

    clean, state = images[60][0], repr(np.random.get_state())  # noqa: NPY002
    # Contrast only moves colours towards their mean, and the cut is the same.
    faded = corrupted("contrast", 3)
    assert faded.shape == clean.shape
    assert float(torch.corrcoef(torch.stack([faded[0].flatten(), clean[0].flatten()]))[0, 1]) > 0.99
    assert float(faded.std()) < 0.5 * float(clean.std())
    noise = [float((corrupted("gaussian_noise", level) - clean).std()) for level in (1, 3, 5)]
    assert noise == sorted(noise)
    assert torch.equal(corrupted("snow", 2), corrupted("snow", 2))  # whenever it is read
    assert not torch.equal(corrupted("snow", 2), corrupted("snow", 2, seed=1))
    assert repr(np.random.get_state()) == state  # noqa: NPY002


def test_efficientnet_lite0_brings_its_weights_and_its_transform() -> None:
    network, transform = data.load_network("efficientnet_lite0", None, 1000)
    index = FilterIndex.from_model(network)
    assert len(index) == 21_008
    assert index.groups == ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "head")
    assert float(network.get_parameter("_conv_stem.weight").detach().abs().mean()) > 0.1
    seen = transform(Image.new("RGB", (300, 400), (127, 255, 0)))
    assert seen.shape == (3, 224, 224)
    assert seen[:, 0, 0].tolist() == pytest.approx([0, 1, -127 / 128])
    with pytest.raises(InputError, match=r"2 class folders; all 1000 .*, or a file with --weights"):
        data.load_network("efficientnet_lite0", None, 2)


def test_pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "resnet18", small_network)
    monkeypatch.setattr(data, "SIDE", 32)
    for number, domain in enumerate(("photo", "art_painting", "cartoon", "sketch")):
        image_folder(tmp_path / domain, ("dog", "house"), 84, kind="png", seed=number)
    command = [
        "pacs", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "1", *SMALL,
    ]  # fmt: skip
    paper.main(command)
    out = tmp_path / "out" / "pacs"
    splits = ["ACSP", "PCSA", "PASC", "PACS"]
    check_results(out, splits, edits=1)
    # Three of four domains, a fifth of which gives the tails, and the fourth.
    for split, facts in zip(
        splits, (out / "results.md").read_text().splitlines()[4:], strict=False
    ):
        assert facts.startswith(f"| {split} | 168 |")
        assert facts.endswith("| 101 |")
    (tmp_path / "photo" / "dog").rename(tmp_path / "photo" / "cat")
    with pytest.raises(InputError, match="differ in their class folders"):
        paper.main(command)


def test_weights_of_a_file(tmp_path: Path) -> None:
    made = resnet18(num_classes=4)
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    loaded, transform = data.load_network("resnet18", tmp_path / "weights.pt", 4)
    assert torch.equal(loaded.get_parameter("conv1.weight"), made.conv1.weight)
    assert transform(Image.new("RGB", (300, 400))).shape == (3, 224, 224)
    with pytest.raises(InputError, match=r"2 class folders; all 1000"):
        data.load_network("resnet18", None, 2)
