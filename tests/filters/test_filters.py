"""The index: which filters, how many, in which group."""

import logging

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from salmon import SHORTCUTS, FilterIndex, InputError, StateError
from tests.networks import PlainNet


def sizes(index: FilterIndex) -> dict[str, int]:
    return dict(zip(index.groups, index.group_sizes.tolist(), strict=True))


def test_resnet18_has_the_counts_of_the_paper_without_shortcuts() -> None:
    index = FilterIndex.from_model(zoo.resnet18(), exclude=SHORTCUTS)
    assert sizes(index) == {
        "conv1": 64, "conv2_x": 256, "conv3_x": 512, "conv4_x": 1024, "conv5_x": 2048,
    }  # fmt: skip


def test_resnet50_has_the_counts_of_the_paper_without_shortcuts_and_26560_with_them() -> None:
    network = zoo.resnet50()
    index = FilterIndex.from_model(network, exclude=SHORTCUTS)
    assert sizes(index) == {
        "conv1": 64, "conv2_x": 1152, "conv3_x": 3072, "conv4_x": 9216, "conv5_x": 9216,
    }  # fmt: skip
    everything = FilterIndex.from_model(network)
    assert len(everything) == 26_560
    assert everything.scheme == "resnet"


def test_vgg_is_grouped_by_the_blocks_between_poolings() -> None:
    index = FilterIndex.from_model(zoo.vgg19())
    assert index.scheme == "vgg"
    assert sizes(index) == {
        "conv1_x": 128, "conv2_x": 256, "conv3_x": 1024, "conv4_x": 2048, "conv5_x": 2048,
    }  # fmt: skip


def test_unknown_networks_are_grouped_by_depth_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="salmon"):
        index = FilterIndex.from_model(zoo.shufflenet_v2_x0_5())
    assert index.scheme == "depth"
    assert index.groups == ("depth1of5", "depth2of5", "depth3of5", "depth4of5", "depth5of5")
    assert "grouped by depth" in caplog.text


