"""What a network sees of a head: one file a view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune.tasks import MASKS, Task
from finetune.views.base import View, ViewConfig
from finetune.views.box import BoxConfig, BoxView
from finetune.views.patches import PatchesConfig, PatchesView
from harmonize.errors import WrongUse

__all__ = ["DEFAULT", "VIEWS", "View", "ViewConfig", "make_view", "view_configs"]

DEFAULT = "box"
"""The view of recipes and models that name none."""


def _box(config: BoxConfig, data: Any, task: Task) -> View:
    if task.answers == MASKS:
        raise WrongUse(f"view.kind {config.kind}: this task is answered all over the volume; use patches")
    return BoxView(
        data.patch,
        spacing=data.spacing,
        windows=data.windows,
        scaling=data.scaling,
        mask_values=task.mask_values,
        mirror=task.mirror,
    )


def _patches(config: PatchesConfig, data: Any, task: Task) -> View:
    return PatchesView(
        data.patch,
        spacing=data.spacing,
        windows=data.windows,
        scaling=data.scaling,
        mask_values=task.mask_values,
        mirror=task.mirror,
        foreground_share=config.foreground_share,
    )


VIEWS: dict[str, tuple[type, Callable[[Any, Any, Task], View]]] = {
    "box": (BoxConfig, _box),
    "patches": (PatchesConfig, _patches),
}
"""Configuration and builder of each view, by its kind; the builder takes the recipe's `view`, its `data`, the task."""


def view_configs() -> dict[str, type]:
    """The configuration of each view, by its kind."""
    return {kind: config for kind, (config, _) in VIEWS.items()}


def make_view(config: ViewConfig, data: Any, task: Task) -> View:
    """The view that a part of a recipe picks.

    Args:
        config: That part.
        data: The recipe's `data`: patch, spacing and windows.
        task: Whose points and masks it places.
    """
    return VIEWS[config.kind][1](config, data, task)
