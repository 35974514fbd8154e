"""What a network is asked: labels, cases, targets and the score, one file a task."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.series import Case
from finetune.tasks.base import KNOWN, LABELS, MASKS, Link, Task, TaskConfig, known
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse

__all__ = [
    "DEFAULT",
    "KNOWN",
    "LABELS",
    "MASKS",
    "Link",
    "Task",
    "TaskConfig",
    "fitted",
    "kinds",
    "known",
    "make_task",
    "settled",
    "task_configs",
]

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


def settled(config: TaskConfig, corpus: Corpus, labels: Path | None = None) -> TaskConfig:
    """The part of a recipe that picks a task, with what it leaves open as the corpus and the table say it.

    Args:
        config: That part.
        corpus: Of the run.
        labels: The table that the user gave, if any.

    Raises:
        UserError: They do not say it, or the task takes no table.
    """
    settle: Callable[[Corpus, Path | None], TaskConfig] | None = getattr(config, "settled", None)
    if settle is None and labels is not None:
        raise WrongUse(f"--labels: the task {config.kind} has labels of its own; give a recipe with task.kind table")
    return config if settle is None else settle(corpus, labels)


def fitted(config: TaskConfig, training: Sequence[Case]) -> TaskConfig:
    """The same with what follows from the training series.

    Raises:
        UserError: Nothing can be learned of them.
    """
    fit: Callable[[Sequence[Case]], TaskConfig] | None = getattr(config, "fitted", None)
    return config if fit is None else fit(training)