class Block(nn.Module):
    """Two layers, of which the second strides."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 4, 3, stride=stride, groups=4)


class Listed(nn.Module):
    """A stem, one list of blocks, and a convolution behind it."""

    def __init__(self, *blocks: nn.Module, stem: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=stem)
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv2d(4, 9, 1)


def test_blocks_in_one_list_are_grouped_by_resolution() -> None:
    network = Listed(*map(Block, (1, 2, 1, 2)))
    index = FilterIndex.from_model(network)
    assert index.scheme == "strides"
    # A block that strides belongs to its new stage as a whole.
    assert {layer.layer: layer.group for layer in index.layers} == {
        "stem": "conv1", "blocks.0.expand": "conv1", "blocks.0.depthwise": "conv1",
        "blocks.1.expand": "conv2_x", "blocks.1.depthwise": "conv2_x",
        "blocks.2.expand": "conv2_x", "blocks.2.depthwise": "conv2_x",
        "blocks.3.expand": "conv3_x", "blocks.3.depthwise": "conv3_x",
        "last": "head",
    }  # fmt: skip
    alone = FilterIndex.from_model(nn.Sequential(*map(Block, (1, 2, 2))))
    assert sizes(alone) == {"conv1": 12, "conv2_x": 12, "conv3_x": 12}


def test_poolings_between_blocks_begin_a_stage_as_strides_do() -> None:
    network = Listed(Block(1), nn.MaxPool2d(2), Block(2), Block(1), nn.AvgPool2d(1), Block(1))
    assert sizes(FilterIndex.from_model(network)) == {"conv1": 16, "conv2_x": 36, "head": 9}


@pytest.mark.parametrize(
    "network",
    [
        Listed(*map(Block, (1, 1, 1)), stem=1),  # no stride
        Listed(nn.Sequential(Block(1), Block(2)), nn.Sequential(Block(2), Block(1))),  # nested
        Listed(*map(Block, (2, 2)), nn.Upsample(scale_factor=2), Block(1)),
        Listed(*map(Block, (2, 2)), nn.ConvTranspose2d(4, 4, 2, stride=2)),
        Listed(Block(2), nn.Conv2d(4, 4, 3, stride=2)),  # one block
    ],
)
def test_other_lists_are_grouped_by_depth(network: nn.Module) -> None:
    assert FilterIndex.from_model(network).scheme == "depth"


def test_mobilenet_and_densenet_have_the_stages_of_their_papers() -> None:
    mobile = FilterIndex.from_model(zoo.mobilenet_v2())
    assert mobile.groups == ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")
    dense = FilterIndex.from_model(zoo.densenet121())
    first = {layer.group: layer.layer for layer in reversed(dense.layers)}
    assert first["conv1"] == "features.conv0"
    assert first["conv2_x"] == "features.denseblock1.denselayer1.conv1"
    assert first["conv3_x"] == "features.transition1.conv"


def test_a_network_inside_a_module_is_recognised_too() -> None:
    outer = nn.Module()
    outer.backbone = zoo.resnet18()
    outer.decoder = nn.Conv2d(512, 3, 1)
    index = FilterIndex.from_model(outer)
    assert index.groups == ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "head")
    assert index.layers[0].layer == "backbone.conv1"


def test_two_convolutions_are_two_depths() -> None:
    index = FilterIndex.from_model(nn.ModuleList([nn.Conv1d(1, 2, 3), nn.Conv3d(1, 3, 3)]))
    assert index.groups == ("depth1of2", "depth2of2")


def test_filters_follow_named_parameters_with_channels_inside() -> None:
    network = PlainNet()
    index = FilterIndex.from_model(network)
    assert [layer.weight for layer in index.layers] == [
        name for name, p in network.named_parameters() if p.ndim == 4
    ]
    assert index.labels()[:7] == [*(f"features.0[{i}]" for i in range(6)), "features.4[0]"]
    assert [index.label(k) for k in range(len(index))] == index.labels()
    assert index.layer_of.tolist() == [0] * 6 + [1] * 8 + [2] * 10
    assert [layer.size for layer in index.layers] == [27, 54, 72]
    with pytest.raises(InputError, match=r"filters 0\.\.23"):
        index.label(24)


def test_compiled_networks_have_the_names_of_the_original() -> None:
    network = PlainNet()
    compiled = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    assert FilterIndex.from_model(compiled).layers == FilterIndex.from_model(network).layers


def test_a_weight_shared_by_two_modules_is_indexed_once() -> None:
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    assert len(FilterIndex.from_model(nn.Sequential(first, second))) == 3


def test_transposed_and_grouped_convolutions_count_output_channels() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(6, 9, 3, groups=3))
    index = FilterIndex.from_model(network)
    assert [(layer.filters, layer.size) for layer in index.layers] == [(6, 2 * 9), (9, 2 * 9)]


def test_patterns_select_layers() -> None:
    network = zoo.resnet18()
    only = FilterIndex.from_model(network, include=["layer4.*"], exclude=["*.conv2"])
    assert [layer.layer for layer in only.layers] == [
        "layer4.0.conv1", "layer4.0.downsample.0", "layer4.1.conv1",
    ]  # fmt: skip


def test_groups_can_be_named_by_hand() -> None:
    index = FilterIndex.from_model(PlainNet(), groups=lambda layer: f"block {layer[-1]}")
    assert index.scheme == "custom"
    assert index.groups == ("block 0", "block 4", "block 7")


def test_networks_without_selected_convolutions_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"no layers of the units .* 1 weights \(weight\) of the modules Lin"
    ):
        FilterIndex.from_model(nn.Linear(2, 2))
    with pytest.raises(InputError, match="has 3 layers"):
        FilterIndex.from_model(PlainNet(), include=["nothing"])


def test_a_string_is_no_list_of_patterns() -> None:
    with pytest.raises(InputError, match=r"exclude is the string '\*.7'"):
        FilterIndex.from_model(PlainNet(), exclude="*.7")


def test_lazy_convolutions_need_a_first_batch() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(InputError, match="run one batch"):
        FilterIndex.from_model(network)
    network(torch.zeros(1, 3, 8, 8))
    assert len(FilterIndex.from_model(network)) == 4


def test_fingerprints_tell_networks_apart() -> None:
    index = FilterIndex.from_model(PlainNet())
    index.check_fingerprint([list(row) for row in index.fingerprint()], source="it")
    with pytest.raises(StateError, match="first difference"):
        FilterIndex.from_model(zoo.resnet18()).check_fingerprint(index.fingerprint(), source="it")
    with pytest.raises(StateError, match="layers are missing"):
        index.check_fingerprint(index.fingerprint()[:2], source="it")
