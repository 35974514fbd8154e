"""One vector a scan: the encoder's coarsest cells over overlapping tiles of the head, pooled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from harmonize.errors import UserError
from harmonize.pipeline import WINDOWED
from harmonize.pool import cores
from harmonize.voxels.stored import real_value
from headspark.channels import (
    UNSTATED_MRI_SCALING,
    CtWindow,
    MriScaling,
    as_window,
    check_scaling,
    check_unit,
    to_network_input,
)
from headspark.config.checks import require
from headspark.data.cohort import ScanItem
from headspark.data.decoders import read_corpus_file
from headspark.encoder import MaskableEncoder

DEFAULT_PATCH = 96
"""Edge of a tile in voxels, for an encoder that does not say what it was trained on."""

READERS = 4
"""Threads that read scans ahead, at the most; each holds one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How the cells of a scan become one vector.

    Attributes:
        kind: ``mean`` over the cells of the head, ``max``, or ``mean_max``, which is both, one behind the other.
        patch: Edge of a tile in voxels along each axis; empty: as the encoder was trained.
        overlap: Share of a tile's edge that neighbours have in common, at least; 0 <= overlap < 1.
    """

    kind: Literal["mean", "max", "mean_max"] = "mean"
    patch: tuple[int, ...] = ()
    overlap: float = 0.25

    def __post_init__(self) -> None:
        require(len(self.patch) in (0, 3), f"patch {list(self.patch)}: give the three edges of a tile")
        require(all(edge > 0 for edge in self.patch), f"patch {list(self.patch)}: must be 1 or more")
        require(0 <= self.overlap < 1, f"overlap {self.overlap}: must be 0 or more and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What came of a scan.

    Attributes:
        scan: That.
        vector_E: float32; None where the scan could not be used.
        cells_Cdhw: Of each cell, the mean over the tiles that hold it; the first lies at the scan's foreground box.
        fault: Why it could not be used, in one line.
    """

    scan: ScanItem
    vector_E: NDArray[np.float32] | None = None
    cells_Cdhw: NDArray[np.float32] | None = None
    fault: str = ""


def settled(pooling: Pooling, encoder: MaskableEncoder) -> Pooling:
    """The same with the tile's edges: as asked for, else as the encoder was trained, in whole cells.

    Args:
        pooling: As it was asked for.
        encoder: With ``preprocessing``.
    """
    stated = _preprocessing(encoder).get("patch")
    edges: list[Any] = list(stated) if isinstance(stated, list | tuple) else [stated] * 3
    known = len(edges) == 3 and all(type(edge) is int and edge > 0 for edge in edges)
    wanted, cell = pooling.patch or (edges if known else [DEFAULT_PATCH] * 3), encoder.strides[-1]
    return Pooling(kind=pooling.kind, patch=tuple(_whole_cells(edge, cell) for edge in wanted), overlap=pooling.overlap)


def embed_scans(
    encoder: MaskableEncoder,
    scans: Sequence[ScanItem],
    pooling: Pooling,
    *,
    device: torch.device,
    batch: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    asked: Callable[[], bool] = lambda: False,
) -> Iterator[Embedded]:
    """Embed scans, in their order; those that cannot be used are told apart, and the rest goes on.

    The head (the foreground box of the manifest) is covered by tiles at MONAI's places. A cell of the coarsest map is
    the mean over the tiles that hold it, and counts in the vector by the share of it that lies in the box.

    Args:
        encoder: In eval mode, with ``preprocessing``; it goes to the device.
        scans: Of a corpus.
        pooling: As `settled` gives it.
        device: Where to compute.
        batch: Tiles of a forward pass, of several scans where they have few.
        precision: ``bf16`` runs the network under autocast.
        asked: Whether to stop; then what is under way is left.
    """
    windows, scaling = _input_of(encoder)
    encoder.to(device)
    waiting: deque[_Open] = deque()

    def tiles() -> Iterator[tuple[_Open, tuple[int, ...]]]:
        for scan, prepared in _read_ahead(scans, lambda one: _prepare(one, windows, scaling, pooling, encoder)):
            opened = _Open(scan=scan, prepared=prepared)
            waiting.append(opened)
            yield from ((opened, start) for start in opened.starts)

    stream = tiles()
    while chunk := list(islice(stream, batch)):
        yield from _finished(waiting, pooling)
        if asked():
            return
        x_BCDHW = torch.stack([opened.tile(start, pooling.patch) for opened, start in chunk]).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            coarsest_BCdhw = encoder(x_BCDHW)[-1]
        for (opened, start), map_Cdhw in zip(chunk, coarsest_BCdhw.float().cpu(), strict=True):
            opened.add(start, map_Cdhw, encoder.strides[-1])
    yield from _finished(waiting, pooling)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """The input of a scan, with the first voxels of its tiles and how much of each cell lies in the head."""

    x_CDHW: Tensor
    starts: list[tuple[int, ...]]
    share_dhw: Tensor


