"""Where the time of a step goes: kernels and the gaps between them, waits of the host, geometry on the host."""

from __future__ import annotations

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import bench_pretrain_step as steps
import torch
from torch.profiler import ProfilerActivity, profile

from gpu.setting import Figures, Setting
from headspark.encoder import PRESETS
from headspark.packed import MaskGeometry

OURS = ("headspark/", "finetune/")
STEPS = 3
TOP = 15


def kernels(setting: Setting) -> Iterator[Figures]:
    """Share of the time of a run's step in which no kernel runs, how many are launched, and which take longest."""
    from gpu_steps import pretraining

    for decoder in ("light", "unet"):
        run = pretraining(None, PRESETS[setting.preset], patch=setting.patch("160"), decoder=decoder)
        yield {decoder: traced(setting, run.step)}
        del run


def traced(setting: Setting, step: Callable[[], object]) -> Figures:
    """What the profiler sees of some steps."""
    for _ in range(STEPS):
        step()
    setting.synchronise()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        setting.synchronise()
    on_gpu = [event for event in found.events() or [] if is_kernel(event)]
    spans = [(event.time_range.start, event.time_range.end) for event in on_gpu]
    by_name: Counter[str] = Counter()
    for event in on_gpu:
        by_name[event.name[:100]] += event.time_range.elapsed_us()
    began, ended = min(start for start, _ in spans), max(end for _, end in spans)
    return {
        "share_without_kernels": round(1 - covered(spans) / (ended - began), 4),
        "ms_a_step": round((ended - began) / STEPS / 1e3, 3),
        "kernels_a_step": len(spans) // STEPS,
        "longest_ms": {name: round(us / STEPS / 1e3, 3) for name, us in by_name.most_common(TOP)},
    }


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is work of the GPU: no mark of a range, and no copy from the host."""
    is_mark = getattr(event, "is_user_annotation", False) or event.name.startswith(("Optimizer.", "Memcpy HtoD"))
    return bool(event.device_type == torch.autograd.DeviceType.CUDA and not is_mark)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of some spans lasts.

    Example:
        >>> covered([(0, 2), (1, 3), (5, 6)])
        4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def waits(setting: Setting) -> Iterator[Figures]:
    """Where the host waits for the GPU in a run's step, as PyTorch warns of it."""
    from gpu_steps import finetuning, pretraining

    encoder, patch = PRESETS[setting.preset], setting.patch("96")
    runs = {
        "pretraining light": lambda: pretraining(None, encoder, patch=patch),
        "pretraining unet": lambda: pretraining(None, encoder, patch=patch, decoder="unet"),
        "fine-tuning": lambda: finetuning(None, encoder, patch=patch),
    }
    for name, make in runs.items():
        run = make()
        run.step()
        run.step()
        seen = waited_in(run.step)
        yield {name: {"waits": sum(seen.values()), "where": dict(seen)}}
        del run


def waited_in(step: Callable[[], object]) -> Counter[str]:
    """Lines of this repository in which a step waits."""
    seen: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            stack = traceback.extract_stack()[:-1]
            last = next((one for one in reversed(stack) if any(name in one.filename for name in OURS)), stack[-1])
            seen[f"{Path(last.filename).name}:{last.lineno}"] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return seen


def geometry(setting: Setting) -> Iterator[Figures]:
    """Milliseconds of the host for a mask that is new: in the loader, and within a step."""
    for name, variant in {"light": steps.packed_light, "unet": steps.packed_unet}.items():
        step = variant(setting.arguments("160"))
        step()
        _, mask = steps.patch_and_mask(setting.arguments("160"))
        loader, within = [], []
        for _ in range(3 if setting.reduced else 7):
            began = time.perf_counter()
            MaskGeometry(mask).ahead()
            loader.append(1e3 * (time.perf_counter() - began))
            within.append(host_ms(step))
        yield {
            name: {
                "loader_ms": round(statistics.median(loader), 3),
                "step_ms": round(statistics.median(within), 3),
                "all_step_ms": [round(one, 3) for one in within],
            }
        }
        del step


def host_ms(step: Callable[[], object]) -> float:
    """How long the host works at small tables in a step."""
    spent, depth, inner = 0.0, 0, MaskGeometry.small

    def small(self: MaskGeometry, key: tuple, make: Callable[[], Any]) -> Any:
        nonlocal spent, depth
        depth += 1
        began = time.perf_counter()
        try:
            return inner(self, key, make)
        finally:
            depth -= 1
            if depth == 0:
                spent += 1e3 * (time.perf_counter() - began)

    with mock.patch.object(MaskGeometry, "small", small):
        step()
    return spent
