"""What all parts share: on what and at which size is measured, and how."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
RATIO = 0.75
SIZES = {"160": 160, "96": 96}
TOY_PATCH = 32


class NotMeasured(Exception):
    """Why a part cannot be measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was asked for.

    Attributes:
        reduced: Toy sizes on the CPU, to see that all parts run; without a GPU nothing else is done.
        peer: Checkout of nnssl, or None.
    """

    reduced: bool
    peer: Path | None

    @property
    def device(self) -> torch.device:
        """Where is measured."""
        return torch.device("cpu" if self.reduced else "cuda")

    @property
    def preset(self) -> str:
        """The encoder."""
        return "demo" if self.reduced else "resenc_l"

    def patch(self, size: str) -> int:
        """Edge of a patch, by one of `SIZES`."""
        return TOY_PATCH if self.reduced else SIZES[size]

    def arguments(self, size: str, *, bf16: bool = True) -> argparse.Namespace:
        """The same for `bench_pretrain_step`, whose steps are measured here."""
        return argparse.Namespace(
            preset=self.preset, patch=self.patch(size), batch=2, ratio=RATIO, channels=3, device=self.device.type,
            bf16=bf16, checkpointing=False, peer=self.peer,
        )  # fmt: skip

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Callable[[], object], *, repeats: int = 7, warm: int = 3) -> Figures:
        """Milliseconds of a step: the median and all."""
        for _ in range(1 if self.reduced else warm):
            step()
        self.synchronise()
        times = []
        for _ in range(1 if self.reduced else repeats):
            began = time.perf_counter()
            step()
            self.synchronise()
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": round(statistics.median(times), 3), "all_ms": [round(one, 3) for one in times]}

    @contextmanager
    def peak(self) -> Iterator[Figures]:
        """Memory of the GPU at most in the body, in MiB, when it is over; nothing without one."""
        found: Figures = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield found
        if self.device.type == "cuda":
            found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
