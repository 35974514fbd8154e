"""A user's own table of labels on a corpus of two sources: training, resumption, folds, report, prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune import cross_validation
from finetune import train as training
from finetune.augment import AugmentConfig
from finetune.cli import main
from finetune.losses.answers import ClassesConfig, NumbersConfig
from finetune.metrics import Score
from finetune.model_folder import read_bundle
from finetune.models.heads.global_pool import GlobalConfig
from finetune.recipe import Recipe, TrainConfig
from finetune.report.run import run_facts
from finetune.report.training import figure_curves
from finetune.samples import DataConfig
from finetune.sources import Sources
from finetune.stages import StageConfig
from finetune.tasks.table import TableConfig
from harmonize.corpus import SCAN_SCHEMA, Corpus, claim, image_name, write_manifest, write_volume
from harmonize.errors import UserError, WrongUse
from harmonize.files import sha256_of
from harmonize.scan import HU
from harmonize.settings import Settings
from harmonize.voxels.stored import StoredVolume
from headspark.config import read_recipe
from headspark.encoder import EncoderConfig

EDGE, SCANS = 20, 24
TINY = EncoderConfig(features=(8, 8, 16), blocks=(1, 1, 1), strides=(1, 2, 2))


def size_of(number: int) -> int:
    """Edge of the bright cube in the middle of a scan, 0 to 9 voxels."""
    return 3 * (number % 4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """MRI of OpenMind and CT of TCIA, two scans a patient of one size; a bright cube tells the size."""
    path = tmp_path_factory.mktemp("table") / "corpus"
    generator, rows = np.random.default_rng(0), []
    for number in range(SCANS):
        source, unit, slope = ("tcia", HU, 1.0) if number % 3 == 0 else ("openmind", "zscore", 0.01)
        claim(path, source, Settings())
        scan_id, subject = f"scan-{number:02}", f"sub-{number:02}"
        values = 40 + 5 * generator.standard_normal((EDGE,) * 3)
        edge = size_of(number)
        inside = slice(EDGE // 2 - edge // 2, EDGE // 2 - edge // 2 + edge)
        values[inside, inside, inside] = 400
        image = image_name(source, subject, scan_id)
        write_volume(path / image, StoredVolume(stored_XYZ=values.astype(np.int16), affine=np.eye(4), slope=slope))
        rows.append({
            "image_file_name": image, "scan_id": scan_id, "source": source, "subject": subject,
            "modality": "CT" if unit == HU else "T1w", "shape": [EDGE] * 3, "spacing": [1.0] * 3, "unit": unit,
            "intensity_percentiles": [0.0] * 9, "foreground_box": [0, EDGE] * 3, "sha256": sha256_of(path / image),
            "decisions": [], "raw_hash": str(number), "raw_shape": [EDGE] * 3, "raw_spacing": [1.0] * 3,
        })  # fmt: skip
    write_manifest(path, [dict.fromkeys(SCAN_SCHEMA.names) | row for row in rows], [])
    return Corpus.open(path)


def table(path: Path, *, shuffled: bool = False, without: int = 0) -> Path:
    """Columns large (0, 1), group (none, small, middle, big), wide and high (0, 1 each), and volume."""
    numbers = np.random.default_rng(3).permutation(SCANS) if shuffled else range(SCANS)
    names = ("none", "small", "middle", "big")
    lines = ["scan_id,large,group,wide,volume"]
    for number, said in list(enumerate(numbers))[without:]:
        edge = size_of(int(said))
        lines.append(f"scan-{number:02},{int(edge > 3)},{names[edge // 3]},{int(edge > 0)},{100 + edge * 10}")
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe(*columns: str, steps: int = 40, seed: int = 0, **task: Any) -> Recipe:
    config = TableConfig(columns=columns, **task)
    loss = NumbersConfig() if config.question == "regression" else ClassesConfig()
    return Recipe(
        task=config,
        data=DataConfig(patch=(16, 16, 16), folds=2),
        augment=AugmentConfig(),
        scratch=TINY,
        head=GlobalConfig(pooling="mean_max", dropout=0.0),
        losses=(loss,),
        stages=(StageConfig(name="all", steps=steps, head_lr=1e-2, encoder_lr=3e-3, layers="all"),),
        train=TrainConfig(
            batch=4, ema=None, threads=1, log_every=20, validate_every=0, checkpoint_every=10, keep=9, seed=seed
        ),
    )


def run(own: Recipe, corpus: Corpus, labels: Path, out: Path) -> Score:
    score = training.train(own, corpus=corpus, encoder_folder=None, out=out, labels=labels)
    assert score is not None
    return score


@pytest.fixture(scope="module")
def binary(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    run(recipe("large"), corpus, table(folder / "labels.csv"), folder / "run")
    return folder


def test_a_label_is_learned_and_a_shuffled_one_is_not(binary: Path, corpus: Corpus, tmp_path: Path) -> None:
    results = json.loads((binary / "run" / "run.json").read_text())["results"]
    assert results["auc"] == results["score"] > 0.95
    assert results["balanced_accuracy"] > 0.8
    shuffled = run(recipe("large", steps=20), corpus, table(tmp_path / "labels.csv", shuffled=True), tmp_path / "run")
    assert shuffled.score < 0.8


def test_the_models_folder_says_what_the_table_said(binary: Path, corpus: Corpus) -> None:
    task = read_bundle(binary / "run").task
    assert isinstance(task, TableConfig)
    assert (task.asks, task.labels, task.sources) == ("binary", ("large",), ("openmind", "tcia"))
    assert task.modalities == ("CT", "T1w")
    held_out = pd.read_parquet(binary / "run" / "predictions.parquet")
    trained = SCANS - len(held_out)
    positive = SCANS // 2 - int(held_out["target: large"].sum())
    assert task.weights == pytest.approx(((trained - positive) / positive,))
    assert "scan-00" not in (binary / "run" / "config.json").read_text()


def test_folds_hold_their_share_of_every_class(binary: Path) -> None:
    folds = pd.read_parquet(binary / "run" / "folds.parquet").sort_values("scan_id", ignore_index=True)
    assert len(folds) == SCANS
    positive = folds["fold"][[size_of(number) > 3 for number in range(SCANS)]]
    assert sorted(positive.value_counts()) == [SCANS // 4, SCANS // 4]


def test_the_report_shows_what_applies_to_labels(binary: Path, corpus: Corpus) -> None:
    page = (binary / "run" / "report.html").read_text()
    for heading in ("Measures", "By modality", "By source", "ROC and PR", "Confusion", "Calibration", "Training"):
        assert f"{heading}</h2>" in page
    for heading in ("By site and size", "Shortcuts", "Predicted and true"):
        assert f"{heading}</h2>" not in page


def test_the_report_lists_as_errors_what_is_wrong_alone(binary: Path) -> None:
    page = (binary / "run" / "report.html").read_text()
    predictions = pd.read_parquet(binary / "run" / "predictions.parquet")
    wrong = predictions[(predictions["large"] - predictions["target: large"]).abs() > 0.5]["scan_id"]
    section = page.partition("Largest errors</h2>")[2].partition("<h2>")[0]
    assert {name for name in predictions["scan_id"] if name in section} == set(wrong)
    assert ("No answer is further than 0.5" in section) is wrong.empty


def test_the_curves_say_nothing_twice_and_have_plain_numbers() -> None:
    metrics: list[dict[str, Any]] = [
        {"step": step, "stage": "all", "loss": 1.2 - step / 20, "labels": 1.2 - step / 20, "gradient_norm": 1.0}
        for step in range(1, 13)
    ]
    metrics.append({"step": 12, "stage": "all", "auc": 0.7, "average_precision": 0.6, "score": 0.7})
    figure = figure_curves(metrics)
    figure.draw_without_rendering()
    losses, scores = figure.axes
    assert [line.get_label() for line in losses.lines] == ["loss"]
    named = [text.get_text() for text in losses.get_yticklabels(which="both") if text.get_text()]
    assert {"0.7", "1"} <= set(named)
    assert not any("e" in text or "^" in text for text in named)
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["AUC", "average precision"]  # type: ignore[union-attr]
    several = [line | {"auc": 0.7, "score": 0.65} if "auc" in line else line for line in metrics]
    assert len(figure_curves(several).axes[1].get_legend().get_texts()) == 3  # type: ignore[union-attr]


def test_the_report_says_at_its_top_what_was_trained_on_what(binary: Path, corpus: Corpus) -> None:
    run, trained_on = binary / "run", corpus.manifest_sha256()[:12]
    state = json.loads((run / "run.json").read_text())
    page = (run / "report.html").read_text()
    assert page.index("stages all (40 steps)") < page.index("<h2>")
    assert dict(run_facts([(state, run)], corpus)) == {
        "task": "table",
        "recipe": "recipe.yaml: box view, global head, stages all (40 steps)",
        "held out": "fold 0 of 2",
        "encoder": "none: trained from scratch",
        "corpus": f"corpus, manifest {trained_on}",
    }
    other = state | {"origin": {"corpus": "a" * 64, "encoder": {"name": "user/enc", "sha256": "b" * 64}}}
    facts = dict(run_facts([(other, run), (state, run)], corpus))
    assert facts["recipe"].startswith("run/recipe.yaml: ")
    assert facts["held out"] == "folds 0, 0 of 2"
    assert facts["encoder"] == "user/enc, weights bbbbbbbbbbbb"
    assert facts["corpus"] == f"corpus, manifest aaaaaaaaaaaa; it has changed since, its manifest is {trained_on} now"
    assert dict(run_facts([(state, run)], None))["corpus"] == f"manifest {trained_on}"


def test_evaluate_and_compare_tell_the_measures(
    binary: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(binary / "run"), "--corpus", str(corpus.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    overall = found["overall"]
    assert list(overall) == ["series", "patients", "positives", "auc", "average_precision", "balanced_accuracy"]
    assert overall["auc"]["low"] <= overall["auc"]["value"] <= overall["auc"]["high"]
    assert set(found["by_source"]) == {"openmind", "tcia"}
    assert main(["evaluate", str(binary / "run")]) == 0
    assert "balanced accuracy" in capsys.readouterr().out
    assert main(["compare", str(binary / "run"), str(binary / "run"), "--json"]) == 0
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert difference["differences"]["auc"]["value"] == 0


def test_a_class_of_several_is_learned_by_softmax(corpus: Corpus, tmp_path: Path) -> None:
    score = run(recipe("group", steps=60), corpus, table(tmp_path / "labels.csv"), tmp_path / "run")
    assert list(score.areas) == ["group: big", "group: middle", "group: none", "group: small"]
    assert score.means["auc"] > 0.9
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert np.allclose(predictions[list(score.areas)].sum(axis=1), 1, atol=1e-5)
    assert "Which class is taken for which" in (tmp_path / "run" / "report.html").read_text()


def test_several_labels_are_learned_each(corpus: Corpus, tmp_path: Path) -> None:
    own = recipe("large", "wide", class_weights="drawing", steps=60)
    score = run(own, corpus, table(tmp_path / "labels.csv"), tmp_path / "run")
    assert list(score.areas) == ["large", "wide"]
    assert min(score.areas.values()) > 0.85


def test_a_number_is_learned_in_its_own_unit(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = recipe("volume", question="regression", steps=80)
    score = run(own, corpus, table(tmp_path / "labels.csv"), tmp_path / "run")
    assert score.score == score.means["r2"] > 0.6
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    error = (predictions["volume"] - predictions["target: volume"]).abs().mean()
    assert score.means["mae"] == pytest.approx(error)
    assert error < 25
    task = read_bundle(tmp_path / "run").task
    assert isinstance(task, TableConfig)
    assert 120 < task.means[0] < 170
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Predicted and true</h2>" in page
    assert "ROC and PR</h2>" not in page
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "mean absolute error" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_table_alone(corpus: Corpus, tmp_path: Path, binary: Path) -> None:
    own, labels, out = recipe("large"), table(tmp_path / "labels.csv"), tmp_path / "run"
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(training, "predict_held_out", lambda *_: None)
        assert training.train(own, corpus=corpus, encoder_folder=None, out=out, labels=labels) is None
    other = table(tmp_path / "other.csv", shuffled=True)
    with pytest.raises(WrongUse, match=r"began with task\.table"):
        training.train(own, corpus=corpus, encoder_folder=None, out=out, labels=other)
    score = run(own, corpus, labels, out)
    first = json.loads((binary / "run" / "run.json").read_text())["results"]
    assert score.means["auc"] == first["auc"]


def test_rows_that_say_nothing_are_told_and_counted(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = table(tmp_path / "labels.csv", without=4)
    labels.write_text(labels.read_text() + "nobody,1,big,1,3\n")
    run(recipe("large", steps=1), corpus, labels, tmp_path / "run")
    said = capsys.readouterr().err
    assert "note: labels.csv: binary: large; 20 scans with a label" in said
    assert "validate: 10/10 series" in said
    assert "note: labels.csv: 1 rows that no scan of the corpus belongs to (21)" in said
    assert "note: labels.csv: 4 scans of the corpus without a row (scan-00, scan-01, scan-02, scan-03)" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["left_out"] == {
        "without a label of the table": 4
    }


def test_a_cross_validation_holds_every_scan_out_once(corpus: Corpus, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv")
    sources = Sources(corpus=corpus, labels=labels)
    assert cross_validation.cross_validate(recipe("volume", question="regression", steps=2), sources, tmp_path / "cv")
    score = cross_validation.gather(tmp_path / "cv")
    assert list(score.means) == ["mae", "r2", "correlation"]
    assert len(pd.read_parquet(tmp_path / "cv" / "predictions.parquet")) == SCANS
    # A second call finds both folds finished, and the same table.
    assert cross_validation.cross_validate(recipe("volume", question="regression", steps=2), sources, tmp_path / "cv")
    assert main(["report", str(tmp_path / "cv"), "--corpus", str(corpus.path)]) == 0


def test_a_question_that_does_not_fit_the_recipe_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv")
    own = dataclasses.replace(recipe("volume", question="regression"), losses=(ClassesConfig(),))
    with pytest.raises(WrongUse, match="losses: classes: the task asks for numbers; use kind numbers"):
        training.train(own, corpus=corpus, encoder_folder=None, out=tmp_path / "run", labels=labels)
    with pytest.raises(WrongUse, match=r"task\.sources rsna: the corpus has openmind, tcia"):
        run(recipe("large", sources=("rsna",)), corpus, labels, tmp_path / "run")
    labels.write_text("scan_id,x\n" + "".join(f"scan-{n:02},{int(n == 0)}\n" for n in range(SCANS)))
    with pytest.raises(UserError, match=r"x: none of the .* training series have it"):
        run(recipe("x"), corpus, labels, tmp_path / "run")
        run(dataclasses.replace(recipe("x"), data=DataConfig(patch=(16, 16, 16), folds=2, fold=1)), corpus, labels,
            tmp_path / "run")  # fmt: skip
    with pytest.raises(WrongUse, match="--labels: the task aneurysm has labels of its own"):
        training.train(Recipe(), corpus=corpus, encoder_folder=None, out=tmp_path / "other", labels=labels)


@pytest.mark.parametrize(
    ("name", "question"),
    [("classification", "classification"), ("regression", "regression"), ("demo", "classification")],
)
def test_the_recipes_fit_their_question(name: str, question: str, corpus: Corpus, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[1] / "recipes" / f"table_{name}.yaml"
    whole = read_recipe(Recipe, path)
    assert isinstance(whole.task, TableConfig)
    assert whole.task.question == question
    own = dataclasses.replace(
        whole,
        task=dataclasses.replace(whole.task, columns=("group",) if question == "classification" else ("volume",)),
        data=DataConfig(patch=(16, 16, 16), folds=2),
        scratch=TINY,
        stages=tuple(dataclasses.replace(one, steps=1, epochs=None, warmup=0) for one in whole.stages),
        train=dataclasses.replace(whole.train, precision="fp32", threads=1, accumulate=1),
    )
    run(own, corpus, table(tmp_path / "labels.csv"), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
