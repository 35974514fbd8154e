"""`finetune cv`: folds one after the other or each by itself, stopped and taken up, and what they say together."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from finetune import candidates, cross_validation, train
from finetune.cli import main
from finetune.evaluation.predictions import PREDICTIONS
from finetune.predict.folds import GATHERED
from finetune.report import REPORT
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.corpus import Corpus, read_volume
from headspark.run.folder import without_odd_numbers

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
RECIPE = {
    "data": {"patch": [16, 16, 16], "folds": 3, "mirror": False, "workers": 0},
    "scratch": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "head": {"stride": 2, "width": 4, "top": 2},
    "stages": [{"name": "all", "steps": 2, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"}],
    "train": {"batch": 1, "checkpoint_every": 1, "threads": 1},
}
TIMES = {"started", "ended", "seconds"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cv") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train, cross_validation):
        monkeypatch.setattr(module, "write_report", lambda out, *rest, **more: out / REPORT)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of three folds that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed") / "cv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda *rest, **more: None)  # of the folds; theirs together has its own
        assert cv(recipe, corpus, out) == 0
    return out


def cv(recipe: Path, corpus: Path, out: Path, *words: object) -> int:
    return main(["cv", "--config", str(recipe), "--corpus", str(corpus), "--out", str(out), *map(str, words)])


def results(out: Path) -> dict[str, bytes]:
    """What a cross-validation says, byte by byte."""
    names = [PREDICTIONS, candidates.TABLE, GATHERED]
    of_folds = (PREDICTIONS, candidates.TABLE, "model.safetensors")
    names += [f"fold_{number}/{name}" for number in range(3) for name in of_folds]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The folds that are trained, as they are."""
    folds: list[int] = []
    run = cross_validation.train

    def note(recipe: Any, **rest: Any) -> Any:
        folds.append(recipe.data.fold)
        return run(recipe, **rest)

    monkeypatch.setattr(cross_validation, "train", note)
    return folds


def test_every_series_is_predicted_by_the_run_that_held_it_out(undisturbed: Path, corpus: Path, recipe: Path) -> None:
    pooled = pd.read_parquet(undisturbed / PREDICTIONS)
    folds = pd.read_parquet(corpus / "folds.parquet").set_index("scan_id")["fold"]
    assert pooled["scan_id"].is_unique
    assert pooled["scan_id"].is_monotonic_increasing
    assert pooled["fold"].tolist() == folds[pooled["scan_id"]].tolist()
    assert set(pooled["fold"]) == {0, 1, 2}
    for number, rows in pooled.groupby("fold"):
        own = pd.read_parquet(undisturbed / f"fold_{number}" / PREDICTIONS)
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), own)
    said = json.loads((undisturbed / GATHERED).read_text())
    score = AneurysmTask().score(pooled)
    assert said["pooled"].items() >= without_odd_numbers(score.headline()).items()
    assert said["pooled"]["held_out_series"] == len(pooled)
    run = json.loads((undisturbed / "fold_1" / "run.json").read_text())
    assert said["folds"]["1"] == run["results"]


