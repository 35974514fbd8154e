"""A map of which only the cells under a mask exist: what modules may ask of it in place of a tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from headspark.packed.handlers import HANDLERS, UnsupportedOperation


class MaskedMap(ABC):
    """The part of the tensor protocol that modules use, on a map (B, C, D, H, W) that is zero where it is hidden.

    A backend says how the numbers lie in ``data``, what an operation does with them and what another operand becomes;
    the protocol itself is here.

    Args:
        data: The numbers, in the backend's layout.
        channels_last: Whether the channels of the map are behind (after ``permute``).
    """

    ndim = 5

    def __init__(self, data: Tensor, channels_last: bool = False) -> None:
        self.data = data
        self.channels_last = channels_last

    # What a backend says.

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of the map, (B, C, D, H, W) or (B, D, H, W, C)."""

    @abstractmethod
    def like(self, data: Tensor) -> Self:
        """Return other data in the same layout under the same mask."""

    @abstractmethod
    def dense(self, token_C: Tensor | None = None) -> Tensor:
        """Return the whole map x_BCDHW; hidden cells hold zeros or ``token_C``."""

    @abstractmethod
    def voxel_mask(self) -> Tensor:
        """Return the mask at the scale of this map, bool (B, 1, D, H, W); True where the map exists."""

    @abstractmethod
    def samples(self, first: int, last: int) -> Self:
        """Return the map of the samples from ``first`` to before ``last``."""

    @abstractmethod
    def permute(self, *axes: int) -> Self:
        """Move the channels behind, or back."""

    @abstractmethod
    def _operand(self, other: Any) -> Any:
        """Bring the other side of an operator to the layout of ``data``."""

    @classmethod
    @abstractmethod
    def _call(cls, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Do what a PyTorch function means on masked maps; ``function`` is one of `HANDLERS`."""

    # What modules ask of the tensor they are given.

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.data.device

    def dim(self) -> int:
        """Return the number of axes of the map."""
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        """Return the shape of the map, or one edge of it."""
        return self.shape if axis is None else self.shape[axis]

    def contiguous(self, memory_format: torch.memory_format | None = None) -> Self:
        """Return self: each backend has one layout, or takes any."""
        return self

    def new_empty(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return an ordinary tensor of this type on this device."""
        return self.data.new_empty(*args, **kwargs)

    def __add__(self, other: Any) -> Self:
        return self.like(self.data + self._operand(other))

    def __sub__(self, other: Any) -> Self:
        return self.like(self.data - self._operand(other))

    def __mul__(self, other: Any) -> Self:
        return self.like(self.data * self._operand(other))

    def __truediv__(self, other: Any) -> Self:
        return self.like(self.data / self._operand(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __iadd__(self, other: Any) -> Self:
        self.data = (self + other).data
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in HANDLERS:
            raise UnsupportedOperation(torch.overrides.resolve_name(func) or repr(func))
        return cls._call(func, args, kwargs or {})


@dataclass(frozen=True, slots=True)
class TokenMap:
    """A map of an encoder and the token of its hidden cells, not yet put together.

    Attributes:
        map_: The map.
        token_C: What stands at hidden cells; None: zero.
    """

    map_: MaskedMap
    token_C: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the whole map x_BCDHW."""
        return self.map_.dense(self.token_C)
