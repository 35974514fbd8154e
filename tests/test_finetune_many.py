"""`finetune predict ... --out FILE` about trees and lists: tables, resume, workers, ensembles, routes."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from standin_series import save_model, write_mr_series, write_series

from finetune.cli import main
from finetune.drawing import kind_of
from finetune.predict import Predictor, many
from finetune.predict import run as runs
from finetune.predict.ensemble import Ensemble, read_panel
from finetune.predict.journal import Journal
from finetune.predict.share import Share, devices_of_rank, share_of_rank
from finetune.raw import look
from finetune.raw.places import find_places
from harmonize.errors import UserError
from harmonize.labels import LABELS
from harmonize.pool import Died

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series with folders of their own, two that share one, a broken one, one that is too short, and texts."""
    root = tmp_path_factory.mktemp("tree")
    write_series(root / "b" / "ct", "1.2.8.1", patient="Zqxjkv^Ann")
    write_series(root / "a", "1.2.8.2", patient="B", brain=140)
    write_series(root / "mixed", "1.2.8.3", patient="C", brain=90)
    write_series(root / "mixed", "1.2.8.4", patient="D", brain=20)
    write_series(root / "scout", "1.2.8.5", patient="E", slices=range(2))
    (root / "broken").mkdir()
    (root / "broken" / "1.dcm").write_bytes(b"no DICOM at all")
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("hello")
    (root / "notes" / "table").write_text("a,b\n")
    return root


