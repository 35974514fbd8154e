"""Who hears of a signal that asks a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harmonize.errors import EXIT_INTERRUPTED
from harmonize.system import EXIT_STOPPED, end_at_interrupt, interrupt_again
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


PROGRAMS = {
    "finetune": ("pyarrow", ["-c", "from finetune.cli import main"]),
    "harmonize": ("difflib", ["-c", "from harmonize.cli import main"]),
    "finetune.train": ("torch", ["-m", "finetune.train"]),
    "finetune.cross_validation": ("pandas", ["-m", "finetune.cross_validation"]),
    "headspark.pretrain": ("torch", ["-m", "headspark.pretrain"]),
    "headspark": ("torch", ["-c", "import sys; from headspark.cli import main; sys.exit(main(['pretrain']))"]),
}
"""What a program loads that takes a while, and how it is begun."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_while_libraries_load_is_one_line_and_the_exit_code_of_what_was_stopped(
    name: str, tmp_path: Path
) -> None:
    library, words = PROGRAMS[name]
    (tmp_path / f"{library}.py").write_text("import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(9)\n")
    paths = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_INTERRUPTED == EXIT_STOPPED
    assert done.stderr == "error: stopped; give the same command again\n"


def test_a_program_that_has_loaded_hears_of_ctrl_c_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        interrupt_again()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
