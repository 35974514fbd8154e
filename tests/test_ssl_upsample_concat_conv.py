"""The stage of the U-Net decoder that computes and keeps little equals the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headspark.decoder import skip_half, slabs
from headspark.decoder.norm_act import norm_act
from headspark.decoder.upsample_concat_conv import upsample_concat_conv
from headspark.masking import draw_mask
from headspark.packed import MaskGeometry, PackedBlocks, windows

EPS, SLOPE = 1e-5, 0.01


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Stage(nn.Module):
    """The weights of a stage, run in the plain way and in ours."""

    def __init__(self, *, factor: int = 2, kernel: int = 3, head: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(6, 4, factor, factor, bias=bias)
        self.conv = nn.Conv3d(8, 5, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(5, eps=EPS, affine=True)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.head = nn.Conv3d(5, 3, 1, bias=bias) if head else None
        self.token = nn.Parameter(torch.randn(4))

    def convolved(self, coarse: Tensor, skip: PackedBlocks) -> Tensor:
        joined = torch.cat([self.up(coarse.permute(0, 4, 1, 2, 3)), skip.dense(self.token)], 1)
        return self.conv(joined)

    def plain(self, coarse: Tensor, skip: PackedBlocks) -> Tensor:
        x = F.leaky_relu(self.norm(self.convolved(coarse, skip)), SLOPE)
        return (x if self.head is None else self.head(x)).permute(0, 2, 3, 4, 1)

    def plain_blocks(self, coarse: Tensor, skip: PackedBlocks) -> Tensor:
        return PackedBlocks.pack(self.convolved(coarse, skip), wanted_of(skip)).data

    def our_blocks(self, coarse: Tensor, skip: PackedBlocks) -> Tensor:
        up, conv = self.up, self.conv
        return upsample_concat_conv(
            coarse, skip.data, skip.geometry, self.token, up.weight, up.bias, conv.weight, conv.bias, wanted_of(skip)
        )

    def ours(self, coarse: Tensor, skip: PackedBlocks) -> Tensor:
        up, conv, head = self.up, self.conv, self.head
        x = upsample_concat_conv(
            coarse, skip.data, skip.geometry, self.token, up.weight, up.bias, conv.weight, conv.bias
        )
        linear = None if head is None else (head.weight.flatten(1), head.bias)
        return norm_act(x, self.norm.weight, self.norm.bias, linear, eps=EPS, slope=SLOPE)


def skip_of(batch: int, edges: tuple[int, int, int], block: int | None) -> PackedBlocks:
    """A skip with hidden blocks, another mask for each sample; without a block, a dense one."""
    x = torch.randn(batch, 4, *edges, dtype=torch.float64)
    if block is None:
        return PackedBlocks.whole(x)
    grid = (edges[0] // block, edges[1] // block, edges[2] // block)
    return PackedBlocks.pack(x, MaskGeometry(draw_mask(batch, grid, 0.6)))


def wanted_of(skip: PackedBlocks) -> MaskGeometry:
    """About two thirds of the hidden blocks, none of the first sample."""
    hidden = ~skip.geometry.mask_Bdhw
    some = torch.rand(hidden.shape, generator=torch.Generator().manual_seed(5)) < 0.67
    some[0] = False
    return MaskGeometry(hidden & some)


def run(stage: Stage, how: str, coarse: Tensor, skip: PackedBlocks) -> list[Tensor]:
    """Return the output and the gradients of inputs and parameters, for a fixed random loss."""
    stage.zero_grad()
    coarse = coarse.clone().requires_grad_()
    skip = PackedBlocks(skip.data.clone().requires_grad_(), skip.geometry)
    out = getattr(stage, how)(coarse, skip)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)).sum().backward()
    parameters = [p.grad for p in stage.parameters() if p.grad is not None]
    assert coarse.grad is not None
    assert skip.data.grad is not None
    return [out.detach(), coarse.grad, skip.data.grad, *parameters]


def assert_same(stage: Stage, coarse: Tensor, skip: PackedBlocks, ways: tuple[str, str] = ("plain", "ours")) -> None:
    plain, ours = (run(stage, how, coarse, skip) for how in ways)
    assert len(plain) == len(ours)
    # A bias before a norm has a true gradient of zero: only the rounding of large sums is left of it.
    floor = 1e-4 * max(tensor.abs().max().item() for tensor in plain)
    for expected, actual in zip(plain, ours, strict=True):
        assert (actual - expected).abs().max() <= 1e-8 * max(expected.abs().max().item(), floor)


@pytest.fixture(params=[1, 20_000, 2**30], ids=["one by one", "some at a time", "all at once"])
def _bytes_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "CPU_SLAB_BYTES", request.param)
    monkeypatch.setattr(windows, "CPU_WINDOW_BYTES", request.param)
    monkeypatch.setattr(skip_half, "CPU_COLUMN_BYTES", request.param)


@pytest.mark.usefixtures("_bytes_at_a_time")
@pytest.mark.parametrize("block", [4, 2, None], ids=["blocks of 4", "blocks of 2", "dense"])
def test_it_equals_plain_layers_however_much_is_computed_at_a_time(block: int | None) -> None:
    coarse = torch.randn(3, 6, 4, 2, 6, dtype=torch.float64)
    assert_same(Stage().double(), coarse, skip_of(3, (12, 8, 4), block))


@pytest.mark.usefixtures("_bytes_at_a_time")
@pytest.mark.parametrize("block", [8, 4, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_wanted_blocks_are_those_of_the_whole_map(block: int, bias: bool) -> None:
    coarse = torch.randn(3, 12, 8, 8, 6, dtype=torch.float64)
    skip = skip_of(3, (24, 16, 16), block)
    assert_same(Stage(bias=bias, head=False).double(), coarse, skip, ("plain_blocks", "our_blocks"))


def test_a_mask_without_wanted_blocks_has_gradients_of_zero() -> None:
    stage, skip = Stage().double(), skip_of(1, (16, 16, 16), 8)
    found = run(stage, "our_blocks", torch.randn(1, 8, 8, 8, 6, dtype=torch.float64), skip)
    assert len(found[0]) == 0
    assert all(not gradient.any() for gradient in found[1:])


@pytest.mark.parametrize(("factor", "kernel"), [(1, 3), (2, 1), (2, 5), (4, 3)])
def test_it_equals_plain_layers_whatever_stride_and_kernel(factor: int, kernel: int) -> None:
    coarse = torch.randn(2, 8 // factor, 8 // factor, 8 // factor, 6, dtype=torch.float64)
    assert_same(Stage(factor=factor, kernel=kernel).double(), coarse, skip_of(2, (8, 8, 8), 4))


@pytest.mark.parametrize("head", [True, False])
def test_it_equals_plain_layers_without_head_or_biases(head: bool) -> None:
    coarse = torch.randn(2, 4, 4, 4, 6, dtype=torch.float64)
    assert_same(Stage(head=head, bias=False).double(), coarse, skip_of(2, (8, 8, 8), 4))


def test_statistics_stay_exact_where_the_mean_is_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "CPU_SLAB_BYTES", 4_000)
    x = torch.randn(2, 8, 8, 8, 5) + 1000
    ones, zeros = torch.ones(5), torch.zeros(5)
    expected = F.instance_norm(x.double().permute(0, 4, 1, 2, 3), eps=EPS).permute(0, 2, 3, 4, 1)
    actual = norm_act(x.clone(), ones, zeros, eps=EPS, slope=1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-3)


def test_it_keeps_one_map_of_the_volume() -> None:
    stage = Stage(head=False)
    coarse = torch.randn(1, 8, 8, 8, 6, requires_grad=True)
    skip = PackedBlocks.pack(torch.randn(1, 4, 16, 16, 16), MaskGeometry(draw_mask(1, (4, 4, 4), 0.75)))
    skip.data.requires_grad_()

    def saved_bytes(how: str) -> int:
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = getattr(stage, how)(coarse, skip)
        assert out.shape == (1, 16, 16, 16, 5)
        return sum(kept.values())

    # Upsampling and convolution as one kernel, and what it is made of.
    fused = (6 * 5 * 4**3 + 2 * 5 * 8 * 3**3) * 4
    weights = sum(p.numel() * p.element_size() for p in stage.parameters()) + fused
    inputs = (coarse.numel() + skip.data.numel()) * 4
    convolved = 16**3 * 5 * 4
    assert saved_bytes("ours") <= inputs + convolved + weights + 1024
    assert saved_bytes("plain") > 3 * convolved


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    x = torch.randn(1, 4, 4, 4, 5, requires_grad=True)
    out = norm_act(x * 1, torch.ones(5, requires_grad=True), torch.zeros(5), eps=EPS, slope=SLOPE).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_bfloat16_stays_within_its_precision() -> None:
    stage = Stage()
    coarse, skip = torch.randn(2, 4, 4, 4, 6), skip_of(2, (8, 8, 8), 4)
    skip = PackedBlocks(skip.data.float(), skip.geometry)
    exact = run(stage, "plain", coarse, skip)
    rounded = run(stage.bfloat16(), "ours", coarse.bfloat16(), PackedBlocks(skip.data.bfloat16(), skip.geometry))
    assert all(tensor.dtype is torch.bfloat16 for tensor in rounded)
    for half, full in zip(rounded[:3], exact[:3], strict=True):
        assert (half.float() - full).norm() <= 0.05 * full.norm()