def test_the_page_of_all_folds_is_written_by_whoever_gathers_with_the_corpus(
    undisturbed: Path, recipe: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (undisturbed / REPORT).read_text()
    assert "data:image/png;base64," in page
    assert cv(recipe, corpus, undisturbed) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{undisturbed / REPORT}: the report"
    assert main(["cv", "--gather", str(undisturbed)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"the report: finetune report {undisturbed} --corpus CORPUS"


def test_what_each_run_sees_in_the_fold_that_it_held_out_is_gathered_too(undisturbed: Path, corpus: Path) -> None:
    pooled = candidates.read_table(undisturbed / candidates.TABLE)
    held_out = pd.read_parquet(undisturbed / PREDICTIONS).set_index("scan_id")["fold"]
    assert set(pooled["scan_id"]) == set(held_out.index)
    assert pooled["fold"].tolist() == held_out[pooled["scan_id"]].tolist()
    assert pooled.groupby("scan_id")["rank"].apply(list).map(lambda ranks: ranks == sorted(set(ranks))).all()
    assert pooled.groupby("scan_id")["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()
    scans = Corpus.open(corpus).scans.set_index("scan_id")
    for row in pooled.to_dict("records"):
        volume = read_volume(corpus / scans.loc[row["scan_id"], "image_file_name"])
        index = np.linalg.inv(volume.affine) @ [row["x"], row["y"], row["z"], 1]
        assert (index[:3] > -1).all()
        assert (index[:3] < volume.stored_XYZ.shape).all()


def test_a_fold_is_the_run_that_finetune_train_makes(
    undisturbed: Path, corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    words = ["--config", recipe, "--corpus", corpus, "--out", tmp_path / "one", "--data.fold", 1]
    assert main(["train", *map(str, words)]) == 0
    for name in (PREDICTIONS, "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (undisturbed / "fold_1" / name).read_bytes()


def test_one_that_is_stopped_goes_on_to_the_bytes_of_one_that_was_not(
    undisturbed: Path, corpus: Path, recipe: Path, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = train.train_step
    steps = []

    def step_and_signal(state: Any, *rest: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:  # the first of the second fold
            signal.raise_signal(signal.SIGTERM)
        return taken(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step_and_signal)
        assert cv(recipe, corpus, tmp_path / "cv") == 75
    assert trained == [0, 1]
    assert not (tmp_path / "cv" / PREDICTIONS).exists()
    trained.clear()
    assert cv(recipe, corpus, tmp_path / "cv") == 0
    assert trained == [1, 2], "a finished fold is not trained again"
    assert results(tmp_path / "cv") == results(undisturbed)
    trained.clear()
    assert cv(recipe, corpus, tmp_path / "cv") == 0
    assert trained == []


def test_tasks_of_an_array_train_a_fold_each_and_the_last_gathers(
    undisturbed: Path, corpus: Path, recipe: Path, tmp_path: Path, trained: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "cv"
    assert cv(recipe, corpus, out, "--fold", 2) == 0
    assert "folds 0, 1 are left" in capsys.readouterr().err
    assert main(["cv", "--gather", str(out)]) == 1
    assert "not finished are the folds 0, 1" in capsys.readouterr().err
    assert not (out / PREDICTIONS).exists()
    assert cv(recipe, corpus, out, "--fold", 0) == 0
    assert main(["cv", "--gather", str(out), "--folds", "0,2"]) == 0
    assert set(pd.read_parquet(out / PREDICTIONS)["fold"]) == {0, 2}
    assert cv(recipe, corpus, out, "--fold", 1) == 0
    assert trained == [2, 0, 1]
    assert results(out) == results(undisturbed)


def test_two_jobs_that_share_the_folds_gather_all_of_them(
    corpus: Path, recipe: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cv"
    for number in range(3):
        shutil.copytree(undisturbed / f"fold_{number}", out / f"fold_{number}")
    shutil.move(out / "fold_2", tmp_path / "later")
    assert cv(recipe, corpus, out, "--folds", "0") == 0
    assert "the held-out series of the folds 0, 1 together" in capsys.readouterr().out
    shutil.move(tmp_path / "later", out / "fold_2")
    assert cv(recipe, corpus, out, "--folds", "0") == 0
    assert (out / PREDICTIONS).read_bytes() == (undisturbed / PREDICTIONS).read_bytes()


def test_the_folds_predict_and_are_evaluated_together(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    assert main(["predict", str(undisturbed), str(series)]) == 0
    assert set(AneurysmTask.labels) < set(json.loads(capsys.readouterr().out))
    assert main(["evaluate", str(undisturbed), "--json", "--draws", "10"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--train.seed", "7"), "began with train.seed 0, now 7 is asked for"),
        (("--encoder", "{encoder}"), "finished with another encoder"),
        (("--folds", "0,3"), "--folds [3]: there are data.folds 3"),
        (("--fold", "-1"), "--folds [-1]"),
        (("--folds", "a"), "give numbers with commas between"),
        (("--fold", "0", "--folds", "0"), "not allowed with argument --folds"),
    ],
)
def test_what_is_not_of_this_cross_validation_is_refused(
    words: tuple[str, ...], said: str, undisturbed: Path, corpus: Path, recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = results(undisturbed)
    filled = [word.format(encoder=FIXTURES / "encoder") for word in words]
    assert cv(recipe, corpus, undisturbed, *filled) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.splitlines()[-1].startswith("error: ")
    assert results(undisturbed) == before


def test_folds_of_different_runs_are_not_pooled(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "cv")
    state = json.loads((tmp_path / "cv" / "fold_1" / "run.json").read_text())
    state["origin"]["corpus"] = "0" * 64
    (tmp_path / "cv" / "fold_1" / "run.json").write_text(json.dumps(state))
    assert main(["cv", "--gather", str(tmp_path / "cv")]) == 2
    assert "fold_1: began with another corpus than fold_0" in capsys.readouterr().err
    assert main(["cv", "--gather", str(tmp_path)]) == 2
    assert "no cross-validation there" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["raw", "finetuned", "finetuning", "run", "encoder", "corpus"])
def test_a_folder_of_something_else_is_refused_before_the_first_fold(
    name: str, corpus: Path, recipe: Path, tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / "it")
    before = contents(tmp_path / "it")
    assert cv(recipe, corpus, tmp_path / "it") == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path / 'it'}: no cross-validation, but " in shown
    assert len(shown.splitlines()) == 1
    assert (contents(tmp_path / "it"), trained) == (before, [])


def test_folds_inside_a_finished_run_are_not_gathered_over_its_predictions(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FIXTURES / "finetuned", tmp_path / "it")
    shutil.copytree(undisturbed / "fold_1", tmp_path / "it" / "fold_1")
    before = contents(tmp_path / "it")
    assert main(["cv", "--gather", str(tmp_path / "it"), "--folds", "1"]) == 2
    assert "no cross-validation, but a fine-tuned model" in capsys.readouterr().err
    assert contents(tmp_path / "it") == before


def test_predictions_of_another_command_are_not_written_over(
    corpus: Path, recipe: Path, tmp_path: Path, trained: list[int]
) -> None:
    (tmp_path / "it").mkdir()
    shutil.copy(FIXTURES / "finetuned" / PREDICTIONS, tmp_path / "it")
    assert cv(recipe, corpus, tmp_path / "it") == 2
    assert trained == []


def test_notes_beside_folds_and_what_a_killed_process_left_do_not_stop_it(
    undisturbed: Path, corpus: Path, recipe: Path, tmp_path: Path, trained: list[int]
) -> None:
    out = tmp_path / "cv"
    shutil.copytree(undisturbed, out)
    for name in ("notes.txt", "evaluation.json", ".lock", f".tmp-1-{'0' * 16}-{PREDICTIONS}"):
        (out / name).write_text("mine")
    assert cv(recipe, corpus, out) == 0
    assert main(["cv", "--gather", str(out)]) == 0
    assert trained == []
    assert results(out) == results(undisturbed)
