"""What version 0.1.0 wrote stays whole, readable and resumable; `fixtures/make_v0_1_0.py` says how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from finetune import train as finetuning
from finetune.predict import Predictor
from finetune.recipe import Recipe as FinetuneRecipe
from finetune.report import write_report
from harmonize.cli import main as harmonize
from harmonize.corpus import Corpus
from headspark import Encoder
from headspark.config import read_recipe
from headspark.hub.export import export_run
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.folder import read_metrics, read_state
from headspark.train import train

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())
SOURCES = ("openmind", "tcia", "deeplesion", "rsna")
RELATIVE, ABSOLUTE = 2e-3, 2e-4
"""How far sums in another order (another processor, another build of torch) may lead. The same ones give the same."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy to write to."""
    return shutil.copytree(FIXTURES, tmp_path / "v0_1_0")


def test_the_corpus_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert harmonize(["verify", str(FIXTURES / "corpus"), "--workers", "1"]) == 0
    assert "corpus: whole" in capsys.readouterr().out


def test_the_corpus_says_what_it_said() -> None:
    corpus = Corpus.open(FIXTURES / "corpus")
    assert corpus.spacing == (5.0, 5.0, 5.0)
    assert corpus.mri_norms == {"openmind": "nyul"} | dict.fromkeys(("tcia", "deeplesion", "rsna"), "zscore")
    assert corpus.scans["source"].value_counts().to_dict() == {"rsna": 6, "openmind": 3, "tcia": 3, "deeplesion": 3}
    assert sorted(corpus.rejected["reason"]) == ["derived", "derived", "localizer", "localizer"]
    labelled = corpus.scans[corpus.scans["source"] == "rsna"]
    assert sum(labels[-1] for labels in labelled["labels"]) == sum(len(points) > 0 for points in labelled["points"]) > 0


