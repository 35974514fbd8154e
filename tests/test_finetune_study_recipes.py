"""The arms of a study are the recipes that they are named for, shortened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.cli.study import main
from finetune.recipe import Recipe
from finetune.stages import StageConfig
from finetune.study import StudyConfig
from finetune.study.config import ArmConfig
from headspark.config import read_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ARMS = {
    "transfer_study": ("scratch", "lp_ft", "three_stage"),
    "transfer_study_full": ("scratch", "full_warmup", "lp_ft", "three_stage"),
}
TIMES = 10
"""The rates of an arm are so many times those of the recipe, for a network of this size."""


def amiss(arm: ArmConfig, recipe: Recipe) -> Iterator[str]:
    """In what the stages of an arm are not those of the recipe."""
    if [stage.name for stage in arm.stages] != [stage.name for stage in recipe.stages]:
        yield "stages"
        return
    epochs = sum(stage.epochs or 0 for stage in recipe.stages)
    for own, theirs in zip(arm.stages, recipe.stages, strict=True):
        assert own.steps is not None
        assert theirs.epochs is not None
        if abs(own.steps - arm.steps * theirs.epochs / epochs) > 0.5:
            yield f"{own.name}.steps"
        for name in ("head_lr", "encoder_lr"):
            if getattr(own, name) != pytest.approx(TIMES * getattr(theirs, name)):
                yield f"{own.name}.{name}"
        for name in ("layers", "layer_decay", "schedule"):
            if getattr(own, name) != getattr(theirs, name):
                yield f"{own.name}.{name}"
        # The recipe may say for all stages what the arm must say of each: the study's runs share the rest.
        whole = {"dropout": recipe.head.dropout, "weight_decay": recipe.train.weight_decay}
        for name, of_recipe in whole.items():
            wanted = getattr(theirs, name)
            if arm.name == "three_stage" and wanted is None:
                wanted = of_recipe
            if getattr(own, name) != wanted:
                yield f"{own.name}.{name}"
    if arm.name == "full_warmup":
        own, theirs = arm.stages[0], recipe.stages[0]
        if own.warmup / arm.steps != pytest.approx(theirs.warmup / epochs):
            yield f"{own.name}.warmup"


def arm_and_recipe(study: str, name: str) -> tuple[ArmConfig, Recipe]:
    config = read_recipe(StudyConfig, RECIPES / f"{study}.yaml")
    return config.arm(name), read_recipe(Recipe, RECIPES / f"rsna_{name}.yaml")


@pytest.mark.parametrize(("study", "name"), [(study, name) for study, names in ARMS.items() for name in names])
def test_an_arm_is_the_recipe_that_it_is_named_for(study: str, name: str) -> None:
    arm, recipe = arm_and_recipe(study, name)
    assert list(amiss(arm, recipe)) == []
    assert arm.pretrained == (name != "scratch")


@pytest.mark.parametrize(
    ("name", "number", "change"),
    [
        ("scratch", 0, {"head_lr": 1e-3}),
        ("scratch", 0, {"name": "every"}),
        ("lp_ft", 1, {"layer_decay": 1.0}),
        ("lp_ft", 1, {"encoder_lr": 3e-3}),
        ("lp_ft", 0, {"schedule": "poly"}),
        ("lp_ft", 0, {"dropout": 0.0}),
        ("three_stage", 1, {"layers": 1}),
        ("three_stage", 0, {"dropout": None}),
        ("three_stage", 2, {"weight_decay": None}),
        ("three_stage", 1, {"steps": 150}),
    ],
)
def test_an_arm_that_is_another_is_told(name: str, number: int, change: dict[str, Any]) -> None:
    arm, recipe = arm_and_recipe("transfer_study", name)
    stages: list[StageConfig] = list(arm.stages)
    stages[number] = replace(stages[number], **change)
    found = list(amiss(replace(arm, stages=tuple(stages)), recipe))
    (key,) = change
    assert (f"{stages[number].name}.{key}" if key != "name" else "stages") in found


def test_a_shorter_warm_up_of_the_full_one_is_told() -> None:
    arm, recipe = arm_and_recipe("transfer_study_full", "full_warmup")
    short = replace(arm, stages=(replace(arm.stages[0], warmup=60),))
    assert list(amiss(short, recipe)) == ["all.warmup"]


def test_the_fast_arms_end_at_the_rate_of_scratch() -> None:
    config = read_recipe(StudyConfig, RECIPES / "transfer_study.yaml")
    rate = config.arms[0].stages[-1].encoder_lr
    fast = [arm for arm in config.arms if arm.name.endswith("_fast")]
    assert fast
    for arm in fast:
        same = config.arm(arm.name.removesuffix("_fast"))
        assert (arm.stages[-1].head_lr, arm.stages[-1].encoder_lr) == (rate, rate)
        assert [(one.name, one.steps, one.layers) for one in arm.stages] == [
            (one.name, one.steps, one.layers) for one in same.stages
        ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "file"), "file: a file, not a folder; choose another --out"),
        (("--docs", "none.md"), "--docs none.md: no such file; give a page of Markdown that is there"),
        (("--docs", "file"), "--docs file: wants the lines"),
        (("--docs", "latin.md"), "--docs latin.md: no text in UTF-8"),
    ],
)
def test_what_cannot_be_written_to_is_refused_before_anything_is_run(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("latin.md").write_bytes("für".encode("latin-1"))
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not Path("study").exists()
