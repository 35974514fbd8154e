"""What a network sees of a head: one file a view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune.finder import finder_sha256, folder_of_fold, read_finder
from finetune.tasks import MASKS, Task
from finetune.views.base import View, ViewConfig
from finetune.views.box import BoxConfig, BoxView
from finetune.views.dual_stream import DualStreamConfig, DualStreamView
from finetune.views.mip import MipConfig, MipView
from finetune.views.patches import PatchesConfig, PatchesView
from finetune.views.roi import ResizedConfig, RoiConfig, RoiView, check_one_box, named_finder
from finetune.views.stack import StackConfig, StackView
from finetune.views.top_slices import TopSlicesConfig, TopSlicesView
from harmonize.errors import WrongUse

__all__ = ["DEFAULT", "VIEWS", "View", "ViewConfig", "make_view", "view_configs"]

DEFAULT = "box"
"""The view of recipes and models that name none."""


def _box(config: BoxConfig, data: Any, task: Task) -> View:
    if task.answers == MASKS:
        raise WrongUse(f"view.kind {config.kind}: this task is answered all over the volume; use patches")
    return BoxView(data.patch, **_of_box(data, task))


def _patches(config: PatchesConfig, data: Any, task: Task) -> View:
    return PatchesView(data.patch, foreground_share=config.foreground_share, **_of_box(data, task))


def _roi(config: RoiConfig | ResizedConfig, data: Any, task: Task) -> View:
    if task.answers == MASKS:
        raise WrongUse(f"view.kind {config.kind}: this task is answered all over the volume; use patches")
    check_one_box(config.kind, data.inference)
    resized, finder, sha256 = isinstance(config, ResizedConfig), None, ""
    if not resized or config.model is not None:
        folder = folder_of_fold(named_finder(config.kind, config.model), data.fold)
        finder, sha256 = read_finder(folder), finder_sha256(folder)
    return RoiView(data.patch, finder=finder, finder_sha256=sha256, resized=resized, **_of_box(data, task))


def _mip(config: MipConfig, data: Any, task: Task) -> View:
    if config.slabs > min(data.patch):
        raise WrongUse(f"view.slabs {config.slabs}: the box has {min(data.patch)} slices along an axis")
    return MipView(data.patch, slabs=config.slabs, without_bone=config.without_bone, **_of_pictures(config, data, task))


def _dual_stream(config: DualStreamConfig, data: Any, task: Task) -> View:
    if task.places < 1:
        raise WrongUse(f"view.kind {config.kind}: wants a task whose points say where findings are")
    if config.slices > data.patch[2]:
        raise WrongUse(f"view.slices {config.slices}: the box has {data.patch[2]}")
    return DualStreamView(
        data.patch,
        slices=config.slices,
        share=config.share,
        hidden=config.hidden,
        any_label=task.any_label,
        **_of_pictures(config, data, task),
    )


def _stack(config: StackConfig, data: Any, task: Task) -> View:
    return StackView(data.patch, slices=config.slices, **_of_pictures(config, data, task))


def _top_slices(config: TopSlicesConfig, data: Any, task: Task) -> View:
    if config.slices > data.patch[2]:
        raise WrongUse(f"view.slices {config.slices}: the box has {data.patch[2]}")
    return TopSlicesView(
        data.patch, slices=config.slices, neighbours=config.neighbours, **_of_pictures(config, data, task)
    )


def _of_box(data: Any, task: Task) -> dict[str, Any]:
    return {
        "spacing": data.spacing,
        "windows": data.windows,
        "scaling": data.scaling,
        "mask_values": task.mask_values,
        "mirror": task.mirror,
    }


def _of_pictures(config: Any, data: Any, task: Task) -> dict[str, Any]:
    if task.answers == MASKS:
        raise WrongUse(f"view.kind {config.kind}: this task is answered all over the volume; use patches")
    return {"size": config.size, "percentiles": config.percentiles, **_of_box(data, task)}


VIEWS: dict[str, tuple[type, Callable[[Any, Any, Task], View]]] = {
    "box": (BoxConfig, _box),
    "roi": (RoiConfig, _roi),
    "resized": (ResizedConfig, _roi),
    "patches": (PatchesConfig, _patches),
    "mip": (MipConfig, _mip),
    "dual_stream": (DualStreamConfig, _dual_stream),
    "stack": (StackConfig, _stack),
    "top_slices": (TopSlicesConfig, _top_slices),
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
