"""What a run computes on: device, ranks, precision and CPU threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TextIO, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)
from torch import distributed as dist

from harmonize.errors import UserError, WrongUse
from harmonize.pool import cores
from harmonize.terminal import line

T = TypeVar("T")

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Tells the boots of all machines apart; Linux alone has it."""

RANKS_WAIT = timedelta(hours=6)
"""How long ranks wait for each other: one may decode a node's scans meanwhile. A rank that dies ends the others sooner,
through their launcher."""


def make_accelerator(
    *, precision: str, threads: int | None, out: Path, trackers: Sequence[str] = (), frozen_parts: bool = False
) -> Accelerator:
    """The device, ranks and precision, and the CPU threads of this rank.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        threads: CPU threads; None: the cores that this process may use, shared among the node's ranks.
        out: The run's folder, for trackers.
        trackers: Where metrics go besides metrics.jsonl, in accelerate's words.
        frozen_parts: Whether there are steps in which not every parameter gets a gradient.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision(precision),
        # Said outright: without a GPU, accelerate would otherwise take each rank for a run of its own.
        cpu=not torch.cuda.is_available(),
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tensorboard")),
        kwargs_handlers=[
            # Gradients are views of the buckets: no second copy of them, whatever their layout in memory.
            DistributedDataParallelKwargs(find_unused_parameters=frozen_parts, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=RANKS_WAIT),
        ],
    )
    torch.set_num_threads(threads or threads_of_a_rank())
    return accelerator


def mixed_precision(precision: str) -> str:
    """What accelerate calls it.

    Raises:
        UserError: With exit code 2: fp16 without a GPU. Accelerate would run it without scaling the loss, and small
            gradients would silently become 0.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise WrongUse("train.precision fp16: needs a GPU; take bf16 or fp32 on a CPU")
    return "no" if precision == "fp32" else precision


def threads_of_a_rank() -> int:
    """The CPU cores that this process may use, shared among the node's ranks."""
    return max(cores() // local_ranks(), 1)


def local_ranks() -> int:
    """Training processes of this run on this node.

    Launchers say so. Without one they are counted: what SLURM grants a job may be more than a run takes of it, and of
    ranks that are not there nobody would read their share of the scans.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if told.isdecimal():
        return max(int(told), 1)
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    own = node_name()
    nodes: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(nodes, own)
    return nodes.count(own)


def node_name() -> str:
    """Names the machine: containers of several may all have one name of a host, and then differ in the boot."""
    return f"{platform.node()} {BOOT.read_text() if BOOT.is_file() else ''}"


def say_once(accelerator: Accelerator, text: object, *, stream: TextIO | None = None) -> None:
    """Print a line as `harmonize.terminal.say` does, on one rank of each node.

    Args:
        accelerator: Of the run.
        text: Whatever has a text.
        stream: Where; None: standard output.
    """
    accelerator.print(line(str(text)), file=stream)


def on_gpu(accelerator: Accelerator) -> bool:
    """Whether this run computes on a CUDA device."""
    return accelerator.device.type == "cuda"


def device_name(accelerator: Accelerator) -> str:
    """What the run computes on, for people."""
    name = torch.cuda.get_device_name(accelerator.device) if on_gpu(accelerator) else "CPU"
    return f"{accelerator.num_processes} x {name}"


def agree(value: T) -> T:
    """The first rank's value, on all ranks."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def enter_on_main(
    accelerator: Accelerator, stack: ExitStack, enter: Callable[[], AbstractContextManager[T]]
) -> T | None:
    """Enter a context on the first rank; where it is refused there, the others end too, without a word of their own.

    Returns:
        What the context gives; None on the other ranks.

    Raises:
        UserError: On the first rank: its own.
        SystemExit: On the others, with the same code.
    """
    value: T | None = None
    refused: UserError | None = None
    if accelerator.is_main_process:
        try:
            value = stack.enter_context(enter())
        except UserError as error:
            refused = error
    code = agree(None if refused is None else refused.exit_code)
    if refused is not None:
        raise refused
    if code is not None:
        raise SystemExit(code)
    return value
