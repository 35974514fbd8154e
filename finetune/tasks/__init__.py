"""What a network is asked: labels, cases, targets and the score, one file a task."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from finetune.tasks.base import KNOWN, LABELS, Task, TaskConfig, known

__all__ = ["DEFAULT", "KNOWN", "LABELS", "Task", "TaskConfig", "kinds", "known", "make_task", "task_configs"]

DEFAULT = "aneurysm"
"""The task of recipes and models that name none."""


@cache
def kinds() -> dict[str, tuple[type, Callable[[Any], Task]]]:
    """Configuration and builder of each task, by its kind; every file here that has a ``KIND`` is one."""
    modules = (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    pairs = [module.KIND for module in modules if hasattr(module, "KIND")]
    return {config().kind: (config, builder) for config, builder in pairs}


def task_configs() -> dict[str, type]:
    """The configuration of each task, by its kind."""
    return {kind: config for kind, (config, _) in kinds().items()}


def make_task(config: TaskConfig) -> Task:
    """The task that a part of a recipe picks."""
    return kinds()[config.kind][1](config)
