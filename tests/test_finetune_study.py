"""The transfer study: it ends with an answer, goes on where it was killed, and refuses what cannot be."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from finetune.cli.study import main, with_recipe
from finetune.evaluation.compare import WITHIN
from finetune.recipe import Recipe as FinetuneRecipe
from finetune.study import StudyConfig, cells, run_study, write_results
from finetune.study import run as runner
from finetune.study.begun import pretrained_sha256
from finetune.study.config import PowerConfig
from finetune.study.data import beside, trees
from finetune.study.run import LOCK, read_run
from finetune.study.table import ENCODER, INSIDE, OUTSIDE, PLAN, cell_path
from harmonize import phantom
from harmonize.corpus.lock import exclusive
from harmonize.errors import UserError, WrongUse
from harmonize.labels import PRESENT
from harmonize.phantom.rsna.tables import SIZES
from headspark.config import from_plain, read_recipe, to_yaml
from headspark.recipe import Recipe as PretrainRecipe

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "recipes").glob("transfer_study*.yaml"))
STAGE = {"name": "all", "steps": 2, "head_lr": 1e-3, "encoder_lr": 1e-3, "layers": "all"}
TOY = {
    "design": {"labels": [4], "seeds": [0], "draws": 50},
    "data": {
        "phantom": ["--workers", "1"],
        "outside": ["--coverage", "varied"],
        "harmonize": ["--spacing", "4", "--region", "circle", "--region-mm", "80", "--workers", "1"],
        "size": 28,
        "inside": 6,
        "outside_series": 4,
        "validation": 2,
    },
    "pretraining": {
        "options": [
            "--train.steps", "2", "--data.patch", "16", "--encoder.features", "[4, 4]", "--encoder.blocks", "[1, 1]",
            "--encoder.strides", "[1, 2]", "--decoder.width", "4", "--train.val_samples", "1", "--optim.warmup", "0",
            "--data.val_share", "0.2",
        ]
    },
    "finetuning": {
        "options": [
            "--data.patch", "[16, 16, 16]", "--data.spacing", "4", "--data.folds", "2", "--head.width", "4",
            "--train.batch", "1",
        ]
    },
    "arms": [
        {"name": "scratch", "pretrained": False, "stages": [STAGE]},
        {"name": "lp_ft", "stages": [{"name": "head", "steps": 1, "head_lr": 1e-3}, {**STAGE, "steps": 1}]},
    ],
}  # fmt: skip


# ------------------------------------------------------------------------------------------- a study from end to end


@pytest.mark.timeout(300)
def test_a_killed_study_goes_on_and_its_predictions_alone_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = from_plain(StudyConfig, TOY), tmp_path / "study"
    first, second, *_ = config.cells()
    with monkeypatch.context() as patch:
        patch.setattr(phantom.pool, "run", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert not run_study(config, out), "stopped while heads are written"
    whole = cells.predict_cases
    asked: list[int] = []

    def told_to_stop(*arguments: Any, **more: Any) -> pd.DataFrame:
        asked.append(len(asked))
        if len(asked) == 3:  # of two splits each
            signal.raise_signal(signal.SIGTERM)
        return whole(*arguments, **more)

    monkeypatch.setattr(cells, "predict_cases", told_to_stop)
    assert not run_study(config, out), "stopped while the second cell is asked"
    assert json.loads((out / PLAN).read_text())["power"][WITHIN]["inside"]["series"] == 6
    assert cell_path(out, first).is_file()
    assert not cell_path(out, second).is_file()
    weights = out / "cells" / second.name / "run" / "model.safetensors"
    times = [path.stat().st_mtime_ns for path in (weights, cell_path(out, first))]

    assert run_study(config, out)
    assert [path.stat().st_mtime_ns for path in (weights, cell_path(out, first))] == times, "nothing was done twice"
    said = pd.read_parquet(out / "predictions.parquet")
    assert len(said) == len(config.cells()) * (6 + 4)
    assert set(said["split"]) == {INSIDE, OUTSIDE}
    assert said[PRESENT].between(0, 1).all()
    ill = said[f"target: {PRESENT}"] == 1
    assert (said["diameter_mm"].notna() == ill).all()
    assert (said["spacing_mm"] > 0).all()
    assert not (out / "raw" / "inside" / "rsna").exists(), "raw trees are deleted"
    runs = [json.loads((out / "cells" / cell.name / "run" / "run.json").read_text()) for cell in (first, second)]
    assert runs[0]["results"]["trained_on"] == runs[1]["results"]["trained_on"], "both arms saw the same series"

    keys = [pq.read_schema(cell_path(out, cell)).metadata.get(ENCODER, b"").decode() for cell in config.cells()]
    pretrained = pretrained_sha256(out)
    assert keys == ["", pretrained, "", pretrained], "of scratch, lp_ft, and the probes"
    told = json.loads((out / "cells" / second.name / "run" / "run.json").read_text())["origin"]["encoder"]
    assert told["sha256"] == pretrained

    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(out / PLAN, moved)
    for cell in config.cells():
        cell_path(moved, cell).parent.mkdir(parents=True)
        shutil.copy(cell_path(out, cell), cell_path(moved, cell))
    monkeypatch.setattr(runner.data, "make", None)  # no heads are made
    assert run_study(config, moved)
    assert write_results(moved)[:-1] == write_results(out)[:-1]
    assert (moved / "study.html").read_bytes() == (out / "study.html").read_bytes()

    with pytest.raises(WrongUse, match=r"this study began with power\.auc 0\.75, now 0\.8 is asked for"):
        run_study(replace(config, power=PowerConfig(auc=0.8)), out)
    with pytest.raises(WrongUse, match=r"--cells none: there is none; choose of 0004_scratch_0"):
        run_study(config, out, only=["none"])


@pytest.mark.parametrize(
    ("option", "said"), [("--data.ct_windows=[brain]", "cut other windows"), ("--view.kind=mip", "shows pictures")]
)
def test_runs_that_do_not_fit_are_refused_and_may_be_put_right(option: str, said: str, tmp_path: Path) -> None:
    config = from_plain(StudyConfig, TOY)
    wrong = replace(config.finetuning, options=(option, "--scratch.in_channels=1"))
    with pytest.raises(WrongUse, match=said):
        run_study(replace(config, finetuning=wrong), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_two_processes_do_not_make_the_same_heads_at_once(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / LOCK, "busy"),
        pytest.raises(UserError, match="another process makes its heads and its encoder; wait for that"),
    ):
        run_study(from_plain(StudyConfig, TOY), tmp_path)


def test_tables_of_heads_whose_writing_was_stopped_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_plain(StudyConfig, TOY)
    stale = beside(tmp_path, INSIDE, SIZES)
    stale.parent.mkdir(parents=True)
    stale.write_text("of a tree that never got its name")
    inside = [one for one in trees(config, folds=2) if one.name == INSIDE]
    monkeypatch.setattr(runner.data, "trees", lambda config, *, folds: inside)
    runner.data.make(config, tmp_path, folds=2)
    assert len(pd.read_csv(stale)) >= 3


def test_a_recipe_that_is_not_there_is_told_by_its_key(tmp_path: Path) -> None:
    config = from_plain(StudyConfig, TOY)
    with pytest.raises(UserError, match=r"pretraining\.recipe nope"):
        run_study(replace(config, pretraining=replace(config.pretraining, recipe="nope")), tmp_path / "study")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(WrongUse, match=r"holds mine\.txt and no study"):
        run_study(from_plain(StudyConfig, TOY), tmp_path)
    with pytest.raises(WrongUse, match="no such table"):
        write_results(tmp_path)


# ------------------------------------------------------------------------------------------------------- its recipes


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_recipe_of_a_study_names_runs_that_fit_each_other(path: Path, tmp_path: Path) -> None:
    config = read_recipe(StudyConfig, path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert read_recipe(StudyConfig, tmp_path / "again.yaml") == config
    pretraining, base = (
        read_run(PretrainRecipe, config.pretraining, ""),
        read_run(FinetuneRecipe, config.finetuning, ""),
    )
    assert pretraining.encoder == base.scratch
    assert pretraining.data.windows == base.data.windows
    words = config.data.harmonize
    assert float(words[words.index("--spacing") + 1]) == base.data.spacing
    assert path.read_text().startswith("# ")


def test_the_small_study_has_thirty_fine_tunings_in_whole_comparisons() -> None:
    config = read_recipe(StudyConfig, ROOT / "recipes" / "transfer_study.yaml")
    cells = list(config.fine_tunings())
    assert len(cells) == 30
    assert [cell.arm for cell in cells[:5]] == ["scratch", "lp_ft", "three_stage", "lp_ft_fast", "three_stage_fast"]
    assert len({(cell.labelled, cell.seed) for cell in cells[:5]}) == 1
    assert len({cell.name for cell in config.cells()}) == len(config.cells()) == 42
    # A study that is stopped has whole seeds, their probes among them.
    assert [cell.seed for cell in config.cells()] == [0] * 14 + [1] * 14 + [2] * 14


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"design": {"lables": [4]}}, "unknown key design.lables"),
        ({"design": {"labels": [1]}}, "design.labels"),
        ({"design": {"seeds": [0, 0]}}, "design.seeds"),
        ({"data": {"inside": 0}}, "data.inside 0"),
        ({"power": {"auc": 1.0}}, "power.auc 1.0"),
        ({"power": {"neither": 0.6}}, "power.neither 0.6"),
        ({"arms": TOY["arms"][:1]}, "two or more are needed"),
        ({"arms": [TOY["arms"][1], TOY["arms"][0]]}, "lp_ft: pretrained must be false"),
        ({"arms": [TOY["arms"][0], {"name": "long", "stages": [{**STAGE, "steps": 3}]}]}, "the same number"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_be_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**TOY, **change}))
    with pytest.raises(WrongUse) as caught:
        read_recipe(StudyConfig, tmp_path / "study.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plan_is_said_without_running_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert (
        "30 fine-tunings: 32, 128 labelled series x scratch, lp_ft, three_stage, lp_ft_fast, three_stage_fast x" in said
    )
    assert not (tmp_path / "none").exists()
    assert with_recipe(["--full"])[:2] == ["--config", "transfer_study_full"]
    with pytest.raises(WrongUse, match="leave it out"):
        with_recipe(["--full", "--config", "mine.yaml"])
