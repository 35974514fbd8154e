"""Instance norm, what is added to it, LeakyReLU and a linear layer behind it: one pass over the map, and one for the
statistics.

Rows [voxels, C] of all samples lie behind each other; ``first`` [B + 1] counts the blocks before each sample, of
``voxels`` rows each. A program takes some rows of one sample. Sums are cut to parts that are joined afterwards, in an
order that is always the same: no atomics. Weight and bias may be None, as may what is added (``residual``) and the
layer behind (``head``); Triton leaves out what depends on them. Products are of float32: those of two numbers of 16
bits are exact in the precision "tf32" too, and of those Triton's interpreter knows no others.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows_of(first, voxels, sample):
    """The first row of a sample, and the one behind its last."""
    start = tl.load(first + sample).to(tl.int64) * voxels
    return start, tl.load(first + sample + 1).to(tl.int64) * voxels


@triton.jit
def _part(first, voxels, sample):
    """The rows of a sample that are this program's, one of those along axis 1 of the grid."""
    start, stop = _rows_of(first, voxels, sample)
    length = tl.cdiv(stop - start, tl.num_programs(1))
    begin = start + tl.program_id(1) * length
    return begin, tl.minimum(begin + length, stop)


@triton.jit
def _vectors(mean, scale, weight, bias, sample, channels, c, inside):
    """Mean, gain and offset of the channels of a sample."""
    mean_C = tl.load(mean + sample * channels + c, mask=inside, other=0.0)
    gain_C = tl.load(scale + sample * channels + c, mask=inside, other=0.0)
    offset_C = tl.zeros_like(mean_C)
    if weight is not None:
        gain_C = gain_C * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        offset_C = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return mean_C, gain_C, offset_C


