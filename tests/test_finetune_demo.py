"""The demo, whole but tiny: every command of the README runs, the page holds every picture, nothing is done twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from finetune.demo import Demo, run_demo
from harmonize.errors import UserError
from harmonize.labels import LABELS

TINY_PRETRAINING = "--train.steps 2 --data.patch 32 --data.workers 0 --train.val_samples 1 --optim.warmup 0"
STAGES = """[{"name": "head", "steps": 1, "head_lr": 1e-3}, {"name": "all", "steps": 1, "head_lr": 1e-3,
              "encoder_lr": 1e-3, "layers": "all"}]"""
TINY_FINETUNE = ("--stages", STAGES, "--data.patch", "[32, 32, 32]", "--data.folds", "2", "--train.batch", "1")


@pytest.mark.timeout(900)
def test_a_tiny_demo_ends_with_a_report_and_is_reused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo = Demo(
        out=tmp_path / "demo",
        scans=2,
        labelled=8,
        size=56,
        pretrain=tuple(TINY_PRETRAINING.split()),
        finetune=TINY_FINETUNE,
    )
    run_demo(demo)
    first = capfd.readouterr().out
    page = demo.report.read_text()
    for heading in ("before and after", "Intensities", "Pretraining", "Fine-tuning in stages", "One prediction"):
        assert heading in page
    assert page.count("data:image/png;base64,") >= 9
    assert "http://" not in page
    assert "https://" not in page
    assert all(label in page for label in LABELS)
    assert "AUC, aneurysm present" in first

    weights = (demo.model / "model.safetensors").stat().st_mtime_ns
    run_demo(demo)
    assert capfd.readouterr().out.count("(already there)") == 4
    assert (demo.model / "model.safetensors").stat().st_mtime_ns == weights


def test_a_folder_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "seconds.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds report\.html, which the demo did not write") as error:
        run_demo(Demo(out=tmp_path))
    assert error.value.exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "seconds.json"}
    with pytest.raises(UserError, match="no folder"):
        run_demo(Demo(out=tmp_path / "report.html"))


def test_the_demo_is_written_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def stop(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ended with 3"):
        run_demo(Demo(out=Path("demo")))
    assert calls[0][calls[0].index("--out") + 1] == str(tmp_path / "demo/raw")
