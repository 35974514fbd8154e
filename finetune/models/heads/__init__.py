"""From an encoder's maps to named outputs: one file a head.

A head of a new kind is a file here and an entry in `HEADS`. A recipe's `head` gives the task's answers, labels or
masks; those of `auxiliary` add outputs that losses ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from finetune.models.heads.attention import AttentionConfig, AttentionHead
from finetune.models.heads.base import Head, HeadConfig
from finetune.models.heads.cells import CellsConfig, CellsHead
from finetune.models.heads.decoder import DecoderConfig, DecoderHead
from finetune.models.heads.domain import DomainConfig, DomainHead
from finetune.models.heads.global_pool import GlobalConfig, GlobalHead
from finetune.models.heads.masked import MaskedConfig, MaskedHead
from finetune.models.heads.mil import MilConfig, MilHead
from finetune.models.heads.modality import ModalityConfig, ModalityHead
from finetune.models.heads.segmentation import SegmentationConfig, SegmentationHead
from finetune.models.maps import Maps
from finetune.tasks import Task

__all__ = ["AUXILIARY", "DEFAULT", "HEADS", "Head", "HeadConfig", "configs_of", "make_head"]

Builder = Callable[[Any, Maps, Task], nn.Module]

DEFAULT = "cells"
"""The head of recipes and models that name none."""

HEADS: dict[str, tuple[type, Builder]] = {
    "cells": (CellsConfig, CellsHead),
    "global": (GlobalConfig, GlobalHead),
    "attention": (AttentionConfig, AttentionHead),
    "masked": (MaskedConfig, MaskedHead),
    "mil": (MilConfig, MilHead),
    "segmentation": (SegmentationConfig, SegmentationHead),
}
"""Configuration and builder of each head that gives a task's answers, by its kind."""

AUXILIARY: dict[str, tuple[type, Builder]] = {
    "decoder": (DecoderConfig, DecoderHead),
    "modality": (ModalityConfig, ModalityHead),
    "domain": (DomainConfig, DomainHead),
}
"""The same of the heads that help to train, or say what the head of the labels makes use of."""


def configs_of(heads: dict[str, tuple[type, Builder]]) -> dict[str, type]:
    """The configuration of each head, by its kind."""
    return {kind: config for kind, (config, _) in heads.items()}


def make_head(config: HeadConfig, maps: Maps, task: Task) -> nn.Module:
    """The head that a part of a recipe picks.

    Args:
        config: That part.
        maps: What the encoder gives.
        task: Whose labels it shall say.

    Raises:
        WrongUse: It does not fit the encoder or the task.
    """
    return {**HEADS, **AUXILIARY}[config.kind][1](config, maps, task)
