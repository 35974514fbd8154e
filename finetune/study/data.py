"""The heads of a study: phantom trees, and the corpora that become of them, by the commands that a user would type."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.study.config import StudyConfig
from finetune.study.table import INSIDE, OUTSIDE, PAIRS
from harmonize.cli import main as harmonize
from harmonize.errors import UserError
from harmonize.files import write_json
from harmonize.phantom.rsna.tables import BESIDE
from harmonize.terminal import say

RAW, CORPORA = "raw", "corpora"
UNLABELLED = "unlabelled"
"""The corpus to pretrain on: the images of all labelled series, and further heads."""

RSNA = "rsna"
FIRST = 10
"""Added to the seed of a study for the labelled trees; smaller numbers are those of the other trees."""

SPARE = 1.06
"""Labelled series that are written for each that is wanted: folds are not all of one size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A phantom tree.

    Attributes:
        name: Of its folder in ``raw/``.
        series: In it.
        seed: Its own.
        options: Of ``harmonize phantom``, besides those.
        corpora: What it becomes: folders in ``corpora/``.
    """

    name: str
    series: int
    seed: int
    options: tuple[str, ...]
    corpora: tuple[str, ...]


def labelled_name(seed: int) -> str:
    """Of the tree and the corpus of the labelled series of a seed."""
    return f"labelled_{seed}"


def trees(config: StudyConfig, *, folds: int) -> list[Tree]:
    """The trees of a study, in the order in which they are written.

    Args:
        config: The study's.
        folds: Of its fine-tunings: one of them is held out of each labelled corpus.
    """
    data = config.data
    labelled = math.ceil(max(config.design.labels) * folds / (folds - 1) * SPARE)
    pairs = 2 * data.pairs if data.counterfactuals else 0
    wanted: list[tuple[str, int, tuple[str, ...], int]] = [
        *((labelled_name(seed), labelled, (), FIRST + seed) for seed in config.design.seeds),
        (UNLABELLED, data.unlabelled, (), 3),
        (INSIDE, data.inside, (), 0),
        (OUTSIDE, data.outside_series, data.outside, 1),
        (PAIRS, pairs, data.counterfactuals, 2),
    ]
    return [
        Tree(
            name=name,
            series=series,
            seed=data.seed + number,
            options=(*data.phantom, *options),
            corpora=tuple(dict.fromkeys((name, UNLABELLED) if number >= FIRST else (name,))),
        )
        for name, series, options, number in wanted
        if series
    ]


def commands(config: StudyConfig, tree: Tree, out: Path) -> Iterator[tuple[str, ...]]:
    """What writes a tree, then what makes its corpora.

    Args:
        config: The study's.
        tree: One of `trees`.
        out: The study's folder.
    """
    raw = out / RAW / tree.name
    yield (
        "harmonize", "phantom", "--source", RSNA, "--out", str(raw), "--scans", str(tree.series),
        "--size", str(config.data.size), "--seed", str(tree.seed), *tree.options,
    )  # fmt: skip
    for name in tree.corpora:
        yield ("harmonize", RSNA, str(raw / RSNA), "--out", str(out / CORPORA / name), *config.data.harmonize)


def make(config: StudyConfig, out: Path, *, folds: int) -> None:
    """Write what is missing of the corpora; a tree whose corpora are whole is not written again.

    Args:
        config: The study's.
        out: Its folder.
        folds: As for `trees`.

    Raises:
        UserError: A command failed.
    """
    for tree in trees(config, folds=folds):
        done, raw = _done(out, tree), out / RAW / tree.name / RSNA
        if done.exists():
            continue
        words = list(commands(config, tree, out))
        if not raw.exists():  # tables are written before the tree has its name: these are of one that was stopped
            for table in BESIDE:
                beside(out, tree.name, table).unlink(missing_ok=True)
        for command in words[1:] if raw.exists() else words:
            say(f"$ {shlex.join(command)}")
            code = harmonize(command[1:])
            if code:
                said = "did not come to its end, as said above; the same study goes on from here"
                raise UserError(f"study: `{shlex.join(command)}` {said}")
        write_json(done, {"series": tree.series, "commands": [shlex.join(command) for command in words]})
        if not config.data.keep_raw:
            shutil.rmtree(raw)


def corpus_path(out: Path, name: str) -> Path:
    """Of a corpus of the study."""
    return out / CORPORA / name


def beside(out: Path, name: str, table: str) -> Path:
    """A table that the phantom wrote beside a tree; it stays when the tree is deleted."""
    return out / RAW / name / table


def _done(out: Path, tree: Tree) -> Path:
    return out / RAW / tree.name / "done.json"
