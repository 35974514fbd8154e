"""Which part of the folders this process answers: that of a rank of a launcher, of a task of an array, or of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harmonize.errors import WrongUse
from harmonize.pool import cores


@dataclass(frozen=True, slots=True)
class Share:
    """Part `index` of `count`, from 0.

    Which part a folder belongs to follows from its key alone, so processes need not agree about what lies in a tree,
    and a folder that comes or goes moves no other.

    Example:
        >>> [Share(index, 2).holds("0a1b") for index in range(2)]
        [False, True]
        >>> Share(1, 4).split(1, 2)
        Share(index=3, count=8)
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, key: str) -> bool:
        """Whether the folder of a key, a hash in hexadecimal figures, is one of this part."""
        return int(key, 16) % self.count == self.index

    def split(self, index: int, count: int) -> Share:
        """One of the parts of this part."""
        return Share(self.index * count + index, self.count * count)


ALL = Share()


def parse_shard(text: str) -> Share:
    """Read ``I/N``.

    Raises:
        WrongUse: It is no part of a whole.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise WrongUse(f"--shard {text}: give I/N with I from 0 to N - 1, such as 0/4")
    return Share(int(index), int(count))


def share_of_rank(given: Share = ALL) -> Share:
    """The part of this process: that of its rank, as ``accelerate launch`` and ``torchrun`` number them.

    Args:
        given: The part that all ranks have together.
    """
    return given.split(_number("RANK", 0), _number("WORLD_SIZE", 1))


def devices_of_rank(devices: Sequence[torch.device]) -> list[torch.device]:
    """Those of a node's devices that this rank computes on; ranks share one only where there are too few."""
    rank, ranks = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    return list(devices[rank::ranks]) or [devices[rank % len(devices)]]


def cores_of_rank() -> int:
    """The CPU cores that this process may use, shared among the node's ranks."""
    return max(cores() // _number("LOCAL_WORLD_SIZE", 1), 1)


def _number(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))
