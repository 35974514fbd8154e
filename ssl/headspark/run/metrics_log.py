"""What a run says while it goes on: lines of metrics.jsonl, a progress bar, and the user's trackers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from harmonize.errors import WrongUse
from harmonize.progress import Progress
from headspark.data.memory import MIB
from headspark.run.diverged import Diverged
from headspark.run.folder import RunFolder
from headspark.run.state import StepResult, TrainState, counts

PROJECT = "headspark"
NOT_FINITE = "its loss or gradient is not finite"
_PICTURE_OPTIONS: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse a tracker that accelerate does not know or that is not installed.

    Raises:
        UserError: With exit code 2.
    """
    installed = {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in {str(getattr(known, "value", known)) for known in LOGGER_TYPE_TO_CLASS}:
            known = ", ".join(str(getattr(one, "value", one)) for one in LOGGER_TYPE_TO_CLASS)
            raise WrongUse(f"train.trackers {name}: accelerate knows {known}")
        if name not in installed:
            raise WrongUse(f"train.trackers {name}: not installed; pip install {name}")


class MetricsLog:
    """Writes what was measured; on ranks other than the first it only keeps the steps that were not yet written.

    Args:
        state: Of the run; its pending steps are those since the last line.
        run: The run's folder on the first rank, else None.
        label: What is being done, for the progress bar.
    """

    def __init__(self, state: TrainState[Any], run: RunFolder | None, *, label: str) -> None:
        self._state, self._run, self._accelerator = state, run, state.accelerator
        self._began, self._waited = time.monotonic(), 0.0
        done, total = state.step, state.plan.steps
        self._progress = None if run is None else Progress(label, total=total, unit="step", done=done)
        if self._accelerator.log_with:
            self._accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": {"purge_step": done + 1}})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
        if self._accelerator.log_with:
            self._accelerator.end_training()

    def begin(self) -> None:
        """Let the time of the next line begin now."""
        self._began, self._waited = time.monotonic(), 0.0

    def collect(self, result: StepResult, *, patience: int, **facts: str) -> None:
        """Take in the step that was taken last; one that was skipped is named: to the user, and in metrics.jsonl.

        Args:
            result: Of the step.
            patience: So many skipped steps in a row are too many.
            facts: Shown beside the progress bar, and written on the line of a skipped step.

        Raises:
            Diverged: Too many steps in a row were skipped.
        """
        state = self._state
        state.pending.append(dict(result.numbers))
        self._waited += result.waited
        if self._progress is not None:
            loss, share = f"{result.numbers['loss']:.4f}", f"{self._wait_share():.0%}"
            self._progress.advance(1, **facts, loss=loss, data_wait=share)
        if result.skipped_scans:
            scans = ", ".join(result.skipped_scans)
            self.say(f"step {state.step} skipped: {NOT_FINITE}; it saw {scans}")
            if self._run is not None:
                self._run.log(step=state.step, **facts, skipped=NOT_FINITE, scans=list(result.skipped_scans))
            if state.skipped_in_a_row >= patience:
                row = f"{state.skipped_in_a_row} steps in a row, lastly on {scans}"
                reason = f"the loss or its gradient was not finite in {row}"
                raise Diverged(state.step, reason, advice=f"look at these scans, or {state.advice}")

    def means(self) -> dict[str, float]:
        """Means of the pending steps that counted; where none did, what was seen last instead."""
        steps = [step for step in self._state.pending if counts(step)] or self._state.pending[-1:]
        return {name: fmean(step[name] for step in steps) for name in self._state.measures}

    def line(self, **facts: Any) -> None:
        """Write the pending steps as one line: the caller's facts, and how long the steps took."""
        state, steps = self._state, len(self._state.pending)
        seconds = time.monotonic() - self._began
        facts |= {
            "seconds": seconds / steps,
            "samples_per_second": steps * state.plan.samples_per_step / seconds,
            "data_wait_share": self._wait_share(),
            "skipped_steps": state.skipped,
        }
        if torch.cuda.is_available():
            facts["peak_memory_mib"] = torch.cuda.max_memory_allocated() / MIB
        self.write(**facts)
        state.pending = []
        self.begin()

    def write(self, **facts: Any) -> None:
        """Write one line about the step that was taken last: to metrics.jsonl and to the trackers."""
        if self._run is not None:
            self._run.log(step=self._state.step, **facts)
        if self._accelerator.log_with:
            values = {name: value for name, value in facts.items() if _is_number(value)}
            self._accelerator.log(values, step=self._state.step)

    def picture(self, path: Path) -> None:
        """Hand a picture to the trackers that take pictures."""
        for tracker in self._accelerator.trackers:
            if tracker.name in _PICTURE_OPTIONS:
                pixels_1HWC = np.asarray(Image.open(path).convert("RGB"))[None]
                options = _PICTURE_OPTIONS[tracker.name]
                tracker.log_images({path.parent.name: pixels_1HWC}, step=self._state.step, **options)

    def say(self, line: str) -> None:
        """Show a line to the user, on the first rank."""
        if self._progress is not None:
            self._progress.say(line)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out of the time what is not training: validation, pictures, checkpoints."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def _wait_share(self) -> float:
        """Share of the time since the last line that went into waiting for batches."""
        seconds = time.monotonic() - self._began
        return min(self._waited / seconds, 1.0) if seconds > 0 else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