def predict(*words: object) -> int:
    """The command, without processes that read ahead unless they are asked for."""
    workers = () if "--workers" in words else ("--workers", 0)
    return main(["predict", *map(str, (*words, *workers))])


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def test_a_tree_gives_a_row_a_series_with_its_uid_first_and_says_of_the_others_why(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "p.csv"
    assert predict(model, tree, "--out", out) == 0
    header, *rows = rows_of(out)
    assert header == ["SeriesInstanceUID", *LABELS]
    assert [row[0] for row in rows] == ["1.2.8.2", "1.2.8.1", "1.2.8.3", "1.2.8.4"]
    predictor = Predictor(model, device=CPU)
    for row, folder in zip(rows[:2], ("a", "b/ct"), strict=True):
        assert [float(value) for value in row[1:]] == list(predictor(tree / folder).values())
    refused = rows_of(tmp_path / "new" / "p.failed.csv")
    assert refused[0] == ["SeriesInstanceUID", "folder", "reason", "message"]
    assert [row[:3] for row in refused[1:]] == [
        ["broken", "broken", "unreadable"],
        ["1.2.8.5", "scout", "too_few_slices"],
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert "p.csv: 4 series; 2 not used: p.failed.csv says why" in said.err
    written = b"".join(path.read_bytes() for path in out.parent.iterdir())
    assert b"Zqxjkv" not in written
    assert str(tree).encode() not in written


@pytest.mark.timeout(300)
def test_workers_and_devices_change_no_byte(model: Path, tree: Path, tmp_path: Path) -> None:
    alone, many_ = tmp_path / "alone.csv", tmp_path / "many.csv"
    assert predict(model, tree, "--out", alone) == 0
    assert predict(model, tree, "--out", many_, "--workers", 2, "--device", "cpu,cpu") == 0
    assert many_.read_bytes() == alone.read_bytes()
    assert (tmp_path / "many.failed.csv").read_bytes() == (tmp_path / "alone.failed.csv").read_bytes()


def test_batches_and_bf16_give_the_same_up_to_their_digits(model: Path, tree: Path, tmp_path: Path) -> None:
    for name, words in (("one", []), ("three", ["--batch", 3]), ("bf16", ["--precision", "bf16"])):
        assert predict(model, tree, "--out", tmp_path / f"{name}.csv", *words) == 0
    one, three, bf16 = (
        pd.read_csv(tmp_path / f"{name}.csv")[list(LABELS)].to_numpy() for name in ("one", "three", "bf16")
    )
    np.testing.assert_allclose(three, one, rtol=1e-5)
    np.testing.assert_allclose(bf16, one, rtol=0.05)
    assert not np.array_equal(bf16, one)


def test_json_and_parquet_hold_what_was_decided_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree" / "hole")
    (tmp_path / "tree" / "hole" / "A1.2.3_09.dcm").unlink()
    assert predict(model, tmp_path / "tree", "--out", tmp_path / "p.json") == 0
    assert predict(model, tmp_path / "tree", "--out", tmp_path / "p.parquet") == 0
    assert "p.parquet: 1 series; 1 of all were known before" in capsys.readouterr().err
    (found,) = json.loads((tmp_path / "p.json").read_text())
    assert list(found) == ["series", *LABELS, "decisions", "warnings"]
    assert found["series"] == "1.2.3"
    (line,) = found["warnings"]
    assert "missing slices: 1" in line
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert list(table) == ["SeriesInstanceUID", *LABELS, "folder", "modality", "decisions", "warnings"]
    assert [found[label] for label in LABELS] == table.loc[0, list(LABELS)].tolist()
    assert table.loc[0, ["SeriesInstanceUID", "folder", "modality"]].tolist() == ["1.2.3", "hole", "CT"]
    assert list(table.loc[0, "warnings"]) == [line]


def test_without_a_uid_the_folder_is_the_name_and_names_that_are_shared_are_numbered(
    model: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    for folder in ("p1/ct", "p2/ct"):
        write_series(tree / folder, patient=folder[:2], SeriesInstanceUID=None)
    for patient in ("A", "B"):
        write_series(tree / "same" / patient, "1.2.9", patient=patient)
    assert predict(model, tree, "--out", tmp_path / "p.csv") == 0
    assert [row[0] for row in rows_of(tmp_path / "p.csv")[1:]] == ["p1/ct", "p2/ct", "1.2.9", "1.2.9 (2)"]
    assert predict(model, tree / "p1" / "ct", "--out", tmp_path / "one.csv") == 0
    assert rows_of(tmp_path / "one.csv")[1][0] == "ct"


def test_a_list_is_answered_in_its_order_and_what_is_not_there_is_a_row_of_the_others(
    model: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(f"# mine\n{tree / 'b'}\n\nnowhere\n{tree / 'a'}\n{tree / 'notes'}\n")
    assert predict(model, "list.txt", "--out", "p.csv") == 0
    assert [row[0] for row in rows_of(tmp_path / "p.csv")[1:]] == ["1.2.8.1", "1.2.8.2"]
    refused = rows_of(tmp_path / "p.failed.csv")[1:]
    assert [row[1:3] for row in refused] == [
        ["list.txt, line 4", "missing_file"],
        [str(tree / "notes"), "not_an_image"],
    ]


def test_parts_of_a_series_in_several_folders_are_one_series(model: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "whole", "1.2.7")
    for part in (0, 1):
        write_series(tmp_path / "cut" / f"{part}", "1.2.7", slices=range(10 * part, 10 * part + 10))
    for name in ("whole", "cut"):
        assert predict(model, tmp_path / name, "--out", tmp_path / f"{name}.csv") == 0
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_several_paths_without_a_file_are_one_list_on_standard_output(
    model: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, tree / "b", tree / "scout", tree / "a") == 0
    said = capsys.readouterr()
    assert [one["series"] for one in json.loads(said.out)] == ["1.2.8.1", "1.2.8.2"]
    assert "not used: series 1.2.8.5: " in said.err


# --------------------------------------------------------------------------------------------------- stop and go on


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are looked at, as they are."""
    names: list[str] = []
    seen = many.look

    def note(place: Any, **rest: Any) -> Any:
        names.append(place.name)
        return seen(place, **rest)

    monkeypatch.setattr(many, "look", note)
    return names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_and_gives_the_bytes_of_one_that_was_not(
    number: signal.Signals, model: Path, tree: Path, tmp_path: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    assert predict(model, tree, "--out", whole) == 0
    undisturbed = len(looked)
    looked.clear()
    add: Callable[..., None] = Journal.add

    def add_and_signal(self: Journal, row: Any) -> None:
        add(self, row)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_and_signal)
        assert predict(model, tree, "--out", out) == 75
    assert not out.exists()
    assert 0 < len(looked) < undisturbed
    journal = tmp_path / "p.journal.jsonl"
    assert b"1.2.8.2" in journal.read_bytes()
    journal.write_bytes(journal.read_bytes() + b'{"place": "torn')  # as by a process that was killed
    assert predict(model, tree, "--out", out) == 0
    assert len(looked) <= undisturbed + 1, "what was answered is not done again"
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "p.failed.csv").read_bytes() == (tmp_path / "whole.failed.csv").read_bytes()


def test_a_finished_run_is_not_repeated_but_for_what_has_come_or_changed(
    model: Path, tmp_path: Path, looked: list[str]
) -> None:
    tree, out = tmp_path / "tree", tmp_path / "p.csv"
    write_series(tree / "a", "1.2.1", brain=20)
    write_series(tree / "b", "1.2.2", brain=40)
    assert predict(model, tree, "--out", out) == 0
    before = rows_of(out)
    looked.clear()
    assert predict(model, tree, "--out", out.with_suffix(".json")) == 0
    assert looked == [], "another format of the same answers"
    write_series(tree / "c", "1.2.3")
    write_series(tree / "b", "1.2.2", brain=140)
    assert predict(model, tree, "--out", out) == 0
    assert looked == ["b", "c"]
    after = rows_of(out)
    assert [row[0] for row in after[1:]] == ["1.2.1", "1.2.2", "1.2.3"]
    assert after[1] == before[1]
    assert after[2] != before[2]


def test_a_series_that_the_disk_refused_is_tried_again_and_one_that_is_broken_is_not(
    model: Path, tmp_path: Path, looked: list[str]
) -> None:
    write_series(tmp_path / "broken", "1.2.4", slices=range(2))
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'later'}\n{tmp_path / 'broken'}\n")
    out = tmp_path / "p.csv"
    assert predict(model, tmp_path / "list.txt", "--out", out) == 1
    write_series(tmp_path / "later")
    looked.clear()
    assert predict(model, tmp_path / "list.txt", "--out", out) == 0
    assert looked == [str(tmp_path / "later")]
    assert [row[0] for row in rows_of(out)[1:]] == ["1.2.3"]
    assert [row[2] for row in rows_of(tmp_path / "p.failed.csv")[1:]] == ["too_few_slices"]


def test_other_folders_are_left_out_of_the_file_but_not_forgotten(
    model: Path, tree: Path, tmp_path: Path, looked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    assert predict(model, tree / "a", "--out", out) == 0
    assert predict(model, tree / "b", "--out", out) == 0
    assert [row[0] for row in rows_of(out)[1:]] == ["1.2.8.1"]
    assert "knows 1 more series" in capsys.readouterr().err
    looked.clear()
    assert predict(model, tree / "a", tree / "b", "--out", out) == 0
    assert [row[0] for row in rows_of(out)[1:]] == ["1.2.8.2", "1.2.8.1"]
    assert looked == []


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"p.csv": "mine"}, (), "p.csv: is there, but not p.journal.jsonl"),
        ({"p.failed.csv": "mine"}, (), "--out p.csv: p.failed.csv is there, but not p.journal.jsonl"),
        ({"p.candidates.csv": "mine"}, (), "--out p.csv: p.candidates.csv is there, but not p.journal.jsonl"),
        ({"p.journal.jsonl": "mine\n"}, (), "was not written by `finetune predict`"),
        ({"p.journal.jsonl": '{"format": 1, "labels": []}\n'}, (), "answers of other models"),
        ({}, ("--out", "p.txt"), "p.txt: its ending says nothing; give one of .csv, .json, .parquet"),
        ({}, ("--out", "."), "its ending says nothing"),
        ({}, ("--device", "abacus"), "--device abacus: no device"),
        ({}, ("--device", "cuda:7"), "--device cuda:7: there are"),
        ({}, ("--weights", "1,2"), "--weights: 2 for 1 models"),
        ({}, ("--weights", "-1"), "--weights"),
        ({}, ("--weights", "a"), "give numbers with commas between"),
        ({}, ("--batch", "0"), "--batch"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_touched(
    files: dict[str, str], words: tuple[str, ...], said: str, model: Path, tree: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert predict(model, tree / "a", "--out", "p.csv", *words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_files_of_the_user_beside_a_table_stay_whatever_its_journal_vouches_for(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, tree, "--out", tmp_path / "p.csv") == 0
    assert predict(model, tree / "a", "--out", tmp_path / "p.csv") == 0
    assert not (tmp_path / "p.failed.csv").exists()
    (tmp_path / "p.json").write_text("mine")
    capsys.readouterr()
    assert predict(model, tree, "--out", tmp_path / "p.json") == 2
    assert "p.json: is there, but p.journal.jsonl does not say that" in capsys.readouterr().err
    assert (tmp_path / "p.json").read_text() == "mine"
    assert predict(model, tree / "b", "--out", tmp_path / "q.csv") == 0
    (tmp_path / "q.failed.csv").write_text("mine")
    assert predict(model, tree / "b", "--out", tmp_path / "q.csv") == 2
    assert "q.csv: q.failed.csv is there, but q.journal.jsonl does not say" in capsys.readouterr().err
    assert (tmp_path / "q.failed.csv").read_text() == "mine"


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_tables_of_versions_whose_journals_name_none_are_told_by_how_they_begin(
    ending: str, model: Path, tree: Path, tmp_path: Path
) -> None:
    out, journal = tmp_path / f"p{ending}", tmp_path / "p.journal.jsonl"
    assert predict(model, tree, "--out", out) == 0
    lines = journal.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"tables": sorted([out.name, "p.candidates.csv", "p.failed.csv"])}
    journal.write_text("".join(lines[:-1]))
    before = out.read_bytes()
    assert predict(model, tree, "--out", out) == 0
    assert out.read_bytes() == before
    journal.write_text("".join(lines[:-1]))
    (tmp_path / "p.failed.csv").write_text("SeriesInstanceUID,age\n1.2.3,61\n")
    assert predict(model, tree, "--out", out) == 2
    assert "61" in (tmp_path / "p.failed.csv").read_text()


def test_a_file_that_is_no_list_and_a_list_of_nothing_are_refused(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00\x80")
    picture = next((tree / "a").iterdir())
    for path, said in ((tmp_path / "empty.txt", "lists no folder"), (tmp_path / "noise.txt", "no text"),
                       (picture, "a file; give the folder that holds it")):  # fmt: skip
        assert predict(model, path, "--out", tmp_path / "p.csv") == 2
        assert said in capsys.readouterr().err


LINE = "Doe^Jane,1961-03-02,MRN 4471"


def test_a_table_of_patients_that_is_given_by_mistake_is_not_repeated(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(f"{'a long header, ' * 40}\n{LINE}\n~Doe^Jane\n")
    for words in ((), ("--out", tmp_path / "p.csv")):
        assert predict(model, tmp_path / "list.csv", *words) == 2
        said = capsys.readouterr()
        assert said.err == (
            f"error: {tmp_path / 'list.csv'}: no line of it is a folder or an image that is there; give a list of "
            "these, one a line\n"
        )
        assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]


def test_a_line_that_is_no_folder_goes_by_its_number(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"{tree / 'a'}\n\n{LINE}\n{'long ' * 100}\n~Doe^Jane\n")
    assert predict(model, tmp_path / "list.txt", "--out", tmp_path / "p.csv") == 0
    assert [row[1] for row in rows_of(tmp_path / "p.failed.csv")[1:]] == [f"list.txt, line {n}" for n in (3, 4, 5)]
    assert predict(model, tmp_path / "list.txt") == 0
    said = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.iterdir() if path.name != "list.txt")
    assert "Doe" not in said.out + said.err + written


def test_two_runs_do_not_write_to_one_file(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "p.journal.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pid = os.fork()
        if pid == 0:
            held.close()
            os._exit(predict(model, tree / "a", "--out", tmp_path / "p.csv"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


@pytest.fixture
def wide(tree: Path, tmp_path: Path) -> Path:
    """A list of the tree and of a series more, so that each of two processes has something to do."""
    more = []
    while {share(place.key) for place in find_places([tree, *more])} != {0, 1}:
        more.append(tmp_path / f"more{len(more)}")
        write_series(more[-1], f"1.2.9.{len(more)}", patient=f"M{len(more)}")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in (tree, *more)))
    return tmp_path / "list.txt"


def share(key: str) -> int:
    return int(key, 16) % 2


def test_ranks_of_a_launcher_answer_a_part_each_and_the_last_writes_what_one_process_writes(
    model: Path, wide: Path, tmp_path: Path
) -> None:
    assert predict(model, wide, "--out", tmp_path / "alone.csv") == 0
    out = tmp_path / "ranks.csv"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"]
    words = ["-m", "finetune.predict", model, wide, "--out", out, "--device", "cpu", "--workers", 0]
    done = subprocess.run([*launch, sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for ending in (".csv", ".failed.csv"):
        assert (tmp_path / f"ranks{ending}").read_bytes() == (tmp_path / f"alone{ending}").read_bytes()
    for rank in range(2):
        lines = (tmp_path / f"ranks.journal.{rank}-of-2.jsonl").read_text().splitlines()[1:]
        places = [line["place"] for line in map(json.loads, lines) if "place" in line]
        assert {share(place) for place in places} == {rank}


def test_parts_go_on_where_they_were_however_many_there_are_then(
    model: Path, wide: Path, tmp_path: Path, looked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, places = tmp_path / "p.csv", find_places([wide])
    assert predict(model, wide, "--out", tmp_path / "alone.csv") == 0
    once = sorted(looked)
    looked.clear()
    assert predict(model, wide, "--out", out, "--shard", "1/2") == 0
    first = sum(share(place.key) for place in places)
    assert not out.exists()
    left = len(places) - first
    assert f"p.csv: part 1/2 is done; {left} folders are left to others" in capsys.readouterr().err
    begun = len(looked)
    assert predict(model, wide, "--out", out, "--shard", "1/2") == 0
    assert len(looked) == begun  # it knows what it has answered
    assert predict(model, wide, "--out", out) == 0
    assert out.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert sorted(looked) == once  # no folder twice
    out.unlink()
    assert predict(model, wide, "--out", out, "--shard", "2/3") == 0
    assert sorted(looked) == once
    assert out.read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_part_that_changed_since_counts_as_it_is_now(model: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "tree" / "a")
    out = tmp_path / "p.csv"
    for count in (2, 3):
        for index in range(count):
            assert predict(model, tmp_path / "tree", "--out", out, "--shard", f"{index}/{count}") == 0
        if count == 2:
            before = rows_of(out)[1]
            write_series(tmp_path / "tree" / "a", brain=140)
    expected = list(Predictor(model, device=CPU)(tmp_path / "tree" / "a").values())
    assert [float(value) for value in rows_of(out)[1][1:]] == expected
    assert rows_of(out)[1] != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "2/2", "--out", "p.csv"], "--shard 2/2: give I/N with I from 0 to N - 1"),
        (["--shard", "0", "--out", "p.csv"], "--shard 0: give I/N"),
        (["--shard", "0/2"], "several processes write to one file; give --out FILE"),
    ],
)
def test_a_part_of_nothing_or_without_a_file_is_refused(
    model: Path, tree: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, tree, *words) == 2
    assert said in capsys.readouterr().err


def test_a_part_waits_for_nobody_but_not_beside_a_run_over_all(model: Path, tree: Path, tmp_path: Path) -> None:
    with (tmp_path / "p.journal.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as another part does
        assert predict(model, tree / "a", "--out", tmp_path / "p.csv", "--shard", "0/2") == 0
        assert predict(model, tree / "a", "--out", tmp_path / "p.csv") == 2
        fcntl.flock(held, fcntl.LOCK_EX)
        assert predict(model, tree / "a", "--out", tmp_path / "p.csv", "--shard", "1/2") == 2


def test_ranks_take_turns_with_the_devices_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    four = [torch.device("cuda", number) for number in range(4)]
    for ranks, expected in ((1, [[0, 1, 2, 3]]), (2, [[0, 2], [1, 3]]), (6, [[0], [1], [2], [3], [0], [1]])):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        for rank, numbers in enumerate(expected):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            assert [device.index for device in devices_of_rank(four)] == numbers


def test_ranks_of_a_shard_are_parts_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for shard in range(2):
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            found.append(share_of_rank(Share(shard, 2)))
    assert found == [Share(index, 6) for index in range(6)]
    assert all(sum(one.holds(f"{key:x}") for one in found) == 1 for key in range(12))


def test_a_worker_that_dies_takes_only_its_folder(model: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = many._looked_at

    def dying(places: Any, *rest: Any) -> Any:
        for place, looked in looked_at(places, *rest):
            yield place, Died(-9) if place.name == "a" else looked

    monkeypatch.setattr(many, "_looked_at", dying)
    panel = read_panel([model])
    done = runs.predict_paths(panel, [tree / "a", tree / "b"], out=None, devices=[CPU])
    assert [(row.folder, row.reason) for row in done.rows] == [("a", "worker_died"), ("ct", None)]


def test_a_batch_that_fits_no_memory_is_halved(model: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = read_panel([model])
    paths = [tree / "a", tree / "mixed"]
    expected = runs.predict_paths(panel, paths, out=None, devices=[CPU]).rows
    sizes = []
    inner = Ensemble._of_member

    def narrow(self: Ensemble, number: int, regions: Any, *, where: bool) -> Any:
        sizes.append(len(regions))
        if len(regions) > 1:
            raise torch.OutOfMemoryError
        return inner(self, number, regions, where=where)

    monkeypatch.setattr(Ensemble, "_of_member", narrow)
    assert runs.predict_paths(panel, paths, out=None, devices=[CPU], batch=3).rows == expected
    assert sizes == [3, 1, 2, 1, 1]


# ------------------------------------------------------------------------------------------------------- ensembles


def test_models_answer_together_by_the_weighted_mean_of_their_logits(
    model: Path, other: Path, tree: Path, tmp_path: Path
) -> None:
    for name, words in (("one", [model]), ("two", [other])):
        assert predict(*words, tree, "--out", tmp_path / f"{name}.csv") == 0
    assert predict(model, other, tree, "--out", tmp_path / "both.csv") == 0
    assert predict(model, other, tree, "--out", tmp_path / "weighted.csv", "--weights", "1,3") == 0
    one, two, both, weighted = (
        pd.read_csv(tmp_path / f"{name}.csv")[list(LABELS)].to_numpy() for name in ("one", "two", "both", "weighted")
    )
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_allclose(both, expit((logit(one) + logit(two)) / 2), rtol=1e-6)
    np.testing.assert_allclose(weighted, expit((logit(one) + 3 * logit(two)) / 4), rtol=1e-6)


def test_the_folds_of_a_cross_validation_answer_together(
    model: Path, other: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "cv" / "fold_0")
    save_model(tmp_path / "cv" / "fold_1", seed=1, fold=1)
    (tmp_path / "cv" / "fold_2").mkdir()
    assert predict(tmp_path / "cv", tree / "a") == 0
    folds = json.loads(capsys.readouterr().out)
    assert predict(model, other, tree / "a") == 0
    assert json.loads(capsys.readouterr().out) == folds
    panel = read_panel([tmp_path / "cv", other], [3.0, 1.0])
    assert [member.weight for member in panel.members] == [1.5, 1.5, 1.0]
    assert len(panel.inputs) == 1, "what differs in the fold alone is harmonized once"


def test_a_harmonized_series_is_shared_by_models_that_cut_it_otherwise(
    model: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = save_model(tmp_path / "larger", patch=(24, 24, 24))
    calls = []
    harmonize = look.harmonize_scan
    monkeypatch.setattr(look, "harmonize_scan", lambda *rest: (calls.append(1), harmonize(*rest))[1])
    alone = [Predictor(folder, device=CPU)(tree / "a") for folder in (model, larger)]
    calls.clear()
    together = Predictor([model, larger], device=CPU)(tree / "a")
    assert len(calls) == 1
    for label in LABELS:
        expected = expit((logit(alone[0][label]) + logit(alone[1][label])) / 2)
        assert together[label] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("CTA", "CT"), ("CT", "CT"), ("MRA", "MR"), ("MRI T2", "MR"), ("MR", "MR")])
def test_modalities_of_a_recipe_are_ct_or_mr_to_a_header(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_models_of_some_modalities_answer_series_of_theirs_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, ct_model, mr_model = tmp_path / "tree", tmp_path / "ct_model", tmp_path / "mr_model"
    write_mr_series(tree / "mr")
    write_series(tree / "ct")
    save_model(ct_model, seed=1, modalities=("CTA",))
    save_model(mr_model, seed=2, modalities=("MRA", "MRI T2"))
    ct, mr = (
        {label: [Predictor(folder, device=CPU)(tree / kind)[label] for folder in (model, own)] for label in LABELS}
        for kind, own in (("ct", ct_model), ("mr", mr_model))
    )
    assert predict(ct_model, mr_model, tree, "--out", tmp_path / "routed.json") == 0
    assert predict(model, ct_model, mr_model, tree, "--out", tmp_path / "joined.json") == 0
    routed, joined = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("routed", "joined"))
    for found, together, alone in zip(routed, joined, (ct, mr), strict=True):
        assert [found[label] for label in LABELS] == [alone[label][1] for label in LABELS]
        expected = [expit(np.mean(logit(alone[label]))) for label in LABELS]
        np.testing.assert_allclose([together[label] for label in LABELS], expected, rtol=1e-5)
    assert predict(ct_model, tree, "--out", tmp_path / "ct.csv") == 0
    assert [row[0] for row in rows_of(tmp_path / "ct.csv")[1:]] == ["1.2.3"]
    (refused,) = rows_of(tmp_path / "ct.failed.csv")[1:]
    assert refused[0] == "1.2.4"
    assert refused[2:] == ["unsupported_modality", "none of the models is for MR (data.modalities)"]
    capsys.readouterr()
    assert predict(ct_model, tree / "mr") == 1
    assert "none of the models is for MR" in capsys.readouterr().err


def test_places_are_found_once_however_they_are_given(tree: Path) -> None:
    names = [place.name for place in find_places([tree / "a", tree, tree / "b"])]
    assert names == ["a", "b/ct", "broken", "mixed", "scout"]
    with pytest.raises(UserError, match="no such folder"):
        find_places([tree / "nowhere"])


def test_an_mr_series_is_answered_beside_a_ct(model: Path, tmp_path: Path) -> None:
    write_mr_series(tmp_path / "tree" / "mr")
    write_series(tmp_path / "tree" / "ct")
    assert predict(model, tmp_path / "tree", "--out", tmp_path / "p.parquet", "--batch", 2) == 0
    assert pd.read_parquet(tmp_path / "p.parquet")["modality"].tolist() == ["CT", "MR"]
