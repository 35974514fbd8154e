"""A cross-validation of which a fold has no model: it is said where it answers, and refused where it is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from standin_series import save_model, write_series

from finetune.cli import main
from finetune.evaluation.predictions import PREDICTIONS
from finetune.predict.folds import models_in, unfinished
from harmonize.labels import LABELS

COUNT = 20


def table(path: Path, *, begin: int = 0) -> None:
    """Predictions of some series of either kind."""
    rows = [
        {"scan_id": f"{begin + n}", "subject": f"s{begin + n}", "modality": "CTA"}
        | dict.fromkeys(LABELS, n / COUNT)
        | {f"target: {label}": n % 2 for label in LABELS}
        for n in range(COUNT)
    ]
    pd.DataFrame(rows).to_parquet(path)


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Folds 0 and 2 of three have finished; fold 1 was stopped."""
    out = tmp_path / "cv"
    for number in (0, 2):
        save_model(out / f"fold_{number}", seed=number, fold=number, folds=3)
        table(out / f"fold_{number}" / PREDICTIONS, begin=number * COUNT)
        (out / f"fold_{number}" / "run.json").write_text('{"status": "finished"}')
    (out / "fold_1").mkdir()
    (out / "fold_1" / "run.json").write_text('{"status": "interrupted"}')
    return out


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "ct"
    write_series(folder, "1.2.8.1")
    return folder


def gathered(folds: Path, numbers: tuple[int, ...]) -> None:
    """As `finetune cv --gather --folds` leaves it."""
    (folds / "results.json").write_text(json.dumps({"folds": {str(number): {} for number in numbers}, "pooled": {}}))


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(map(str, words))) == code
    return capsys.readouterr().err


def test_what_answers_without_a_fold_says_so(
    folds: Path, series: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"warning: {folds}: no model of fold 1 of 3 (1 begun, and not finished); this is of 0, 2 alone\n"
    assert line in said(capsys, "predict", folds, series)
    assert line in said(capsys, "evaluate", folds, "--draws", "10")
    monkeypatch.setattr("finetune.report.write_report", lambda *_, **__: folds)  # these runs have nothing to draw
    assert line in said(capsys, "report", folds)
    shutil.rmtree(folds / "fold_1")
    line = f"warning: {folds}: no model of fold 1 of 3; this is of 0, 2 alone\n"
    assert line in said(capsys, "predict", folds, series)
    gathered(folds, (0, 2))
    assert "no model" not in said(capsys, "predict", folds, series), "these were asked for with --folds 0,2"


def test_a_part_of_a_cross_validation_is_not_published_by_mistake(
    folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("push", "kaggle"):
        (line,) = said(capsys, command, folds, "--out", tmp_path / "out", code=1).splitlines()
        assert "no model of fold 1 of 3 (1 begun, and not finished); let `finetune cv` finish it" in line
        assert f"`finetune cv --gather {folds} --folds 0,2`" in line
    assert not (tmp_path / "out").exists()
    gathered(folds, (0, 1, 2))
    said(capsys, "push", folds, "--out", tmp_path / "out", code=1)


def test_folds_that_their_user_gathered_are_passed_on_and_are_all_that_the_copy_has(
    folds: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gathered(folds, (0, 2))
    assert said(capsys, "push", folds, "--out", tmp_path / "out") == ""
    assert [path.name for path in models_in(tmp_path / "out")] == ["fold_0", "fold_2"]
    assert "no model" not in said(capsys, "predict", tmp_path / "out", series)
    shutil.rmtree(tmp_path / "out" / "fold_2")
    assert "no model of fold 1, 2 of 3" in said(capsys, "predict", tmp_path / "out", series)


def test_a_run_a_whole_cross_validation_and_one_without_any_model_lack_nothing(folds: Path, tmp_path: Path) -> None:
    assert unfinished(folds / "fold_0") is None
    assert unfinished(tmp_path / "nothing") is None
    shutil.rmtree(folds / "fold_1")
    save_model(folds / "fold_1", seed=1, fold=1, folds=3)
    assert unfinished(folds) is None
