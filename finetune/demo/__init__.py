"""Run the whole way on phantom scans: raw trees, corpus, pretraining, encoder, fine-tuning, prediction, report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from finetune.demo.page import write_report
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json
from harmonize.parser import Parser
from harmonize.terminal import hide_texts_of_errors, say, warn

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Where the demo lives and how large it is.

    Attributes:
        out: The folder of everything the demo writes.
        scans: Phantom scans of each pretraining source.
        labelled: Phantom RSNA series.
        size: Voxels along the longest axis of a raw phantom scan.
        seed: Seed of the phantom.
        pretrain: Dotted overrides of recipes/demo.yaml.
        finetune: Dotted overrides of recipes/demo_rsna.yaml.
        sources: To pretrain on.
    """

    out: Path
    scans: int = 8
    labelled: int = 96
    size: int = 96
    seed: int = 0
    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("openmind", "tcia", "deeplesion")

    @property
    def raw(self) -> Path:
        """Raw trees, one folder a source."""
        return self.out / "raw"

    @property
    def corpus(self) -> Path:
        """The corpus to pretrain on."""
        return self.out / "corpus"

    @property
    def corpus_rsna(self) -> Path:
        """The labelled corpus."""
        return self.out / "corpus_rsna"

    @property
    def run(self) -> Path:
        """The pretraining run."""
        return self.out / "run"

    @property
    def encoder(self) -> Path:
        """The exported encoder."""
        return self.out / "encoder"

    @property
    def model(self) -> Path:
        """The fine-tuning run."""
        return self.out / "finetuned"

    @property
    def report(self) -> Path:
        """The page."""
        return self.out / "report.html"


def run_demo(demo: Demo) -> None:
    """Run what is missing of the demo, then write the page and print the headline numbers.

    Every step is the command that a user would type. A step that is done already is not repeated.

    Raises:
        UserError: A step failed.
    """
    if Path.cwd() != ROOT:
        demo = replace(demo, out=demo.out.absolute())  # the commands run at the repository's root
    _refuse_foreign(demo.out)
    began = time.monotonic()
    seconds = _read_json(demo.out / "seconds.json")

    def step(name: str, title: str, commands: Sequence[Sequence[str]], *, done: bool) -> None:
        say("", f"== {title}" + (" (already there)" if done else ""))
        if done:
            return
        start = time.monotonic()
        for command in commands:
            _call(command)
        seconds[name] = time.monotonic() - start
        write_json(demo.out / "seconds.json", seconds)

    out = str(demo.out)
    counts = dict.fromkeys(demo.sources, demo.scans) | {"rsna": demo.labelled}
    missing = [name for name in counts if not (demo.raw / name).exists()]
    step(
        "phantom",
        "1/7 phantom: raw scans in the format of each source",
        [
            ["harmonize", "phantom", "--source", name, "--out", str(demo.raw), "--scans", str(counts[name]),
             "--size", str(demo.size), "--seed", str(demo.seed)]
            for name in missing
        ],
        done=not missing,
    )  # fmt: skip
    step(
        "harmonize",
        "2/7 harmonize: one corpus of RAS, isotropic NIfTI",
        [
            *(
                ["harmonize", name, str(demo.raw / name), "--out", str(demo.corpus), "--workers", "2"]
                for name in demo.sources
            ),
            ["harmonize", "rsna", str(demo.raw / "rsna"), "--out", str(demo.corpus_rsna), "--workers", "2"],
        ],
        done=False,
    )
    step(
        "verify",
        "3/7 verify: every row has its file, every file its row",
        [["harmonize", "verify", str(demo.corpus)], ["harmonize", "verify", str(demo.corpus_rsna)]],
        done=False,
    )
    step(
        "pretrain",
        "4/7 pretrain: masked modelling without labels",
        [["accelerate", "launch", "--quiet", "ssl/pretrain.py", "--config", "recipes/demo.yaml",
          "--corpus", str(demo.corpus), "--out", str(demo.run), *demo.pretrain]],
        done=_finished(demo.run),
    )  # fmt: skip
    step(
        "push",
        "5/7 push: the encoder as a Hugging Face folder",
        [["python", "ssl/push.py", str(demo.run), "--out", str(demo.encoder)]],
        done=(demo.encoder / "config.json").exists(),
    )
    step(
        "finetune",
        "6/7 fine-tune: aneurysm detection in three stages",
        [["accelerate", "launch", "--quiet", "-m", "finetune.train", "--config", "recipes/demo_rsna.yaml",
          "--corpus", str(demo.corpus_rsna), "--encoder", str(demo.encoder), "--out", str(demo.model), *demo.finetune]],
        done=_finished(demo.model),
    )  # fmt: skip
    say("", "== 7/7 predict one series, and draw the report")
    series = _series_to_predict(demo)
    prediction = json.loads(_call(["finetune", "predict", str(demo.model), str(series)], capture=True))
    headline = write_report(demo, series=series.name, prediction=prediction, seconds=seconds)
    say("", *(f"  {name:<44} {value}" for name, value in headline))
    say("", f"{out}: done in {time.monotonic() - began:.0f} s; open {demo.report}")


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that the demo did not begin: it would write its report over somebody's.

    Raises:
        UserError: With exit code 2.
    """
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
        foreign = sorted(names - {"raw"})  # the first step fills that, and then seconds.json is written
        if foreign and not {"raw", "seconds.json"} <= names:
            raise WrongUse(f"{out}: holds {foreign[0]}, which the demo did not write; give --out a new folder")
    elif out.exists() or out.is_symlink():
        raise WrongUse(f"{out}: no folder; give --out a new one")


def _series_to_predict(demo: Demo) -> Path:
    """A validation series that holds an aneurysm, so that the picture has something to show."""
    predictions = pd.read_parquet(demo.model / "predictions.parquet")
    scans = Corpus.open(demo.corpus_rsna).scans.set_index("scan_id")
    positive = [scan for scan in predictions["scan_id"] if scans.loc[scan, "labels"][-1] == 1]
    chosen = (positive or list(predictions["scan_id"]))[0]
    return demo.raw / "rsna" / "series" / str(chosen)


def _finished(run: Path) -> bool:
    return _read_json(run / "run.json").get("status") == "finished"


def _read_json(path: Path) -> dict[str, float]:
    return json.loads(path.read_text()) if path.exists() else {}


def _call(command: Sequence[str], *, capture: bool = False) -> str:
    """Run a command of this environment at the repository's root, showing it as a user would type it."""
    say(f"$ {shlex.join(command)}")
    program = Path(sys.executable).parent / command[0]
    # Idle OpenMP threads must sleep: spinning, they would take the cores from the data workers.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    output = subprocess.PIPE if capture else None
    done = subprocess.run([str(program), *command[1:]], cwd=ROOT, env=environment, text=True, stdout=output)
    if done.returncode:
        raise UserError(f"demo: `{shlex.join(command)}` ended with {done.returncode}; fix that, then run it again")
    return done.stdout or ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m finetune.demo``."""
    hide_texts_of_errors()
    parser = Parser(prog="finetune.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything the demo writes")
    try:
        run_demo(Demo(out=parser.parse_args(arguments).out))
    except UserError as error:
        warn(f"error: {error}")
        return error.exit_code
    return 0
