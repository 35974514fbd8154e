"""The half of a decoder's convolution that reads the skip, computed where the skip is something else than its token."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import CHANNELS_LAST, ConvShape, Triple, block_of, channels_first, channels_last
from headspark.packed.near import TAPS, RimTable, gather_dense
from headspark.packed.weight_gradient import CPU_COLUMN_BYTES, weight_gradient_of_windows
from headspark.packed.windows import gather_windows, window_batches

MARGIN: Triple = (1, 1, 1)
_SHAPE = ConvShape(kernel=(3, 3, 3), stride=MARGIN, padding=MARGIN, groups=1)


def beyond_token(skip: Tensor, token_C: Tensor | None) -> Tensor:
    """Return how the visible voxels differ from the token, packed as the skip is."""
    return skip if token_C is None else skip - token_C.to(skip.dtype)


def add_visible(rows: Tensor, apart: Tensor, geometry: MaskGeometry, weight: Tensor) -> None:
    """Add the convolution at visible voxels.

    Args:
        rows: The dense map, [samples * voxels, C_out]; added to.
        apart: `beyond_token`, [n, z, y, x, C].
        geometry: The mask.
        weight: [C_out, C, 3, 3, 3].
    """
    places, size = geometry.voxel_rows(block_of(apart)), math.prod(block_of(apart))
    for blocks in window_batches(apart, MARGIN, MARGIN):
        windows = gather_windows(apart, geometry, MARGIN, MARGIN, blocks)
        convolved = channels_last(F.conv3d(channels_first(windows), weight)).reshape(-1, rows.shape[-1])
        _add(rows, places[blocks.start * size : blocks.stop * size], convolved)


def add_rim(rows: Tensor, apart: Tensor, rim: RimTable, weight: Tensor) -> None:
    """Add the convolution at hidden voxels that touch a visible one.

    Args:
        rows: The map that the places of the rim belong to, [voxels, C_out]; added to.
        apart: `beyond_token`, [n, z, y, x, C].
        rim: The voxels, and what they read.
        weight: [C_out, C, 3, 3, 3].
    """
    channels = apart.shape[-1]
    source = torch.cat([apart, apart.new_zeros(1, *block_of(apart), channels)]).view(-1, channels)
    matrix = weight.permute(2, 3, 4, 1, 0).reshape(TAPS * channels, -1)
    step = max(len(rim.places), 1)
    if rows.device.type == "cpu":
        step = max(CPU_COLUMN_BYTES // (TAPS * channels * rows.element_size()), 1)
    for start in range(0, len(rim.places), step):
        places = rim.places[start : start + step]
        columns = source.index_select(0, rim.rows[start * TAPS : (start + len(places)) * TAPS])
        _add(rows, places, columns.view(len(places), -1) @ matrix)


def skip_gradients(
    grad_BDHWC: Tensor, skip: Tensor, token_C: Tensor | None, weight: Tensor, geometry: MaskGeometry
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of the skip, of its token and of the weight.

    All read the output's gradient through the mirrored kernel, in windows around the visible blocks.

    Args:
        grad_BDHWC: Gradient of the convolved map, contiguous; zero where it was not computed.
        skip: [n, z, y, x, C].
        token_C: [C] or None.
        weight: [C_out, C, 3, 3, 3].
        geometry: The mask.
    """
    sums = torch.promote_types(weight.dtype, torch.float32)
    mirrored = weight.to(grad_BDHWC.dtype).transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=CHANNELS_LAST)
    grad_mirrored = torch.zeros_like(mirrored, dtype=sums)
    grad_skip, apart = torch.empty_like(skip), beyond_token(skip, token_C)
    table = geometry.dense_windows(block_of(skip), 1)
    for blocks in window_batches(apart, MARGIN, MARGIN):
        windows = gather_dense(grad_BDHWC, table, blocks)
        grad_skip[blocks] = channels_last(F.conv3d(channels_first(windows), mirrored))
        grad_mirrored += weight_gradient_of_windows(windows, apart[blocks], mirrored, _SHAPE)
    grad_token = None if token_C is None else -grad_skip.sum((0, 1, 2, 3), dtype=sums).to(token_C.dtype)
    return grad_skip, grad_token, grad_mirrored.flip(2, 3, 4).transpose(0, 1).to(weight.dtype)


def _add(rows: Tensor, places: Tensor, values: Tensor) -> None:
    """Add to rows, of which each is named once at most."""
    rows.index_copy_(0, places, values.add_(rows.index_select(0, places)))
