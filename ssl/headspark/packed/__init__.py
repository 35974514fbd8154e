"""Run an encoder on the visible blocks of a masked volume, exactly, at the cost of what is visible.

The packing lives in the tensor. :class:`PackedBlocks` stands where a volume would, and says what each PyTorch function
means on visible blocks; the encoder stays a plain module and its weights serve dense fine-tuning and packed
pretraining alike. Everything equals the dense emulation of submanifold convolution in SparK (arXiv 2301.03580): mask
the input, convolve, multiply by the mask, normalise over visible voxels.
"""

from headspark.packed import ops
from headspark.packed.blocks import PackedBlocks
from headspark.packed.encode import Backend, encode_visible
from headspark.packed.geometry import MaskGeometry
from headspark.packed.handlers import UnsupportedOperation
from headspark.packed.masked_map import MaskedMap, TokenMap

__all__ = [
    "Backend",
    "MaskGeometry",
    "MaskedMap",
    "PackedBlocks",
    "TokenMap",
    "UnsupportedOperation",
    "encode_visible",
    "ops",
]
