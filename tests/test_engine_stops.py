"""A run over a source that is stopped or killed keeps what is done, and the same command ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_engine import content, lay_out, run

from harmonize.corpus import RECORDS, Corpus, journal
from harmonize.engine.interrupt import interruptible
from harmonize.engine.ledger import Ledger
from harmonize.errors import Reason, Rejection


def test_a_stop_right_after_the_journal_leaves_the_record_to_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = journal.Record(source="openmind", raw_hash="a", rejection=Rejection(Reason.UNREADABLE, "damaged"))
    append = journal.append

    def stopped(*arguments: object) -> None:
        append(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with journal.appending(tmp_path / RECORDS / journal.journal_name("openmind", None)) as stream:
        ledger = Ledger(tmp_path, stream)
        monkeypatch.setattr(journal, "append", stopped)
        for noted in (ledger.add_all, ledger.note):
            ledger.records.clear()
            with pytest.raises(KeyboardInterrupt):
                noted([record])
            assert ledger.records == journal.read(tmp_path / RECORDS) != {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_what_it_has_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    root, out = lay_out(tmp_path / "raw", count=12), tmp_path / "corpus"
    process = start(root, out)
    wait_for_records(process, out, 1)  # an image whose scan is not in the journal yet is made again
    # Ctrl-C reaches the whole group, SIGTERM the process alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert len(Corpus.open(out).scans) >= 1
    assert not list(out.rglob(".tmp-*"))
    run(root, out)
    run(root, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("images_before_the_kill", [1, 6])
def test_a_run_killed_with_9_and_started_again_ends_with_the_same_bytes(
    tmp_path: Path, images_before_the_kill: int
) -> None:
    root, killed = lay_out(tmp_path / "raw", count=12), tmp_path / "killed"
    run(root, tmp_path / "whole")
    process = start(root, killed)
    wait_for_images(process, killed, images_before_the_kill)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # A worker that is in the middle of a scan ends by itself, because its parent is gone.
    (killed / "images" / ".tmp-1-left.nii.gz").write_bytes(b"half")
    deadline = time.monotonic() + 60
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run(root, killed)
    assert content(killed) == content(tmp_path / "whole")


def start(root: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harmonize", "openmind", str(root), "--out", str(out)]
    command += ["--spacing", "3", "--mri-norm", "zscore", "--workers", "1"]
    return subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_records(process: subprocess.Popen[str], out: Path, count: int) -> None:
    wait(process, lambda: sum(path.read_bytes().count(b"\n") for path in out.glob("records/*.jsonl")) >= count)


def wait_for_images(process: subprocess.Popen[str], out: Path, count: int) -> None:
    wait(process, lambda: len(list(out.rglob("*.nii.gz"))) >= count)


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _group_lives(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_a_caller_that_handles_sigterm_itself_is_the_one_that_hears_of_it() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with interruptible(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
