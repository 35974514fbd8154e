"""SparK as it is usually done: dense operations on the whole volume, each followed by the mask. The packed oracle.

Every operation runs on the dense map and is multiplied by the mask; norms take their statistics over visible voxels.
It does all the work that packed blocks leave out, in the plainest way, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.masking import expand_cells
from headspark.packed.handlers import UnsupportedOperation
from headspark.packed.layout import channels_first, channels_last
from headspark.packed.masked_map import MaskedMap


class MaskedVolume(MaskedMap):
    """A dense volume that is zero where it is hidden, and stays so whatever is done to it.

    Args:
        data: (B, C, D, H, W), or channels behind after ``permute``.
        mask_Bdhw: The mask over blocks, True where visible.
        channels_last: Whether the channels are behind.
    """

    def __init__(self, data: Tensor, mask_Bdhw: Tensor, channels_last: bool = False) -> None:
        super().__init__(data, channels_last)
        self.mask_Bdhw = mask_Bdhw

    @staticmethod
    def mask(x_BCDHW: Tensor, mask_Bdhw: Tensor) -> MaskedVolume:
        """Hide what the mask hides."""
        return MaskedVolume(x_BCDHW, mask_Bdhw.to(x_BCDHW.device)).like(x_BCDHW)

    def dense(self, token_C: Tensor | None = None) -> Tensor:
        """Return the volume x_BCDHW; hidden voxels hold zeros or ``token_C``."""
        if token_C is None:
            return self.data
        return torch.where(self.voxel_mask(), self.data, token_C.to(self.data.dtype).view(1, -1, 1, 1, 1))

    def voxel_mask(self) -> Tensor:
        """Return the mask at the scale of this map, bool (B, 1, D, H, W)."""
        space = self.data.shape[1:4] if self.channels_last else self.data.shape[2:]
        try:
            return expand_cells(self.mask_Bdhw, tuple(space))
        except ValueError as error:
            raise UnsupportedOperation(f"a map on a grid of {tuple(space)}: {error}") from error

    def like(self, data: Tensor) -> MaskedVolume:
        """Return other data, zero where this mask hides it; the grid may be another one."""
        out = MaskedVolume(data, self.mask_Bdhw, self.channels_last)
        mask = out.voxel_mask().movedim(1, -1) if self.channels_last else out.voxel_mask()
        out.data = torch.where(mask, data, data.new_zeros(()))
        return out

    @property
    def shape(self) -> torch.Size:
        """Shape of the volume."""
        return self.data.shape

    def samples(self, first: int, last: int) -> MaskedVolume:
        """Return the map of the samples from ``first`` to before ``last``."""
        return MaskedVolume(self.data[first:last], self.mask_Bdhw[first:last], self.channels_last)

    def permute(self, *axes: int) -> MaskedVolume:
        """Move the channels behind, or back."""
        return MaskedVolume(self.data.permute(*axes), self.mask_Bdhw, not self.channels_last)

    def _operand(self, other: Any) -> Any:
        return _dense(other)

    @classmethod
    def _call(cls, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        x = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        if function in _NORMS:
            return x.like(_NORMS[function](x, *args[1:], **kwargs))
        inplace = kwargs.get("inplace", False)
        plain = {name: value for name, value in kwargs.items() if name != "inplace"}
        dense = [[_dense(part) for part in arg] if isinstance(arg, list | tuple) else _dense(arg) for arg in args]
        out = x.like(function(*dense, **plain))
        if not inplace:
            return out
        x.data = out.data
        return x


def _dense(value: Any) -> Any:
    """Return the numbers of a masked volume, and anything else as it is."""
    return value.data if isinstance(value, MaskedVolume) else value


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
    """Normalise over the visible voxels of each sample and channel; (B, C, D, H, W)."""
    return _group_norm(x, x.shape[1], weight, bias, eps)


def _group_norm(
    x: MaskedVolume, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise over the visible voxels of each sample and group; (B, C, D, H, W), weight and bias [C]."""
    grouped_BGcDHW = x.data.unflatten(1, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    mask_B11DHW = x.voxel_mask().unsqueeze(1)
    count = (mask_B11DHW.sum((2, 3, 4, 5), keepdim=True) * grouped_BGcDHW.shape[2]).clamp(min=1)
    mean = (grouped_BGcDHW * mask_B11DHW).sum((2, 3, 4, 5), keepdim=True) / count
    centred = (grouped_BGcDHW - mean) * mask_B11DHW
    variance = centred.square().sum((2, 3, 4, 5), keepdim=True) / count
    out = (centred * (variance + eps).rsqrt()).flatten(1, 2).to(x.dtype)
    if weight is not None:
        out = out * weight.view(1, -1, 1, 1, 1)
    return out if bias is None else out + bias.view(1, -1, 1, 1, 1)


def _batch_norm(x: MaskedVolume, *args: Any, **kwargs: Any) -> Tensor:
    """Normalise over the visible voxels of the batch; (B, C, D, H, W)."""
    mask_BDHW = x.voxel_mask()[:, 0]
    x_BDHWC = channels_last(x.data)
    rows = F.batch_norm(x_BDHWC[mask_BDHW], *args, **kwargs)
    return channels_first(torch.zeros_like(x_BDHWC).masked_scatter(mask_BDHW.unsqueeze(-1), rows))


_NORMS: dict[Callable, Callable[..., Tensor]] = {
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
}
