"""A run on some of the series: of some modalities, on fewer of them, on more with labels of another model."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_finetune_lifecycle import signalled_in_step
from test_finetune_train import STAGES, tiny_recipe, write_corpus

from finetune import train as training
from finetune.recipe import Recipe
from finetune.regions import RegionStore
from finetune.report import write_report
from finetune.samples import DataConfig, TrainingSamples, join, make_targets
from finetune.series import Case
from finetune.tasks.aneurysm import AneurysmTask
from finetune.views import make_view
from harmonize.corpus import Corpus, write_manifest
from harmonize.errors import UserError, WrongUse
from harmonize.labels import LABELS, LOCATIONS

UNLABELLED = ("1.2.1", "1.2.2", "1.2.12", "1.2.14", "1.2.16")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """20 series, of which five have no labels and two have labels that their points contradict."""
    corpus = write_corpus(tmp_path_factory.mktemp("cohort") / "corpus", scans=20)
    rows = corpus.scans.to_dict("records")
    for row in rows:
        if row["scan_id"] in UNLABELLED:
            row["labels"] = None
        elif row["scan_id"] == "1.2.5":
            row["points"] = []
        elif row["scan_id"] == "1.2.6":
            row["points"] = [{"label": LOCATIONS[0], "x": 0.0, "y": 0.0, "z": 0.0}]
    write_manifest(corpus.path, rows, [])
    return Corpus.open(corpus.path)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)


def recipe_with(**data: Any) -> Recipe:
    recipe = tiny_recipe(validate_every=0, checkpoint_every=100)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **data), stages=STAGES[:1])


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())["results"]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Gets the training series of the runs that come."""
    seen: list[Case] = []
    samples = TrainingSamples.__init__

    def noting(self: TrainingSamples, store: RegionStore, *rest: Any, **options: Any) -> None:
        seen[:] = store.cases
        samples(self, store, *rest, **options)

    monkeypatch.setattr(TrainingSamples, "__init__", noting)
    return seen


def test_a_run_on_a_modality_is_trained_and_judged_on_it_alone(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = drawn(monkeypatch)
    training.train(recipe_with(modalities=("MRA",)), corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert {case.modality for case in seen} == set(predictions["modality"]) == {"MRA"}
    assert "of other modalities (data.modalities)" in capsys.readouterr().err
    with pytest.raises(WrongUse, match=r"data\.modalities T2w: the corpus has"):
        training.train(recipe_with(modalities=("T2w",)), corpus=corpus, encoder_folder=None, out=tmp_path / "other")


def test_a_limit_leaves_both_classes_on_both_sides(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = drawn(monkeypatch)
    training.train(recipe_with(limit=(4, 2)), corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert sorted(case.labels[-1] for case in seen) == [0, 0, 1, 1]
    assert sorted(predictions[f"target: {LABELS[-1]}"]) == [0, 1]
    assert results(tmp_path / "run")["held_out_series"] == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps_per_epoch"] == 2
    said = capsys.readouterr().err
    assert "data.limit: 4 of " in said
    assert "and 2 of " in said


def test_labels_points_and_masks_that_disagree_are_counted_in_the_runs_results(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(recipe_with(), corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    assert results(tmp_path / "run")["disagreements"] == {
        "positive place without a point": 1, "point at a place that is negative": 1,
    }  # fmt: skip
    assert "note: 1 series: positive place without a point; the labels count" in capsys.readouterr().err
    page = write_report(tmp_path / "run").read_text()
    assert "Labels, points and masks that disagree" in page
    for what, count in results(tmp_path / "run")["disagreements"].items():
        assert f"<td>{what}</td><td>{count}</td>" in re.sub(r"<td[^>]*>", "<td>", page)


def predictions_of(path: Path, scan_ids: list[str]) -> Path:
    rows = [{"scan_id": scan_id, **dict.fromkeys(LABELS, 0.25)} for scan_id in scan_ids]
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_pseudo_labels_are_trained_on_but_for_held_out_patients(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = drawn(monkeypatch)
    table = predictions_of(tmp_path / "table.parquet", [*UNLABELLED, "1.2.7", "elsewhere"])
    training.train(recipe_with(), corpus=corpus, encoder_folder=None, out=tmp_path / "plain")
    labelled = list(seen)
    assert not any(case.pseudo for case in labelled)
    training.train(recipe_with(), corpus=corpus, encoder_folder=None, out=tmp_path / "run", pseudo_labels=table)
    held_out = {row.subject for row in pd.read_parquet(corpus.path / "folds.parquet").itertuples() if row.fold == 0}
    scans = corpus.scans[corpus.scans["scan_id"].isin(UNLABELLED)]
    wanted = set(scans.loc[~scans["subject"].isin(held_out), "scan_id"])
    assert seen[: len(labelled)] == labelled
    assert {case.scan_id for case in seen[len(labelled) :]} == wanted
    assert 0 < len(wanted) < len(UNLABELLED)
    left_out = len(UNLABELLED) - len(wanted)
    assert (
        f"{len(wanted)} more series with labels of table.parquet; left out: 1 not in the corpus, "
        f"{left_out} of held-out patients, 1 with labels of their own"
    ) in capsys.readouterr().err


def test_soft_labels_reach_the_loss_as_they_are_and_say_nothing_about_where(corpus: Corpus) -> None:
    task, recipe = AneurysmTask(), recipe_with(pseudo_weight=1000.0)
    selection = task.cases(corpus)
    assert [case.scan_id for case in selection.unlabelled] == sorted(UNLABELLED)
    soft = tuple(np.linspace(0.1, 0.9, len(LABELS)))
    pseudo = [
        dataclasses.replace(case, labels=soft, spots=(), spots_complete=False, pseudo=True)
        for case in selection.unlabelled
    ]
    view = make_view(recipe.view, recipe.data, task)
    store = RegionStore([*selection.cases, *pseudo], view)
    samples = TrainingSamples(store, task, recipe.data, dataclasses.replace(recipe.augment, mirror=0.0), seed=0)
    sample = samples[0]
    assert sample.scan_id in UNLABELLED, "a thousand times as often"
    targets = make_targets(join([sample]), view, task, cells={"presence": 4})
    assert targets["labels"][0].tolist() == pytest.approx(soft)
    assert not targets["presence_known"].any()


def test_a_run_goes_on_with_the_pseudo_labels_that_it_began_with(corpus: Corpus, tmp_path: Path) -> None:
    table, out = predictions_of(tmp_path / "table.parquet", list(UNLABELLED)), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signalled_in_step(1, signal.SIGTERM, patch)
        assert training.train(recipe_with(), corpus=corpus, encoder_folder=None, out=out, pseudo_labels=table) is None
    for other in (None, predictions_of(tmp_path / "other.parquet", [*UNLABELLED, "elsewhere"])):
        with pytest.raises(WrongUse, match="--pseudo-labels is not the file that this run began with"):
            training.train(recipe_with(), corpus=corpus, encoder_folder=None, out=out, pseudo_labels=other)
    table.rename(tmp_path / "moved.parquet")
    assert training.train(
        recipe_with(), corpus=corpus, encoder_folder=None, out=out, pseudo_labels=tmp_path / "moved.parquet"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit": (0, 4)}, r"data\.limit \[0, 4\]"),
        ({"pseudo_weight": 0.0}, r"data\.pseudo_weight"),
        ({"modalities": ("CTA", "CTA")}, r"data\.modalities"),
    ],
)
def test_impossible_choices_are_refused_by_their_keys(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DataConfig(**wrong)
