"""Copies from the CPU to an accelerator that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device.

    It goes there through page-locked memory, which PyTorch keeps for the next copy: other memory would be copied twice,
    and the caller would wait for it.

    Args:
        tensor: On the CPU.
        device: Where to; the CPU gets the tensor itself.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
