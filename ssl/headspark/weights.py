"""Weights by name, and whether they fit a network: what does not is named, with both shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from harmonize.errors import UserError

M = TypeVar("M", bound=nn.Module)
_SHOWN = 3


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, where: str, wanted: str) -> None:
    """Load weights that must fit a network exactly; arguments as for `check_weights`.

    Raises:
        UserError: They do not fit.
    """
    check_weights(network.state_dict(), weights, where=where, wanted=wanted)
    network.load_state_dict(dict(weights))


def build_with(build: Callable[[], M], weights: Mapping[str, Tensor], *, where: str, wanted: str) -> M:
    """A network with weights, which is built only after they are known to fit: a configuration may claim any size.

    Args:
        build: Makes the network.
        weights: By name.
        where: As for `check_weights`.
        wanted: Likewise.

    Raises:
        UserError: They do not fit, are not finite, or no network can be built so.
    """
    try:
        with torch.device("meta"):
            shell = build()
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{where}: {wanted} makes no network ({str(error).splitlines()[0][:200]})") from error
    check_weights(shell.state_dict(), weights, where=where, wanted=wanted)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: {name} is not finite; nothing can be made of it")
    network = build()
    network.load_state_dict(dict(weights))
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, none larger than the file has bytes for.

    Raises:
        UserError: It is absent, no regular file, truncated, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'no regular file' if path.exists() else 'missing'}")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        fault = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated, or no safetensors file ({fault})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, where: str, wanted: str) -> None:
    """Refuse weights that do not fit a network exactly.

    Args:
        own: The network's state dict.
        weights: By name.
        where: Names the file that they come from.
        wanted: Names what the network was built from.

    Raises:
        UserError: Names a tensor with both shapes, or what is missing or too much.
    """
    for name in own:
        if name in weights and own[name].shape != weights[name].shape:
            found, asked = tuple(weights[name].shape), tuple(own[name].shape)
            raise UserError(f"{where}: {name} is {found}, {wanted} asks for {asked}; the two do not belong together")
        if name in weights and own[name].is_floating_point() != weights[name].is_floating_point():
            raise UserError(f"{where}: {name} holds {weights[name].dtype}, {wanted} asks for {own[name].dtype}")
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unexpected:
        parts = [
            f"{len(names)} {word} ({', '.join(sorted(names)[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(f"{where}: of the tensors that {wanted} asks for, {' and '.join(parts)}")


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and values, whatever file they came from and in which order.

    Example:
        >>> one, two = torch.zeros(2), torch.ones(1, 3)
        >>> weights_sha256({"a": one, "b": two}) == weights_sha256({"b": two, "a": one})
        True
        >>> weights_sha256({"a": one}) == weights_sha256({"a": two})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
