"""Weights by name, and whether they fit a network: what does not is named, with both shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from harmonize.errors import UserError

_SHOWN = 3


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, where: str, wanted: str) -> None:
    """Load weights that must fit a network exactly; arguments as for `check_weights`.

    Raises:
        UserError: They do not fit.
    """
    check_weights(network.state_dict(), weights, where=where, wanted=wanted)
    network.load_state_dict(dict(weights))


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
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unexpected:
        parts = [
            f"{len(names)} {word} ({', '.join(sorted(names)[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(f"{where}: of the tensors that {wanted} asks for, {' and '.join(parts)}")
