"""Models asked about a corpus that they know nothing of: ADAM's, whose aneurysms have places and no sites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standin_series import save_model
from test_source_adam import BALL, COIL, case

from finetune.cli import main as finetune
from harmonize.cli import main as harmonize


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adam")
    case(root / "raw", "10001B", location="11.5, 21.5, 8.5, 2.25\n", marks={1: BALL})
    case(root / "raw", "10001F", location="11.5, 21.5, 8.5, 6\n", marks={1: BALL, 2: COIL})
    case(root / "raw", "10003", location="", marks={2: COIL})
    case(root / "raw", "20001", location="", marks={})
    case(root / "raw", "20002", location="")
    case(root / "raw", "20003", location=None)
    assert harmonize(["adam", str(root / "raw"), "--out", str(root / "ADAM"), "--spacing", "2"]) == 0
    return root / "ADAM"


def test_presence_hits_and_froc_of_another_corpus_come_from_one_command(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "FT")
    capsys.readouterr()
    assert finetune(["evaluate", str(model), "--outside", str(corpus), "--draws", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["series"], found["patients"], found["overall"]) == (4, 3, "Aneurysm Present")
    # What was treated is no example of either, and where nobody knows whether there is one, nothing is true.
    assert found["notes"] == [
        "left out: 1 whose points cannot be read",
        "left out: 1 with nothing but what was treated",
    ]
    assert 0 <= found["within_modality_auc"]["pooled"]["value"] <= 1
    where = found["localisation"]
    assert (where["series"], where["findings"]) == (4, 2)
    assert where["hit_rate"]["count"] == 2
    assert set(where["sizes"]) == {"3 to 5 mm", "10 mm and more"}
    assert where["sites"] == {}
    assert set(where["froc"]) == {"0.125", "0.25", "0.5", "1", "2", "4", "8"}
    assert finetune(["evaluate", str(model), "--outside", str(corpus), "--draws", "20"]) == 0
    assert "Hit rate within 5 mm" in capsys.readouterr().out


def test_what_does_not_fit_the_outside_test_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "FT")
    assert finetune(["evaluate", str(model), "--outside", str(corpus), "--truth", "t.csv"]) == 2
    assert "--truth: not allowed with argument --outside" in capsys.readouterr().err
    assert finetune(["evaluate", "--outside", str(corpus), "--predictions", "p.csv"]) == 2
    only_ct = save_model(tmp_path / "CT", modalities=("CT",))
    assert finetune(["evaluate", str(only_ct), "--outside", str(corpus)]) == 1
    assert "of MR, which none of the models is for" in capsys.readouterr().err
