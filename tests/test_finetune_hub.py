"""Fine-tuned models in folders to pass on and on the Hub: the real client against a stand-in Hub in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants as hub_constants
import numpy as np
import pandas as pd
import pytest
import standin_hub
from safetensors.torch import load_file
from standin_hub import Hub, Repo
from standin_series import save_masks_model, save_model, save_table_model, write_series

from finetune.cli import main
from finetune.hub import fetch, fetch_model
from finetune.hub.fetch import repo_of
from finetune.model_folder import read_bundle
from finetune.predict.folds import models_in
from finetune.tasks.masks import MasksConfig
from finetune.tasks.table import TableConfig
from harmonize.errors import UserError
from harmonize.labels import LABELS
from harmonize.voxels import nyul
from headspark import Encoder
from headspark.run.folder import RECIPE, STATE

FINISHED = Path(__file__).parent / "fixtures" / "v0_1_0" / "finetuned"
SECRET = "Zqxjkv"
SERIES = 24


def leave_a_run(folder: Path, *, seed: int = 0) -> Path:
    """What a finished run leaves beside its model, with a name in all that must stay at home."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, (SERIES, len(LABELS)))
    said = random.random((SERIES, len(LABELS)))
    table = pd.DataFrame(said, columns=list(LABELS)).assign(
        scan_id=[f"{SECRET}.{seed}.{number}" for number in range(SERIES)],
        subject=[f"{SECRET}-{seed}-{number // 2}" for number in range(SERIES)],
        modality=["CTA", "MRA"] * (SERIES // 2),
    )
    for number, label in enumerate(LABELS):
        table[f"target: {label}"] = targets[:, number]
    table.to_parquet(folder / "predictions.parquet")
    table[["subject", "scan_id"]].assign(fold=0).to_parquet(folder / "folds.parquet")
    for name in (RECIPE, "report.html", "notes.txt", "metadata.npy"):
        (folder / name).write_text(f"data: {{cache_dir: /home/{SECRET}}}\n")
    (folder / "metrics.jsonl").write_text(f'{{"step": 1, "stage": "all", "loss": 1.0, "{SECRET}": 2.0}}\n')
    trained_on = [{"source": "rsna", "modality": "CTA", "series": 70, "patients": 60}]
    state = {"status": "finished", "name": SECRET, "revision": None, "libraries": {"torch": "2"}}
    (folder / STATE).write_text(json.dumps({**state, "results": {"trained_on": trained_on}}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave_a_run(save_model(tmp_path_factory.mktemp("runs") / "run", cache_dir=f"/home/{SECRET}"))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation."""
    folder = tmp_path_factory.mktemp("runs") / "cv"
    for number in range(2):
        leave_a_run(save_model(folder / f"fold_{number}", seed=number, folds=2), seed=number)
    tables = [pd.read_parquet(folder / f"fold_{number}" / "predictions.parquet") for number in range(2)]
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet")
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "ct"
    write_series(folder, "1.2.8.1")
    return folder


def push(*words: object) -> int:
    return main(["push", *map(str, words)])


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: object, code: int) -> str:
    capsys.readouterr()
    assert main(list(map(str, words))) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_model_goes_to_the_hub_and_predicts_the_same_from_there(
    run: Path, folds: Path, series: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(run, "--repo", "user/model") == 0
    assert "user/model/commit/" in capsys.readouterr().out
    assert len(hub.repos["user/model"].commits) == 2  # the empty one, and one for everything
    assert hub.repos["user/model"].private
    assert set(hub.repos["user/model"].files) == {"config.json", "model.safetensors", "README.md", "curves.png"}
    there = said_by(capsys, "user/model", series)
    assert there == said_by(capsys, run, series)
    assert said_by(capsys, "user/model@main", series) == there
    assert push(folds, "--repo", "user/folds", "--public") == 0
    assert not hub.repos["user/folds"].private
    together = said_by(capsys, "user/model", "user/folds", series, "--weights", "1,2")
    assert together == said_by(capsys, run, folds, series, "--weights", "1,2") != there
    assert [path.name for path in models_in(fetch_model("user/folds"))] == ["fold_0", "fold_1"]
    assert said_by(capsys, "user/folds", series) == said_by(capsys, folds, series)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert said_by(capsys, "user/model", series) == there
    assert "user/other" in refusal(capsys, "predict", "user/other", series, code=1)


def test_a_card_that_somebody_wrote_into_is_not_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [push(run, "--out", tmp_path / "out"), push(run, "--out", tmp_path / "out")] == [0, 0]
    with (tmp_path / "out" / "README.md").open("a") as card:
        card.write("Our notes.\n")
    assert "README.md: was changed by hand" in refusal(capsys, "push", run, "--out", tmp_path / "out", code=2)
    assert (tmp_path / "out" / "README.md").read_text().endswith("Our notes.\n")


def test_nothing_of_patients_or_of_the_machine_travels(run: Path, folds: Path, tmp_path: Path) -> None:
    for source, config in ((run, tmp_path / "run"), (folds, tmp_path / "folds" / "fold_0")):
        assert push(source, "--out", tmp_path / source.name.replace("cv", "folds")) == 0
        assert json.loads((config / "config.json").read_text())["data"]["cache_dir"] is None
    ids = pd.read_parquet(FINISHED / "predictions.parquet")["scan_id"]
    assert push(FINISHED, "--out", tmp_path / "old") == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.json", "model.safetensors", "README.md", "curves.png"}
    for path in files:
        content = path.read_bytes()
        assert SECRET.lower().encode() not in content.lower()
        assert str(tmp_path.parent).encode() not in content
        assert not any(scan_id.encode() in content for scan_id in ids)
    weights = load_file(run / "model.safetensors")
    assert all(value.equal(weights[name]) for name, value in load_file(tmp_path / "run" / "model.safetensors").items())


def test_the_card_says_what_it_answers_what_that_is_worth_and_what_it_learned_from(run: Path, tmp_path: Path) -> None:
    push(run, "--out", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: headspark\nlicense: other\n")
    for text in (
        *(f"\n- {label}\n" for label in LABELS),
        "finetune predict THIS_REPOSITORY_OR_FOLDER SERIES_FOLDER",
        "On 24 held-out series of 12 patients",
        "| rsna | CTA | 70 | 60 |",
        "| voxels, mm | 6 x 6 x 6 |",
        "Not a medical device",
        "| rsna | the competition's rules | https://",
        "The strictest hold for the whole: rsna",
    ):
        assert text in card, text
    (score,) = [line for line in card.split("\n") if line.startswith("| score | ")]
    value, low, high = (float(word.strip("()|")) for word in score.split() if word.strip("()|")[:2] == "0.")
    assert low < value < high


def test_a_card_of_segmentations_says_how_they_are_drawn_and_how_well(
    hub: Hub, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = MasksConfig(sources=("nifti",), masks="labels", labels={"lesion": 1, "oedema": 300}, modalities=("CT",))
    run = save_masks_model(tmp_path / "run", task)
    table = pd.DataFrame({
        "scan_id": [f"{SECRET}.{number}" for number in range(4)], "subject": [f"{SECRET}{n // 2}" for n in range(4)],
        "modality": ["CT"] * 4, "certainty": [0.9] * 4, "fold": [0] * 4,
        "dice: lesion": [0.5, 0.7, 0.6, 0.8], "dice: oedema": [np.nan, np.nan, 0.2, 0.4],
        "surface distance: lesion": [1.0, 2.0, 3.0, 2.0], "surface distance: oedema": [np.nan, np.nan, 5.0, 7.0],
        "missed: lesion": [False] * 4, "missed: oedema": [False] * 4,
    })  # fmt: skip
    table.to_parquet(run / "predictions.parquet")
    assert push(run, "--repo", "user/draws") == 0
    card = hub.repos["user/draws"].files["README.md"].decode()
    for text in (
        "license: other\nlicense_name: terms-of-the-training-data\npipeline_tag: image-segmentation\n",
        "\n# Segmentation of head CT and MRI\n",
        "It draws these, each by its value in the masks:\n\n- lesion: 1\n- oedema: 300\n",
        "finetune predict THIS_REPOSITORY_OR_FOLDER SCANS --masks MASKS",
        "On 4 held-out series of 2 patients",
        "| structure | series | Dice | surface distance, mm |",
        "| lesion | 4 | 0.650 (",
        "| oedema | 2 | 0.300",
        "Whoever drew the masks",
        "Series of nifti; how many, the run does not say.",
    ):
        assert text in card, text
    assert "Predictor" not in card  # answers labels alone
    assert "calibrated" not in card
    assert SECRET not in card
    # What the card says to do, does it.
    assert main(["predict", "user/draws", str(series), "--masks", str(tmp_path / "masks")]) == 0
    assert [path.name for path in (tmp_path / "masks").glob("*.nii.gz")] == ["ct.nii.gz"]
    assert "user/draws: segments; give --masks" in refusal(capsys, "predict", "user/draws", series, code=2)


def test_a_card_of_a_users_table_says_what_its_answers_are(tmp_path: Path) -> None:
    numbers = {"scan_id": [f"s{n}" for n in range(8)], "subject": [f"p{n}" for n in range(8)], "modality": ["T1w"] * 8}
    task = TableConfig(
        question="regression", columns=("age",), asks="regression", labels=("age",), sources=("openmind",),
        modalities=("T1w",), means=(50.0,), deviations=(10.0,), table="0" * 64,
    )  # fmt: skip
    run = save_table_model(tmp_path / "age", task)
    true = np.arange(8) * 10.0
    pd.DataFrame(numbers | {"age": true + 2, "target: age": true, "fold": [0] * 8}).to_parquet(
        run / "predictions.parquet"
    )
    push(run, "--out", tmp_path / "age-model")
    card = (tmp_path / "age-model" / "README.md").read_text()
    for text in (
        "# Regression from head CT and MRI\n",
        "It gives numbers, in the units of the table that it learned from:\n\n- age\n",
        "| of | series | mean absolute error | R2 | correlation |",
        "| 8 | 2.000 (2.000 to 2.000) |",
        "It says of every head a number",
        "Predictor(fetch_model(",
    ):
        assert text in card, text
    assert "pipeline_tag" not in card
    grades = ("grade: mild", "grade: severe")
    task = TableConfig(
        columns=("grade",), asks="multiclass", labels=grades, sources=("openmind",), modalities=("T1w",),
        weights=(1.0, 1.0), table="0" * 64,
    )  # fmt: skip
    run = save_table_model(tmp_path / "grade", task)
    said = np.linspace(0.1, 0.8, 8)
    rows = numbers | {grades[0]: 1 - said, grades[1]: said, "fold": [0] * 8}
    rows |= {f"target: {grades[0]}": [1, 1, 1, 1, 0, 0, 0, 0], f"target: {grades[1]}": [0, 0, 0, 0, 1, 1, 1, 1]}
    pd.DataFrame(rows).to_parquet(run / "predictions.parquet")
    push(run, "--out", tmp_path / "grade-model")
    card = (tmp_path / "grade-model" / "README.md").read_text()
    for text in (
        "pipeline_tag: image-classification\n",
        "# Classification of head CT and MRI\n",
        "the probability of each class, which add up to one:\n\n- grade: mild\n- grade: severe\n",
        "| grade: severe | 8 | 1.000 (1.000 to 1.000) |",
        "not calibrated",
    ):
        assert text in card, text


def test_histograms_go_along_and_those_of_a_model_before_do_not_stay(run: Path, hub: Hub, tmp_path: Path) -> None:
    model = shutil.copytree(run, tmp_path / "nyul-run")
    config = json.loads((model / "config.json").read_text())
    config["harmonize"]["mri_norm"] = "nyul"
    (model / "config.json").write_text(json.dumps(config))
    landmarks = np.array([0.0, 1.0, 2.0])
    histogram = nyul.StandardHistogram(scale=landmarks, percentiles=np.array([1.0, 50.0, 99.0]))
    (model / "nyul").mkdir()
    nyul.save(model / "nyul" / "T1w.npy", histogram)
    assert push(model, "--repo", "user/model") == 0
    hub.repos["user/model"].commits.append({**hub.repos["user/model"].files, "notes.txt": b"mine"})
    found = read_bundle(fetch_model("user/model")).settings.nyul_folder
    assert found is not None
    assert nyul.load(found / "T1w.npy").equals(histogram)
    for _ in range(2):  # a folder below is replaced with the model
        assert push(model, "--out", tmp_path / "out") == 0
    assert nyul.load(tmp_path / "out" / "nyul" / "T1w.npy").equals(histogram)
    assert push(run, "--repo", "user/model") == 0
    assert "nyul/T1w.npy" not in hub.repos["user/model"].files
    assert hub.repos["user/model"].files["notes.txt"] == b"mine"


def test_what_is_no_model_of_ours_is_neither_replaced_nor_pushed(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "nyul").mkdir(parents=True)
    for name in ("config.json", "README.md"):
        shutil.copy(run / "config.json", tmp_path / "mine" / name)
    (tmp_path / "mine" / "nyul" / "thesis.tex").write_text("mine")
    assert "never replaced" in refusal(capsys, "push", run, "--out", tmp_path / "mine", code=2)
    assert (tmp_path / "mine" / "nyul" / "thesis.tex").read_text() == "mine"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "never replaced" in refusal(capsys, "push", run, "--out", run, code=2)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    files = {"config.json": b'{"encoder": {}, "preprocessing": {}}', "model.safetensors": b"an encoder"}
    hub.repos["user/taken"] = Repo(private=False, commits=[{}, files])
    assert "holds something else" in refusal(capsys, "push", run, "--repo", "user/taken", code=2)
    assert hub.repos["user/taken"].commits == [{}, files]
    assert "no fine-tuned model" in refusal(capsys, "push", tmp_path, "--repo", "user/new", code=2)
    assert "does nothing without --repo" in refusal(capsys, "push", run, "--out", tmp_path / "a", "--public", code=2)
    assert "user/new" not in hub.repos
    with pytest.raises(UserError, match="needs SynthStrip's weights"):
        brain = shutil.copytree(run, tmp_path / "brain")
        _with_brain(brain)
        from finetune.hub import save_model as save

        save(brain, tmp_path / "b")


def _with_brain(model: Path) -> None:
    from harmonize.files import sha256_of

    (model / "synthstrip.pt").write_bytes(b"weights")
    config = json.loads((model / "config.json").read_text())
    config["harmonize"]["apply_brain"] = sha256_of(model / "synthstrip.pt")
    (model / "config.json").write_text(json.dumps(config))


def test_a_damaged_or_foreign_repository_is_one_line(
    run: Path, series: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(run, "--repo", "user/whole") == 0
    ours = hub.repos["user/whole"].files
    weights = ours["model.safetensors"]
    config = json.loads(ours["config.json"])
    cases = {
        "bert": ({"config.json": b'{"model_type": "bert"}', "model.safetensors": weights}, "is another's"),
        "empty": ({}, "config.json is missing"),
        "noise": ({**ours, "config.json": b"\xff\x00"}, "is another's"),
        "other": ({**ours, "config.json": json.dumps({**config, "task": {"kind": "x"}}).encode()}, "config.json: "),
        "cut": ({**ours, "model.safetensors": weights[: len(weights) // 2]}, "model.safetensors: truncated"),
        "pickle": ({"config.json": ours["config.json"], "pytorch_model.bin": b"\x80"}, "model.safetensors is missing"),
        "up": ({**ours, "config.json": b'{"schema_version": 1, "folds": ["../../x"]}'}, "is another's"),
        "huge": ({**ours, "config.json": b" " * (fetch.LARGEST_SMALL + 1)}, "at most are fetched"),
    }  # fmt: skip
    for name, (files, why) in cases.items():
        hub.repos[f"user/{name}"] = Repo(private=False, commits=[{}, files])
        hub.downloads.clear()
        said = refusal(capsys, "predict", f"user/{name}", series, code=1)
        assert f"user/{name}" in said, said
        assert why in said, said
        assert "hub-cache" not in said
        assert set(hub.downloads) <= {"config.json", "model.safetensors"}
        assert name != "huge" or not hub.downloads
    assert "no such repository" in refusal(capsys, "predict", "user/nothing", series, code=1)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "user/whole" in refusal(capsys, "predict", "user/whole", series, code=1)


def test_a_mistyped_series_is_not_asked_for_on_the_hub(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "patients").mkdir()
    monkeypatch.chdir(tmp_path)
    hub.repos[f"patients/{SECRET}"] = Repo(private=False, commits=[{}, {"config.json": b"{}"}])
    assert "no such" in refusal(capsys, "predict", run, f"patients/{SECRET}", code=2)
    assert hub.downloads == []
    (tmp_path / "patients" / "model").mkdir()
    assert repo_of("patients/model") is None
    assert repo_of("user/model@v1.0") == ("user/model", "v1.0")
    assert [repo_of(name) for name in ("/user/model", "../model", "model", "a/b/c", "user/model@")] == [None] * 5


def test_a_model_is_no_encoder_and_an_encoder_is_no_model(run: Path, hub: Hub) -> None:
    assert push(run, "--repo", "user/model") == 0
    with pytest.raises(UserError, match="user/model"):
        Encoder.from_pretrained("user/model")
    hub.repos["user/enc"] = standin_hub.Repo(
        private=False, commits=[{}, {"config.json": b'{"encoder": {}, "preprocessing": {}}'}]
    )
    with pytest.raises(UserError, match="user/enc: holds no fine-tuned model"):
        fetch_model("user/enc")
