"""What a report is about: the recipe, the fold, the encoder and the corpus of a run, or of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe
from finetune.stages import StageConfig
from harmonize.corpus import Corpus
from harmonize.page import Page
from headspark.config import read_recipe
from headspark.run.folder import RECIPE

SHOWN_DIGITS = 12
"""Of a hash: as many tell all corpora and encoders of a lab apart."""


def add_run(page: Page, states: Sequence[tuple[Mapping[str, Any], Path]], corpus: Corpus | None) -> None:
    """Add a table of what was trained on what.

    Args:
        page: The report.
        states: run.json of the run, or of each fold, with its folder.
        corpus: As it is now; None: it is not at hand, and known by the hash of its manifest alone.
    """
    page.table(["what", "value"], run_facts(states, corpus))


def run_facts(states: Sequence[tuple[Mapping[str, Any], Path]], corpus: Corpus | None) -> list[tuple[str, str]]:
    """(what, value) of what was trained on what.

    Raises:
        UserError: The recipe of a run is damaged.
    """
    state, folder = states[0]
    origin = state.get("origin") or {}
    facts = [("encoder", _encoder(origin.get("encoder"))), ("corpus", _corpus(origin.get("corpus"), corpus))]
    if not (folder / RECIPE).is_file():
        return facts
    recipes = [read_recipe(Recipe, path / RECIPE) for _, path in states]
    recipe = recipes[0]
    held_out = ", ".join(str(one.data.fold) for one in recipes)
    stages = ", ".join(f"{stage.name} ({_length(stage)})" for stage in recipe.stages)
    place = RECIPE if len(states) == 1 else f"{folder.name}/{RECIPE}"
    return [
        ("task", recipe.task.kind),
        ("recipe", f"{place}: {recipe.view.kind} view, {recipe.head.kind} head, stages {stages}"),
        ("held out", f"fold{'s' if len(recipes) > 1 else ''} {held_out} of {recipe.data.folds}"),
        *facts,
    ]


def _encoder(facts: Mapping[str, Any] | str | None) -> str:
    if facts is None:
        return "none: trained from scratch"
    if isinstance(facts, str):  # version 0.1.0 knew it by its folder
        return Path(facts).name
    return f"{facts['name']}, weights {facts['sha256'][:SHOWN_DIGITS]}"


def _corpus(sha256: str | None, corpus: Corpus | None) -> str:
    trained_on = "unknown" if sha256 is None else sha256[:SHOWN_DIGITS]
    if corpus is None:
        return f"manifest {trained_on}"
    now = corpus.manifest_sha256()
    changed = "" if now == sha256 else f"; it has changed since, its manifest is {now[:SHOWN_DIGITS]} now"
    return f"{corpus.path.resolve().name}, manifest {trained_on}{changed}"


def _length(stage: StageConfig) -> str:
    return f"{stage.steps} steps" if stage.epochs is None else f"{stage.epochs:g} epochs"
