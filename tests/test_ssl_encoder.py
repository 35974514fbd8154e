"""The residual encoder: nnU-Net's keys and function, presets, layers for timm."""

from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from harmonize.errors import UserError
from headspark.encoder import PRESETS, EncoderConfig, ResidualEncoder, build_encoder

SMALL = EncoderConfig(in_channels=1, features=(4, 6, 6), blocks=(1, 2, 1), strides=(1, 2, 2))

# The names of dynamic_network_architectures 0.4.4's ResidualEncoder, its duplicates under all_modules left out. The
# second stage projects behind a pool (skip.1); the third keeps its channels, so its skip is the pool alone.
KEYS = [
    f"{layer}.{parameter}"
    for layer in (
        "stem.convs.0",
        "stages.0.blocks.0.conv1",
        "stages.0.blocks.0.conv2",
        "stages.1.blocks.0.conv1",
        "stages.1.blocks.0.conv2",
        "stages.1.blocks.0.skip.1",
        "stages.1.blocks.1.conv1",
        "stages.1.blocks.1.conv2",
        "stages.2.blocks.0.conv1",
        "stages.2.blocks.0.conv2",
    )
    for parameter in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    if not (layer.endswith("skip.1") and parameter == "conv.bias")
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_the_keys_are_those_of_nnunet() -> None:
    assert sorted(ResidualEncoder(SMALL).state_dict()) == sorted(KEYS)


def test_resenc_l_has_the_parameters_of_nnssl() -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(in_channels=1))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 90_296_576


def test_a_block_is_branch_plus_averaged_and_projected_skip() -> None:
    encoder = ResidualEncoder(SMALL).double()
    block = encoder.stages[1].get_submodule("blocks.0")
    state = {name: nn.init.normal_(parameter) for name, parameter in block.named_parameters()}
    x = torch.randn(2, 4, 8, 8, 8, dtype=torch.float64)

    def norm(y: torch.Tensor, layer: str) -> torch.Tensor:
        return F.instance_norm(y, weight=state[f"{layer}.norm.weight"], bias=state[f"{layer}.norm.bias"])

    branch = F.conv3d(x, state["conv1.conv.weight"], state["conv1.conv.bias"], stride=2, padding=1)
    branch = F.leaky_relu(norm(branch, "conv1"), 0.01)
    branch = norm(F.conv3d(branch, state["conv2.conv.weight"], state["conv2.conv.bias"], padding=1), "conv2")
    skip = norm(F.conv3d(F.avg_pool3d(x, 2), state["skip.1.conv.weight"]), "skip.1")
    torch.testing.assert_close(block(x), F.leaky_relu(branch + skip, 0.01))


def test_residual_branches_begin_as_zero() -> None:
    encoder = ResidualEncoder(SMALL)
    block = encoder.stages[1].get_submodule("blocks.1")
    x = torch.rand(1, 6, 8, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_give_maps_of_their_channels_and_strides(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(PRESETS[name])
        maps = encoder(torch.zeros(1, 3, 64, 64, 96))
    for map_, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert map_.shape == (1, channels, 64 // stride, 64 // stride, 96 // stride)


@pytest.mark.parametrize("kind", ["segresnet", "mednext"])
def test_encoders_of_monai_follow_the_same_protocol(kind: str) -> None:
    config = EncoderConfig(kind=kind, features=(8, 16, 32), blocks=(1, 1, 1), strides=(1, 2, 2))  # type: ignore[arg-type]
    encoder = build_encoder(config)
    maps = encoder(torch.zeros(1, 3, 16, 16, 16))
    assert [map_.shape[1:3] for map_ in maps] == [(8, 16), (16, 8), (32, 4)]
    assert encoder.strides == (1, 2, 4)


@pytest.mark.parametrize("kind", ["resenc", "segresnet", "mednext"])
def test_layer_decay_gives_later_blocks_higher_rates_than_the_stem(kind: str) -> None:
    config = EncoderConfig(kind=kind, features=(8, 16, 32), blocks=(1, 2, 1), strides=(1, 2, 2))  # type: ignore[arg-type]
    encoder = build_encoder(config)
    groups = param_groups_layer_decay(encoder, weight_decay=0.01, layer_decay=0.5)
    scales = {}
    for group in groups:
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    named = {name: scales[id(parameter)] for name, parameter in encoder.named_parameters()}
    names = list(named)
    assert len(named) == len(list(encoder.parameters()))
    assert named[names[0]] == min(named.values()) < max(named.values())
    assert len(set(named.values())) >= 4


def test_dropped_paths_leave_the_skip() -> None:
    encoder = ResidualEncoder(EncoderConfig(features=(4, 4), blocks=(1, 3), strides=(1, 2), drop_path=0.999))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    block = encoder.stages[1].get_submodule("blocks.2")
    x = torch.rand(1, 4, 4, 4, 4)
    torch.testing.assert_close(block.train()(x), x)
    assert not torch.allclose(block.eval()(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1, 1)}, r"encoder\.blocks has 2 entries"),
        ({"strides": (2, 2, 2, 2, 2, 2)}, "begin with 1"),
        ({"kernel": 4}, "odd"),
        ({"drop_path": 1.0}, "probability"),
        ({"in_channels": 0}, "positive"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        EncoderConfig(**change)
    assert caught.value.exit_code == 2


def test_a_shape_that_monai_cannot_build_is_refused() -> None:
    config = EncoderConfig(kind="segresnet", features=(8, 16, 24), blocks=(1, 1, 1), strides=(1, 2, 2))
    with pytest.raises(UserError, match=r"doubles.*\[8, 16, 32\]"):
        build_encoder(config)
