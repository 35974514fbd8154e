"""SparK as it is usually done: dense operations on the whole volume, each followed by the mask. The packed oracle.

Every operation runs on the dense map and is multiplied by the mask; norms take their statistics over visible voxels.
It does all the work that :mod:`headspark.packed` leaves out, in the plainest way, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.masking import expand_cells
from headspark.packed.ops import HANDLERS, UnsupportedOperation


class MaskedVolume:
    """A dense volume that is zero where it is hidden, and stays so whatever is done to it.

    Args:
        volume: (B, C, D, H, W), or channels behind after ``permute``.
        visible_Bdhw: The mask over blocks.
        channels_last: Whether the channels are behind.
    """

    ndim = 5

    def __init__(self, volume: Tensor, visible_Bdhw: Tensor, channels_last: bool = False) -> None:
        self.volume = volume
        self.visible_Bdhw = visible_Bdhw
        self.channels_last = channels_last

    @staticmethod
    def mask(x_BCDHW: Tensor, visible_Bdhw: Tensor) -> MaskedVolume:
        """Hide what the mask hides."""
        return MaskedVolume(x_BCDHW, visible_Bdhw.to(x_BCDHW.device))._masked(x_BCDHW)

    def dense(self, fill_C: Tensor | None = None) -> Tensor:
        """Return the volume x_BCDHW; hidden voxels hold zeros or ``fill_C``."""
        if fill_C is None:
            return self.volume
        return torch.where(self.visible(), self.volume, fill_C.to(self.volume.dtype).view(1, -1, 1, 1, 1))

    def visible(self) -> Tensor:
        """Return the mask at the scale of this map, (B, 1, D, H, W)."""
        space = self.volume.shape[1:4] if self.channels_last else self.volume.shape[2:]
        try:
            return expand_cells(self.visible_Bdhw, tuple(space))
        except ValueError as error:
            raise UnsupportedOperation(f"a map on a grid of {tuple(space)}: {error}") from error

    # What modules ask of the tensor they are given.

    @property
    def shape(self) -> torch.Size:
        """Shape of the volume."""
        return self.volume.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.volume.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.volume.device

    def dim(self) -> int:
        """Return the number of axes."""
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or one edge of it."""
        return self.shape if axis is None else self.shape[axis]

    def contiguous(self, memory_format: torch.memory_format | None = None) -> MaskedVolume:
        """Return self: dense operations take any layout."""
        return self

    def new_empty(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return an ordinary tensor of this type on this device."""
        return self.volume.new_empty(*args, **kwargs)

    def permute(self, *axes: int) -> MaskedVolume:
        """Move the channels behind, or back."""
        return MaskedVolume(self.volume.permute(*axes), self.visible_Bdhw, not self.channels_last)

    def __add__(self, other: Any) -> MaskedVolume:
        return self._masked(self.volume + _dense(other))

    def __sub__(self, other: Any) -> MaskedVolume:
        return self._masked(self.volume - _dense(other))

    def __mul__(self, other: Any) -> MaskedVolume:
        return self._masked(self.volume * _dense(other))

    def __truediv__(self, other: Any) -> MaskedVolume:
        return self._masked(self.volume / _dense(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __iadd__(self, other: Any) -> MaskedVolume:
        self.volume = (self + other).volume
        return self

    def _masked(self, volume: Tensor) -> MaskedVolume:
        out = MaskedVolume(volume, self.visible_Bdhw, self.channels_last)
        visible = out.visible().movedim(1, -1) if self.channels_last else out.visible()
        out.volume = torch.where(visible, volume, volume.new_zeros(()))
        return out

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in HANDLERS:
            raise UnsupportedOperation(torch.overrides.resolve_name(func) or repr(func))
        x = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        if func in _NORMS:
            return x._masked(_NORMS[func](x, *args[1:], **kwargs))
        inplace = kwargs.pop("inplace", False)
        dense = [[_dense(part) for part in arg] if isinstance(arg, list | tuple) else _dense(arg) for arg in args]
        out = x._masked(func(*dense, **kwargs))
        if not inplace:
            return out
        x.volume = out.volume
        return x


def _dense(value: Any) -> Any:
    return value.volume if isinstance(value, MaskedVolume) else value


def _instance_norm(
    x: MaskedVolume,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _group_norm(x, x.shape[1], weight, bias, eps)


def _group_norm(
    x: MaskedVolume, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise over the visible voxels of each sample and group."""
    visible = x.visible()
    grouped_BGcDHW = x.volume.unflatten(1, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    mask = visible.unsqueeze(1)
    count = (mask.sum((2, 3, 4, 5), keepdim=True) * grouped_BGcDHW.shape[2]).clamp(min=1)
    mean = (grouped_BGcDHW * mask).sum((2, 3, 4, 5), keepdim=True) / count
    centred = (grouped_BGcDHW - mean) * mask
    variance = centred.square().sum((2, 3, 4, 5), keepdim=True) / count
    out = (centred * (variance + eps).rsqrt()).flatten(1, 2).to(x.dtype)
    if weight is not None:
        out = out * weight.view(1, -1, 1, 1, 1)
    return out if bias is None else out + bias.view(1, -1, 1, 1, 1)


def _batch_norm(x: MaskedVolume, *args: Any, **kwargs: Any) -> Tensor:
    """Normalise over the visible voxels of the batch."""
    visible_BDHW = x.visible()[:, 0]
    out_BDHWC = torch.zeros_like(x.volume.permute(0, 2, 3, 4, 1))
    rows = F.batch_norm(x.volume.permute(0, 2, 3, 4, 1)[visible_BDHW], *args, **kwargs)
    return out_BDHWC.masked_scatter(visible_BDHW.unsqueeze(-1), rows).permute(0, 4, 1, 2, 3)


_NORMS: dict[Callable, Callable[..., Tensor]] = {
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
}
