"""Packed encoding equals the dense emulation, leaks nothing and keeps only what is visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.masking import draw_mask, expand_cells, mask_grid
from headspark.packed import (
    Backend,
    MaskGeometry,
    PackedBlocks,
    UnsupportedOperation,
    encode_visible,
    weight_gradient,
    windows,
)
from headspark.packed.ops import norms

TOLERANCE = 1e-8
"""Relative, in float64."""

BACKENDS: tuple[Backend, ...] = ("packed", "emulated")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def encoder_of(**shape: object) -> MaskableEncoder:
    defaults: dict = {"features": (4, 6, 8, 10), "blocks": (1, 2, 1, 1), "strides": (1, 2, 2, 2), "in_channels": 2}
    return randomised(build_encoder(EncoderConfig(**(defaults | shape))).double())


def randomised(encoder: MaskableEncoder) -> MaskableEncoder:
    """Residual branches begin as zero; give them something to do."""
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return encoder


def encode(
    encoder: nn.Module, x: Tensor, mask: Tensor, backend: Backend = "packed"
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the dense maps of the visible blocks, zero where hidden, and the mask of each."""
    maps = encode_visible(encoder, x, MaskGeometry(mask), backend)
    return [map_.dense() for map_ in maps], [map_.voxel_mask() for map_ in maps]


