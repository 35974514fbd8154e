"""`finetune predict` about whatever a folder holds: one series, many, broken ones, and what was decided about each."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from standin_series import write_series

import finetune
from finetune.cli import main
from finetune.kaggle import server
from finetune.model_folder import Bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.predict import Predictor
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.errors import UserError
from harmonize.labels import LABELS
from harmonize.settings import Settings
from headspark.encoder import EncoderConfig, build_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    encoder, head = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)), CellsConfig(stride=2, width=4)
    weights = Network(build_encoder(encoder), head, (), AneurysmTask()).state_dict()
    data = DataConfig(patch=(16, 16, 16), spacing=6.0)
    save_bundle(folder, Bundle(encoder=encoder, head=head, data=data, settings=Settings(spacing=(4.0,) * 3)), weights)
    return folder


Ask = Callable[[Path], tuple[int, Any, str]]


@pytest.fixture
def ask(model: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Asks the command about a folder: (exit code, what it printed as JSON or None, what it said)."""

    def asked(folder: Path) -> tuple[int, Any, str]:
        code = main(["predict", str(model), str(folder)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return asked


def test_a_sound_series_is_one_object_without_warnings(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "one")
    code, answer, said = ask(tmp_path / "one")
    assert code == 0
    assert list(answer) == [*LABELS, "decisions", "warnings"]
    assert answer["decisions"][0] == "20 slices of CT, 4.000 mm apart"
    assert answer["warnings"] == []
    assert said == ""


def test_missing_slices_are_a_warning_in_the_answer_and_on_the_terminal(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "hole", slices=range(20))
    for k in (9, 10):
        (tmp_path / "hole" / f"A1.2.3_{k:02d}.dcm").unlink()
    code, answer, said = ask(tmp_path / "hole")
    assert code == 0
    assert any("missing slices: 2" in line for line in answer["warnings"])
    assert "missing slices: 2" in said
    for k in range(6, 14):
        (tmp_path / "hole" / f"A1.2.3_{k:02d}.dcm").unlink(missing_ok=True)
    code, answer, said = ask(tmp_path / "hole")
    assert "missing" in said
    assert code == 1 or any("missing" in line for line in answer["warnings"])


def test_a_damaged_file_among_the_slices_is_a_warning(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "one")
    (tmp_path / "one" / "A1.2.3_19.dcm").write_bytes(b"cut")
    code, answer, said = ask(tmp_path / "one")
    assert code == 0
    assert isinstance(answer, dict), "it is still one series"
    assert any("left out" in line for line in answer["warnings"])
    assert "left out" in said


def test_files_that_are_no_dicom_are_no_series(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "one" / "deep" / "er")
    (tmp_path / "one" / "readme.txt").write_text("notes")
    (tmp_path / "one" / "deep" / "table.csv").write_text("a,b\n")
    code, answer, _ = ask(tmp_path / "one")
    assert code == 0
    assert isinstance(answer, dict)


def test_two_patients_are_two_answers_by_their_folders(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "tree" / "first", "1.2.8.1", patient="A")
    write_series(tmp_path / "tree" / "second", "1.2.8.2", patient="B", brain=140)
    code, answers, said = ask(tmp_path / "tree")
    assert code == 0
    assert [answer["series"] for answer in answers] == ["first", "second"]
    assert all(list(answer) == ["series", *LABELS, "decisions", "warnings"] for answer in answers)
    assert "2 series" in said
    alone = ask(tmp_path / "tree" / "second")[1]
    assert {label: answers[1][label] for label in LABELS} == {label: alone[label] for label in LABELS}


@pytest.mark.parametrize(
    ("second", "names"),
    [
        ({"uid": "1.2.8.2", "patient": "B"}, ["1.2.8.1", "1.2.8.2"]),
        ({"uid": "1.2.8.2", "patient": "A"}, ["1.2.8.1", "1.2.8.2"]),
        ({"uid": "1.2.8.1", "patient": "B"}, ["1.2.8.1", "1.2.8.1 (2)"]),
    ],
    ids=["patients", "series", "one UID for everybody"],
)
def test_what_lies_mixed_in_one_folder_is_told_apart(
    second: dict[str, str], names: list[str], ask: Ask, tmp_path: Path
) -> None:
    write_series(tmp_path / "flat", "1.2.8.1", patient="A")
    write_series(tmp_path / "flat", brain=140, **second)
    code, answers, said = ask(tmp_path / "flat")
    assert code == 0
    assert [answer["series"] for answer in answers] == names
    assert all(any(line.startswith("20 slices") for line in answer["decisions"]) for answer in answers)
    assert "2 series" in said


def test_series_that_cannot_be_used_are_named_and_the_others_answered(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "tree" / "head", "1.2.8.1")
    write_series(tmp_path / "tree" / "scout", "1.2.8.2", slices=range(2))
    (tmp_path / "tree" / "broken").mkdir()
    (tmp_path / "tree" / "broken" / "1.dcm").write_bytes(b"no DICOM at all")
    code, answers, said = ask(tmp_path / "tree")
    assert code == 0
    assert [answer["series"] for answer in answers] == ["head"]
    assert "not used: series scout: " in said
    assert "too_few_slices" in said
    assert "not used: series broken: " in said


def test_none_that_can_be_used_ends_with_exit_code_1_and_no_output(ask: Ask, tmp_path: Path) -> None:
    write_series(tmp_path / "tree" / "a", "1.2.8.1", slices=range(2))
    write_series(tmp_path / "tree" / "b", "1.2.8.2", slices=range(2))
    code, answers, said = ask(tmp_path / "tree")
    assert (code, answers) == (1, None)
    assert said.splitlines()[-1].startswith("error: ")
    (tmp_path / "empty").mkdir()
    code, answers, said = ask(tmp_path / "empty")
    assert (code, answers) == (1, None)
    assert said.count("\n") == 1
    assert "no DICOM" in said


def test_a_scan_that_is_neither_ct_nor_mr_is_refused(ask: Ask, tmp_path: Path) -> None:
    pet = "1.2.840.10008.5.1.4.1.1.128"
    write_series(tmp_path / "pet", SOPClassUID=pet, Modality="PT", RescaleIntercept=0)
    code, answer, said = ask(tmp_path / "pet")
    assert (code, answer) == (1, None)
    assert "unsupported_modality" in said or "neither CT nor MR" in said


def test_files_without_a_series_uid_are_taken_by_folder_as_the_gateway_gives_them(ask: Ask, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_series(tmp_path / "tree" / name, patient=name, SeriesInstanceUID=None)
    code, answers, _ = ask(tmp_path / "tree")
    assert code == 0
    assert [answer["series"] for answer in answers] == ["one", "two"]


def test_the_predictor_still_gives_fourteen_numbers_and_refuses_to_choose(model: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "tree" / "a", "1.2.8.1")
    write_series(tmp_path / "tree" / "b", "1.2.8.2", patient="B")
    predictor = Predictor(model)
    found = predictor(tmp_path / "tree" / "a")
    assert list(found) == list(LABELS)
    assert all(isinstance(value, float) for value in found.values())
    assert predictor.answer(tmp_path / "tree" / "a").probabilities == found
    with pytest.raises(UserError, match="2 series"):
        predictor(tmp_path / "tree")


def test_the_log_of_the_server_has_the_warnings(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SHARED", tmp_path / "shared")
    write_series(tmp_path / "hole")
    (tmp_path / "hole" / "A1.2.3_09.dcm").unlink()
    server.make_predict(model)(str(tmp_path / "hole"))
    assert "missing slices: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "FT", "SERIES", "--modle", "x"], "--modle"),
        (["predict", "FT"], "SERIES_FOLDER"),
        (["pedict", "FT", "SERIES"], "pedict"),
    ],
)
def test_a_misspelt_command_line_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


@pytest.mark.parametrize("name", ["predict", "report"])
def test_a_module_run_by_itself_is_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"finetune.{name}"])
    # Afterwards the package has the module that it had before: others patch it.
    monkeypatch.setattr(finetune, name, importlib.import_module(f"finetune.{name}"))
    monkeypatch.delitem(sys.modules, f"finetune.{name}")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"finetune.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert "arguments are required" in capsys.readouterr().err
