"""From a DICOM series to JSON, and the competition's server with its fallback."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from standin_series import save_model

from finetune.cli import main
from finetune.evaluation.predictions import PREDICTIONS
from finetune.kaggle import server
from finetune.model_folder import Bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from harmonize import phantom
from harmonize.errors import UserError
from harmonize.labels import LABELS
from harmonize.settings import Settings
from headspark.encoder import EncoderConfig, build_encoder

TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one phantom series."""
    out = tmp_path_factory.mktemp("raw")
    phantom.write("rsna", out, scans=1, size=24, seed=0)
    return next((out / "rsna" / "series").iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    head, data = CellsConfig(stride=4, width=8), DataConfig(patch=(16, 16, 16), spacing=6.0)
    weights = Network(build_encoder(TINY), head, (), AneurysmTask()).state_dict()
    save_bundle(folder, Bundle(encoder=TINY, head=head, data=data, settings=Settings(spacing=(4.0,) * 3)), weights)
    return folder


def test_predict_prints_the_labels_in_the_competitions_order(
    model: Path, series: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), str(series)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == [*LABELS, "decisions", "warnings"]
    assert all(0 < answer[label] < 1 for label in LABELS)
    assert answer["decisions"]
    assert answer["warnings"] == []


def test_the_same_series_gets_the_same_answer(model: Path, series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for _ in range(2):
        main(["predict", str(model), str(series)])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_faults_are_one_line_that_says_what_to_do(
    model: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.dcm").write_bytes(b"no DICOM at all")
    for argv, code, said in (
        ([str(model), str(tmp_path / "nowhere")], 2, "no such folder"),
        ([str(model), str(broken)], 1, "broken"),
        ([str(tmp_path), str(series)], 2, "no fine-tuned model"),
    ):
        assert main(["predict", *argv]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert said in captured.err


def test_a_damaged_model_is_told_apart_from_an_absent_one(
    model: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes()[:-40])
        other = ({"config.json", "model.safetensors"} - {name}).pop()
        (tmp_path / other).write_bytes((model / other).read_bytes())
        assert main(["predict", str(tmp_path), str(series)]) == 1
        assert "damaged" in capsys.readouterr().err


def test_the_server_answers_one_row_and_falls_back_where_a_series_cannot_be_read(
    model: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = server.make_predict(model)
    frame = predict(str(series))
    assert list(frame.columns) == list(LABELS)
    assert len(frame) == 1
    fallback = predict(str(tmp_path / "nowhere"))
    assert pd.DataFrame(fallback, columns=list(LABELS)).to_numpy().tolist() == [[0.5] * 14]
    assert "default row" in capsys.readouterr().err


def test_the_server_lets_several_models_answer_together(model: Path, series: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=3)
    alone = [pd.DataFrame(server.make_predict(one)(str(series)))[list(LABELS)].to_numpy() for one in (model, other)]
    both = pd.DataFrame(server.make_predict(model, other)(str(series)))[list(LABELS)].to_numpy()
    np.testing.assert_allclose(both, expit((logit(alone[0]) + logit(alone[1])) / 2), rtol=1e-5)


def test_an_error_that_quotes_a_header_is_not_quoted(
    model: Path, series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> object:
        raise ValueError("could not read PatientName Zqxjkv")

    monkeypatch.setattr(server.Predictor, "answer", fail)
    server.make_predict(model)(str(series))
    said = capsys.readouterr().err
    assert "ValueError; answered with the default row" in said
    assert "Zqxjkv" not in said


def test_every_call_empties_the_shared_folder_and_touches_nothing_outside(
    model: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("stays")
    monkeypatch.setattr(server, "SHARED", shared)
    predict = server.make_predict(model)
    assert len(predict(str(series))) == 1, "without a shared folder the answer comes all the same"
    for number in range(2):
        here = shared / str(number) / "series"
        shutil.copytree(series, here)
        (shared / "link").symlink_to(outside)
        (here / "link").symlink_to(outside)
        (shared / "loose.bin").write_bytes(b"x")
        # The second series cannot be read: that call empties the folder as well.
        assert len(predict(str(here if number == 0 else shared / "nowhere"))) == 1
        assert list(shared.iterdir()) == []
    assert (outside / "mine.txt").read_text() == "stays"
    assert any(series.iterdir()), "a series that lies elsewhere stays"
    shared.rmdir()
    shared.symlink_to(outside)
    predict(str(series))
    assert (outside / "mine.txt").exists(), "a shared folder that is a link is not followed"


def test_the_fallback_is_the_median_prediction_of_the_held_out_fold(model: Path, tmp_path: Path) -> None:
    rows = [{"scan_id": str(value), **dict.fromkeys(LABELS, value)} for value in (0.1, 0.2, 0.9)]
    pd.DataFrame(rows).to_parquet(tmp_path / PREDICTIONS)
    assert server.default_row(tmp_path) == dict.fromkeys(LABELS, 0.2)


@pytest.mark.parametrize(
    ("change", "said"),
    [({LABELS[3]: float("nan")}, "not finite"), ({LABELS[3]: "high"}, "no number"), ({LABELS[3]: None}, "not finite")],
)
def test_a_damaged_table_of_the_held_out_fold_is_no_fallback(
    model: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    rows = pd.DataFrame([{"scan_id": "1", **dict.fromkeys(LABELS, 0.5), **change}])
    rows.to_parquet(tmp_path / PREDICTIONS)
    with pytest.raises(UserError, match=said):
        server.default_row(tmp_path)
    rows.drop(columns=LABELS[3]).to_parquet(tmp_path / PREDICTIONS)
    with pytest.raises(UserError, match=f"lacks the label {LABELS[3]}"):
        server.default_row(tmp_path)


@pytest.mark.parametrize(("rerun", "called"), [("1", "serve"), (None, "run_local_gateway")])
def test_serve_starts_the_gateway_that_the_environment_asks_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, rerun: str | None, called: str
) -> None:
    calls: list[str] = []

    class Server:
        def __init__(self, predict: object) -> None:
            assert callable(predict)

        def serve(self) -> None:
            calls.append("serve")

        def run_local_gateway(self) -> None:
            calls.append("run_local_gateway")

    package, module = types.ModuleType("kaggle_evaluation"), types.ModuleType("kaggle_evaluation.rsna_inference_server")
    module.RSNAInferenceServer = Server  # type: ignore[attr-defined]
    package.rsna_inference_server = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle_evaluation", package)
    monkeypatch.setitem(sys.modules, "kaggle_evaluation.rsna_inference_server", module)
    monkeypatch.delenv(server.RERUN, raising=False)
    if rerun:
        monkeypatch.setenv(server.RERUN, rerun)
    server.serve(model)
    assert calls == [called]
