"""Run the whole way on phantom scans: raw trees, corpus, pretraining, encoder, fine-tuning, prediction, report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json
from harmonize.parser import Parser
from harmonize.terminal import hide_texts_of_errors, say, warn

SPACING_MM = 2
"""Of both corpora: the phantoms' raw voxels are as large, and finer ones would cost eight times as much."""

CPU_FACTS = Path("/proc/cpuinfo")
"""What Linux says of the processor."""

MODULES = {"harmonize": "harmonize", "headspark": "headspark.cli", "finetune": "finetune.cli"}
"""What runs each console script, wherever that was installed."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of the demo: the commands that a user would type.

    Attributes:
        name: In seconds.json.
        title: For people.
        commands: In their order.
        done: Whether an earlier call did all of it.
    """

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...]
    done: bool = False


def run_demo(demo: Demo) -> None:
    """Run what is missing of the demo, then write the page and print the headline numbers.

    Every step is the command that a user would type. A step that is done already is not repeated.

    Raises:
        UserError: A step failed.
    """
    _refuse_foreign(demo.out)
    began = time.monotonic()
    seconds = _read_json(demo.out / "seconds.json")
    steps = steps_of(demo)
    for number, step in enumerate(steps, start=1):
        say("", f"== {number}/{len(steps) + 1} {step.title}" + (" (already there)" if step.done else ""))
        if step.done:
            continue
        start = time.monotonic()
        for command in step.commands:
            _call(command)
        seconds[step.name] = time.monotonic() - start
        write_json(demo.out / "seconds.json", seconds)
    say("", f"== {len(steps) + 1}/{len(steps) + 1} predict one series, and draw the page")
    series = _series_to_predict(demo)
    start = time.monotonic()
    predict = ("finetune", "predict", str(demo.model), str(series))
    prediction = json.loads(_call(predict, capture=True))
    seconds["predict"] = time.monotonic() - start
    steps = (*steps, Step(name="predict", title="predict: the 14 labels of one series", commands=(predict,)))

    from finetune.demo.page import write_report  # loads torch and matplotlib, which --help need not wait for

    headline = write_report(demo, series=series.name, prediction=prediction, steps=steps, seconds=seconds)
    say("", *(f"  {name:<54} {value}" for value, name in headline))
    say("", f"{demo.out}: done in {time.monotonic() - began:.0f} s; open {demo.report}")


def steps_of(demo: Demo) -> tuple[Step, ...]:
    """The commands up to the fine-tuned model, and what of them was done before."""
    counts = dict.fromkeys(demo.sources, demo.scans) | {"rsna": demo.labelled}
    missing = [name for name in counts if not (demo.raw / name).exists()]
    size = ("--size", str(demo.size), "--seed", str(demo.seed))
    easy = {"rsna": ("--difficulty", "easy")}  # what can be learned of a few series in minutes
    grid = ("--spacing", str(SPACING_MM))
    corpora = [(name, demo.corpus) for name in demo.sources] + [("rsna", demo.corpus_rsna)]
    return (
        Step(
            name="phantom",
            title="phantom: raw scans in the format of each source",
            commands=tuple(
                ("harmonize", "phantom", "--source", name, "--out", str(demo.raw), "--scans", str(counts[name]), *size,
                 *easy.get(name, ()))
                for name in missing or counts
            ),
            done=not missing,
        ),
        Step(
            name="harmonize",
            title="harmonize: one corpus of RAS, isotropic NIfTI",
            commands=tuple(
                ("harmonize", name, str(demo.raw / name), "--out", str(corpus), *grid) for name, corpus in corpora
            ),
        ),
        Step(
            name="verify",
            title="verify: every row has its file, every file its row",
            commands=tuple(("harmonize", "verify", str(corpus)) for corpus in (demo.corpus, demo.corpus_rsna)),
        ),
        Step(
            name="pretrain",
            title="pretrain: masked modelling without labels",
            commands=(
                ("headspark", "pretrain", "--config", "recipes/demo.yaml", "--corpus", str(demo.corpus),
                 "--out", str(demo.run), *_precision(), *demo.pretrain),
            ),
            done=_finished(demo.run),
        ),
        Step(
            name="push",
            title="push: the encoder as a Hugging Face folder",
            commands=(("headspark", "push", str(demo.run), "--out", str(demo.encoder)),),
            done=(demo.encoder / "config.json").exists(),
        ),
        Step(
            name="finetune",
            title="fine-tune: aneurysm detection in three stages",
            commands=(
                ("finetune", "train", "--config", "recipes/demo_rsna.yaml", "--corpus", str(demo.corpus_rsna),
                 "--encoder", str(demo.encoder), "--out", str(demo.model), *_precision(), *demo.finetune),
            ),
            done=_finished(demo.model),
        ),
    )  # fmt: skip


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


def _precision() -> tuple[str, ...]:
    """bf16 where the processor multiplies matrices of it; elsewhere it is slower than fp32."""
    try:
        flags = CPU_FACTS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    return ("--train.precision", "bf16") if " amx_bf16" in flags else ()


def _call(command: Sequence[str], *, capture: bool = False) -> str:
    """Run a command of this environment, showing it as a user would type it."""
    say(f"$ {shlex.join(command)}")
    # Idle OpenMP threads must sleep: spinning, they would take the cores from the data workers.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    words = [sys.executable, "-m", MODULES[command[0]], *command[1:]]
    done = subprocess.run(words, env=environment, text=True, stdout=subprocess.PIPE if capture else None)
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
