"""Local processes: every task answered, a dead process takes only its own task with it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from harmonize import pool
from harmonize.engine.executors import cause_of_death

DIE = "__import__('os').kill(__import__('os').getpid(), 9)"


def test_every_task_is_answered() -> None:
    tasks = [f"{number} * {number}" for number in range(9)]
    assert dict(pool.run(eval, tasks, workers=2)) == {task: eval(task) for task in tasks}


@pytest.mark.parametrize(
    ("end", "number", "said"),
    [(DIE, signal.SIGKILL, "for memory"), ("__import__('os').abort()", signal.SIGABRT, "damaged pixels")],
)
def test_a_process_that_dies_takes_only_its_own_task_with_it(end: str, number: signal.Signals, said: str) -> None:
    tasks = ["1 + 1", end, "2 + 2", "3 + 3"]
    found = dict(pool.run(eval, tasks, workers=2))
    assert found == {"1 + 1": 2, "2 + 2": 4, "3 + 3": 6, end: pool.Died(-number)}
    assert said in cause_of_death(found[end])


def test_a_task_is_tried_once_more_after_its_process_was_killed(tmp_path) -> None:
    seen = tmp_path / "seen"
    # The first attempt leaves a mark and dies, the second finds the mark.
    task = f"7 if __import__('pathlib').Path({str(seen)!r}).exists() else (open({str(seen)!r}, 'w').close(), {DIE})"
    assert dict(pool.run(eval, [task], workers=1)) == {task: 7}


def test_an_error_that_ends_the_run_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(pool.run(eval, ["1 / 0"], workers=1))


def test_each_process_has_one_thread_for_its_libraries() -> None:
    task = "__import__('os').environ['OMP_NUM_THREADS']"
    assert dict(pool.run(eval, [task], workers=1)) == {task: "1"}


def test_a_process_does_not_load_the_script_that_started_it_unless_it_is_sent_something_of_it(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from harmonize import pool\n"
        "print('loaded', flush=True)\n"
        "def own(task):\n"
        "    return task + 1\n"
        "if __name__ == '__main__':\n"
        "    print(dict(pool.run(len, ['a'], workers=1)), flush=True)\n"
        "    print(dict(pool.run(own, [1], workers=1)), flush=True)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines() == ["loaded", "{'a': 1}", "loaded", "{1: 2}"]


def test_no_workers_means_this_process_in_order() -> None:
    assert list(pool.run(len, ["a", "bb"], workers=0)) == [("a", 1), ("bb", 2)]
