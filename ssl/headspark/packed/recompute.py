"""Activations that are computed again in the backward pass from what autograd keeps anyway.

A norm keeps its input; its output and the activated map behind it follow from that input at the cost of reading it.
So the next convolution need not keep the activated map, which is a quarter of what a residual block would keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Again:
    """How a map was made from another one that autograd keeps.

    Attributes:
        source: That map.
        compute: Makes the map from it; the same numbers every time.
    """

    source: Tensor
    compute: Callable[[Tensor], Tensor]

    def then(self, function: Callable[[Tensor], Tensor]) -> Again:
        """Return how the map is made that ``function`` makes of this one."""
        first = self.compute
        return Again(self.source, lambda source: function(first(source)))


def keep(ctx: Any, data: Tensor, again: Again | None, *others: Tensor | None) -> None:
    """Save a map for the backward pass, or what it can be computed from; and other tensors."""
    ctx.compute = None if again is None else again.compute
    ctx.save_for_backward(data if again is None else again.source, *others)


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """Return what was given to :func:`keep`."""
    data, *others = ctx.saved_tensors
    return data if ctx.compute is None else ctx.compute(data), *others


def apply_pointwise(
    data: Tensor, again: Again, function: Callable[[Tensor], Tensor], *, inplace: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Apply a function to every number of a map, and keep nothing of it for the backward pass.

    Args:
        data: The map.
        again: How the map can be computed again.
        function: The function.
        inplace: The same, writing over its input; None where the input is still needed.
    """
    return _Pointwise.apply(data, again, function, inplace)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        again: Again,
        function: Callable[[Tensor], Tensor],
        inplace: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        keep(ctx, data, again)
        ctx.function = function
        if inplace is None:
            return function(data)
        ctx.mark_dirty(data)
        return inplace(data)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (data,) = kept(ctx)
        data = data.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.function(data)
        (grad,) = torch.autograd.grad(out, data, grads[0])
        return grad, None, None, None
