"""The experiments on image folders, end to end on small stand-ins in the published layouts."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VisionTransformer, resnet18, resnet50, vgg

from examples.paper import corruptions, group_shares, imagenet_curves, other_networks, pacs
from examples.paper.shared import networks
from examples.paper.shared.folders import DOMAINS
from salmon import InputError
from tests.paper_data import (
    SMALL,
    check_curves,
    check_pictures,
    check_shares,
    image_folder,
    small_network,
)

WNIDS = ("n01440764", "n01443537")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    image_folder(root / "val", WNIDS, 51)
    return root


def slim(name: str, **options: Any) -> nn.Module:
    """A network of the same layers under the same names, but narrow."""
    classes = options["num_classes"]
    network: nn.Module
    if name == "resnet50":
        network = resnet50(num_classes=classes, width_per_group=4)
    elif name == "vgg19":
        layers = [size if size == "M" else int(size) // 16 for size in vgg.cfgs["E"]]
        network = vgg.VGG(vgg.make_layers(layers), num_classes=classes, init_weights=False)
        network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(32, classes)
    else:
        network = VisionTransformer(
            image_size=options["image_size"], patch_size=16, num_layers=12, num_heads=12,
            hidden_dim=48, mlp_dim=96, num_classes=classes,
        )  # fmt: skip
    return network


def test_curves_of_resnet50(imagenet: Path, tmp_path: Path) -> None:
    imagenet_curves.main([
        "--data", str(imagenet), "--out", str(tmp_path / "out"), *SMALL, "--edits", "prune",
        "normalised",
    ])  # fmt: skip
    rows = check_curves(tmp_path / "out" / "curves.csv")
    assert {row["images"] for row in rows} == {"3"}
    check_shares(tmp_path / "out" / "shares.csv")
    check_pictures(tmp_path / "out" / "curves-resnet-50", tmp_path / "out" / "shares")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Stand-in: the network has random weights" in text
    assert "| conv1 | 0.2 |" in text  # 64 of 26,560 filters


def test_shares_without_shortcuts(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = networks.index_of(resnet50(), "resnet50", shortcuts=False)
    assert index.group_sizes.tolist() == [64, 1152, 3072, 9216, 9216]  # the paper's counts
    monkeypatch.setattr(networks, "get_model", slim)
    out = tmp_path / "out"
    found = {}
    for choice in ("--shortcuts", "--no-shortcuts"):
        group_shares.main(["--data", str(imagenet), "--out", str(out / choice), choice, *SMALL])
        check_shares(out / choice / "shares.csv")
        assert not (out / choice / "curves.csv").exists()
        found[choice] = (out / choice / "results.md").read_text()
    assert "Stand-in" in found["--shortcuts"]
    assert found["--shortcuts"] != found["--no-shortcuts"]


@pytest.mark.parametrize(("network", "last"), [("vgg19", "conv5_x"), ("vit_b_16", "depth5of5")])
def test_other_networks(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, last: str
) -> None:
    monkeypatch.setattr(networks, "get_model", slim)
    small = [*SMALL, "--limit", "2", "--rankings", "pot", "zscore", "--edits", "plain"]
    other_networks.main([
        "--data", str(imagenet), "--network", network, "--out", str(tmp_path / "out"), *small,
    ])  # fmt: skip
    check_curves(tmp_path / "out" / "curves.csv", rankings=2, edits=1)
    check_shares(tmp_path / "out" / "shares.csv")
    assert f"| {last} |" in (tmp_path / "out" / "results.md").read_text()
    ranked = load_file(tmp_path / "out" / "rankings.safetensors")["zscore.ranked"]
    assert ranked.tolist() == [432 if network == "vit_b_16" else 344] * 2  # heads; 5504 / 16


def test_corruptions_share_the_statistics(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "get_model", slim)
    root = tmp_path / "c"
    for severity in (1, 2):
        image_folder(root / "snow" / str(severity), WNIDS, 6, seed=severity)
        # As in an archive that was unpacked into a folder of its own.
        image_folder(root / "noise" / "gaussian_noise" / str(severity), WNIDS, 6, seed=severity + 5)
    out = tmp_path / "out"
    command = ["--data", str(imagenet), "--corrupted", str(root), "--out", str(out), *SMALL,
               "--corruptions", "gaussian_noise", "snow", "--edits", "plain"]  # fmt: skip
    corruptions.main([*command, "--severities", "1", "2"])
    rows = check_curves(out / "curves.csv", edits=1)
    assert {row["panel"] for row in rows} == {
        "snow", "snow 1", "snow 2",
        "gaussian_noise", "gaussian_noise 1", "gaussian_noise 2",
    }  # fmt: skip
    assert {row["images"] for row in rows if row["panel"] == "snow"} == {"6"}
    check_shares(out / "shares.csv")
    check_pictures(out / "curves-snow", out / "curves-gaussian-noise")
    assert [path.parent.name for path in out.rglob("fit.safetensors")] == ["statistics"]
    with pytest.raises(InputError, match=r"is no folder.*zenodo"):
        corruptions.main([*command, "--severities", "1", "3"])


def test_pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs, "resnet18", small_network)
    for number, domain in enumerate(DOMAINS):
        image_folder(tmp_path / "pacs" / domain, ("dog", "house"), 84, kind="png", seed=number)
    out = tmp_path / "out"
    small = SMALL[2:]  # trained from scratch
    pacs.main([
        "--data", str(tmp_path / "pacs"), "--out", str(out), *small, "--splits", "PACS",
        "--epochs", "1", "--rankings", "pot", "zscore", "last_group", "--edits", "plain",
    ])  # fmt: skip
    check_curves(out / "curves.csv", rankings=3, edits=1)
    check_shares(out / "shares.csv")
    check_pictures(out / "curves-pacs")
    assert "| PACS | 101 | 168 |" in (out / "results.md").read_text()  # a fifth of 504; sketches
    (tmp_path / "pacs" / "photo" / "dog").rename(tmp_path / "pacs" / "photo" / "cat")
    with pytest.raises(InputError, match="differ in the classes cat, dog"):
        pacs.main(["--data", str(tmp_path / "pacs"), "--out", str(out), *small])


def test_missing_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no folder; a folder with one folder of images"):
        imagenet_curves.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")])
    (tmp_path / "empty" / "n01440764").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no images by class.*image-net.org"):
        imagenet_curves.main(["--data", str(tmp_path / "empty"), "--out", str(tmp_path / "o")])
    with pytest.raises(InputError, match="--data is missing"):
        group_shares.main(["--out", str(tmp_path / "o")])
    with pytest.raises(InputError, match="PACS from the page of"):
        pacs.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")])


def test_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = resnet18(num_classes=4)
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    loaded = networks.load_network(
        "resnet18", str(tmp_path / "weights.pt"), classes=4, size=64, seed=0
    )
    assert not loaded.standin
    assert torch.equal(loaded.model.get_parameter("conv1.weight"), made.conv1.weight)
    with pytest.raises(InputError, match="do not fit the network"):
        networks.load_network("resnet18", str(tmp_path / "weights.pt"), classes=5, size=64, seed=0)
    torch.save(made, tmp_path / "whole.pt")  # would need code to be run
    with pytest.raises(InputError, match="cannot be read"):
        networks.load_network("resnet18", str(tmp_path / "whole.pt"), classes=4, size=64, seed=0)


def test_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"neither a file nor weights.*IMAGENET1K_V1, DEFAULT"):
        networks.load_network("resnet18", "IMAGENET", classes=1000, size=224, seed=0)
    with pytest.raises(InputError, match=r"2 class folders.*know 1000"):
        networks.load_network("resnet18", "IMAGENET1K_V1", classes=2, size=224, seed=0)

    def offline(*args: object, **named: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(networks, "get_model", offline)
    with pytest.raises(InputError, match=r"download from https://.*--weights FILE"):
        networks.load_network("resnet18", "IMAGENET1K_V1", classes=1000, size=224, seed=0)
