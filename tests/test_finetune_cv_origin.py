"""Folds of one cross-validation begin with the same finder, brain model and pseudo-labels, or are not put together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import cross_validation, train
from finetune.cli import main
from finetune.finder import read_finder, save_finder
from finetune.report import REPORT

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
RECIPE: dict[str, Any] = {
    "data": {"patch": [16, 16, 16], "folds": 2, "mirror": False, "workers": 0},
    "scratch": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "head": {"stride": 2, "width": 4, "top": 2},
    "stages": [{"name": "all", "steps": 1, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"}],
    "train": {"batch": 1, "threads": 1},
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train, cross_validation):
        monkeypatch.setattr(module, "write_report", lambda out, *rest, **more: out / REPORT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cv_origin") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, finder_folder: Path) -> Path:
    """Of a run that looks through the finder in ``ROI`` beside it."""
    shutil.copytree(finder_folder, tmp_path / "ROI")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "view": {"kind": "roi", "model": str(tmp_path / "ROI")}}))
    return path


def cv(recipe: Path, corpus: Path, out: Path, *words: object) -> int:
    return main(["cv", "--config", str(recipe), "--corpus", str(corpus), "--out", str(out), *map(str, words)])


def make_again(finder: Path, *, into: Path, **facts: object) -> None:
    """Put another finder in the place of one, or beside it."""
    old = read_finder(finder)
    into.mkdir(exist_ok=True)
    save_finder(into, replace(old, most_doubt_mm=old.most_doubt_mm / 2, facts={**old.facts, **facts}))


def change(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_finder_that_was_made_again_is_not_mixed_with_the_one_of_finished_folds(
    recipe: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cv"
    assert cv(recipe, corpus, out, "--fold", 0) == 0
    shutil.copytree(out, tmp_path / "other")
    make_again(tmp_path / "ROI", into=tmp_path / "ROI")
    capsys.readouterr()
    assert cv(recipe, corpus, out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fold_0: finished with another finder of boxes (view.model) than is asked for now" in line
    assert not (out / "fold_1").exists()
    # One that other jobs have trained by then is not gathered either.
    shutil.rmtree(tmp_path / "other" / "fold_0")
    assert cv(recipe, corpus, tmp_path / "other", "--fold", 1) == 0
    shutil.copytree(tmp_path / "other" / "fold_1", out / "fold_1")
    capsys.readouterr()
    assert main(["cv", "--gather", str(out)]) == 2
    assert "fold_1: began with another finder of boxes (view.model) than fold_0" in capsys.readouterr().err
    assert not (out / "predictions.parquet").exists()


def test_a_finder_of_each_fold_and_one_that_is_gone_by_now_are_gathered(
    recipe: Path, corpus: Path, tmp_path: Path
) -> None:
    for number in range(2):
        make_again(tmp_path / "ROI", into=tmp_path / "ROI" / f"fold_{number}", fold=number)
    assert cv(recipe, corpus, tmp_path / "cv") == 0
    states = [json.loads((tmp_path / "cv" / f"fold_{number}" / "run.json").read_text()) for number in range(2)]
    assert states[0]["finder"] != states[1]["finder"]
    assert main(["cv", "--gather", str(tmp_path / "cv")]) == 0
    shutil.rmtree(tmp_path / "ROI")
    assert cv(recipe, corpus, tmp_path / "cv") == 0


def test_other_pseudo_labels_and_another_brain_model_are_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "cv"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert cv(recipe, corpus, out) == 0
    for file, keys, said in (
        ("run.json", ("pseudo_labels",), "other --pseudo-labels"),
        ("config.json", ("harmonize", "apply_brain"), "another --brain-model"),
    ):
        before = (out / "fold_1" / file).read_text()
        change(out / "fold_1" / file, *keys, value="0" * 64)
        capsys.readouterr()
        assert main(["cv", "--gather", str(out)]) == 2
        assert f"fold_1: began with {said} than fold_0; a cross-validation has one" in capsys.readouterr().err
        assert cv(recipe, corpus, out) == 2
        assert f"fold_1: finished with {said} than is asked for now" in capsys.readouterr().err
        (out / "fold_1" / file).write_text(before)
    assert main(["cv", "--gather", str(out)]) == 0
