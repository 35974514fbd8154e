"""Every fine-tuning recipe is read as it stands, and runs at toy size through all of its stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from finetune.recipe import Recipe
from finetune.samples import FinetuneBatch, TrainingSamples, join
from finetune.stages import rates_at, total_steps
from finetune.state import prepare, stages_of_run
from finetune.tasks.aneurysm import Case
from finetune.train import train_step
from finetune.views.box import Findings, Region
from harmonize.labels import LABELS, PRESENT
from harmonize.scan import HU, Annotations
from harmonize.voxels.stored import StoredVolume
from headspark.config import read_recipe, to_yaml
from headspark.encoder import EncoderConfig
from headspark.run.interrupt import Interrupt

ROOT = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = [path for path in sorted(ROOT.rglob("*.yaml")) if "stages" in yaml.safe_load(path.read_text())]
TOY = EncoderConfig(features=(4, 4, 8), blocks=(1, 1, 1), strides=(1, 2, 2))


class Noise:
    """A store of one series of noise."""

    cases = (
        Case(
            scan_id="1", subject="1", modality="CTA", unit=HU, image=Path("none"), vessels=None,
            foreground_box=(0, 16, 0, 16, 0, 16), annotations=Annotations(
                labels={name: int(name in (LABELS[0], PRESENT)) for name in LABELS}
            ),
        ),
    )  # fmt: skip

    def __getitem__(self, number: int) -> Region:
        return Region(
            volume=StoredVolume(
                stored_XYZ=np.random.default_rng(0).integers(-100, 300, (16, 16, 16)).astype(np.int16),
                affine=np.diag([2.0, 2.0, 2.0, 1.0]),
            ),
            fill=-1024.0, unit=HU, start=(0, 0, 0),
            findings=Findings(
                points_K3=np.array([[8.0, 8.0, 8.0]]), places_K=np.array([0]), vessels_XYZ=None,
                labels_14=np.array(self.cases[0].labels),
            ),
        )  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_same_after_writing_and_reading(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(Recipe, path)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert read_recipe(Recipe, tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_own_encoder(path: Path) -> None:
    recipe = read_recipe(Recipe, path)
    strides = recipe.scratch.cumulative_strides
    assert recipe.head.stride in strides
    assert all(edge % strides[-1] == 0 for edge in recipe.data.patch)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step_in_each_stage_at_toy_size(path: Path) -> None:
    recipe = read_recipe(Recipe, path)
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, patch=(16, 16, 16), workers=0),
        scratch=TOY,
        head=dataclasses.replace(recipe.head, stride=2, coarsest=None, width=8),
        stages=tuple(
            dataclasses.replace(one, steps=1, epochs=None, warmup=min(one.warmup, 1)) for one in recipe.stages
        ),
        train=dataclasses.replace(recipe.train, precision="fp32"),
    )
    state = prepare(recipe, stages_of_run(recipe, epoch=1), Accelerator(cpu=True), None)
    samples = TrainingSamples(Noise(), state.data, recipe.augment, stride=2, seed=0)  # type: ignore[arg-type]
    batch: FinetuneBatch = join([samples[0], samples[1]])
    for step in range(total_steps(recipe.stages)):
        result = train_step(state, iter([batch] * recipe.train.accumulate), Interrupt())
        assert np.isfinite(result.numbers["loss"])
        frozen = rates_at(step, recipe.stages, len(state.unwrapped.layers)).encoder[0] is None
        stem = next(state.unwrapped.encoder.parameters())
        assert stem.requires_grad != frozen
    assert torch.isfinite(state.unwrapped.shift_14).all()
