"""Which decoder stands behind the encoder while it is pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harmonize.errors import WrongUse


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """What stands behind the encoder while it is pretrained.

    Attributes:
        kind: ``light`` works at coarse scales only and predicts whole patches; ``unet`` is the decoder of nnU-Net's
            ResEncL, as costly as the encoder and worth having only where it is to be fine-tuned too.
        stop_stride: ``light``: stride of the finest map that is decoded; each of its cells predicts a cube of that
            edge. Decoding finer costs most of a decoder's time, and the encoder's finer maps are trained through the
            coarser ones all the same.
        width: ``light``: channels at the finest decoded map; they double with every coarser one.
        max_width: ``light``: at most so many channels.
        where: ``unet``: of the finest map, decode ``all``, or only the blocks that hold a ``scored`` voxel: hidden, and
            neither background nor defaced. Its norm is then taken over these blocks, and a decoder that is
            fine-tuned afterwards is worse for it (docs/benchmarks.md).
    """

    kind: Literal["light", "unet"] = "light"
    stop_stride: int = 4
    width: int = 64
    max_width: int = 256
    where: Literal["all", "scored"] = "all"

    def __post_init__(self) -> None:
        if min(self.stop_stride, self.width, self.max_width) < 1:
            raise WrongUse("decoder.stop_stride, width and max_width are positive whole numbers")
        if self.where == "scored" and self.kind != "unet":
            raise WrongUse(f"decoder.where scored: a {self.kind} decoder has no fine map to leave out; use kind unet")
