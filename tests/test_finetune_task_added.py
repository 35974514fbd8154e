"""A task of one's own is one file and one recipe: it trains, is judged and predicts by the commands that there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TASK = '''
"""Whether a scan is of a woman, as the manifest says it."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from finetune.series import Case, Selection
from finetune.tasks.table import TableConfig, TableTask


@dataclass(frozen=True, slots=True, kw_only=True)
class SexConfig:
    kind: Literal["sex"] = "sex"


class SexTask(TableTask):
    def __init__(self, config=None):
        super().__init__(TableConfig(asks="binary", labels=("woman",), sources=("openmind", "tcia"), modalities=("CT", "T1w")))

    def cases(self, corpus, *, labels=None, every_label=False):
        return Selection(cases=[self.case(corpus, row) for row in corpus.scans.to_dict("records")], left_out=Counter())

    @staticmethod
    def case(corpus, row):
        return Case(
            scan_id=row["scan_id"], subject=row["subject"], modality=row["modality"], unit=row["unit"], mask=None,
            image=corpus.path / row["image_file_name"], foreground_box=tuple(map(int, row["foreground_box"])),
            labels=(float(row["sex"] == "F"),), shape=tuple(map(int, row["shape"])),
            spacing=tuple(map(float, row["spacing"])), sha256=row["sha256"], source=row["source"],
        )


KIND = (SexConfig, SexTask)
'''  # noqa: E501

RECIPE = """
task: {kind: sex}
data: {patch: [16, 16, 16], folds: 2, workers: 0}
scratch: {features: [4, 8], blocks: [1, 1], strides: [1, 2]}
head: {kind: global}
losses: [{kind: classes}]
stages: [{name: all, steps: 2, head_lr: 1.0e-3, encoder_lr: 1.0e-3, layers: all}]
train: {batch: 2, threads: 1, log_every: 1}
"""

COMMANDS = """
import sys, finetune.tasks
finetune.tasks.__path__.append(sys.argv[1])
from finetune.cli import main
for words in ({train}, {evaluate}):
    assert main(words) == 0
"""


def test_a_task_of_ones_own_is_one_file_and_one_recipe(tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sex.py").write_text(TASK)
    (tmp_path / "sex.yaml").write_text(RECIPE)
    corpus, run = str(tiny_corpus), str(tmp_path / "run")
    train = ["train", "--config", str(tmp_path / "sex.yaml"), "--corpus", corpus, "--out", run]
    code = COMMANDS.format(train=train, evaluate=["evaluate", run, "--corpus", corpus, "--json"])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tasks")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert list(found["labels"]) == ["woman"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["labels"] == ["woman"]
    assert "Measures</h2>" in (tmp_path / "run" / "report.html").read_text()
