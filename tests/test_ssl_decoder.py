"""Decoders: what they read, where they stop, whose keys they have."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harmonize.errors import UserError
from headspark.decoder import DecoderConfig, LightDecoder, UNetDecoder, build_decoder
from headspark.decoder.light import unpatchify
from headspark.masking import draw_mask, expand_cells
from headspark.packed import MaskGeometry, PackedBlocks, TokenMap

CHANNELS, STRIDES = (4, 6, 8, 10), (1, 2, 4, 8)


def dense_map(x_BCDHW: torch.Tensor) -> TokenMap:
    return TokenMap(PackedBlocks.whole(x_BCDHW))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps_of(decoder: LightDecoder | UNetDecoder, edge: int = 16) -> list[TokenMap]:
    return [
        dense_map(torch.randn(2, width, *[edge // STRIDES[scale]] * 3))
        for scale, width in zip(decoder.scales, decoder.widths, strict=True)
    ]


@pytest.mark.parametrize(("stop", "scales"), [(1, [0, 1, 2, 3]), (2, [1, 2, 3]), (4, [2, 3]), (8, [3]), (64, [3])])
def test_light_stops_at_its_stride_and_predicts_the_whole_volume(stop: int, scales: list[int]) -> None:
    decoder = build_decoder(DecoderConfig(stop_stride=stop, width=6, max_width=12), CHANNELS, STRIDES, 3)
    assert decoder.scales == scales
    assert decoder.widths[0] == 6
    assert max(decoder.widths) <= 12
    assert decoder(maps_of(decoder)).shape == (2, 3, 16, 16, 16)


def test_light_reads_every_map_that_it_asks_for() -> None:
    decoder = build_decoder(DecoderConfig(stop_stride=2, width=6), CHANNELS, STRIDES, 1)
    assert isinstance(decoder, LightDecoder)
    assert decoder(maps_of(decoder)).count_nonzero() == 0  # predictions begin as zeros
    torch.nn.init.normal_(decoder.predict.weight)
    maps = maps_of(decoder)
    leaves = [skip.map_.data.requires_grad_() for skip in maps]
    decoder(maps).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_light_costs_a_small_share_of_the_unet() -> None:
    channels, strides = (32, 64, 128, 256, 320, 320), (1, 2, 4, 8, 16, 32)
    work = {}
    for kind in ("light", "unet"):
        decoder = build_decoder(DecoderConfig(kind=kind), channels, strides, 1)  # type: ignore[arg-type]
        work[kind] = multiply_adds(decoder, strides)
    assert work["light"] < 0.1 * work["unet"]


def multiply_adds(decoder: LightDecoder | UNetDecoder, strides: tuple[int, ...]) -> float:
    """Multiply-adds a voxel of the volume."""
    edge = 32
    maps = [
        dense_map(torch.zeros(1, width, *[edge // strides[scale]] * 3))
        for scale, width in zip(decoder.scales, decoder.widths, strict=True)
    ]
    with FlopCounterMode(display=False) as counter:
        decoder(maps)
    return counter.get_total_flops() / 2 / edge**3


def test_unet_has_the_keys_of_nnunet() -> None:
    decoder = build_decoder(DecoderConfig(kind="unet"), CHANNELS, STRIDES, 2)
    keys = set(decoder.state_dict())
    conv = {
        f"stages.{s}.convs.0.{p}" for s in range(3) for p in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }
    plain = {
        f"{layer}.{s}.{p}" for layer in ("transpconvs", "seg_layers") for s in range(3) for p in ("weight", "bias")
    }
    assert keys == conv | plain
    assert decoder.stages[0].convs[0].conv.weight.shape[:2] == (8, 16)
    assert decoder(maps_of(decoder)).shape == (2, 2, 16, 16, 16)


def test_unpatchify_puts_every_prediction_in_its_cube() -> None:
    cells = torch.randn(1, 2, 8, 4, 12)
    volume = torch.nn.functional.interpolate(cells, scale_factor=2)
    patches = cells.repeat_interleave(8, 1)
    torch.testing.assert_close(unpatchify(patches, 2), volume)


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"decoder\.stop_stride"):
        DecoderConfig(stop_stride=0)


def test_scored_blocks_are_decoded_as_in_the_whole_map_and_normalised_over_themselves() -> None:
    decoder = build_decoder(DecoderConfig(kind="unet"), CHANNELS, STRIDES, 2).double()
    assert isinstance(decoder, UNetDecoder)
    visible_Bdhw = draw_mask(2, (4, 4, 4), 0.7)
    wanted_Bdhw = ~visible_Bdhw & (torch.rand(2, 4, 4, 4) < 0.5)
    maps = [
        TokenMap(PackedBlocks.pack(torch.randn(2, width, *[32 // stride] * 3).double(), MaskGeometry(visible_Bdhw)))
        for width, stride in zip(decoder.widths, STRIDES, strict=True)
    ]
    kept: list[torch.Tensor] = []
    stage = decoder.stages[-1]
    block = stage.convs[0]

    finer = decoder.stages[-2].register_forward_hook(lambda _, __, x: kept.append(x))
    found = decoder(maps, MaskGeometry(wanted_Bdhw))
    finer.remove()
    up = decoder.transpconvs[-1](kept[0].permute(0, 4, 1, 2, 3))
    convolved = block.conv(torch.cat([up, maps[0].dense()], 1))
    voxels_B1DHW = expand_cells(wanted_Bdhw, (32, 32, 32))
    expected = torch.zeros_like(found)
    for sample, inside in enumerate(voxels_B1DHW[:, 0]):
        rows = convolved[sample, :, inside]
        normed = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + block.norm.eps).sqrt()
        active = block.nonlin(normed * block.norm.weight[:, None] + block.norm.bias[:, None])
        head = decoder.seg_layers[-1]
        expected[sample, :, inside] = head.weight.flatten(1) @ active + head.bias[:, None]
    torch.testing.assert_close(found, expected)
    assert found[~voxels_B1DHW.expand_as(found)].count_nonzero() == 0


def test_a_light_decoder_cannot_leave_fine_blocks_out() -> None:
    with pytest.raises(UserError, match=r"decoder\.where scored: a light decoder has no fine map"):
        DecoderConfig(where="scored")
