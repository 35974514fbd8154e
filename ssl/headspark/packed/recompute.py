"""Activations that are recomputed in the backward pass from what autograd keeps anyway.

A residual block is conv - norm - act - conv - norm, a sum, act. Run as plain modules it keeps four maps of its size:
the input of each convolution and the input of each norm. But the input of the second convolution follows from that of
the norm before it, at the cost of reading it once, so it need not be kept: a quarter of the block's memory.

- A norm saves its input and notes on the map that it returns how it was made: a :class:`Recompute`.
- A pointwise function saves the source of that note instead of its own input or output, and extends the note.
- A convolution saves the source too (:func:`save`), and makes its input from it (:func:`restore`) when the gradient of
  its weight asks for it. All of them save the same tensor, so autograd holds one storage.
- The source goes through ``save_for_backward``, never into a closure: so it is freed after its last use, checkpointing
  and saved-tensor hooks see it, and one that was written over is noticed. A note's function may hold weights, no maps.
- The same kernel on the same numbers gives the same bits, so gradients are those of a run that keeps everything.
  Dropout would draw again: it ends a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headspark.packed.normed import Normed


@dataclass(frozen=True, slots=True)
class Recompute:
    """How a map was made from another one that autograd keeps.

    Attributes:
        source: That map, packed.
        function: Makes the map from it, in the same shape; the same numbers every time.
    """

    source: Tensor
    function: Callable[[Tensor], Tensor]

    def then(self, function: Callable[[Tensor], Tensor]) -> Recompute:
        """Return how the map is made that ``function`` makes of this one."""
        first = self.function
        return Recompute(self.source, lambda source: function(first(source)))


def save(ctx: Any, data: Tensor, made_of: Recompute | Normed | None, weight: Tensor) -> None:
    """Save a map for the backward pass, or what it is made of; and a weight."""
    ctx.made_of = made_of.without_tensors() if isinstance(made_of, Normed) else made_of and made_of.function
    if isinstance(made_of, Normed):
        ctx.save_for_backward(weight, *made_of.kept())
    else:
        ctx.save_for_backward(weight, data if made_of is None else made_of.source)


def restore(ctx: Any) -> tuple[Tensor, Normed | None, Tensor]:
    """Return what was given to :func:`save`: the map, how it is still to be normalised if it is, and the weight."""
    weight, *kept = ctx.saved_tensors
    if isinstance(ctx.made_of, Normed):
        normed = ctx.made_of.of(*kept)
        return normed.source, normed, weight
    return kept[0] if ctx.made_of is None else ctx.made_of(kept[0]), None, weight


def apply_pointwise(
    data: Tensor,
    recompute: Recompute,
    function: Callable[[Tensor], Tensor],
    *,
    inplace: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Apply a function to every number of a map, and keep nothing of it for the backward pass.

    Args:
        data: The map.
        recompute: How the map can be recomputed.
        function: The function.
        inplace: The same, writing over its input; None where the input is still needed.
    """
    return _Pointwise.apply(data, recompute, function, inplace)


class _Pointwise(torch.autograd.Function):
    """``function`` of a map of any shape; its gradient comes from the map, which is recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        recompute: Recompute,
        function: Callable[[Tensor], Tensor],
        inplace: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(recompute.source)
        ctx.function, ctx.recompute = function, recompute.function
        if inplace is None:
            return function(data)
        ctx.mark_dirty(data)
        return inplace(data)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (source,) = ctx.saved_tensors
        data = ctx.recompute(source).detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.function(data)
        (grad_data,) = torch.autograd.grad(out, data, grads[0])
        return grad_data, None, None, None
