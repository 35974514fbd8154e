"""Every operation that packed blocks know equals its dense emulation, outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headspark.encoder.residual import DropPath
from headspark.masking import draw_mask
from headspark.packed import MaskGeometry, PackedBlocks, encode_visible, weight_gradient

CHANNELS = 6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Single(nn.Module):
    """Give one map, as an encoder gives several."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


def assert_equal_to_emulation(*layers: nn.Module, block: int = 4, grid: tuple[int, int, int] = (2, 3, 4)) -> None:
    visible = draw_mask(2, grid, 0.5, torch.Generator().manual_seed(2))
    visible[0, 0, 0] = False  # samples that see different numbers of blocks
    edges = [cells * block for cells in grid]
    x = torch.randn(2, CHANNELS, *edges, dtype=torch.float64)
    results = []
    for backend in ("emulated", "packed"):
        net = copy.deepcopy(Single(*layers)).double()
        leaf = x.clone().requires_grad_()
        (map_,) = encode_visible(net, leaf, MaskGeometry(visible), backend)  # type: ignore[arg-type]
        out = map_.dense()
        weights = torch.Generator().manual_seed(1)
        (out * torch.randn(out.shape, generator=weights, dtype=out.dtype)).sum().backward()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        state = [buffer.clone().double() for buffer in net.buffers()]
        results.append([out.detach(), leaf.grad, map_.voxel_mask(), *grads, *state])
    assert len(results[0]) == len(results[1])
    for emulated, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, emulated, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv3d(CHANNELS, 5, 1),
        nn.Conv3d(CHANNELS, 5, 1, stride=2, bias=False),
        nn.Conv3d(CHANNELS, 5, 3, padding=1),
        nn.Conv3d(CHANNELS, 5, 3, padding="same"),
        nn.Conv3d(CHANNELS, 5, 3, stride=2, padding=1),
        nn.Conv3d(CHANNELS, 5, 3, stride=4, padding=1),
        nn.Conv3d(CHANNELS, 5, 2, stride=2),
        nn.Conv3d(CHANNELS, 5, 4, stride=4),
        nn.Conv3d(CHANNELS, 5, 4, stride=2, padding=1),
        nn.Conv3d(CHANNELS, 5, 5, padding=2),
        nn.Conv3d(CHANNELS, 5, 7, stride=2, padding=3),
        nn.Conv3d(CHANNELS, 5, (1, 3, 5), padding=(0, 1, 2)),
        nn.Conv3d(CHANNELS, 5, 3, stride=(1, 2, 2), padding=1),
        nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
        nn.Conv3d(CHANNELS, CHANNELS, 5, stride=2, padding=2, groups=CHANNELS),
        nn.Conv3d(CHANNELS, 4, 3, padding=1, groups=2),
        nn.Conv3d(CHANNELS, 4, 1, groups=2),
        nn.Conv3d(CHANNELS, 4, 1, stride=2, groups=2),
        nn.ConvTranspose3d(CHANNELS, 4, 2, stride=2),
        nn.ConvTranspose3d(CHANNELS, 4, (1, 2, 3), stride=(1, 2, 3), bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [4, 2, 1])
def test_convolutions(conv: nn.Module, block: int) -> None:
    # Strides beyond the block join blocks: the grid must be a multiple of what is joined.
    assert_equal_to_emulation(conv, block=block, grid=(4, 4, 8))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv3d(CHANNELS, 5, 3, stride=2, padding=1),
        nn.Conv3d(CHANNELS, 5, 2, stride=2),
        nn.Conv3d(CHANNELS, 5, (1, 3, 5), padding=(0, 1, 2)),
    ],
    ids=str,
)
def test_convolutions_with_weight_gradients_by_matrix_products(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_gradient, "GEMM_MIN_CHANNELS", 1)
    assert_equal_to_emulation(conv)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool3d(2),
        nn.AvgPool3d((1, 2, 2)),
        nn.AvgPool3d(3, 2, 1),
        nn.AvgPool3d(3, 1, 1),
        nn.MaxPool3d(2),
        nn.MaxPool3d(3, 2, 1),
        nn.MaxPool3d(3, 1, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [4, 1])
