"""Every fine-tuning recipe is read as it stands, and runs at toy size from its first stage to the report."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_lines import check
from pages import commands

from finetune.predict import Predictor
from finetune.recipe import Recipe
from finetune.train import train
from harmonize.corpus import Corpus
from harmonize.labels import LABELS
from harmonize.scan import HU
from headspark.channels import to_network_input
from headspark.config import read_recipe, recipe_keys, to_yaml
from headspark.encoder import EncoderConfig
from headspark.run.claim import read_metrics

ROOT = Path(__file__).resolve().parents[1] / "recipes"
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
PLAIN = {path: yaml.safe_load(path.read_text()) for path in sorted(ROOT.rglob("*.yaml"))}
ALL = [path for path, plain in PLAIN.items() if "stages" in plain]
RECIPES = [path for path in ALL if PLAIN[path].get("task", {}).get("kind", "aneurysm") == "aneurysm"]
"""Those of other tasks run in the tests of these."""

TOY = EncoderConfig(features=(4, 4, 8), blocks=(1, 1, 1), strides=(1, 2, 2))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_the_same_after_writing_and_reading(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(Recipe, path)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert read_recipe(Recipe, tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_own_encoder(path: Path) -> None:
    recipe = read_recipe(Recipe, path)
    assert recipe.scratch.in_channels == recipe.view.channels(len(recipe.data.windows))
    arteries = to_network_input(torch.tensor([350.0, 450.0]), HU, recipe.data.windows)
    assert (arteries[:, 1] - arteries[:, 0]).max() > 0.2  # a tenth of the range
    if not recipe.view.pictures:
        strides = recipe.scratch.cumulative_strides
        assert recipe.head.stride in strides
        assert all(edge % strides[-1] == 0 for edge in recipe.data.patch)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_begins_with_what_it_is_for_and_with_commands_that_are_taken(path: Path) -> None:
    lines = path.read_text().partition("data:")[0].splitlines()
    assert lines[0].startswith("# ")
    code = "\n".join(line.removeprefix("#").removeprefix("  ") for line in lines if line.startswith("#   "))
    named = [words for words in commands(code) if words[0] in ("harmonize", "accelerate", "finetune")]
    for words in named:
        check(words)
    beside = (["harmonize", "phantom"], ["finetune", "roi"])
    made = [words for words in named if words[:2] not in beside]
    assert path.stem == "demo_rsna" or [words[0] for words in made[:2]] == ["harmonize", "accelerate"]
    assert all(f"recipes/{path.name}" in words for words in made[1:2])


def small(head: Any) -> Any:
    """A head of the same kind on the toy encoder."""
    keys = {"stride": 2, "width": 8}
    return replace(head, **{key: value for key, value in keys.items() if getattr(head, key, None) is not None})


def small_input(recipe: Recipe, finder: Path | None) -> dict[str, Any]:
    """View and encoder of the same kind for a tiny box, which a finder lays where the view wants one."""
    windows = len(recipe.data.windows)
    if not recipe.view.pictures:
        looks = {"view": replace(recipe.view, model=str(finder))} if hasattr(recipe.view, "model") else {}
        return {"scratch": replace(TOY, in_channels=windows), **looks}
    keys = {"size": 32, "slices": 5}
    view = replace(recipe.view, **{key: value for key, value in keys.items() if hasattr(recipe.view, key)})
    scratch: Any = replace(recipe.scratch, in_channels=view.channels(windows))
    return {"view": view, "scratch": replace(scratch, backbone="test_efficientnet")}


def toy(recipe: Recipe, finder: Path | None = None) -> Recipe:
    """The same recipe with everything small that makes it slow; kinds, rates, augmentation and optimizer stay."""
    return replace(
        recipe,
        **small_input(recipe, finder),
        data=replace(recipe.data, patch=(16, 16, 16), spacing=None, folds=2, workers=0),
        head=small(recipe.head),
        auxiliary=tuple(small(head) for head in recipe.auxiliary),
        stages=tuple(replace(one, steps=1, epochs=None, warmup=int(one.warmup > 0)) for one in recipe.stages),
        train=replace(
            recipe.train, precision="fp32", accumulate=min(recipe.train.accumulate, 2), threads=1, log_every=1
        ),
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_through_its_stages_to_the_report_and_to_a_prediction(
    path: Path, tmp_path: Path, finder_folder: Path
) -> None:
    shutil.copytree(FIXTURES / "corpus", tmp_path / "corpus")
    recipe, out = toy(read_recipe(Recipe, path), finder_folder), tmp_path / "run"
    assert train(recipe, corpus=Corpus.open(tmp_path / "corpus"), encoder_folder=None, out=out) is not None
    steps = [line for line in read_metrics(out) if "loss" in line]
    assert [line["stage"] for line in steps] == [stage.name for stage in recipe.stages]
    assert [line["layers"] == 0 for line in steps] == [stage.layers == 0 for stage in recipe.stages]
    page = (out / "report.html").read_text()
    assert all(label in page for label in LABELS)
    found = Predictor(out)(min((FIXTURES / "raw" / "rsna" / "series").iterdir()))
    assert list(found) == list(LABELS)
    assert all(0 < probability < 1 for probability in found.values())


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_has_the_keys_of_today(path: Path) -> None:
    plain = yaml.safe_load(path.read_text())
    written = {f"{section}.{key}" for section, keys in plain.items() if isinstance(keys, dict) for key in keys}
    assert written <= set(recipe_keys(Recipe))
