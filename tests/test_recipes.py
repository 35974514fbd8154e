"""Every pretraining recipe parses, and runs two steps at toy size."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from headspark.config import read_recipe
from headspark.recipe import Recipe
from headspark.run.folder import read_metrics, read_state
from headspark.train import train

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PLAIN = {path: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.rglob("*.yaml"))}
PRETRAINING = [path for path, plain in PLAIN.items() if not {"stages", "arms"} & set(plain)]  # no fine-tuning, no study
MAX_FEATURES = 8


def toy(recipe: Recipe) -> Recipe:
    """The same recipe with everything small that makes it slow; kinds, ratios, augmentation and optimizer stay."""
    stages = len(recipe.encoder.features)
    patch = 2 * max(recipe.mask.block, recipe.encoder.cumulative_strides[-1])
    return replace(
        recipe,
        data=replace(recipe.data, patch=patch, workers=0, val_share=0.3),
        encoder=replace(recipe.encoder, features=(MAX_FEATURES,) * stages, blocks=(1,) * stages),
        decoder=replace(recipe.decoder, width=MAX_FEATURES, max_width=MAX_FEATURES),
        optim=replace(recipe.optim, warmup=min(recipe.optim.warmup, 1)),
        train=replace(
            recipe.train, steps=2, batch=1, accumulate=min(recipe.train.accumulate, 2), threads=1, val_samples=1,
            log_every=1, probe_every=min(recipe.train.probe_every, 2), trackers=(), precision="fp32",
        ),
    )  # fmt: skip


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps_at_toy_size(path: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    assert train(toy(read_recipe(Recipe, path)), corpus=tiny_corpus, out=tmp_path / "run")
    assert read_state(tmp_path / "run")["status"] == "finished"
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2]


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_a_recipe_begins_with_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert set(yaml.safe_load(text)) <= {section.name for section in fields(Recipe)}
