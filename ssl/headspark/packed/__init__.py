"""Run an encoder on the visible blocks of a masked volume, exactly, at the cost of what is visible.

The packing lives in the tensor. :class:`PackedBlocks` stands where a volume would, and says what each PyTorch function
means on visible blocks; the encoder stays a plain module and its weights serve dense fine-tuning and packed
pretraining alike. Everything equals the dense emulation of submanifold convolution in SparK (arXiv 2301.03580): mask
the input, convolve, multiply by the mask, normalise over visible voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from headspark.packed.blocks import PackedBlocks
from headspark.packed.emulated import MaskedVolume
from headspark.packed.geometry import MaskGeometry
from headspark.packed.ops import UnsupportedOperation

__all__ = [
    "Backend",
    "FilledMap",
    "MaskGeometry",
    "MaskedMap",
    "PackedBlocks",
    "UnsupportedOperation",
    "encode_visible",
    "masked_forward",
]

Backend = Literal["packed", "emulated"]
MaskedMap = PackedBlocks | MaskedVolume


@dataclass(frozen=True, slots=True)
class FilledMap:
    """A map of an encoder and what stands at its hidden cells, not yet put together.

    Attributes:
        visible: The map.
        token_C: What stands at hidden cells; None: zero.
    """

    visible: MaskedMap
    token_C: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the whole map x_BCDHW."""
        return self.visible.dense(self.token_C)


def masked_forward(
    encoder: nn.Module, x_BCDHW: Tensor, visible_Bdhw: Tensor | MaskGeometry, backend: Backend = "packed"
) -> tuple[list[Tensor], list[Tensor]]:
    """Encode the visible blocks of a volume.

    Args:
        encoder: Plain modules that return a list of maps.
        x_BCDHW: The volume; hidden voxels are not read.
        visible_Bdhw: The mask over blocks, or its geometry.
        backend: ``packed`` computes only what is visible, ``emulated`` computes everything and masks it.

    Returns:
        The dense maps, finest first, zero where hidden; and the mask (B, 1, D, H, W) of each. A cell that is coarser
        than the blocks is visible if any of its blocks is.

    Raises:
        UnsupportedOperation: The encoder does something that has no exact meaning here; the module is named.
    """
    maps = encode_visible(encoder, x_BCDHW, visible_Bdhw, backend)
    return [map_.dense() for map_ in maps], [map_.visible() for map_ in maps]


def encode_visible(
    encoder: nn.Module, x_BCDHW: Tensor, visible_Bdhw: Tensor | MaskGeometry, backend: Backend = "packed"
) -> list[MaskedMap]:
    """Encode the visible blocks of a volume and leave the maps in the backend's form; see :func:`masked_forward`."""
    x: MaskedMap
    if backend == "packed":
        geometry = visible_Bdhw if isinstance(visible_Bdhw, MaskGeometry) else MaskGeometry(visible_Bdhw)
        x = PackedBlocks.pack(x_BCDHW, geometry.to(x_BCDHW.device))
    elif backend == "emulated":
        mask = visible_Bdhw.visible_Bdhw if isinstance(visible_Bdhw, MaskGeometry) else visible_Bdhw
        x = MaskedVolume.mask(x_BCDHW, mask)
    else:
        raise ValueError(f"backend '{backend}' is not known: packed or emulated")
    with _named_failures(encoder), _flat_sync_batch_norm(encoder):
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


@contextmanager
def _flat_sync_batch_norm(encoder: nn.Module) -> Iterator[None]:
    """Hand SyncBatchNorm the rows of packed maps: it calls its kernels past ``__torch_function__``."""
    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.SyncBatchNorm):
                inputs: list[PackedBlocks] = []

                def flatten(_: nn.Module, args: tuple, inputs: list[PackedBlocks] = inputs) -> Any:
                    if not isinstance(args[0], PackedBlocks):
                        return None
                    inputs.append(args[0])
                    return args[0].data.reshape(-1, args[0].data.shape[-1])

                def restore(_: nn.Module, args: tuple, out: Tensor, inputs: list[PackedBlocks] = inputs) -> Any:
                    if not inputs:
                        return None
                    x = inputs.pop()
                    return x.like(out.view(x.data.shape))

                stack.callback(module.register_forward_pre_hook(flatten).remove)
                stack.callback(module.register_forward_hook(restore).remove)
        yield