@dataclass(slots=True, kw_only=True)
class _Open:
    """A scan some of whose tiles are still to come."""

    scan: ScanItem
    prepared: _Prepared | str
    done: int = 0
    sum_Cdhw: Tensor | None = None
    count_dhw: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def starts(self) -> list[tuple[int, ...]]:
        return [] if isinstance(self.prepared, str) else self.prepared.starts

    def tile(self, start: Sequence[int], patch: Sequence[int]) -> Tensor:
        assert isinstance(self.prepared, _Prepared)
        return self.prepared.x_CDHW[(slice(None), *_span(start, patch))]

    def add(self, start: Sequence[int], map_Cdhw: Tensor, cell: int) -> None:
        assert isinstance(self.prepared, _Prepared)
        if self.sum_Cdhw is None:
            self.count_dhw = torch.zeros_like(self.prepared.share_dhw)
            self.sum_Cdhw = torch.zeros(len(map_Cdhw), *self.count_dhw.shape)
        place = _span([first // cell for first in start], map_Cdhw.shape[1:])
        self.sum_Cdhw[(slice(None), *place)] += map_Cdhw
        self.count_dhw[place] += 1
        self.done += 1

    def embedded(self, pooling: Pooling) -> Embedded:
        if isinstance(self.prepared, str):
            return Embedded(scan=self.scan, fault=self.prepared)
        assert self.sum_Cdhw is not None
        cells_Cdhw = self.sum_Cdhw / self.count_dhw
        vector_E = pooled(cells_Cdhw, self.prepared.share_dhw, pooling.kind)
        if not bool(torch.isfinite(vector_E).all()):
            return Embedded(scan=self.scan, fault="the encoder makes no finite numbers of it")
        return Embedded(scan=self.scan, vector_E=vector_E.numpy(), cells_Cdhw=cells_Cdhw.numpy())


def pooled(cells_Cdhw: Tensor, share_dhw: Tensor, kind: str) -> Tensor:
    """One vector of the cells of a scan.

    Args:
        cells_Cdhw: The cells.
        share_dhw: How much of each counts, 0 to 1.
        kind: As `Pooling.kind`.

    Example:
        >>> cells, share = torch.tensor([1.0, 4.0, 9.0]).view(1, 1, 1, 3), torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 3)
        >>> pooled(cells, share, "mean_max").tolist()
        [2.0, 4.0]
    """
    mean_C = (cells_Cdhw * share_dhw).sum((1, 2, 3)) / share_dhw.sum()
    if kind == "mean":
        return mean_C
    max_C = cells_Cdhw[:, share_dhw > 0].amax(1)
    return max_C if kind == "max" else torch.cat([mean_C, max_C])


def _finished(waiting: deque[_Open], pooling: Pooling) -> Iterator[Embedded]:
    while waiting and waiting[0].done == len(waiting[0].starts):
        yield waiting.popleft().embedded(pooling)


def _prepare(
    scan: ScanItem,
    windows: Sequence[CtWindow],
    scaling: MriScaling,
    pooling: Pooling,
    encoder: MaskableEncoder,
) -> _Prepared | str:
    """The input of a scan, or why there is none."""
    try:
        check_unit(scan.unit, windows)
        volume = read_corpus_file(scan.image, scan_id=scan.scan_id, shape=scan.shape)
    except UserError as error:
        return str(error)
    x0, x1, y0, y1, z0, z1 = scan.box
    box = volume.stored_XYZ[x0:x1, y0:y1, z0:z1]
    if not box.size:
        return f"{scan.scan_id}: has no foreground"
    values = real_value(torch.from_numpy(np.ascontiguousarray(box)).float(), volume.slope, volume.inter)
    size, cell = box.shape[:3], encoder.strides[-1]
    covered = [max(tile, _whole_cells(edge, cell)) for edge, tile in zip(size, pooling.patch, strict=True)]
    beyond = [more for full, edge in reversed(list(zip(covered, size, strict=True))) for more in (0, full - edge)]
    if scan.unit == WINDOWED:
        beyond = [0, 0, *beyond]
    values = F.pad(values, beyond, value=scan.fill)
    shares = [
        torch.clamp((edge - cell * torch.arange(full // cell)) / cell, 0, 1)
        for edge, full in zip(size, covered, strict=True)
    ]
    steps = [max(cell, int(edge * (1 - pooling.overlap) / cell + 1e-9) * cell) for edge in pooling.patch]
    return _Prepared(
        x_CDHW=to_network_input(values, scan.unit, windows, scaling),
        starts=[tuple(int(one.start) for one in tile) for tile in dense_patch_slices(covered, pooling.patch, steps)],
        share_dhw=shares[0][:, None, None] * shares[1][:, None] * shares[2],
    )


def _read_ahead(
    scans: Sequence[ScanItem], read: Callable[[ScanItem], _Prepared | str]
) -> Iterator[tuple[ScanItem, _Prepared | str]]:
    """Each scan with what is read of it; a few are read while the network works on the ones before."""
    ahead = min(READERS, max(1, cores() // 2))
    with ThreadPoolExecutor(ahead) as pool:
        reading: deque[tuple[ScanItem, Future[_Prepared | str]]] = deque()
        left = iter(scans)
        while True:
            reading.extend((scan, pool.submit(read, scan)) for scan in islice(left, 1 + ahead - len(reading)))
            if not reading:
                return
            scan, future = reading.popleft()
            yield scan, future.result()


def _preprocessing(encoder: MaskableEncoder) -> Mapping[str, Any]:
    stated = getattr(encoder, "preprocessing", None)
    return stated if isinstance(stated, Mapping) else {}


def _input_of(encoder: MaskableEncoder) -> tuple[tuple[CtWindow, ...], MriScaling]:
    """The windows of CT and the scaling of MRI that an encoder was trained with."""
    stated = _preprocessing(encoder)
    names = stated.get("ct_windows")
    windows: tuple[CtWindow, ...] = ()
    if isinstance(names, list | tuple) and len(names) == encoder.config.in_channels:
        with suppress(UserError):
            windows = tuple(as_window(one) for one in names)
    if not windows:
        raise UserError(
            f"preprocessing.ct_windows in the encoder's config.json is {names}; wanted are the names of its "
            f"{encoder.config.in_channels} channels, or their name, width and level"
        )
    return windows, check_scaling(stated.get("mri_scaling", UNSTATED_MRI_SCALING))


def _whole_cells(edge: int, cell: int) -> int:
    return -(-edge // cell) * cell


def _span(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + edge) for first, edge in zip(start, size, strict=True))
