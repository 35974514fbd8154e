"""Whether there are kernels for a map."""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor

from harmonize.terminal import warn

try:
    import triton

    HAS_TRITON = True
except ImportError:  # a build of PyTorch for CPUs
    HAS_TRITON = False

SWITCH = "HEADSPARK_KERNELS"
"""Environment variable that turns them off where it is ``off``."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Sums are float32's, so float64 is left to PyTorch."""


def take(map_: Tensor) -> bool:
    """Tell whether the kernels take a map: there is Triton, and a GPU that holds the map, and something to compute.

    A CPU holds it too where Triton's environment variable TRITON_INTERPRET asks for kernels that run in Python.
    """
    if not HAS_TRITON or map_.dtype not in TYPES or map_.numel() == 0:
        return False
    if map_.device.type == "cpu":
        return bool(triton.knobs.runtime.interpret)
    return map_.device.type == "cuda" and os.environ.get(SWITCH) != "off" and compiles_on(map_.device)


@lru_cache
def compiles_on(device: torch.device) -> bool:
    """Tell whether Triton can compile for a device, by trying: it needs a C compiler, and not all GPUs will do."""
    rows, first = torch.zeros(1, 1, device=device), torch.zeros(2, dtype=torch.int32, device=device)
    try:
        torch.ops.headspark.moments(rows, first, 1, 1, 1.0)
    except Exception as error:  # whatever a compiler or a driver says
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        warn(f"Triton cannot compile for {device} ({said}): norms and halos are left to PyTorch, which takes longer")
        return False
    return True
