"""One face: the console scripts, what they have in common, and what they refuse."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from finetune.cli import main as finetune
from harmonize.cli import main as harmonize
from headspark.cli import main as headspark
from headspark.hub import load_encoder
from headspark.weights import weights_sha256

ROOT = Path(__file__).resolve().parents[1]
RECIPE = {
    "data": {"patch": 16, "workers": 0, "val_share": 0.3},
    "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "mask": {"block": 8, "ratio": 0.5},
    "decoder": {"kind": "light", "stop_stride": 2, "width": 4},
    "train": {"steps": 1, "threads": 1, "val_samples": 1, "trackers": []},
}


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `headspark pretrain` finished."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["pretrain", "--config", folder / "recipe.yaml", "--corpus", tiny_corpus, "--out", folder / "run"]
    assert headspark(list(map(str, words))) == 0
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_console_script_is_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"harmonize", "headspark", "finetune"}
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("program", [harmonize, headspark, finetune])
def test_a_home_that_the_shell_left_is_the_home(
    program: Callable[[list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Bash leaves it behind `=`, and what was written would lie in a folder called ~.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = {
        harmonize: ["openmind", "~/raw", "--out=~/corpus"],
        headspark: ["pretrain", "--corpus=~/raw", "--out", "~/run"],
        finetune: ["train", "--corpus=~/raw", "--out", "~/run"],
    }
    assert program(words[program]) == 2
    assert f"{tmp_path}/raw: no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_headspark_pretrains(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(("format_", "alias"), [("hf", "folder"), ("nnunet", "nnunet")])
def test_out_and_format_say_what_the_aliases_say(run: Path, tmp_path: Path, format_: str, alias: str) -> None:
    assert headspark(["push", str(run), "--out", str(tmp_path / "one"), "--format", format_]) == 0
    assert headspark(["push", str(run), f"--{alias}", str(tmp_path / "other")]) == 0
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one.keys() == other.keys() >= ({"config.json"} if format_ == "hf" else {"checkpoint_final.pth"})
    for name in one.keys() - {"checkpoint_final.pth"}:  # an archive with the name of its temporary file inside
        assert one[name] == other[name]


def test_an_encoder_is_what_out_gives(run: Path, tmp_path: Path) -> None:
    assert headspark(["push", str(run), "--out", str(tmp_path / "encoder")]) == 0
    assert {"config.json", "model.safetensors", "README.md"} <= contents(tmp_path / "encoder").keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --out --repo --folder --nnunet is required"),
        (["--out", "A", "--repo", "user/name"], "not allowed with argument --out"),
        (["--folder", "A", "--format", "nnunet"], "--format nnunet: --folder means --format hf"),
        (["--nnunet", "A", "--format", "hf"], "--format hf: --nnunet means --format nnunet"),
        (["--repo", "user/name", "--format", "nnunet"], "--format nnunet: the Hub gets encoders"),
        (["--out", "A", "--public"], "--public: does nothing without --repo"),
        (["--out", "A", "--private"], "--private: does nothing without --repo"),
        (["--repo", "user/name", "--public", "--private"], "not allowed with argument --public"),
        (["--out", "A", "--format", "onnx"], "invalid choice: 'onnx'"),
        (["--nnunet", "A", "--decoder"], "--decoder: --format nnunet holds a decoder"),
        (["--out", "A", "--decoder"], "has one of kind light"),
        (["--fold", "A"], "required"),
        (["--repo", "user name"], "--repo user name: give USER/NAME"),
    ],
)
def test_a_push_that_cannot_be_meant_so_does_nothing(
    run: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert headspark(["push", str(run), *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [headspark, finetune, harmonize])
def test_a_misspelt_version_is_no_missing_command(
    command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--verison"]) == 2
    assert "--verison; did you mean --version?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (headspark, []),
        (headspark, ["pusch"]),
        (headspark, ["--nope"]),
        (headspark, ["push", "RUN", "--repo", "user/name", "--publi"]),
        (headspark, ["pretrain", "--corp", "CORPUS", "--out", "RUN"]),
        (headspark, ["pretrain", "--corpus", "CORPUS"]),
        (finetune, []),
        (finetune, ["predikt", "FT", "SERIES"]),
        (finetune, ["train", "--corp", "CORPUS", "--out", "FT"]),
        (finetune, ["train", "--out", "FT"]),
        (finetune, ["report", "FT", "--corp", "CORPUS"]),
        (harmonize, []),
        (harmonize, ["verify", "CORPUS", "--work", "2"]),
        (harmonize, ["publish", "CORPUS", "--repo", "user/name", "--publ"]),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2_everywhere(
    command: Callable[[list[str]], int], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        (headspark, ["--help"], ["pretrain", "push"]),
        (headspark, ["push", "--help"], ["--out", "--format", "--repo", "--public", "--decoder"]),
        (headspark, ["pretrain", "--help"], ["--corpus", "--out", "--augment.rotate", "--train.ema", "--data.workers"]),
        (finetune, ["--help"], ["train", "predict", "report"]),
        (finetune, ["train", "--help"], ["--encoder", "--out", "--augment.shift", "--augment.rotate", "--train.ema"]),
    ],
)
def test_help_lists_what_there_is(
    command: Callable[[list[str]], int], words: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        command(words)
    shown = capsys.readouterr().out
    assert all(word in shown for word in wanted)


def test_the_help_of_a_shared_key_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    for command, word in ((headspark, "pretrain"), (finetune, "train")):
        with pytest.raises(SystemExit):
            command([word, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "Largest rotation about each axis, in degrees" in shown
        assert "Decay of a moving average of the weights" in shown
        assert "How many make samples, beside the training" in shown
        # Of a whole section, which is refused.
        assert "--train CONFIG" not in shown


def test_the_card_takes_the_probe_of_these_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, probe = tmp_path / "encoder", tmp_path / "probe.json"
    words = ["push", str(run), "--out", str(encoder)]
    assert headspark(words) == 0
    row = {
        "encoder": "mine", "probe": "linear", "label": "sex", "labels": "all", "group": "all", "metric": "auc",
        "value": 0.75, "low": 0.5, "high": None, "n": 6,
    }  # fmt: skip
    rows = [row, row | {"group": "sex: F", "n": 3}, row | {"encoder": "random", "value": 0.5, "high": 0.625}]
    sha256 = weights_sha256(load_encoder(encoder).state_dict())
    probe.write_text(json.dumps({"encoders": {"mine": sha256}, "rows": rows, "scans": 6, "patients": 5}))
    assert headspark([*words, "--probe", str(probe)]) == 0
    card = (encoder / "README.md").read_text()
    assert "6 scans of 5 patients" in card
    assert "| this encoder | linear | sex | all | auc | 0.750 | 6 |" in card
    assert "| random | linear | sex | all | auc | 0.500 (0.500 to 0.625) | 6 |" in card
    assert "0.750 | 3 |" not in card
    probe.write_text(json.dumps({"encoders": {"mine": "0" * 64}, "rows": rows}))
    assert headspark([*words, "--probe", str(probe)]) == 2
    assert "is about other weights" in capsys.readouterr().err
