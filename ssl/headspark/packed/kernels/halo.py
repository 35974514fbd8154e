"""Windows and columns of packed blocks, from a table that names the neighbours of each block; and their gradient.

No table of voxels is read: where a voxel lies follows from its place in the window. What the windows read may be
normalised and activated on the way, so that the map between norm and convolution is never written.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(neighbours, block, z, y, x, bz, by, bx, rz, ry, rx, ok):
    """The packed row at a place that is counted from the first voxel of the farthest neighbour; and whether it is."""
    cell = ((z // bz) * (2 * ry + 1) + y // by) * (2 * rx + 1) + x // bx
    cells = (2 * rz + 1) * (2 * ry + 1) * (2 * rx + 1)
    source = tl.load(neighbours + block * cells + cell, mask=ok, other=-1)
    place = ((z % bz) * by + y % by) * bx + x % bx
    return source.to(tl.int64) * (bz * by * bx) + place, (source >= 0) & ok


@triton.jit(
    do_not_specialize=[
        "tiles",
        "bz",
        "by",
        "bx",
        "lz",
        "ly",
        "lx",
        "ez",
        "ey",
        "ex",
        "rz",
        "ry",
        "rx",
        "kz",
        "ky",
        "kx",
    ]
)
def gather(
    rows, neighbours, sample, mean, scale, weight, bias, out, channels, slope, tiles,
    bz, by, bx, lz, ly, lx, ez, ey, ex, rz, ry, rx, kz, ky, kx,
    NORM: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gather windows of edges e around blocks of edges b, from l below; or the k taps of each voxel as columns.

    Grid: blocks * tiles of rows, tiles of channels.
    """
    block = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    if COLUMNS:
        size = bz * by * bx * kz * ky * kx
        voxel, tap = p // (kz * ky * kx), p % (kz * ky * kx)
        z = voxel // (by * bx) + tap // (ky * kx)
        y = voxel // bx % by + tap // kx % ky
        x = voxel % bx + tap % kx
    else:
        size = ez * ey * ex
        z, y, x = p // (ey * ex), p // ex % ey, p % ex
    ok = p < size
    row, live = _row(
        neighbours, block, z - lz + bz * rz, y - ly + by * ry, x - lx + bx * rx, bz, by, bx, rz, ry, rx, ok
    )
    c = tl.program_id(1) * C + tl.arange(0, C)
    inside = c < channels
    value = tl.load(rows + row[:, None] * channels + c[None, :], mask=live[:, None] & inside[None, :], other=0.0)
    if NORM:
        of = tl.load(sample + block) * channels + c
        gain_C = tl.load(scale + of, mask=inside, other=0.0)
        if weight is not None:
            gain_C = gain_C * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
        normed = (value.to(tl.float32) - tl.load(mean + of, mask=inside, other=0.0)[None, :]) * gain_C[None, :]
        if bias is not None:
            normed += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
        normed = tl.where(normed > 0, normed, normed * slope)
        value = tl.where(live[:, None], normed, 0.0).to(value.dtype)
    place = (block * size + p)[:, None] * channels + c[None, :]
    tl.store(out + place, value, mask=ok[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["tiles", "bz", "by", "bx", "lz", "ly", "lx", "rz", "ry", "rx", "kz", "ky", "kx"])
def sum_columns(
    products, neighbours, out, channels, tiles, bz, by, bx, lz, ly, lx, rz, ry, rx, kz, ky, kx,
    ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Sum, for each voxel, the products of all taps that read it: the gradient of `gather` of columns.

    Grid: blocks * tiles of rows, tiles of channels.
    """
    block = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    size, taps = bz * by * bx, kz * ky * kx
    ok = p < size
    c = tl.program_id(1) * C + tl.arange(0, C)
    inside = c < channels
    total = tl.zeros([ROWS, C], tl.float32)
    for tap in range(taps):
        z = p // (by * bx) + lz - tap // (ky * kx) + bz * rz
        y = p // bx % by + ly - tap // kx % ky + by * ry
        x = p % bx + lx - tap % kx + bx * rx
        row, live = _row(neighbours, block, z, y, x, bz, by, bx, rz, ry, rx, ok)
        place = (row * taps + tap)[:, None] * channels + c[None, :]
        total += tl.load(products + place, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
    place = (block * size + p)[:, None] * channels + c[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=ok[:, None] & inside[None, :])
