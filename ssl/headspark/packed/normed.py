"""Instance norms that are not carried out before it is known what follows, where there are kernels for both.

A norm only notes what it would do (:class:`PendingNorm`), and so does the activation behind it. A convolution then
gathers its windows from the norm's input and normalises on the way; a skip is added and activated in the same pass that
normalises; and what asks for the numbers gets them. Between norm and convolution autograd sees a stand-in: a tensor of
the map's shape without memory, whose gradient is the map's. It is written once, and both norm and activation are gone
back through it in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headspark.packed import kernels
from headspark.packed.kernels import Norm, Samples


@dataclass(frozen=True, slots=True)
class Normed:
    """A map that need not exist: what it is made of.

    Attributes:
        source: Packed map [n, d, h, w, C], the norm's input, out of autograd's sight.
        samples: Where the samples lie among its rows.
        norm: What is done with them.
        sample_N: int64 [n]; the sample of each block.
    """

    source: Tensor
    samples: Samples
    norm: Norm
    sample_N: Tensor

    def made(self) -> Tensor:
        """Return the map."""
        return _rows_like(kernels.apply(_rows(self.source), self.samples, self.norm), self.source)

    def kept(self) -> tuple[Tensor | None, ...]:
        """Return the tensors that it is made of, for autograd to keep."""
        norm = self.norm
        return self.source, norm.mean, norm.scale, norm.weight, norm.bias

    def of(self, *kept: Tensor) -> Normed:
        """Return the same, made of what autograd kept."""
        source, mean, scale, weight, bias = kept
        return replace(self, source=source, norm=Norm(mean, scale, weight, bias, self.norm.slope))

    def without_tensors(self) -> Normed:
        """Return what is left of it when autograd keeps the tensors."""
        return replace(self, source=None, norm=Norm(None, None, None, None, self.norm.slope))  # type: ignore[arg-type]


class PendingNorm:
    """An instance norm and what follows it, not carried out yet.

    Args:
        source: Packed map [n, d, h, w, C], contiguous.
        samples: Where the samples lie among its rows.
        sample_N: int64 [n]; the sample of each block.
        weight: [C] or None.
        bias: [C] or None.
        eps: Added to the variance.
        slope: Of the activation, below zero; None: there is none yet.
        residual: A map of this shape that is added before it; None: nothing is.
    """

    def __init__(
        self,
        source: Tensor,
        samples: Samples,
        sample_N: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        slope: float | None = None,
        residual: Tensor | None = None,
    ) -> None:
        self.source, self.samples, self.sample_N = source, samples, sample_N
        self.weight, self.bias, self.eps = weight, bias, eps
        self.slope, self.residual = slope, residual
        self._linked: tuple[Tensor, Normed] | None = None

    def takes(self, residual: object) -> bool:
        """Tell whether something can be added on the way."""
        alone = self.slope is None and self.residual is None and self._linked is None
        like = isinstance(residual, Tensor) and residual.shape == self.source.shape
        return alone and like and residual.dtype == self.source.dtype  # type: ignore[attr-defined]

    def activated(self, slope: float) -> PendingNorm:
        """Return the same with a LeakyReLU behind; it has none yet."""
        return PendingNorm(
            self.source, self.samples, self.sample_N, self.weight, self.bias, self.eps, slope, self.residual
        )

    def plus(self, residual: Tensor) -> PendingNorm:
        """Return the same with a map added; it has neither that nor an activation yet."""
        return PendingNorm(
            self.source, self.samples, self.sample_N, self.weight, self.bias, self.eps, None, residual.contiguous()
        )

    def link(self) -> tuple[Tensor, Normed]:
        """Return the stand-in for autograd and what the map is made of; nothing may be added to it."""
        if self._linked is None:
            slope = 1.0 if self.slope is None else self.slope
            standin, mean, scale = _StandIn.apply(self.source, self.weight, self.bias, self.samples, self.eps, slope)
            weight, bias = (None if one is None else one.detach() for one in (self.weight, self.bias))
            norm = Norm(mean, scale, weight, bias, slope)
            self._linked = standin, Normed(self.source.detach(), self.samples, norm, self.sample_N)
        return self._linked

    def carried_out(self) -> Tensor:
        """Return the map."""
        if self.residual is None:
            return _Made.apply(*self.link())
        slope = 1.0 if self.slope is None else self.slope
        return _NormAddAct.apply(self.source, self.weight, self.bias, self.residual, self.samples, self.eps, slope)


class _StandIn(torch.autograd.Function):
    """The statistics of a norm, and in place of the normalised and activated map one without memory.

    Kept for the backward pass: the norm's input, and mean and inverse deviation [B, C].
    """

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor | None, bias: Tensor | None, samples: Samples, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, scale = kernels.moments(_rows(source), samples, eps)
        ctx.save_for_backward(source, mean, scale, weight, bias)
        ctx.samples, ctx.slope = samples, slope
        ctx.mark_non_differentiable(mean, scale)
        ctx.set_materialize_grads(False)
        return source.new_empty_strided(source.shape, (0,) * source.dim()), mean, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        source, mean, scale, weight, bias = ctx.saved_tensors
        norm = Norm(mean, scale, weight, bias, ctx.slope)
        found = kernels.gradients(_rows(grads[0].contiguous()), _rows(source), ctx.samples, norm)
        return _rows_like(found.rows, source), *_of_vectors(ctx, found, norm), None, None, None


class _Made(torch.autograd.Function):
    """The map in place of its stand-in."""

    @staticmethod
    def forward(ctx: Any, standin: Tensor, normed: Normed) -> Tensor:
        return normed.made()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _NormAddAct(torch.autograd.Function):
    """Norm, sum and activation; [n, d, h, w, C] in and out.

    Kept for the backward pass: the norm's input, mean and inverse deviation [B, C], and what comes out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor,
        samples: Samples,
        eps: float,
        slope: float,
    ) -> Tensor:
        rows = _rows(source)
        norm = Norm(*kernels.moments(rows, samples, eps), weight, bias, slope)
        out = _rows_like(kernels.apply(rows, samples, norm, residual=_rows(residual)), source)
        ctx.save_for_backward(source, norm.mean, norm.scale, weight, bias, out)
        ctx.samples, ctx.slope = samples, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        source, mean, scale, weight, bias, out = ctx.saved_tensors
        norm = Norm(mean, scale, weight, bias, ctx.slope)
        found = kernels.gradients(_rows(grads[0].contiguous()), _rows(source), ctx.samples, norm, active=_rows(out))
        residual = found.residual
        assert residual is not None
        of_maps = _rows_like(found.rows, source), _rows_like(residual, source)
        return of_maps[0], *_of_vectors(ctx, found, norm), of_maps[1], None, None, None


def _of_vectors(ctx: Any, found: kernels.Gradients, norm: Norm) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias, where they are asked for."""
    return (
        found.weight.to(norm.weight.dtype) if norm.weight is not None and ctx.needs_input_grad[1] else None,
        found.bias.to(norm.bias.dtype) if norm.bias is not None and ctx.needs_input_grad[2] else None,
    )


def _rows(map_NDHWC: Tensor) -> Tensor:
    """View a contiguous map as its voxels, [voxels, C]."""
    return map_NDHWC.view(-1, map_NDHWC.shape[-1])


def _rows_like(rows: Tensor, map_NDHWC: Tensor) -> Tensor:
    return rows.view(map_NDHWC.shape)
