"""The demo, whole but tiny: every command of the README runs, the page holds every picture, nothing is done twice."""

from __future__ import annotations

import html
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.demo import Demo, run_demo, steps_of
from finetune.evaluation import evaluate, read
from finetune.evaluation.compare import SCORE, scores_of
from finetune.evaluation.text import interval
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.labels import LABELS

TINY_PRETRAINING = "--train.steps 2 --data.patch 32 --data.workers 0 --train.val_samples 1 --optim.warmup 0"
STAGES = (
    '[{"name": "head", "steps": 1, "head_lr": 1e-3}, '
    '{"name": "all", "steps": 1, "head_lr": 1e-3, "encoder_lr": 1e-3, "layers": "all"}]'
)
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
    for heading in (
        "one corpus",
        "Intensities",
        "said",
        "Pretraining",
        "Fine-tuning",
        "How good",
        "One series",
        "cost",
    ):
        assert re.search(rf"<h2>\d\. [^<]*{heading}", page)
    captions = re.findall(r"<figure><img [^>]+><figcaption>(.+?)</figcaption>", page)
    assert len(captions) == page.count("data:image/png;base64,") >= 18  # each picture has its sentence
    assert all(len(text) > 30 and text.endswith(".") for text in captions)
    commands = [html.unescape(text) for text in re.findall(r"<pre>(.+?)</pre>", page, re.DOTALL)]
    typed = re.findall(r"^\$ (.+)$", first, re.MULTILINE)
    assert sorted(typed) == sorted(line for text in commands for line in text.splitlines())
    assert "http://" not in page
    assert "https://" not in page
    assert all(label in page for label in LABELS)
    assert "AUC within modality, aneurysm present" in first
    predictions = read(demo.model, corpus=Corpus.open(demo.corpus_rsna))
    within, score = evaluate(predictions).within.mean, scores_of(predictions)[SCORE]
    for name, one in (("competition score, held-out series", score), ("AUC within modality, aneurysm present", within)):
        value = "-" if math.isnan(one.value) else f"{one.value:.2f}"
        known = not math.isnan(one.value) and not math.isnan(one.interval.low)
        between = f"; 95 % range {one.interval.low:.2f} to {one.interval.high:.2f}" if known else ""
        assert f"<b>{value}</b><span>{name}{between}</span>" in page
    assert interval(within) in page
    assert set(Corpus.open(demo.corpus).scans["spacing"].map(tuple)) == {(2.0, 2.0, 2.0)}

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
    assert calls[0][:4] == [sys.executable, "-m", "harmonize", "phantom"]
    assert calls[0][calls[0].index("--out") + 1] == "demo/raw"
    assert not (tmp_path / "demo/raw").exists()


@pytest.mark.parametrize(
    ("flags", "given"),
    [("fpu sse2 avx512_bf16 amx_bf16 amx_tile", True), ("fpu sse2 avx512_bf16", False), (None, False)],
)
def test_bf16_is_taken_where_the_processor_multiplies_matrices_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, given: bool
) -> None:
    known = tmp_path / "cpuinfo"
    if flags is not None:
        known.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("finetune.demo.CPU_FACTS", known)
    trained = [step.commands[0] for step in steps_of(Demo(out=tmp_path)) if step.name in ("pretrain", "finetune")]
    assert [command[-2:] == ("--train.precision", "bf16") for command in trained] == [given, given]
