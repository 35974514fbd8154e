"""`finetune baselines`: recipes on the same folds, side by side on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import train
from finetune.baselines import PAGE, RESULTS
from finetune.cli import main
from finetune.evaluation import read
from finetune.evaluation.compare import compare

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
COMMON: dict[str, Any] = {
    "data": {"patch": [16, 16, 16], "folds": 2, "mirror": False, "workers": 0},
    "losses": [{"kind": "bce", "of": "labels"}],
    "stages": [{"name": "all", "steps": 2, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"}],
    "train": {"batch": 2, "checkpoint_every": 1, "threads": 1, "log_every": 1},
}
BOX = {
    "scratch": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "head": {"stride": 2, "width": 4, "top": 2},
}
MIP = {
    "view": {"kind": "mip", "size": 32},
    "scratch": {"kind": "timm", "backbone": "test_resnet", "in_channels": 4},
    "head": {"kind": "global"},
}


def recipe_at(path: Path, own: dict[str, Any], **data: Any) -> Path:
    path.write_text(yaml.safe_dump({**COMMON, **own, "data": COMMON["data"] | data}))
    return path


def test_recipes_are_trained_on_the_same_folds_and_shown_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "write_report", lambda *rest, **more: None)
    shutil.copytree(FIXTURES / "corpus", tmp_path / "corpus")
    files = [recipe_at(tmp_path / "box.yaml", BOX), recipe_at(tmp_path / "mip.yaml", MIP)]
    out = tmp_path / "out"
    words = ["baselines", *map(str, files), "--corpus", str(tmp_path / "corpus"), "--out", str(out), "--draws", "50"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "mip - box" in said
    assert str(out / PAGE) in said
    page = (out / PAGE).read_text()
    assert all(f"<h2>{heading}</h2>" in page for heading in ("Runs", "Scores", "Paired differences"))
    assert "mip - box" in page
    facts = json.loads((out / RESULTS).read_text())
    expected = compare([read(out / name) for name in ("box", "mip")], draws=50).facts()
    assert [one["name"] for one in facts["runs"]] == ["box", "mip"]
    assert facts["series"] == expected["series"] == 6
    assert [(one["view"], one["encoder"], one["folds"]) for one in facts["contenders"]] == [
        ("box", "resenc", 2),
        ("mip", "test_resnet", 2),
    ]
    assert facts["contenders"][1]["parameters"] > 100_000 > facts["contenders"][0]["parameters"] > 1000
    assert all(one["minutes"] > 0 for one in facts["contenders"])

    # The same command again trains nothing, and gives the same numbers.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/fold_*/*")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/fold_*/*")} == before
    assert json.loads((out / RESULTS).read_text()) == facts


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"name": "other", "folds": 3}, "other: data.folds 3, and 2 in box; runs on other folds do not compare"),
        ({"name": "box"}, "box: two recipes are called so"),
    ],
)
def test_recipes_that_do_not_compare_are_refused_before_anything_is_trained(
    second: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    name = second.pop("name")
    files = [recipe_at(tmp_path / "box.yaml", BOX), recipe_at(tmp_path / "more" / f"{name}.yaml", MIP, **second)]
    corpus = str(FIXTURES / "corpus")
    assert main(["baselines", *map(str, files), "--corpus", corpus, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["baselines", str(files[0]), "--corpus", corpus, "--out", str(tmp_path / "out")]) == 2
    assert "one recipe cannot be compared; give two or more" in capsys.readouterr().err


def test_a_recipe_of_pictures_takes_no_encoder_of_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FIXTURES / "corpus", tmp_path / "corpus")
    file = recipe_at(tmp_path / "mip.yaml", MIP)
    encoder = FIXTURES / "encoder"
    words = ["--config", str(file), "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "ft")]
    assert main(["train", *words, "--encoder", str(encoder)]) == 2
    assert "is one of volumes, and view.kind mip shows pictures" in capsys.readouterr().err
    assert main(["train", *words, "--scratch.in_channels", "3"]) == 2
    said = "scratch.in_channels 3: data.ct_windows names 3 channels, of which view.kind mip makes 4"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("name", "at"), [("raw", "."), ("finetuned", "."), ("run", "mip")])
def test_a_folder_of_something_else_is_refused_before_anything_is_trained(
    name: str, at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / "out" / at)
    before = sorted(tmp_path.rglob("*"))
    files = [recipe_at(tmp_path / "box.yaml", BOX), recipe_at(tmp_path / "mip.yaml", MIP)]
    words = ["--corpus", str(FIXTURES / "corpus"), "--out", str(tmp_path / "out")]
    assert main(["baselines", *map(str, files), *words]) == 2
    assert f"{tmp_path / 'out' / at}: no " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *files])
