"""What a run says while it goes on: lines of metrics.jsonl, a progress bar, and the user's trackers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from harmonize.errors import UserError
from harmonize.progress import Progress
from headspark.config import WRONG_USE
from headspark.data.batches import Plan
from headspark.run.folder import Run

PROJECT = "headspark"
MIB = 2**20
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
            raise UserError(f"train.trackers {name}: accelerate knows {known}", exit_code=WRONG_USE)
        if name not in installed:
            raise UserError(f"train.trackers {name}: not installed; pip install {name}", exit_code=WRONG_USE)


@dataclass(slots=True, kw_only=True)
class Interval:
    """What has been measured since the last line, on this rank.

    Attributes:
        losses: One a step.
        norms: Of the gradient, one a step.
        waited: Seconds that the ranks spent waiting for batches, on average.
        began: When the interval began, by the monotonic clock.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def wait_share(self) -> float:
        """Share of the time since the interval began that went into waiting for batches."""
        seconds = time.monotonic() - self.began
        return min(self.waited / seconds, 1.0) if seconds > 0 else 0.0


class Report:
    """Collects measurements and writes them; on ranks other than the first it only collects.

    Args:
        plan: Steps, and samples in a step.
        accelerator: Whose trackers are used.
        run: The run's folder on the first rank, else None.
        done: Steps that were done before.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, run: Run | None, *, done: int) -> None:
        self._accelerator, self._run, self._effective = accelerator, run, plan.effective
        self._interval = Interval()
        self._progress = None if run is None else Progress("pretrain", total=plan.steps, unit="step", done=done)
        if accelerator.log_with:
            accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": {"purge_step": done + 1}})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
        if self._accelerator.log_with:
            self._accelerator.end_training()

    def collect(self, *, loss: float, norm: float, waited: float) -> None:
        """Take in one step."""
        self._interval.losses.append(loss)
        self._interval.norms.append(norm)
        self._interval.waited += waited
        if self._progress is not None:
            self._progress.advance(loss=f"{loss:.4f}", data_wait=f"{self._interval.wait_share():.0%}")

    def line(self, step: int, *, lr: float, skipped: int) -> None:
        """Write what was collected as one line, and begin the next interval."""
        interval, self._interval = self._interval, Interval()
        seconds = self._interval.began - interval.began
        steps = max(len(interval.losses), 1)
        # The mean of the steps that counted; where none did, what was seen instead.
        losses = [loss for loss in interval.losses if isfinite(loss)] or interval.losses[-1:]
        facts: dict[str, Any] = {
            "step": step,
            "loss": fmean(losses) if losses else None,
            "lr": lr,
            "grad_norm": interval.norms[-1] if interval.norms else None,
            "seconds": seconds / steps,
            "samples_per_second": steps * self._effective / seconds,
            "data_wait_share": interval.wait_share(),
            "skipped_steps": skipped,
        }
        if torch.cuda.is_available():
            facts["peak_memory_mib"] = torch.cuda.max_memory_allocated() / MIB
        self.write(**facts)

    def write(self, **facts: Any) -> None:
        """Write one line: to metrics.jsonl and to the trackers."""
        if self._run is not None:
            self._run.log(**facts)
        if self._accelerator.log_with:
            values = {name: value for name, value in facts.items() if name != "step" and _is_number(value)}
            self._accelerator.log(values, step=facts["step"])

    def skip(self, step: int, reason: str, scans: Sequence[str]) -> None:
        """Name a step that changed nothing: to the user, and in metrics.jsonl."""
        self.say(f"step {step} skipped: {reason}; it saw {', '.join(scans)}")
        if self._run is not None:
            self._run.log(step=step, skipped=reason, scans=list(scans))

    def picture(self, path: Path, step: int) -> None:
        """Hand a picture to the trackers that take pictures."""
        for tracker in self._accelerator.trackers:
            if tracker.name in _PICTURE_OPTIONS:
                pixels_1HWC = np.asarray(Image.open(path).convert("RGB"))[None]
                tracker.log_images({path.parent.name: pixels_1HWC}, step=step, **_PICTURE_OPTIONS[tracker.name])

    def say(self, line: str) -> None:
        """Show a line to the user, on the first rank."""
        if self._progress is not None:
            self._progress.say(line)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out of the interval what is not training: validation, pictures, checkpoints."""
        began = time.monotonic()
        yield
        self._interval.began += time.monotonic() - began

    def pending(self) -> dict[str, list[float]]:
        """The steps not yet written as a line, for a checkpoint."""
        return {"losses": list(self._interval.losses), "norms": list(self._interval.norms)}

    def begin(self, pending: dict[str, list[float]] | None) -> None:
        """Begin the first interval now; a resumed run takes up what `pending` gave."""
        kept = pending or {"losses": [], "norms": []}
        self._interval = Interval(losses=list(kept["losses"]), norms=list(kept["norms"]))


def _is_number(value: Any) -> bool:
    return value is not None and (not isinstance(value, float) or isfinite(value))
