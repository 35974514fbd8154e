"""The state of a run as a file from whoever may claim it: tensors and plain values, no larger than the file is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SCALER = (
    type(None),
    lambda state: state == {},
    {
        "scale": Real,
        "growth_factor": Real,
        "backoff_factor": Real,
        "growth_interval": int,
        "_growth_tracker": int,
    },
)
"""Shape of a gradient scaler's state, for `bounded_files.fits`; there is none, or an idle one, without fp16."""

_DEEPEST = 32
_NEEDED = {"params", "lr", "betas", "eps", "weight_decay", "momentum"}
_LIKE_THE_PARAMETER = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
"""What optimizers keep of a parameter in its own shape; others keep rows and columns, which only they know."""
_ONE_NUMBER = {"exp_avg_sq"}
"""What some keep as one number for all of a parameter, as Novograd does; Adam never does."""


def load_plain(content: bytes) -> dict[str, Any]:
    """What `torch.save` wrote of nested dicts, lists and tuples of tensors, numbers, their types, and text.

    Raises:
        Exception: Of whatever kind; a foreign pickle and a damaged archive have no common one in PyTorch.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # PyTorch stores without compression, so nothing becomes more than it is.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("overlapping")
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise TypeError(type(found).__name__)
    _check_plain(found, most=len(content))
    return found


def check_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> bool:
    """Whether an optimizer can go on from a state dict that has its groups.

    Args:
        state: Of ``optimizer.state_dict()``.
        optimizer: With as many groups, and parameters in each.
    """
    is_adam = isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.Adam)
    ids = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if not all(type(number) is int for number in ids) or len(set(ids)) != len(ids):
        return False
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        if not _NEEDED & own.keys() <= group.keys() or any(
            _is_number(own[name]) != _is_number(group[name]) for name in own.keys() & group
        ):
            return False
    shapes = {number: parameter.shape for number, parameter in zip(ids, parameters, strict=True)}
    for number, kept in state["state"].items():
        if number not in shapes or not isinstance(kept, dict):
            return False
        if kept and is_adam and not {"step", "exp_avg", "exp_avg_sq"} <= kept.keys():
            return False
        for name, value in kept.items():
            if name == "step" and not _is_number(value):
                return False
            shape = value.shape if isinstance(value, Tensor) and value.is_floating_point() else None
            same = shape == shapes[number] or (shape == () and name in _ONE_NUMBER and not is_adam)
            if name in _LIKE_THE_PARAMETER and value is not None and not same:
                return False
    return True


def _is_number(value: Any) -> bool:
    """Whether it is a number, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype != torch.bool
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_plain(value: Any, *, most: int) -> None:
    """Refuse what is not plain, and what says more than `most` bytes can: a value may stand at many places.

    Raises:
        ValueError: It is so.
    """
    left, size, waiting = most, 0, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ValueError("more than the file holds")
        if isinstance(one, dict):
            if not all(isinstance(key, str | int) for key in one):
                raise ValueError("a key that is no name")
            waiting += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list | tuple):
            if len(one) > left:
                raise ValueError("more than the file holds")
            waiting += [(item, depth + 1) for item in one]
        elif isinstance(one, Tensor):
            if one.layout != torch.strided or one.device.type != "cpu" or one.is_quantized or one.is_complex():
                raise ValueError("no plain tensor")
            size += one.numel() * one.element_size()
            if size > most:
                raise ValueError("more than the file holds")
        elif one is not None and not isinstance(one, str | int | float | torch.dtype):
            raise ValueError(type(one).__name__)
