"""The submission: what it imports, what it packs, and that it answers a gateway far from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from standin_gateway import strip_series, write_package
from standin_series import save_model, save_table_model, write_mr_series, write_series

from finetune.cli import main
from finetune.evaluation.predictions import PREDICTIONS
from finetune.kaggle.server import answering
from finetune.predict import Predictor
from finetune.tasks.table import TableConfig
from harmonize.labels import LABELS

NOT_NEEDED = ("tensorboard", "matplotlib", "h5py", "monai", "sklearn", "timm", "torchvision", "datasets", "accelerate",
              "isal", "huggingface_hub.hf_api", "finetune.train", "harmonize.phantom")  # fmt: skip
"""What trains, plots or writes corpora, and takes seconds to import."""

MEDIAN = 0.25


def clean_environment(**more: str) -> dict[str, str]:
    """Of a process that knows nothing of this repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KAGGLE"))}
    return kept | more


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    made = [save_model(folder / "one"), save_model(folder / "two", seed=3)]
    for model in made:
        pd.DataFrame([{"scan_id": "1", **dict.fromkeys(LABELS, MEDIAN)}]).to_parquet(model / PREDICTIONS)
    return made


@pytest.fixture(scope="module")
def packed(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models packed, with a wheel of a package that nobody has."""
    folder = tmp_path_factory.mktemp("packed")
    wheel = folder / "wheels" / "lacking_here-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lacking_here.py", "")
        info = "lacking_here-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lacking-here\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    words = ["kaggle", *map(str, models), "--weights", "1,3", "--wheels", str(wheel.parent)]
    with chdir(folder):  # as the guide says it, the folder is told from where one is
        assert main([*words, "--out", "pack"]) == 0
    return folder / "pack"


def test_the_packed_folder_answers_the_gateway_by_itself(packed: Path, models: list[Path], tmp_path: Path) -> None:
    series, shared, out = tmp_path / "series", tmp_path / "shared", tmp_path / "rows.json"
    write_series(series / "0ct", "1.2.3")
    write_mr_series(series / "1mr", "1.2.4")
    (series / "2broken").mkdir()
    (series / "2broken" / "a.dcm").write_bytes(b"no DICOM at all")
    (series / "3empty").mkdir()
    write_series(series / "4ct", "1.2.5", brain=60)
    shared.mkdir()
    write_package(tmp_path / "path")
    # A package that our code is said to import, which only the wheel has.
    facts = json.loads((packed / "pack.json").read_text())
    facts["modules"]["lacking-here"] = "lacking_here"
    (packed / "pack.json").write_text(json.dumps(facts))
    largest = max(sum(path.stat().st_size for path in folder.iterdir()) for folder in series.iterdir())
    program = (
        f"import runpy, sys; sys.path.append({str(tmp_path / 'path')!r}); "
        f"sys.argv = ['submission.py', '--shared', {str(shared)!r}]; "
        f"runpy.run_path({str(packed / 'submission.py')!r}, run_name='__main__'); "
        "import finetune, harmonize, headspark; "
        "print(*(module.__file__ for module in (finetune, harmonize, headspark)), sep='\\n'); "
        f"print(*(name for name in {NOT_NEEDED!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        env=clean_environment(
            KAGGLE_IS_COMPETITION_RERUN="1", GATEWAY_SERIES=str(series), GATEWAY_SHARED=str(shared),
            GATEWAY_OUT=str(out), GATEWAY_QUOTA=str(int(1.5 * largest)),
        ),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *places, loaded = done.stdout.splitlines() if done.stdout.count("\n") == 4 else [*done.stdout.splitlines(), ""]
    assert [Path(place).is_relative_to(packed / "code") for place in places] == [True] * 3
    assert loaded == "", "prediction imports what it does not need"
    rows = {row.pop("series"): row for row in json.loads(out.read_text())}
    assert all(list(row) == list(LABELS) for row in rows.values())
    asked = Predictor(models, weights=[1, 3])
    for name in ("0ct", "1mr", "4ct"):
        wanted = asked.answer(strip_series(series / name, tmp_path / "stripped" / name)).probabilities
        np.testing.assert_allclose([*rows[name].values()], [*wanted.values()], atol=1e-6)
    assert rows["0ct"] != rows["4ct"]
    for name in ("2broken", "3empty"):
        assert rows[name] == dict.fromkeys(LABELS, MEDIAN)
    assert done.stderr.count("answered with the default row") == 2
    assert list(shared.iterdir()) == []
    assert [*packed.rglob("__pycache__")] == [], "what is asked stays what was packed, or no other pack replaces it"


def test_a_trial_prints_the_answers_alone_and_fails_where_there_is_none(packed: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    for names, code in ((("ct", "nowhere"), 0), (("nowhere",), 1)):
        command = [sys.executable, "-I", "-B", str(packed / "submission.py"), "--try", *names]
        done = subprocess.run(
            command, env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        told = json.loads(done.stdout)
        assert list(told) == ["answers"]
        assert [bool(row["fault"]) for row in told["answers"]] == [name == "nowhere" for name in names]
    assert done.stderr.splitlines()[-1].startswith("error: all 1 series got the fallback, the first because of nowhere")


class Hanging:
    """Models that never answer about one series."""

    def __init__(self) -> None:
        self.go_on, self.threads = threading.Event(), set()

    def answer(self, path: Path) -> SimpleNamespace:
        self.threads.add(threading.get_ident())
        if path.name == "hangs":
            self.go_on.wait()
        if path.name == "slow disk":
            raise TimeoutError
        return SimpleNamespace(probabilities=dict.fromkeys(LABELS, 0.75), warnings=[])


def test_a_series_that_hangs_gets_the_default_row_and_the_next_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Hanging()
    predict = answering(models, dict.fromkeys(LABELS, MEDIAN), lambda: tmp_path, limit_s=0.5)
    said = []
    for name in ("one", "two", "hangs", "three", "slow disk"):
        (tmp_path / "series").mkdir()
        said.append(float(predict(f"/series/{name}")["Basilar Tip"][0]))
        assert list(tmp_path.iterdir()) == []
    models.go_on.set()
    assert said == [0.75, 0.75, MEDIAN, 0.75, MEDIAN]
    lines = capsys.readouterr().err
    assert "hangs: TooLong: no answer within 0.5 s; answered with the default row" in lines
    assert "slow disk: TimeoutError; answered with the default row" in lines
    assert len(models.threads) == 2, "only a call that hangs costs a thread"


def test_a_pack_is_replaced_by_another_and_nothing_else_is(
    packed: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    assert main(["kaggle", str(models[0]), "--out", str(tmp_path)]) == 2
    assert "never replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert json.loads((packed / "pack.json").read_text())["fallback"] == dict.fromkeys(LABELS, MEDIAN)
    assert not (packed / "models" / "0" / PREDICTIONS).exists(), "what was predicted of patients stays here"


def test_what_cannot_be_submitted_is_refused_in_a_line(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_table_model(tmp_path / "other", TableConfig(labels=("stroke",)))
    (tmp_path / "wheels").mkdir()
    for argv, said in (
        ([str(tmp_path)], "no fine-tuned model"),
        ([str(other)], "other labels"),
        ([str(models[0]), "--wheels", str(tmp_path / "wheels")], "no wheels"),
        ([str(models[0]), "--weights", "1,2"], "--weights"),
    ):
        assert main(["kaggle", *argv, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
