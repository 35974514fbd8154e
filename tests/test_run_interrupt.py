"""Who hears of a signal that asks a run to stop."""

from __future__ import annotations

import signal

import pytest

from headspark.run.interrupt import Interrupted, interrupts


def test_a_run_of_several_hears_of_a_signal_that_came_while_the_last_part_of_one_was_finished() -> None:
    with interrupts() as outer:
        outer.begin()
        with interrupts() as inner:
            inner.begin()
            signal.raise_signal(signal.SIGTERM)
            assert inner.name == "SIGTERM"
        assert outer.name == "SIGTERM"
        with pytest.raises(Interrupted):
            outer.check()
        with interrupts() as inner:
            inner.begin()
            inner.check()


def test_a_signal_before_the_work_begins_ends_it_there_and_what_is_raised_then_says_so() -> None:
    with pytest.raises(Interrupted), interrupts():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as stopped:
            raise ValueError("a part that ends with an error of its own when it is stopped") from stopped
    with interrupts() as interrupt:
        interrupt.check()