def test_pools(pool: nn.Module, block: int) -> None:
    assert_equal_to_emulation(pool, block=block, grid=(4, 4, 4))


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm3d(CHANNELS),
        nn.InstanceNorm3d(CHANNELS, affine=True),
        nn.GroupNorm(1, CHANNELS),
        nn.GroupNorm(3, CHANNELS),
        nn.GroupNorm(CHANNELS, CHANNELS),
        nn.BatchNorm3d(CHANNELS),
        nn.BatchNorm3d(CHANNELS).eval(),
        nn.BatchNorm3d(CHANNELS, track_running_stats=False),
    ],
    ids=str,
)
def test_norms_see_visible_voxels_only(norm: nn.Module) -> None:
    assert_equal_to_emulation(nn.Conv3d(CHANNELS, CHANNELS, 1), norm)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.LeakyReLU(0.1),
        nn.PReLU(CHANNELS),
        nn.PReLU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.ELU(),
        nn.SELU(),
        nn.CELU(),
        nn.Mish(),
        nn.Hardswish(),
        nn.Softplus(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.ReLU6(),
    ],
    ids=str,
)
def test_activations(activation: nn.Module) -> None:
    assert_equal_to_emulation(nn.Conv3d(CHANNELS, CHANNELS, 1), activation)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), nn.SiLU(inplace=True), nn.ELU(inplace=True)],
    ids=str,
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_activations_in_place_directly_behind_a_convolution(activation: nn.Module, kernel: int) -> None:
    conv = nn.Conv3d(CHANNELS, CHANNELS, kernel, padding=kernel // 2)
    assert_equal_to_emulation(conv, activation, nn.Conv3d(CHANNELS, 3, 3, padding=1))


class LayerNormBlock(nn.Module):
    """The block of ConvNeXt: channels behind for the norm and the linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.norm, self.scale = nn.LayerNorm(CHANNELS), nn.Parameter(torch.full((CHANNELS,), 0.5))
        self.mix = nn.Sequential(nn.Linear(CHANNELS, 12), nn.GELU(), nn.Linear(12, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(self.spatial(x).permute(0, 2, 3, 4, 1))) * self.scale
        return x + y.permute(0, 4, 1, 2, 3)


def test_layer_norm_and_linear_layers_with_channels_behind() -> None:
    assert_equal_to_emulation(LayerNormBlock())


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1)
        self.gamma = nn.Parameter(torch.randn(1, CHANNELS, 1, 1, 1))
        self.beta = nn.Parameter(torch.randn(CHANNELS, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        z = 2 * (y - x / 3) * self.gamma + self.beta
        per_sample = torch.tensor([0.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1, 1)
        return torch.cat([z * per_sample, x], 1)


def test_operators_with_maps_numbers_channels_and_samples() -> None:
    assert_equal_to_emulation(Arithmetic())


def test_a_whole_volume_in_packed_form_equals_the_plain_modules() -> None:
    layers = nn.Sequential(
        nn.Conv3d(CHANNELS, 8, 3, stride=2, padding=1),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(inplace=True),
        nn.ConvTranspose3d(8, 4, 2, stride=2),
        nn.Conv3d(4, 4, 3, padding=1, groups=2),
    ).double()
    x = torch.randn(2, CHANNELS, 8, 6, 10, dtype=torch.float64)
    packed = PackedBlocks.whole(x)
    assert packed.dense().data_ptr() == packed.data.data_ptr()
    torch.testing.assert_close(layers(packed).dense(), layers(x))
    both = torch.cat([packed, PackedBlocks.whole(x)], 1) + PackedBlocks.whole(torch.cat([x, x], 1))  # type: ignore[list-item]
    torch.testing.assert_close(both.dense(), 2 * torch.cat([x, x], 1))


def test_dropout_is_off_in_evaluation_and_scales_in_training() -> None:
    x = PackedBlocks.pack(torch.ones(2, 64, 8, 8, 8), MaskGeometry(torch.ones(2, 2, 2, 2, dtype=torch.bool)))
    for layer in (nn.Dropout(0.25), nn.Dropout3d(0.25), DropPath(0.25), timm.layers.DropPath(0.25)):
        assert torch.equal(layer.eval()(x).dense(), x.dense())
        values = layer.train()(x).dense().unique()
        assert all(value in (0, pytest.approx(1 / 0.75)) for value in values.tolist())
    whole = nn.Dropout3d(0.5)(x).dense().flatten(2)
    assert torch.equal(whole.amin(2), whole.amax(2))
    assert 0.3 < (whole[:, :, 0] == 0).float().mean() < 0.7
    assert F.dropout3d(x, 1.0).dense().count_nonzero() == 0
