"""Cards of all that is pushed: complete, headers that the Hub takes, code that runs; and the page about the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from pages import ROOT, blocks
from standin_hub import Hub, Repo

from finetune.cli import main as finetune
from finetune.hub import fetch_probe, probes, push_probe
from harmonize.corpus import Corpus, write_manifest
from harmonize.corpus.card_parts import AUTHORS, TITLE, licence_header
from harmonize.errors import UserError, WrongUse
from harmonize.files import sha256_of
from headspark.config import read_recipe
from headspark.hub.model_card import write_card
from headspark.recipe import Recipe

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
LICENCES = {"cc-by-4.0", "other", "apache-2.0"}
"""Of those that the Hub knows, what we write."""

PIPELINES = {"image-feature-extraction", "image-classification", "image-segmentation", None}
NOT_CLINICAL = "Not a medical device, and not for clinical use"
SECTIONS = ("## Use and limits", "## Licence", "## Citation", "@software{headspark")
CARD_KINDS = ("encoder", "model", "corpus", "probe")


def probe_file(folder: Path, **more: Any) -> Path:
    """What `finetune probe --json` writes of a small question."""
    row = {
        "encoder": "mine", "probe": "linear", "label": "lesion", "labels": "all", "group": "all", "metric": "auc",
        "value": 0.81, "low": 0.7, "high": None, "n": 40,
    }  # fmt: skip
    content = {
        "kind": "binary", "scans": 40, "patients": 31, "folds": 5, "draws": 1000, "seed": 0, "corpus_sha256": "ab" * 32,
        "encoders": {"mine": "cd" * 32}, "notes": ["/home/zqxjkv/labels.csv: patient Zqxjkv stands twice"],
        "rows": [row, row | {"encoder": "random", "value": 0.5}, row | {"labels": 5}, row | {"group": "sex: F"}],
        "differences": [row | {"encoder": "mine - random", "value": 0.31}], **more,
    }  # fmt: skip
    (folder / "probe.json").write_text(json.dumps(content))
    return folder / "probe.json"


@pytest.fixture
def cards(tiny_corpus: Path, tmp_path: Path) -> dict[str, Path]:
    """A folder of each thing that is pushed, as its command writes it."""
    recipe = read_recipe(Recipe, FIXTURES / "run" / "recipe.yaml")
    state = json.loads((FIXTURES / "run" / "run.json").read_text())
    made = {name: tmp_path / name for name in CARD_KINDS}
    shutil.copytree(FIXTURES / "encoder", made["encoder"])
    card = write_card(recipe, state, [{"step": 1, "loss": 1.0, "lr": 0.1}], step=1, picture=None)
    (made["encoder"] / "README.md").write_text(card.text)
    assert finetune(["push", str(FIXTURES / "finetuned"), "--out", str(made["model"])]) == 0
    assert finetune(["push", str(probe_file(tmp_path)), "--out", str(made["probe"])]) == 0
    shutil.copytree(tiny_corpus, made["corpus"])
    write_manifest(made["corpus"], Corpus.open(tiny_corpus).scans.to_dict("records"), [])
    return made


def test_cards_are_complete_and_their_headers_are_the_hubs(
    cards: dict[str, Path], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        "encoder": ["| openmind | T1w |", "## Recipe", "curves.png", "manifest SHA-256", "image patches", "## Probe",
                    "load_encoder(", "tian2023spark", "Code revision 270ec45"],
        "model": ["## Score", "## Recipe", "patch:", "finetune predict", "Code revision", "## Preprocessing"],
        "corpus": ["| openmind | T1w | zscore | 4 | 3 | 1 |", "| tcia | CT | HU | 2 | 2 | 0 |", "| spacing |",
                   "6 scans of 5 subjects (0 rejected)", sha256_of(cards["corpus"] / "metadata.parquet"),
                   "each collection has its own licence", "load_dataset("],
        "probe": ["| mine | linear | lesion | auc | 0.810 | 0.700 to - | 40 |", "cd" * 32, "load_dataset(",
                  "| patients | 31 |"],
    }  # fmt: skip
    wanted["encoder"].remove("image patches")
    for name, folder in cards.items():
        text = (folder / "README.md").read_text()
        for part in (*wanted[name], NOT_CLINICAL, *(one for one in SECTIONS if (name, one) != ("probe", "## Licence"))):
            assert part in text, (name, part)
        assert str(tmp_path) not in text
        assert "/home" not in text
        is_model = name in ("encoder", "model")
        card = (ModelCard if is_model else DatasetCard)(text)
        card.validate()  # asks the Hub
        data = card.data.to_dict()
        assert yaml.safe_load(text.split("---")[1]) == data, "the client reads the header as it stands"
        assert data["license"] in LICENCES
        assert data["license"] != "other" or data["license_name"].startswith("terms-of-the-")
        assert data.get("pipeline_tag") in PIPELINES
        assert all(isinstance(tag, str) for tag in data["tags"])
        assert not is_model or data["library_name"] == "headspark"
        for code in python_blocks(text):
            compile(code, name, "exec")
    assert licence_header(["openmind"], name="x") == {"license": "cc-by-4.0"}
    rsna = licence_header(["openmind", "rsna"], name="x")
    assert (rsna["license"], rsna["license_link"].split("/")[2]) == ("other", "www.kaggle.com")
    assert "license_link" not in licence_header(["tcia", "rsna"], name="x")  # two terms, and no one link for both
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], [one["name"] for one in cited["authors"]]) == (TITLE, [AUTHORS])


def python_blocks(text: str) -> list[str]:
    return [part.split("```")[0] for part in text.split("```python\n")[1:]]


def test_the_code_of_an_encoders_card_runs(cards: dict[str, Path], hub: Hub) -> None:
    has(hub, "user/encoder", cards["encoder"])
    (code,) = python_blocks((cards["encoder"] / "README.md").read_text())
    names: dict[str, Any] = {"x_BCDHW": torch.zeros(1, 3, 32, 32, 32)}
    exec(code.replace("THIS_REPOSITORY_OR_FOLDER", "user/encoder"), names)
    assert [one.shape[1] for one in names["maps"]] == list(names["encoder"].channels)


def has(hub: Hub, name: str, folder: Path, **tags: int) -> None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repos[name] = Repo(private=False, commits=[{}, files], tags=tags)


def test_the_python_of_the_page_about_the_hub_runs(cards: dict[str, Path], hub: Hub) -> None:
    has(hub, "user/encoder", cards["encoder"], step_050000=2)
    has(hub, "user/model", cards["model"], v1=2)
    has(hub, "datasets/user/probe", cards["probe"])
    names: dict[str, Any] = {}
    ran = [block for block in blocks("python") if block.page == "hub.md" and "load_dataset" not in block.code]
    for block in ran:
        exec(compile(block.code, str(block), "exec"), names)
    assert len(ran) == 3
    assert torch.equal(*(next(iter(names[one].parameters())) for one in ("early", "same")))
    assert names["probe"].name == "probe.json"


def test_a_probe_goes_to_the_hub_and_back(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = probe_file(tmp_path)
    assert finetune(["push", str(path), "--repo", "user/probe", "--tag", "v1"]) == 0
    repo = hub.repos["datasets/user/probe"]
    assert (repo.private, repo.tags) == (True, {"v1": 2})
    assert set(repo.files) == {"README.md", "probe.json", "probe.parquet"}
    assert not any(b"zqxjkv" in content.lower() for content in repo.files.values())
    back, sent = json.loads(fetch_probe("user/probe", revision="v1").read_text()), json.loads(path.read_text())
    assert back == {key: value for key, value in sent.items() if key != "notes"}
    (tmp_path / "probe.parquet").write_bytes(repo.files["probe.parquet"])
    rows = pd.read_parquet(tmp_path / "probe.parquet")
    assert rows["is_difference"].tolist() == [False] * 4 + [True]
    assert rows["encoder_sha256"].fillna("").tolist()[:2] == ["cd" * 32, ""]
    assert (rows["value"].tolist()[0], rows["labels"].tolist()[2]) == (0.81, "5")
    push_probe(path, "user/probe")  # again
    hub.repos["datasets/user/taken"] = Repo(private=False, commits=[{}, {"data.csv": b"theirs"}])
    with pytest.raises(WrongUse, match="holds something else"):
        push_probe(path, "user/taken")
    for content in ("{}", "[]", json.dumps({"rows": [{"encoder": 1}], "differences": [], "encoders": {}})):
        (tmp_path / "other.json").write_text(content)
        assert finetune(["push", str(tmp_path / "other.json"), "--repo", "user/other"]) == 2
        assert "is not what `finetune probe --json` writes" in capsys.readouterr().err
        hub.repos["datasets/user/other"] = Repo(private=False, commits=[{}, {probes.PROBE: content.encode()}])
        with pytest.raises(UserError, match="is not what `finetune probe --json` writes"):
            fetch_probe("user/other")
        hub.repos.pop("datasets/user/other")