@triton.jit
def _gradient(
    grad, head, active, normed, slope, r, c, here, inside, channels, outs, OUTS: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The gradient of the normed rows, from that of what came out; and the latter's own rows, if there is a head."""
    both = here[:, None] & inside[None, :]
    o = tl.arange(0, OUTS)
    if head is None:
        grad_O = tl.zeros([1, 1], tl.float32)
        grad_C = tl.load(grad + r[:, None] * channels + c[None, :], mask=both, other=0.0).to(tl.float32)
    else:
        grad_O = tl.load(grad + r[:, None] * outs + o[None, :], mask=here[:, None] & (o < outs)[None, :], other=0.0)
        grad_O = grad_O.to(tl.float32)
        matrix = tl.load(
            head + o[:, None] * channels + c[None, :], mask=(o < outs)[:, None] & inside[None, :], other=0.0
        )
        grad_C = tl.dot(grad_O, matrix.to(tl.float32), input_precision=PRECISION)
    before = normed
    if active is not None:  # a slope that is not negative keeps the sign
        before = tl.load(active + r[:, None] * channels + c[None, :], mask=both, other=0.0).to(tl.float32)
    return tl.where(before > 0, grad_C, grad_C * slope), grad_O


@triton.jit(do_not_specialize=["voxels"])
def moments(
    rows, first, mean, squares, voxels, channels, eps, FINAL: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr
):
    """Mean and squared deviations of each part; or, where a sample is one part, mean and inverse deviation.

    Tiles are joined as Chan et al. (1979) do. Grid: samples, parts, tiles of channels.
    """
    sample = tl.program_id(0)
    begin, end = _part(first, voxels, sample)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = c < channels
    mean_C, squares_C = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for at in range(begin, end, ROWS):
        r = at + tl.arange(0, ROWS)
        here = r < end
        x = tl.load(rows + r[:, None] * channels + c[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        x = x.to(tl.float32)
        before, count = (at - begin).to(tl.float32), tl.minimum(end - at, ROWS).to(tl.float32)
        centre_C = tl.sum(x, 0) / count
        centred = tl.where(here[:, None], x - centre_C[None, :], 0.0)
        apart_C = centre_C - mean_C
        squares_C += tl.sum(centred * centred, 0) + apart_C * apart_C * (before * count / (before + count))
        mean_C += apart_C * (count / (before + count))
    if FINAL:
        squares_C = tl.rsqrt(squares_C / tl.maximum(end - begin, 1).to(tl.float32) + eps)
    place = (sample * tl.num_programs(1) + tl.program_id(1)) * channels + c
    tl.store(mean + place, mean_C, mask=inside)
    tl.store(squares + place, squares_C, mask=inside)


@triton.jit(do_not_specialize=["voxels", "parts"])
def join_moments(
    means, squares, first, mean, scale, voxels, channels, eps, parts, PARTS: tl.constexpr, C: tl.constexpr
):
    """Join the parts of each sample. Grid: samples, tiles of channels."""
    sample = tl.program_id(0)
    start, stop = _rows_of(first, voxels, sample)
    length = tl.cdiv(stop - start, parts)
    c = tl.program_id(1) * C + tl.arange(0, C)
    part = tl.arange(0, PARTS)
    count = tl.minimum(length, (stop - start) - part * length)
    count = tl.where(part < parts, tl.maximum(count, 0), 0).to(tl.float32)
    total = tl.maximum(stop - start, 1).to(tl.float32)
    place = (sample * parts + part)[:, None] * channels + c[None, :]
    inside = (part < parts)[:, None] & (c < channels)[None, :]
    means_C = tl.load(means + place, mask=inside, other=0.0)
    mean_C = tl.sum(means_C * count[:, None], 0) / total
    apart = means_C - mean_C[None, :]
    squares_C = tl.sum(tl.load(squares + place, mask=inside, other=0.0) + apart * apart * count[:, None], 0)
    tl.store(mean + sample * channels + c, mean_C, mask=c < channels)
    tl.store(scale + sample * channels + c, tl.rsqrt(squares_C / total + eps), mask=c < channels)


@triton.jit(do_not_specialize=["voxels", "outs"])
def norm_act(
    rows, first, mean, scale, weight, bias, residual, head, head_bias, out, voxels, channels, outs, slope,
    ROWS: tl.constexpr, C: tl.constexpr, OUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Normalise, add, activate, and multiply with the head. Grid: tiles of rows, samples, tiles of channels."""
    sample = tl.program_id(1)
    start, stop = _rows_of(first, voxels, sample)
    r = start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * C + tl.arange(0, C)
    here, inside = r < stop, c < channels
    both = here[:, None] & inside[None, :]
    mean_C, gain_C, offset_C = _vectors(mean, scale, weight, bias, sample, channels, c, inside)
    place = r[:, None] * channels + c[None, :]
    x = tl.load(rows + place, mask=both, other=0.0)
    y = (x.to(tl.float32) - mean_C[None, :]) * gain_C[None, :] + offset_C[None, :]
    if residual is not None:
        y += tl.load(residual + place, mask=both, other=0.0).to(tl.float32)
    y = tl.where(y > 0, y, y * slope)
    if head is None:
        tl.store(out + place, y.to(x.dtype), mask=both)
    else:
        o = tl.arange(0, OUTS)
        matrix = tl.load(
            head + o[None, :] * channels + c[:, None], mask=(o < outs)[None, :] & inside[:, None], other=0.0
        )
        z = tl.dot(y.to(x.dtype).to(tl.float32), matrix.to(tl.float32), input_precision=PRECISION)
        if head_bias is not None:
            z += tl.load(head_bias + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + r[:, None] * outs + o[None, :], z.to(x.dtype), mask=here[:, None] & (o < outs)[None, :])


@triton.jit(do_not_specialize=["voxels", "outs"])
def gradient_sums(
    grad, rows, first, mean, scale, weight, bias, head, active, sums, voxels, channels, outs, slope,
    ROWS: tl.constexpr, C: tl.constexpr, OUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of the normed rows, its products with the centred ones, and those that the head's gradient is.

    Grid: samples, parts, tiles of channels. Sums are [B, parts, 2 + outs, C].
    """
    sample = tl.program_id(0)
    begin, end = _part(first, voxels, sample)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = c < channels
    mean_C, gain_C, offset_C = _vectors(mean, scale, weight, bias, sample, channels, c, inside)
    grad_sum_C, product_C = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    head_sum = tl.zeros([OUTS, C], tl.float32)
    for at in range(begin, end, ROWS):
        r = at + tl.arange(0, ROWS)
        here = r < end
        both = here[:, None] & inside[None, :]
        x = tl.load(rows + r[:, None] * channels + c[None, :], mask=both, other=0.0)
        centred = tl.where(both, x.to(tl.float32) - mean_C[None, :], 0.0)
        normed = centred * gain_C[None, :] + offset_C[None, :]
        grad_C, grad_O = _gradient(
            grad, head, active, normed, slope, r, c, here, inside, channels, outs, OUTS, PRECISION
        )
        grad_sum_C += tl.sum(grad_C, 0)
        product_C += tl.sum(grad_C * centred, 0)
        if head is not None:
            reached = tl.where(both, tl.where(normed > 0, normed, normed * slope), 0.0).to(x.dtype).to(tl.float32)
            head_sum += tl.dot(tl.trans(grad_O), reached, input_precision=PRECISION)
    place = sums + (sample * tl.num_programs(1) + tl.program_id(1)) * (2 + outs) * channels + c
    tl.store(place, grad_sum_C, mask=inside)
    tl.store(place + channels, product_C, mask=inside)
    if head is not None:
        o = tl.arange(0, OUTS)
        place = place[None, :] + (2 + o)[:, None] * channels
        tl.store(place, head_sum, mask=(o < outs)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["voxels", "samples", "parts", "outs"])
def join_gradient_sums(
    sums, first, scale, shift, pull, grad_weight, grad_bias, voxels, channels, samples, parts, outs,
    PARTS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Join the parts to what `norm_act_gradient` takes off, [B, C], and to the gradients of weight and bias.

    Grid: tiles of channels.
    """
    c = tl.program_id(0) * C + tl.arange(0, C)
    part = tl.arange(0, PARTS)
    inside = (part < parts)[:, None] & (c < channels)[None, :]
    weight_C, bias_C = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for sample in range(samples):
        start, stop = _rows_of(first, voxels, sample)
        total = tl.maximum(stop - start, 1).to(tl.float32)
        place = sums + (sample * parts + part)[:, None] * (2 + outs) * channels + c[None, :]
        grad_C = tl.sum(tl.load(place, mask=inside, other=0.0), 0)
        product_C = tl.sum(tl.load(place + channels, mask=inside, other=0.0), 0)
        scale_C = tl.load(scale + sample * channels + c, mask=c < channels, other=0.0)
        tl.store(shift + sample * channels + c, grad_C / total, mask=c < channels)
        tl.store(pull + sample * channels + c, product_C * scale_C * scale_C / total, mask=c < channels)
        weight_C += product_C * scale_C
        bias_C += grad_C
    tl.store(grad_weight + c, weight_C, mask=c < channels)
    tl.store(grad_bias + c, bias_C, mask=c < channels)


@triton.jit(do_not_specialize=["voxels", "outs"])
def norm_act_gradient(
    grad, rows, first, mean, scale, weight, bias, head, active, shift, pull, grad_rows, grad_residual,
    voxels, channels, outs, slope,
    ROWS: tl.constexpr, C: tl.constexpr, OUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of the rows, and of what was added to them. Grid: tiles of rows, samples, tiles of channels.

    ``grad_rows`` may be ``rows``.
    """
    sample = tl.program_id(1)
    start, stop = _rows_of(first, voxels, sample)
    r = start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * C + tl.arange(0, C)
    here, inside = r < stop, c < channels
    both = here[:, None] & inside[None, :]
    mean_C, gain_C, offset_C = _vectors(mean, scale, weight, bias, sample, channels, c, inside)
    place = r[:, None] * channels + c[None, :]
    x = tl.load(rows + place, mask=both, other=0.0)
    centred = x.to(tl.float32) - mean_C[None, :]
    normed = centred * gain_C[None, :] + offset_C[None, :]
    grad_C, _ = _gradient(grad, head, active, normed, slope, r, c, here, inside, channels, outs, OUTS, PRECISION)
    if grad_residual is not None:
        tl.store(grad_residual + place, grad_C.to(x.dtype), mask=both)
    shift_C = tl.load(shift + sample * channels + c, mask=inside, other=0.0)
    pull_C = tl.load(pull + sample * channels + c, mask=inside, other=0.0)
    grad_x = (grad_C - shift_C[None, :] - centred * pull_C[None, :]) * gain_C[None, :]
    tl.store(grad_rows + place, grad_x.to(x.dtype), mask=both)
