"""A tiny fine-tuning run from end to end: its stages, the model it leaves, its predictions."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from finetune import folds
from finetune import train as training
from finetune.evaluation import read
from finetune.inference import classify
from finetune.model_folder import load_model, read_bundle
from finetune.models.heads.cells import CellsConfig
from finetune.recipe import Recipe, TrainConfig
from finetune.regions import RegionStore
from finetune.report import write_report
from finetune.report.series import cases_of, model_folder_of, pictures_of
from finetune.report.training import loss_names, score_names
from finetune.samples import DataConfig, DrawnBatch, check_patch
from finetune.stages import StageConfig
from finetune.state import FinetuneState
from finetune.tasks.aneurysm import AneurysmTask
from finetune.validation import predict_cases
from finetune.views import make_view
from harmonize.corpus import Corpus, claim, image_name, mask_name, write_manifest, write_volume
from harmonize.errors import UserError
from harmonize.files import sha256_of
from harmonize.labels import LABELS, LOCATIONS, MASK_VALUES, MIRRORED
from harmonize.scan import HU
from harmonize.settings import Settings
from harmonize.voxels.stored import StoredVolume
from headspark.config import to_yaml
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.encoder_folder import save_encoder
from headspark.run import resume

SPACING_MM = 4.0
SHAPE = (20, 20, 20)
TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))
STAGES = (
    StageConfig(name="head", steps=3, head_lr=1e-2),
    StageConfig(name="deep", steps=3, head_lr=1e-2, encoder_lr=1e-3, layers=2, warmup=1),
    StageConfig(name="all", steps=3, head_lr=1e-2, encoder_lr=1e-2, layers="all", final=0.1),
)


def write_corpus(path: Path, *, scans: int, seed: int = 0) -> Corpus:
    """CT series of soft tissue and noise; every second has a bright sac at a place that its side and height name."""
    claim(path, "rsna", Settings(spacing=(SPACING_MM,) * 3, mri_norm="zscore"))
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(scans):
        scan_id, subject = f"1.2.{number}", f"subject-{number // 2 if number < 4 else number}"
        voxels = (40 + 10 * generator.standard_normal(SHAPE)).astype(np.int16)
        place = int(generator.integers(len(LOCATIONS)))
        positive = number % 2 == 1
        centre = np.array([5 if "Left" in LOCATIONS[place] else 14, 6 + place // 2, 10])
        if positive:
            voxels[tuple(slice(c - 1, c + 2) for c in centre)] = 400
        affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
        affine[:3, 3] = -38.0
        mask = np.zeros(SHAPE, np.uint8)
        mask[tuple(centre)] = MASK_VALUES[place]
        image, vessels = image_name("rsna", subject, scan_id), mask_name("rsna", subject, scan_id)
        write_volume(path / image, StoredVolume(stored_XYZ=voxels, affine=affine))
        write_volume(path / vessels, StoredVolume(stored_XYZ=mask, affine=affine))
        labels = [int(positive and i in (place, 13)) for i in range(14)]
        x, y, z = affine[:3, :3] @ centre + affine[:3, 3]
        rows.append(
            {
                "image_file_name": image,
                "mask_file_name": vessels if positive else None,
                "mask_kind": "vessels" if positive else None,
                "scan_id": scan_id,
                "source": "rsna",
                "subject": subject,
                "session": None,
                "modality": "CTA" if number % 3 else "MRA",
                "shape": list(SHAPE),
                "spacing": [SPACING_MM] * 3,
                "unit": HU,
                "intensity_percentiles": [0.0] * 9,
                "foreground_box": [0, SHAPE[0], 0, SHAPE[1], 0, SHAPE[2]],
                "sha256": sha256_of(path / image),
                "mask_sha256": None,
                "decisions": [],
                "raw_hash": str(number),
                "raw_shape": list(SHAPE),
                "raw_spacing": [SPACING_MM] * 3,
                "age": None,
                "sex": None,
                "labels": labels,
                "points": [{"label": LOCATIONS[place], "x": x, "y": y, "z": z}] if positive else [],
            }
        )
    write_manifest(path, rows, [])
    return Corpus.open(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("rsna") / "corpus", scans=20)


def tiny_recipe(**train: Any) -> Recipe:
    settings = {"batch": 2, "log_every": 1, "validate_every": 4, "checkpoint_every": 1, "keep": 20, "threads": 1}
    return Recipe(
        data=DataConfig(patch=(16, 16, 16), folds=2),
        scratch=TINY,
        head=CellsConfig(stride=4, width=8, top=2, dropout=0.2),
        stages=STAGES,
        train=TrainConfig(**(settings | {"ema": 0.5} | train)),
    )


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    training.train(tiny_recipe(), corpus=corpus, encoder_folder=None, out=out)
    return out


class Killed(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let a run die right after it took a given number of steps and wrote that checkpoint; no reports are drawn."""
    save = resume.save_checkpoint
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)

    def arm(step: int) -> None:
        def dying(folder: Path, checkpoint: Any, *, keep: int) -> Path:
            path = save(folder, checkpoint, keep=keep)
            if checkpoint.step == step:
                raise Killed
            return path

        monkeypatch.setattr(resume, "save_checkpoint", dying)

    yield arm
    monkeypatch.setattr(resume, "save_checkpoint", save)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_recipe_metrics_predictions_and_model(finished: Path, corpus: Corpus) -> None:
    state = json.loads((finished / "run.json").read_text())
    assert state["status"] == "finished"
    assert state["origin"]["corpus"] == corpus.manifest_sha256()
    steps = [line for line in lines(finished) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert [line["stage"] for line in steps] == ["head"] * 3 + ["deep"] * 3 + ["all"] * 3
    assert [line["layers"] for line in steps] == [0] * 3 + [2] * 3 + [4] * 3
    scores = [line for line in lines(finished) if "auc_present" in line]
    assert [line["step"] for line in scores] == [4, 8, 9]
    assert set(scores[-1]) >= {"auc_present", "auc_mean_locations", "score", "stage", "undefined"}


def test_predictions_cover_the_held_out_fold_and_none_of_its_patients_was_trained_on(
    finished: Path, corpus: Corpus
) -> None:
    predictions = pd.read_parquet(finished / "predictions.parquet")
    assert list(predictions.columns) == [
        *("scan_id", "subject", "modality", *LABELS),
        *(f"target: {label}" for label in LABELS),
        "fold",
    ]
    folds = pd.read_parquet(corpus.path / "folds.parquet")
    held_out = folds[folds["fold"] == 0]
    assert set(predictions["scan_id"]) == set(held_out["scan_id"])
    assert not set(held_out["subject"]) & set(folds[folds["fold"] != 0]["subject"])
    assert predictions[list(LABELS)].to_numpy().min() > 0
    assert predictions[list(LABELS)].to_numpy().max() < 1


def test_the_saved_model_gives_the_saved_predictions(finished: Path, corpus: Corpus) -> None:
    bundle = read_bundle(finished)
    predictions = pd.read_parquet(finished / "predictions.parquet")
    cases = [case for case in AneurysmTask().cases(corpus).cases if case.scan_id in set(predictions["scan_id"])]
    task = AneurysmTask()
    store = RegionStore(cases, make_view(bundle.view, bundle.data, task))
    again = predict_cases(load_model(finished, bundle), store, bundle.data, task, torch.device("cpu"))
    again = again.sort_values("scan_id", ignore_index=True)
    np.testing.assert_allclose(again[list(LABELS)], predictions[list(LABELS)], atol=1e-5)
    assert bundle.settings.spacing == (SPACING_MM,) * 3


def test_the_input_of_one_part_of_a_step_is_gone_when_that_of_the_next_is_made(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = FinetuneState.make_inputs, []

    def watched(state: FinetuneState, drawn: DrawnBatch) -> tuple[torch.Tensor, torch.Tensor]:
        alive.append(sum(one() is not None for one in made))
        inputs = make(state, drawn)
        made.append(weakref.ref(inputs[0]))
        return inputs

    alive: list[int] = []
    monkeypatch.setattr(FinetuneState, "make_inputs", watched)
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)
    recipe = dataclasses.replace(
        tiny_recipe(accumulate=4, batch=1, validate_every=0),
        stages=(StageConfig(name="all", steps=2, head_lr=1e-2, encoder_lr=1e-2, layers="all"),),
    )
    training.train(recipe, corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    assert alive == [0] * 8


def test_two_ranks_predict_what_one_rank_with_the_same_samples_does(corpus: Corpus, tmp_path: Path) -> None:
    # Without dropout, a step over two ranks is the one that one rank takes.
    recipe = dataclasses.replace(
        tiny_recipe(batch=2, validate_every=0, ema=0.0),
        head=dataclasses.replace(tiny_recipe().head, dropout=0.0),
    )
    training.train(recipe, corpus=corpus, encoder_folder=None, out=tmp_path / "one")
    halves = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch=1))
    (tmp_path / "recipe.yaml").write_text(to_yaml(halves))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "finetune.train"]
    options = ["--config", "recipe.yaml", "--corpus", str(corpus.path), "--out", "two", "--debug"]
    done = subprocess.run(
        [sys.executable, *command, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:6000]
    assert done.stdout.count("AUC present") == 1, "one rank speaks"
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert one["scan_id"].tolist() == two["scan_id"].tolist()
    np.testing.assert_allclose(one[list(LABELS)], two[list(LABELS)], atol=1e-3)


def test_a_pretrained_encoder_is_used_with_its_own_windows_and_stays_as_it_is_while_frozen(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    config = dataclasses.replace(TINY, in_channels=1)
    encoder = build_encoder(config)
    preprocessing = {"spacing_mm": [1.0, 1.0, 1.0], "ct_windows": ["blood"], "mri_norms": {"rsna": "zscore"}}
    save_encoder(encoder, tmp_path / "encoder", preprocessing=preprocessing)
    recipe = dataclasses.replace(tiny_recipe(ema=0.0), stages=STAGES[:1])
    training.train(recipe, corpus=corpus, encoder_folder=str(tmp_path / "encoder"), out=tmp_path / "run")
    trained = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in encoder.state_dict().items():
        assert torch.equal(trained[f"encoder.{name}"], value), name
    bundle = read_bundle(tmp_path / "run")
    assert bundle.encoder == config
    assert bundle.data.ct_windows == ("blood",)
    said = capsys.readouterr()
    assert "pretrained at [1.0, 1.0, 1.0] mm" in said.err
    assert said.out.splitlines()[-1] == f"{tmp_path / 'run' / 'report.html'}: the report"


def test_bright_sacs_are_learned_in_a_minute(corpus: Corpus, tmp_path: Path) -> None:
    stage = StageConfig(name="all", steps=40, head_lr=1e-2, encoder_lr=1e-2, layers="all", warmup=5, final=0.1)
    recipe = dataclasses.replace(tiny_recipe(batch=4, validate_every=0, checkpoint_every=100, ema=0.0), stages=(stage,))
    score = training.train(recipe, corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    assert score.means["auc_present"] > 0.9


def test_the_mirror_image_gives_the_mirrored_probabilities(finished: Path) -> None:
    model = load_model(finished, read_bundle(finished))
    x_BCDHW = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    straight = classify(model, x_BCDHW, mirror=MIRRORED)
    flipped = classify(model, x_BCDHW.flip(2), mirror=MIRRORED)
    torch.testing.assert_close(straight, flipped[:, list(MIRRORED)])


HEADINGS = [
    "Within-modality AUC", "By site and size", "Shortcuts", "Calibration", "Thresholds", "ROC and PR",
    "Hit rate within 5 mm", "Most confident mistakes", "Examples", "Training", "Out of the ordinary", "Made with",
]  # fmt: skip


def test_the_report_is_one_page_that_opens_offline(finished: Path, corpus: Corpus) -> None:
    page = write_report(finished, corpus).read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == HEADINGS
    assert page.count("data:image/png;base64,") == page.count("<img ") == 13
    assert not re.search(r"(src|href)=.?https?:|<script|<link|@import|url\(", page)
    score = AneurysmTask().score(pd.read_parquet(finished / "predictions.parquet"))
    for number in (score.means["auc_present"], score.means["auc_mean_locations"], score.score):
        assert f"<b>{number:.3f}</b>" in page
    for label in LABELS:
        assert label in page


def test_a_report_without_the_corpus_has_no_pictures_of_series(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    page = write_report(run).read_text()
    assert page.count("<img ") == 10
    assert "Out of the ordinary" not in page
    assert "geometry alone" not in page


def test_the_report_of_a_cross_validation_pools_its_folds_and_shows_each_series_as_its_model_saw_it(
    finished: Path, corpus: Corpus, tmp_path: Path
) -> None:
    table = pd.read_parquet(finished / "predictions.parquet")
    for fold, half in enumerate((table[::2], table[1::2])):
        run = shutil.copytree(finished, tmp_path / f"fold_{fold}", ignore=shutil.ignore_patterns("checkpoints"))
        half.assign(fold=fold).to_parquet(run / "predictions.parquet", index=False)
    page = write_report(tmp_path, corpus).read_text()
    assert f"{len(table)} held-out series" in page
    assert "2 folds pooled" in page
    assert "fold_0." in page
    assert "fold_1." in page
    predictions = read(tmp_path)
    assert model_folder_of(tmp_path, predictions, table["scan_id"][1]) == tmp_path / "fold_1"
    (tmp_path / "fold_0" / "run.json").unlink()
    (tmp_path / "fold_1" / "run.json").unlink()
    with pytest.raises(UserError, match="no finished run"):
        write_report(tmp_path, corpus)


def test_a_picture_shows_the_point_where_it_was_marked_and_the_heat_of_the_network(
    finished: Path, corpus: Corpus
) -> None:
    predictions, cases = read(finished), cases_of(corpus, AneurysmTask())
    positive = next(scan for scan in predictions.scan_ids_N if cases[scan].spots)
    picture = pictures_of(finished, predictions, cases, [positive, "unknown"])[positive]
    if len(picture.points_K3):  # the sac is the brightest thing there is
        assert picture.values_XYZ[tuple(np.rint(picture.points_K3[0]).astype(int))] == picture.values_XYZ.max()
    assert picture.heat_dhw is not None
    assert picture.heat_dhw.shape == (4, 4, 4)
    hottest = picture.hottest()
    assert hottest is not None
    assert picture.heat_dhw[tuple(hottest // 4)] == picture.heat_dhw.max()


def test_curves_are_those_of_the_losses_and_scores_that_a_run_logs(finished: Path) -> None:
    metrics = lines(finished)
    assert loss_names(metrics) == ["loss", "labels", "presence", "territory"]
    assert score_names(metrics) == ["auc_present", "auc_mean_locations", "score"]


def test_drawing_is_balanced_and_rare_places_are_drawn_more(corpus: Corpus) -> None:
    cases = AneurysmTask().cases(corpus).cases
    weights = AneurysmTask().draw_weights(cases, positive_share=0.6)
    present = np.array([bool(case.labels[-1]) for case in cases])
    assert weights[present].sum() == pytest.approx(0.6)
    counts = np.array([case.labels[:13] for case in cases]).sum(0)
    of_rarity = [(counts[np.argmax(c.labels[:13])], w) for c, w in zip(cases, weights, strict=True) if c.labels[-1]]
    assert min(of_rarity)[1] >= max(of_rarity)[1]
    assert AneurysmTask().draw_weights([c for c in cases if c.labels[-1]], positive_share=0.6).sum() == pytest.approx(1)


def test_a_corpus_without_labels_is_refused_with_what_to_do(tmp_path: Path) -> None:
    claim(tmp_path / "corpus", "rsna", Settings())
    write_manifest(tmp_path / "corpus", [], [])
    with pytest.raises(UserError, match=r"train\.csv"):
        AneurysmTask().cases(Corpus.open(tmp_path / "corpus"))


@pytest.mark.parametrize(
    ("patch", "spacing", "said"),
    [
        ((18, 16, 16), None, "multiple of the encoder's total stride 4"),
        ((16, 16, 17), 4.0, "multiple of the encoder's total stride 4"),
        ((160, 160, 160), 10.0, "1600 mm long"),
    ],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_patch_that_the_encoder_cannot_take_is_refused_before_anything_is_read(
    patch: tuple[int, int, int],
    spacing: float | None,
    said: str,
    pretrained: bool,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "fill_cache", None)  # whoever reads series calls it
    folder = None
    if pretrained:
        preprocessing = {"spacing_mm": [4.0] * 3, "ct_windows": ["brain", "blood", "bone"], "mri_norms": {}}
        save_encoder(build_encoder(TINY), tmp_path / "encoder", preprocessing=preprocessing)
        folder = str(tmp_path / "encoder")
    recipe = dataclasses.replace(tiny_recipe(), data=DataConfig(patch=patch, spacing=spacing, folds=2))
    with pytest.raises(UserError, match=r"data\.patch") as refusal:
        training.train(recipe, corpus=corpus, encoder_folder=folder, out=tmp_path / "run")
    assert said in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_refused_start_deals_no_folds(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.path, tmp_path / "corpus", ignore=shutil.ignore_patterns("*folds*"))
    before = sorted((tmp_path / "corpus").rglob("*"))
    copied = Corpus.open(tmp_path / "corpus")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    bad_head = dataclasses.replace(tiny_recipe(), head=CellsConfig(stride=3))
    for recipe, out in ((tiny_recipe(), tmp_path / "mine"), (bad_head, tmp_path / "run")):
        with pytest.raises(UserError):
            training.train(recipe, corpus=copied, encoder_folder=None, out=out)
    assert sorted((tmp_path / "corpus").rglob("*")) == before


def test_a_patch_of_a_single_cell_is_refused() -> None:
    with pytest.raises(UserError, match="norms of its last map"):
        check_patch(DataConfig(patch=(16, 16, 16)), 16)
    check_patch(DataConfig(patch=(16, 16, 32)), 16)


def test_a_run_says_how_many_series_it_left_out_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)
    corpus = write_corpus(tmp_path / "corpus", scans=12)
    rows = corpus.scans.to_dict("records")
    rows[0]["labels"] = None
    rows[1]["labels"] = [1] + [0] * 13
    rows[2] |= {"modality": "PT", "unit": "Bq/ml"}
    refused = {"source": "rsna", "raw_hash": "x", "stage": "load", "reason": "truncated", "message": "cut"}
    write_manifest(corpus.path, rows, [refused, refused | {"source": "tcia", "raw_hash": "y"}])
    recipe = dataclasses.replace(tiny_recipe(validate_every=0), stages=STAGES[:1])
    training.train(recipe, corpus=Corpus.open(corpus.path), encoder_folder=None, out=tmp_path / "run")
    assert (
        "9 of 13 series used; left out: 1 neither CT nor MR, 1 refused by harmonize (truncated), "
        "1 with labels that contradict each other, 1 without labels"
    ) in capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert sum(results["left_out"].values()) == 4


def test_a_run_on_a_corpus_that_cannot_be_written_keeps_its_folds_in_its_own_folder(
    corpus: Corpus, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: Any
) -> None:
    shutil.copytree(corpus.path, tmp_path / "corpus")
    (tmp_path / "corpus" / "folds.parquet").unlink()

    def refuse(path: Path, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(folds.lock, "turn", refuse)
    copied, out = Corpus.open(tmp_path / "corpus"), tmp_path / "run"
    killed_after(2)
    with pytest.raises(Killed):
        training.train(tiny_recipe(), corpus=copied, encoder_folder=None, out=out)
    kept = (out / "folds.parquet").read_bytes()
    killed_after(-1)
    training.train(tiny_recipe(), corpus=copied, encoder_folder=None, out=out)
    assert (out / "folds.parquet").read_bytes() == kept == (corpus.path / "folds.parquet").read_bytes()
    expected, found = load_file(finished / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_errors_of_the_command_are_one_line_with_an_exit_code(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--corpus", str(corpus.path), "--out", str(tmp_path / "run"), "--train.bach", "3"]
    assert training.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train.batch" in error
    assert training.main(["--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]) == 2
    assert "nowhere" in capsys.readouterr().err