@pytest.mark.parametrize("source", SOURCES)
def test_another_run_keeps_what_is_there(old: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = old / "corpus"
    files = {path: path.read_bytes() for suffix in ("nii.gz", "npy") for path in corpus.rglob(f"*.{suffix}")}
    assert files
    rows, rejected = (pd.read_parquet(corpus / name) for name in ("metadata.parquet", "rejected.parquet"))
    words = [source, str(old / "raw" / source), "--out", str(corpus), "--spacing", "5", "--workers", "0"]
    assert harmonize(words) == 0
    found = {"openmind": 3, "tcia": 7, "deeplesion": 3, "rsna": 6}[source]
    assert f"{found} ({found} done before)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in files} == files
    pd.testing.assert_frame_equal(pd.read_parquet(corpus / "metadata.parquet")[rows.columns.tolist()], rows)
    pd.testing.assert_frame_equal(pd.read_parquet(corpus / "rejected.parquet")[rejected.columns.tolist()], rejected)
    assert harmonize(["verify", str(corpus), "--workers", "1"]) == 0


def test_shards_that_were_not_merged_yet_are(old: Path) -> None:
    corpus = old / "corpus"
    rows, rejected = (pd.read_parquet(corpus / name) for name in ("metadata.parquet", "rejected.parquet"))
    (corpus / "records" / "rsna.jsonl").rename(corpus / "records" / "rsna.shard-0-of-1.jsonl")
    assert harmonize(["merge", str(corpus)]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(corpus / "metadata.parquet")[rows.columns.tolist()], rows)
    pd.testing.assert_frame_equal(pd.read_parquet(corpus / "rejected.parquet")[rejected.columns.tolist()], rejected)


def test_the_corpus_is_shown_and_what_it_refused_is_found(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = old / "corpus"
    assert harmonize(["report", str(corpus), "--workers", "1", "--thumbnails", "2"]) == 0
    assert (corpus / "report" / "index.html").is_file()
    capsys.readouterr()
    assert harmonize(["locate", "tcia", str(old / "raw" / "tcia"), str(corpus)]) == 0
    said = capsys.readouterr().out
    assert all(raw_hash in said for raw_hash in Corpus.open(corpus).rejected["raw_hash"])


def test_a_scan_that_was_lost_is_made_again_beside_the_others(old: Path) -> None:
    corpus = old / "corpus"
    before = Corpus.open(corpus).scans.set_index("scan_id")
    lost = before[before["modality"] == "CTA"].iloc[0]
    (corpus / lost["image_file_name"]).unlink()
    assert harmonize(["rsna", str(old / "raw" / "rsna"), "--out", str(corpus), "--spacing", "5", "--workers", "0"]) == 0
    after = Corpus.open(corpus).scans.set_index("scan_id")
    assert after.index.tolist() == before.index.tolist()
    # By what it says of the voxels, and not by the hash of the file: another zlib packs other bytes.
    assert after.loc[lost.name, "shape"].tolist() == lost["shape"].tolist()
    np.testing.assert_allclose(
        after.loc[lost.name, "intensity_percentiles"], lost["intensity_percentiles"], rtol=1e-3, atol=1
    )
    assert harmonize(["verify", str(corpus), "--workers", "1"]) == 0


def test_the_pretraining_run_goes_on_to_the_end_that_it_would_have_had(old: Path) -> None:
    run = old / "run"
    assert read_state(run)["status"] == "interrupted"
    assert train(read_recipe(Recipe, run / "recipe.yaml"), corpus=FIXTURES / "corpus", out=run)
    assert read_state(run)["status"] == "finished"
    assert_same_metrics(read_metrics(run), EXPECTED["pretrain"])
    checkpoint = load_newest(run / "checkpoints", say=print)
    assert checkpoint is not None
    assert checkpoint.ema is not None
    average = {name.removeprefix("encoder."): tensor for name, tensor in checkpoint.ema.items()}
    for name, tensor in load_file(FIXTURES / "encoder" / "model.safetensors").items():
        torch.testing.assert_close(average[name], tensor, rtol=RELATIVE, atol=ABSOLUTE)


def test_the_encoder_of_an_unfinished_run_is_exported() -> None:
    exported = export_run(FIXTURES / "run")
    assert exported.preprocessing["spacing_mm"] == [5.0, 5.0, 5.0]
    assert "Step 4 of 8" in exported.card.text
    checkpoint = load_newest(FIXTURES / "run" / "checkpoints", say=print)
    assert checkpoint is not None
    assert checkpoint.ema is not None
    state = exported.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.ema.items())


def test_the_fine_tuning_run_goes_on_to_the_end_that_it_would_have_had(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "write_report", lambda run, corpus: run)
    monkeypatch.chdir(old.parent)
    run = Path("v0_1_0/finetuning")
    recipe = read_recipe(FinetuneRecipe, run / "recipe.yaml")
    finetuning.train(recipe, corpus=Corpus.open(FIXTURES / "corpus"), encoder_folder="v0_1_0/encoder", out=run)
    assert_same_metrics(read_metrics(run), EXPECTED["finetune"])
    assert_same_answers(run)


def test_the_fine_tuned_model_answers_as_it_did() -> None:
    assert_same_answers(FIXTURES / "finetuned")


def test_the_fine_tuned_model_has_its_report(old: Path) -> None:
    (old / "finetuned" / "report.html").unlink()
    assert write_report(old / "finetuned", Corpus.open(FIXTURES / "corpus")).is_file()


def test_the_encoder_sees_what_it_saw() -> None:
    noise_BCDHW = np.random.default_rng(0).standard_normal((1, 3, 16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        maps = Encoder.from_pretrained(str(FIXTURES / "encoder")).eval()(torch.from_numpy(noise_BCDHW))
    assert len(maps) == len(EXPECTED["encoder"])
    for one, expected in zip(maps, EXPECTED["encoder"], strict=True):
        assert float(one.mean()) == pytest.approx(expected["mean"], rel=RELATIVE)
        assert float(one.std()) == pytest.approx(expected["std"], rel=RELATIVE)


def assert_same_metrics(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """All that was recorded then is there, line by line; a later version may say more."""
    kept = [{key: line.get(key) for key in wanted} for line, wanted in zip(lines, expected, strict=True)]
    for line, wanted in zip(kept, expected, strict=True):
        numbers = {key: value for key, value in wanted.items() if isinstance(value, int | float)}
        assert {key: line[key] for key in numbers} == pytest.approx(numbers, rel=RELATIVE, abs=ABSOLUTE)
        assert {key: line[key] for key in line.keys() - numbers} == {
            key: wanted[key] for key in wanted.keys() - numbers
        }


def assert_same_answers(model: Path) -> None:
    predictor = Predictor(model)
    for series, expected in EXPECTED["predictions"].items():
        answer = predictor(FIXTURES / "raw" / "rsna" / "series" / series)
        assert {label: answer[label] for label in expected} == pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE)
