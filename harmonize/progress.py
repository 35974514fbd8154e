"""Progress of long work: a bar on a terminal, a plain line every so often where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from harmonize import terminal

PLAIN_INTERVAL_S = 30.0


class Progress:
    """Counts done work and shows count, rate and time left on standard error.

    Args:
        label: What is being done, e.g. ``harmonize openmind``.
        total: How many units there are, or None if that is not known.
        unit: The unit's name.
        done: Units that were already there when the work started (a resumed run); they do not count for the rate.
        interval_s: Seconds between the plain lines.

    Example:
        >>> import io
        >>> out = io.StringIO()
        >>> with Progress("resample", total=2, unit="scan", stream=out) as progress:
        ...     progress.advance()
        ...     progress.advance(rejected=1)
        >>> "resample: 2/2 scan" in out.getvalue() and "rejected=1" in out.getvalue()
        True
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None,
        unit: str = "scan",
        done: int = 0,
        interval_s: float = PLAIN_INTERVAL_S,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._first = done
        self.facts: dict[str, object] = {}
        self._stream = sys.stderr if stream is None else stream
        self._interval_s = interval_s
        self._start = self._last_line = time.monotonic()
        self._bar = (
            tqdm(
                total=total,
                initial=done,
                desc=terminal.line(label),
                unit=f" {unit}",
                file=self._stream,
                dynamic_ncols=True,
            )
            if self._stream.isatty()
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def advance(self, count: int = 1, **facts: object) -> None:
        """Report `count` more units, and facts worth showing beside them (``loss=0.31``, ``rejected=2``)."""
        self.done += count
        self.facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix({name: terminal.line(str(fact)) for name, fact in self.facts.items()}, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= self._interval_s:
            self._line()

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(terminal.line(line), file=self._stream)
        else:
            terminal.say(line, stream=self._stream)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._start
        rate = (self.done - self._first) / seconds if seconds > 0 else 0.0
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        left = f", {_clock((self.total - self.done) / rate)} left" if self.total is not None and rate > 0 else ""
        facts = "".join(f", {name}={value}" for name, value in self.facts.items())
        terminal.say(f"{self.label}: {count} {self.unit}, {rate:.2f}/s{left}{facts}", stream=self._stream)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
