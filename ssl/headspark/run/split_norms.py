"""Norms that look at a whole forward pass: with them a step's samples may not be dealt out as one likes."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def split_norms(model: nn.Module, *, batch: int, accumulate: int, ranks: int, key: str) -> str | None:
    """What to tell the user of a run that splits a step's samples among passes or ranks although it has batch norms.

    `SyncBatchNorm` takes the statistics of all ranks, not of all passes. Instance, group and layer norms look at one
    sample at a time.

    Args:
        model: As it trains.
        batch: Samples in a forward pass of a rank.
        accumulate: Forward passes in a step.
        ranks: All of them.
        key: Of the recipe, which names the norm.

    Returns:
        None where a step gives what it gives on one rank in one pass.

    Example:
        >>> print(split_norms(nn.InstanceNorm3d(2), batch=1, accumulate=2, ranks=1, key="encoder.norm"))
        None
        >>> print(split_norms(nn.BatchNorm3d(2), batch=2, accumulate=1, ranks=1, key="encoder.norm"))
        None
        >>> print(split_norms(nn.BatchNorm3d(2), batch=1, accumulate=2, ranks=1, key="encoder.norm"))
        encoder.norm batch: its means are those of 1 sample at a time and not of the 2 of a step ...
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return None
    together = batch * (ranks if all(isinstance(norm, nn.SyncBatchNorm) for norm in norms) else 1)
    samples = batch * accumulate * ranks
    if together == samples:
        return None
    return (
        f"{key} batch: its means are those of {together} sample{'s' if together > 1 else ''} at a time and not of the "
        f"{samples} of a step (train.batch {batch}, train.accumulate {accumulate}, {ranks} "
        f"rank{'s' if ranks > 1 else ''}), so the losses differ from those of one undivided pass; "
        "norm instance or group does not depend on it"
    )