def run(
    encoder: nn.Module, x: Tensor, visible: Tensor, backend: Backend
) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Return the maps, the gradient of the input and those of the parameters, for a fixed random loss."""
    encoder.zero_grad()
    x = x.detach().clone().requires_grad_()
    maps, _ = encode(encoder, x, visible, backend)
    weights = torch.Generator().manual_seed(1)
    sum((m * torch.randn(m.shape, generator=weights, dtype=m.dtype)).sum() for m in maps).backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return [m.detach() for m in maps], x.grad, gradients


def assert_same(encoder: MaskableEncoder, shape: tuple[int, ...], visible: Tensor) -> None:
    x = torch.randn(len(visible), encoder.config.in_channels, *shape, dtype=torch.float64)
    maps, grad_x, grads = run(encoder, x, visible, "emulated")
    packed_maps, packed_grad_x, packed_grads = run(encoder, x, visible, "packed")
    for emulated, packed in zip(maps, packed_maps, strict=True):
        assert_close(packed, emulated)
    assert_close(packed_grad_x, grad_x)
    assert packed_grads.keys() == grads.keys()
    # A bias before a norm has a true gradient of zero: only the rounding of large sums is left of it.
    scale = max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        assert_close(packed_grads[name], grad, floor=1e-4 * scale)


def assert_close(actual: Tensor, expected: Tensor, floor: float = 0.0) -> None:
    scale = max(expected.abs().max().item(), floor)
    assert (actual - expected).abs().max().item() <= TOLERANCE * scale


def random_mask(shape: tuple[int, ...], block: int, ratio: float, batch: int = 2) -> Tensor:
    return draw_mask(batch, mask_grid(shape, block), ratio, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("shape", "block", "ratio"),
    [
        ((16, 24, 16), 8, 0.3),
        ((24, 8, 40), 8, 0.6),
        ((16, 32, 16), 4, 0.75),
        ((16, 16, 24), 2, 0.5),
        ((32, 16, 48), 16, 0.8),
        ((24, 24, 24), 4, 0.9),
    ],
)
def test_packed_equals_emulated_whatever_the_grid_the_block_and_the_ratio(
    shape: tuple[int, ...], block: int, ratio: float
) -> None:
    assert_same(encoder_of(), shape, random_mask(shape, block, ratio))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_packed_equals_emulated_with_every_norm(norm: str) -> None:
    shape = (16, 24, 16)
    assert_same(encoder_of(norm=norm, features=(8, 16, 16, 24)), shape, random_mask(shape, 4, 0.6))


@pytest.mark.parametrize("kernel", [5, 7])
def test_packed_equals_emulated_with_kernels_that_reach_beyond_the_next_block(kernel: int) -> None:
    shape = (16, 16, 24)
    assert_same(encoder_of(kernel=kernel), shape, random_mask(shape, 4, 0.6, batch=1))


def test_stages_far_coarser_than_the_mask_stay_exact() -> None:
    shape = (32, 32, 64)
    deep = encoder_of(features=(4, 4, 6, 6, 8, 8), blocks=(1, 1, 1, 1, 1, 1), strides=(1, 2, 2, 2, 2, 2))
    visible = random_mask(shape, 4, 0.9)
    assert_same(deep, shape, visible)
    _, masks = encode(deep, torch.zeros(2, 2, *shape, dtype=torch.float64), visible)
    assert [tuple(mask.shape[2:]) for mask in masks][-1] == (1, 1, 2)
    assert all(torch.equal(mask, expand_cells(visible, tuple(mask.shape[2:]))) for mask in masks)


def test_samples_may_see_different_numbers_of_blocks_even_none_or_all() -> None:
    visible = torch.zeros(3, 2, 3, 2, dtype=torch.bool)
    visible[0, 0, :2] = True
    visible[1] = True
    assert_same(encoder_of(), (16, 24, 16), visible)


def test_with_nothing_hidden_packed_equals_the_plain_encoder() -> None:
    encoder, x = encoder_of(), torch.randn(2, 2, 16, 16, 24, dtype=torch.float64)
    maps, _ = encode(encoder, x, torch.ones(2, 2, 2, 3, dtype=torch.bool))
    for packed, plain in zip(maps, encoder(x), strict=True):
        assert_close(packed, plain)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(kind="segresnet", features=(4, 8, 16), blocks=(1, 2, 1), strides=(1, 2, 2), in_channels=2),
        EncoderConfig(kind="mednext", features=(4, 8, 16), blocks=(1, 2, 1), strides=(1, 2, 2), in_channels=2),
        EncoderConfig(
            kind="mednext", features=(4, 8, 16), blocks=(1, 1, 1), strides=(1, 2, 2), in_channels=2, kernel=5
        ),
    ],
    ids=lambda config: f"{config.kind}-{config.kernel}",
)
def test_encoders_of_monai_go_through(config: EncoderConfig) -> None:
    shape = (16, 16, 24)
    assert_same(randomised(build_encoder(config).double()), shape, random_mask(shape, 4, 0.6))


def test_windows_gathered_some_blocks_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CPU_WINDOW_BYTES", 60_000)
    assert_same(encoder_of(), (16, 24, 40), random_mask((16, 24, 40), 4, 0.6))


def test_weight_gradients_by_matrix_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradient, "GEMM_MIN_CHANNELS", 1)
    monkeypatch.setattr(weight_gradient, "CPU_COLUMN_BYTES", 60_000)
    assert_same(encoder_of(), (16, 24, 40), random_mask((16, 24, 40), 4, 0.6))


def test_no_gradient_reaches_a_hidden_voxel() -> None:
    shape = (16, 24, 16)
    visible = random_mask(shape, 4, 0.75)
    for backend in BACKENDS:
        _, grad_x, _ = run(encoder_of(), torch.randn(2, 2, *shape, dtype=torch.float64), visible, backend)
        seen = expand_cells(visible, shape).expand_as(grad_x)
        assert torch.count_nonzero(grad_x[~seen]) == 0
        assert torch.count_nonzero(grad_x[seen]) > 0.99 * seen.sum()


def test_what_hidden_voxels_hold_changes_no_bit_of_a_feature() -> None:
    shape = (16, 24, 16)
    visible, encoder = random_mask(shape, 4, 0.75), encoder_of()
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    poisoned = torch.where(expand_cells(visible, shape), x, torch.full_like(x, torch.nan))
    for backend in BACKENDS:
        maps, _ = encode(encoder, x, visible, backend)
        again, _ = encode(encoder, poisoned, visible, backend)
        assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))


def test_saved_activations_are_at_most_the_visible_share() -> None:
    encoder = build_encoder(EncoderConfig(features=(16, 32, 32), blocks=(1, 1, 1), strides=(1, 2, 2)))
    x = torch.randn(1, 3, 32, 32, 32)
    visible = random_mask((32, 32, 32), 8, 0.75, batch=1)
    dense = saved_bytes(encoder, lambda: encoder(x))
    packed = saved_bytes(encoder, lambda: encode_visible(encoder, x, MaskGeometry(visible)))
    assert packed <= 1.05 * visible.float().mean().item() * dense


def test_activated_maps_are_recomputed_to_the_last_bit_and_not_kept() -> None:
    encoder, visible = encoder_of().float(), random_mask((32, 32, 32), 8, 0.75, batch=1)
    x = torch.randn(1, 2, 32, 32, 32)

    def gradients(*, kept: bool) -> tuple[dict[str, Tensor], int]:
        with pytest.MonkeyPatch.context() as patch:
            if kept:
                patch.setattr(norms, "Recompute", lambda source, function: None)
            _, _, grads = run(encoder, x, visible, "packed")
            return grads, saved_bytes(encoder, lambda: encode_visible(encoder, x, MaskGeometry(visible)))

    (kept, kept_bytes), (recomputed, recomputed_bytes) = gradients(kept=True), gradients(kept=False)
    assert all(torch.equal(recomputed[name], kept[name]) for name in kept)
    assert recomputed_bytes < 0.8 * kept_bytes


def saved_bytes(encoder: nn.Module, forward: object) -> int:
    """Bytes of all activations that autograd keeps, each storage counted once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        maps = forward()  # type: ignore[operator]
    assert maps
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_autocast_to_bfloat16_stays_within_its_precision() -> None:
    shape = (16, 16, 16)
    encoder, visible = encoder_of().float(), random_mask((16, 16, 16), 4, 0.6)
    x = torch.randn(2, 2, *shape)
    exact, _ = encode(encoder, x, visible, "emulated")
    with torch.autocast("cpu", torch.bfloat16):
        maps, _ = encode(encoder, x, visible, "packed")
    assert maps[0].dtype is torch.bfloat16
    for half, full in zip(maps, exact, strict=True):
        assert (half.float() - full).norm() <= 0.03 * full.norm()
    sum(m.float().square().sum() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_channels_last_weights_and_input_change_nothing_but_rounding() -> None:
    shape = (16, 16, 24)
    encoder, visible = encoder_of(), random_mask((16, 16, 24), 8, 0.5)
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    plain, grad_plain, grads = run(encoder, x, visible, "packed")
    encoder = encoder.to(memory_format=torch.channels_last_3d)
    last, grad_last, grads_last = run(encoder, x.to(memory_format=torch.channels_last_3d), visible, "packed")
    for a, b in zip([*plain, grad_plain], [*last, grad_last], strict=True):
        assert_close(b, a)
    scale = max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        assert_close(grads_last[name], grad, floor=1e-4 * scale)


@pytest.mark.parametrize("kind", ["resenc", "segresnet", "mednext"])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(kind: str) -> None:
    config = EncoderConfig(kind=kind, features=(4, 8, 16), blocks=(2, 2, 1), strides=(1, 2, 2))  # type: ignore[arg-type]
    encoder = randomised(build_encoder(config).double())
    x, visible = torch.randn(1, 3, 16, 16, 16, dtype=torch.float64), random_mask((16, 16, 16), 4, 0.5, batch=1)
    _, grad_x, grads = run(encoder, x, visible, "packed")
    plain = saved_bytes(encoder, lambda: encode_visible(encoder, x, MaskGeometry(visible)))
    encoder.set_grad_checkpointing(True)
    _, grad_again, grads_again = run(encoder, x, visible, "packed")
    assert torch.equal(grad_x, grad_again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    assert saved_bytes(encoder, lambda: encode_visible(encoder, x, MaskGeometry(visible))) < 0.7 * plain


def test_sync_batch_norm_takes_packed_rows() -> None:
    encoder = encoder_of(norm="batch")
    x, visible = torch.randn(2, 2, 16, 16, 16, dtype=torch.float64), random_mask((16, 16, 16), 4, 0.5)
    plain, _ = encode(encoder, x, visible)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    maps, _ = encode(synced, x, visible)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    for a, b in zip(plain, maps, strict=True):
        assert_close(b, a)


def test_one_geometry_serves_many_passes() -> None:
    encoder, visible = encoder_of(), random_mask((16, 16, 16), 4, 0.5)
    x, geometry = torch.randn(2, 2, 16, 16, 16, dtype=torch.float64), MaskGeometry(visible)
    first, _ = encode(encoder, x, visible)
    for _ in range(2):
        maps = encode_visible(encoder, x, geometry)
        assert all(torch.equal(a, b.dense()) for a, b in zip(first, maps, strict=True))


def test_packing_and_filling_are_inverse() -> None:
    visible = random_mask((8, 12, 16), 4, 0.5)
    x = torch.randn(2, 3, 8, 12, 16)
    blocks = PackedBlocks.pack(x, MaskGeometry(visible))
    seen = expand_cells(visible, (8, 12, 16))
    token = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(blocks.dense(), torch.where(seen, x, 0))
    assert torch.equal(blocks.dense(token), torch.where(seen, x, token.view(1, 3, 1, 1, 1)))


class _Asking(nn.Module):
    """Ask of its input what encoders ask of a tensor."""

    def forward(self, x: Tensor) -> list[Tensor]:
        behind = x.permute(0, 2, 3, 4, 1)
        assert (x.ndim, x.dim(), x.dtype) == (5, 5, torch.float64)
        assert tuple(x.shape) == tuple(x.size()) == (2, 3, 8, 12, 16)
        assert (x.size(1), x.contiguous().shape[-1]) == (3, 16)
        assert tuple(behind.shape) == (2, 8, 12, 16, 3)
        assert x.new_empty(4).dtype is torch.float64
        return [1 + behind.permute(0, 4, 1, 2, 3) * 2 - x / 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_map_answers_as_the_tensor_that_it_stands_for(backend: Backend) -> None:
    visible, x = random_mask((8, 12, 16), 4, 0.5), torch.randn(2, 3, 8, 12, 16, dtype=torch.float64)
    (out,), (mask,) = encode(_Asking(), x, visible, backend)
    assert torch.equal(out, torch.where(mask, 1 + x * 2 - x / 2, 0))


class _Upsampler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2)


class _Squeezer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True)


class _Sorter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.sort(x, 1).values


class _Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Sorter.apply(x)


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (_Upsampler(), "interpolate"),
        (_Squeezer(), "mean"),
        (_Custom(), "sort"),
        (nn.AdaptiveAvgPool3d(1), "adaptive_avg_pool3d"),
        (nn.Conv3d(2, 2, 3, padding=2, dilation=2), "dilation"),
        (nn.Conv3d(2, 2, 3), "padding"),
        (nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"), "pad"),
        (nn.Conv3d(2, 2, 3, stride=3, padding=1), "stride"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_unknown_operation_is_refused_by_name_and_module(layer: nn.Module, operation: str) -> None:
    encoder = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(UnsupportedOperation, match=rf"'1\.1' \({type(layer).__name__}\).*{operation}") as caught:
        encode_visible(encoder, torch.zeros(1, 2, 8, 8, 8), MaskGeometry(torch.ones(1, 2, 2, 2, dtype=torch.bool)))
    assert "\n" not in str(caught.value)


def test_a_patch_that_does_not_fit_the_encoder_is_refused() -> None:
    visible = torch.ones(1, 3, 3, 3, dtype=torch.bool)
    with pytest.raises(UnsupportedOperation, match="multiple of the encoder's total stride"):
        encode(encoder_of(), torch.zeros(1, 2, 12, 12, 12, dtype=torch.float64), visible)
    with pytest.raises(ValueError, match="does not tile"):
        encode(encoder_of(), torch.zeros(1, 2, 16, 16, 16, dtype=torch.float64), visible)


def test_an_error_of_the_encoder_itself_is_not_renamed() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("my own fault")

    with pytest.raises(TypeError, match="my own fault"):
        encode_visible(Broken(), torch.zeros(1, 2, 8, 8, 8), MaskGeometry(torch.ones(1, 2, 2, 2, dtype=torch.bool)))
