"""Recipes: typed, overridden by dots, refused by the key's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonize.errors import UserError
from headspark.config import from_plain, parse_recipe, read_recipe, recipe_parser, to_plain, to_yaml
from headspark.recipe import Recipe


def parse(*words: str) -> Recipe:
    return parse_recipe(recipe_parser(Recipe, prog="test", description=""), Recipe, words)[0]


def yaml(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = yaml(tmp_path, "optim:\n  lr: 3e-4\ntrain:\n  steps: 7\n  batch: 3\n")
    recipe = parse("--config", path, "--train.steps", "9", "--optim.betas", "[0.9, 0.95]")
    assert (recipe.train.steps, recipe.train.batch, recipe.optim.lr) == (9, 3, 3e-4)
    assert recipe.optim.betas == (0.9, 0.95)


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1e3", 1000.0), (".5", 0.5), ("2", 2.0)])
def test_numbers_are_numbers_however_they_are_written(tmp_path: Path, text: str, value: float) -> None:
    assert parse("--config", yaml(tmp_path, f"optim: {{lr: {text}}}")).optim.lr == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stepps", "3"], "unknown key --train.stepps on the command line; did you mean --train.steps"),
        (["--mask.ration=0.5"], "did you mean --mask.ratio"),
        (["--lr", "3e-4"], "did you mean --optim.lr?"),
        (["--batch_size", "4"], "did you mean --train.batch?"),
        (["--train.num_workers", "4"], "did you mean --data.workers?"),
        (["--train.steps", "many"], "train.steps: Expected a int. Got value: many"),
        (["--data.cache", "ramm"], "data.cache: Expected a Literal"),
        (["--data.patch", "40"], "data.patch 40: must be a multiple of mask.block 16"),
        (
            ["--data.patch", "48", "--mask.block", "24"],
            "data.patch 48: must be a multiple of the encoder's total stride 32",
        ),
        (["--data.patch", "64", "--mask.block", "64"], "leaves nothing to see"),
        (["--data.patch", "32"], "data.patch 32: must be twice the encoder's total stride 32 or more"),
        (["--mask.ratio", "1.0"], "mask.ratio"),
        (["--mask.ratio", "[0.9, 0.6]"], "mask.ratio"),
        (["--data.ct_windows", "[brain]"], "encoder.in_channels 3: data.ct_windows names 1 channels"),
        (["--data.ct_windows", "[lung, brain, bone]"], "data.ct_windows lung: use some of brain, blood, bone"),
        (["--optim.name", "adamx"], "optim.name adamx"),
        (["--train.probe_every", "5", "--train.probe_labels", "[age]"], "train.probe_labels age: use some of source"),
        (["--optim.warmup", "1000"], "optim.warmup 1000: must be less than train.steps 1000"),
        (["--train.ema", "1.5"], "train.ema 1.5"),
        (["--augment.scale", "[1.2, 0.8]"], "augment.scale"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(*words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_misspelt_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = yaml(tmp_path, "mask:\n  ration: 0.5\n")
    with pytest.raises(UserError, match=r"unknown key mask.ration in .*recipe.yaml; did you mean mask.ratio"):
        parse("--config", path)


@pytest.mark.parametrize("text", ["just words", "a: [", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="recipe"):
        parse("--config", yaml(tmp_path, text))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        parse("--config", "nowhere.yaml")


def test_weights_are_named_freely(tmp_path: Path) -> None:
    recipe = parse("--config", yaml(tmp_path, "data: {weights: {openmind: 1, deeplesion/CT: 0.1}}"))
    assert recipe.data.weights == {"openmind": 1.0, "deeplesion/CT": 0.1}


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    recipe = parse(
        "--mask.ratio", "[0.6, 0.9]", "--data.weights", "{CT: 2}", "--train.ema", "0.999", "--optim.lr", "1e-7"
    )
    assert read_recipe(Recipe, Path(yaml(tmp_path, to_yaml(recipe)))) == recipe
    assert from_plain(Recipe, to_plain(recipe)) == recipe
