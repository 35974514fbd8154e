"""Kernels for a GPU, written in Triton: norm and activation in one, halos gathered with the norm of what they read.

Each is an operation of PyTorch (``torch.ops.headspark``) that launches once. Where there is no Triton, or on a CPU,
:func:`take` says no, and plain PyTorch does the same.
"""

from headspark.packed.kernels.available import HAS_TRITON, take
from headspark.packed.kernels.norm import Gradients, Norm, Samples, apply, gradients, moments

if HAS_TRITON:
    from headspark.packed.kernels import operations  # noqa: F401 - defines them

__all__ = ["Gradients", "Norm", "Samples", "apply", "gradients", "moments", "take"]
