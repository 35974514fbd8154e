"""The one way in: encode the visible blocks of a volume with a plain module, packed or emulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from headspark.packed.blocks import PackedBlocks
from headspark.packed.emulated import MaskedVolume
from headspark.packed.geometry import MaskGeometry
from headspark.packed.handlers import UnsupportedOperation
from headspark.packed.masked_map import MaskedMap

Backend = Literal["packed", "emulated"]


def encode_visible(
    encoder: nn.Module, x_BCDHW: Tensor, geometry: MaskGeometry, backend: Backend = "packed"
) -> list[MaskedMap]:
    """Encode the visible blocks of a volume.

    Args:
        encoder: Plain modules that return a list of maps.
        x_BCDHW: The volume; hidden voxels are not read.
        geometry: The mask over blocks.
        backend: ``packed`` computes only what is visible, ``emulated`` computes everything and masks it.

    Returns:
        The maps, finest first. A cell that is coarser than the blocks is visible if any of its blocks is.

    Raises:
        UnsupportedOperation: The encoder does something that has no exact meaning here; the module is named.
    """
    x: MaskedMap
    if backend == "packed":
        x = PackedBlocks.pack(x_BCDHW, geometry.to(x_BCDHW.device))
    elif backend == "emulated":
        x = MaskedVolume.mask(x_BCDHW, geometry.to(x_BCDHW.device).mask_here())
    else:
        raise ValueError(f"backend '{backend}' is not known: packed or emulated")
    _let_sync_batch_norms_take_rows(encoder)
    with _named_failures(encoder):
        return encoder(x)


@contextmanager
def _named_failures(encoder: nn.Module) -> Iterator[None]:
    """Say in which module an operation failed that has no meaning on masked maps."""
    try:
        yield
    except (UnsupportedOperation, TypeError, AttributeError) as error:
        what = str(error)
        if not isinstance(error, UnsupportedOperation) and "PackedBlocks" not in what and "MaskedVolume" not in what:
            raise
        names = {module: name for name, module in encoder.named_modules()}
        where = "the encoder"
        trace = error.__traceback__
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module) and names.get(module):
                where = f"'{names[module]}' ({type(module).__name__})"
            trace = trace.tb_next
        raise UnsupportedOperation(
            f"{where} cannot encode visible blocks only: {what} has no exact meaning there; "
            "replace the module, or add a handler to headspark.packed.ops",
            exit_code=2,
        ) from error


def _let_sync_batch_norms_take_rows(encoder: nn.Module) -> None:
    """Hand SyncBatchNorm the rows of packed maps: it calls its kernels past ``__torch_function__``.

    Its hooks stay: where activations are checkpointed, the layers run again in the backward pass.
    """
    for module in encoder.modules():
        if isinstance(module, nn.SyncBatchNorm) and _to_rows not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_to_rows)
            module.register_forward_hook(_from_rows)


def _to_rows(norm: nn.Module, args: tuple) -> Tensor | None:
    norm.__dict__["packed_input"] = x = args[0] if isinstance(args[0], PackedBlocks) else None
    return None if x is None else x.data.reshape(-1, x.data.shape[-1])


def _from_rows(norm: nn.Module, args: tuple, out: Tensor) -> PackedBlocks | None:
    x = norm.__dict__.pop("packed_input")
    return None if x is None else x.like(out.view(x.data.shape))
