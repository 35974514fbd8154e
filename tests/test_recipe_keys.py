"""One vocabulary: a key that pretraining and fine-tuning share means the same in both."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.augment import AugmentConfig as BoxAugmentConfig
from finetune.augment import draw_pose
from finetune.cli import main as finetune
from finetune.recipe import Recipe as FinetuneRecipe
from finetune.study.config import StudyConfig
from harmonize.errors import WrongUse
from headspark.cli import main
from headspark.config import parse_recipe, read_recipe, recipe_parser
from headspark.config.shipped import SECTIONS, shipped_recipes
from headspark.data.augment import AugmentConfig, draw_variation
from headspark.recipe import Recipe

STORED = Path(__file__).parent / "fixtures" / "v0_1_0"
KINDS = [Recipe, FinetuneRecipe]
SHARED = {"data": {"workers"}, "augment": {"scale", "rotate", "mirror", "contrast", "noise"}, "train": {"ema", "batch"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("section", ["data", "augment", "train"])
def test_a_shared_key_has_one_type_and_stands_once(section: str) -> None:
    hints: list[dict[str, Any]] = [typing.get_type_hints(typing.get_type_hints(kind)[section]) for kind in KINDS]
    shared = hints[0].keys() & hints[1].keys() - {"patch"}  # a patch here, a box there, each said by its own recipe
    assert (
        shared >= {"data": {"workers"}, "augment": {"scale", "rotate", "mirror", "contrast"}, "train": {"ema"}}[section]
    )
    assert {name: hints[0][name] for name in shared} == {name: hints[1][name] for name in shared}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", ["0", "null", "0.0"])
def test_a_moving_average_is_switched_off_alike(kind: Any, written: str, tmp_path: Path) -> None:
    recipe = read_recipe(kind, write(tmp_path, f"train: {{ema: {written}}}"))
    assert recipe.train.ema is None
    assert recipe == kind(train=dataclasses.replace(kind().train, ema=None))
    with pytest.raises(WrongUse, match=r"train\.ema 1\.0: must be 0, or lie between 0 and 1"):
        read_recipe(kind, write(tmp_path, "train: {ema: 1.0}"))


def edges(scale: float | tuple[float, float], seed: int) -> tuple[float, float]:
    """How many times the patch a sample spans, in pretraining and in fine-tuning."""
    matrix = draw_variation(np.random.default_rng(seed), AugmentConfig(rotate=20.0, scale=scale)).matrix
    pose = draw_pose(BoxAugmentConfig(rotate=20.0, scale=scale), np.random.default_rng(seed))
    assert matrix is not None
    return abs(np.linalg.det(matrix)) ** (1 / 3), abs(np.linalg.det(pose.linear)) ** (1 / 3)


@pytest.mark.parametrize(
    ("scale", "smallest", "largest"), [(0.2, 0.8, 1.2), ((0.5, 2.0), 0.5, 2.0), ((0.8, 1.0), 1.0, 1.25)]
)
def test_scale_means_the_same_size(scale: float | tuple[float, float], smallest: float, largest: float) -> None:
    drawn = np.array([edges(scale, seed) for seed in range(200)])
    assert np.allclose(drawn[:, 0], drawn[:, 1]), "the same draws, for both draw three angles first"
    assert drawn.min() == pytest.approx(smallest, rel=0.03)
    assert drawn.max() == pytest.approx(largest, rel=0.03)


def test_mirror_is_a_chance_in_both() -> None:
    never, always = (BoxAugmentConfig(mirror=chance) for chance in (0.0, 1.0))
    assert not any(draw_pose(never, np.random.default_rng(seed)).mirrored for seed in range(20))
    assert all(draw_pose(always, np.random.default_rng(seed)).mirrored for seed in range(20))
    half = [draw_pose(BoxAugmentConfig(), np.random.default_rng(seed)).mirrored for seed in range(200)]
    assert 80 < sum(half) < 120


def test_stored_recipes_of_version_0_1_0_are_read_with_their_meaning() -> None:
    pretraining = read_recipe(Recipe, STORED / "run" / "recipe.yaml").augment
    assert pretraining == AugmentConfig(mirror=0.5, rotate=15.0, scale=(1.0, 1.0), contrast=0.2, noise=0.1)
    fine_tuning = read_recipe(FinetuneRecipe, STORED / "finetuning" / "recipe.yaml").augment
    assert fine_tuning == BoxAugmentConfig(mirror=0.5, rotate=10.0, scale=0.1, shift=6.0)


def test_shift_of_a_recipe_of_version_0_1_0_was_brightness(tmp_path: Path) -> None:
    found = read_recipe(Recipe, write(tmp_path, "augment: {mirror: false, gain: 0.1, shift: 0.2}")).augment
    assert found == AugmentConfig(mirror=0.0, contrast=0.1, brightness=0.2)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Recipe, "augment: {rotate: 5, rotate_degrees: 15}", "unknown key augment.rotate_degrees"),
        (Recipe, "augment: {shift: 0.2}", "unknown key augment.shift"),
        (FinetuneRecipe, "augment: {mirror: 0.5, flip: 0.2}", "unknown key augment.flip"),
    ],
)
def test_keys_of_two_versions_are_not_mixed(kind: Any, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=message):
        read_recipe(kind, write(tmp_path, text))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Recipe, "augment: {mirror: 1.5}", r"augment\.mirror 1\.5: must lie in \[0, 1\]"),
        (FinetuneRecipe, "augment: {scale: 1.0}", r"augment\.scale 1\.0: must be 0 or more, and less than 1"),
        (FinetuneRecipe, "augment: {shift: -1}", r"augment\.shift -1\.0: must be 0 or more"),
        (FinetuneRecipe, "data: {workers: 100000}", r"data\.workers 100000: use 0 to 1024"),
        (FinetuneRecipe, "data: {ct_windows: [lung]}", r"data\.ct_windows lung: use some of"),
        (FinetuneRecipe, "stages: []", r"stages \[\]: one or more are needed"),
    ],
)
def test_what_cannot_be_is_refused_in_both(kind: Any, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=message):
        read_recipe(kind, write(tmp_path, text))


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (FinetuneRecipe, "demo", r"demo.yaml: is a recipe of `headspark pretrain`; `headspark recipes` lists"),
        (Recipe, "demo_rsna", r"demo_rsna.yaml: is a recipe of `finetune train`"),
        (Recipe, "transfer_study", r"transfer_study.yaml: is a recipe of `finetune study`"),
        (StudyConfig, "demo_rsna", r"demo_rsna.yaml: is a recipe of `finetune train`"),
    ],
)
def test_a_recipe_of_another_command_is_named_as_that(kind: Any, name: str, said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        read_recipe(kind, Path(name))


def test_a_folder_of_the_command_line_in_a_recipe_is_no_section_of_another_command(tmp_path: Path) -> None:
    """An encoder is a section of pretraining's recipes, and a folder for fine-tuning."""
    parser = recipe_parser(FinetuneRecipe, prog="train", description="")
    parser.add_argument("--encoder", type=str, default=None)
    path = write(tmp_path, "encoder: ENC\ntrain: {batch: 3}\n")
    recipe, options = parse_recipe(parser, FinetuneRecipe, ["--config", str(path)])
    assert (recipe.train.batch, options.encoder) == (3, "ENC")


def test_each_command_s_recipes_have_sections_of_their_own() -> None:
    kinds = {"headspark pretrain": Recipe, "finetune train": FinetuneRecipe, "finetune study": StudyConfig}
    names = {command: {field.name for field in dataclasses.fields(kind)} for command, kind in kinds.items()}
    for command, own in names.items():
        others = set().union(*(theirs for other, theirs in names.items() if other != command))
        assert own - others == SECTIONS[command]


def test_recipes_are_listed_by_the_command_that_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    of: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("# "):
            command = line.removeprefix("# ").removesuffix(" --config NAME")
        else:
            of[line.split()[0]] = command
    assert of.keys() == shipped_recipes().keys()
    assert (of["demo"], of["demo_rsna"]) == ("headspark pretrain", "finetune train")
    assert of["transfer_study"] == "finetune study"


@pytest.mark.parametrize("words", [("--config", "demo_rsna"), ("--head.width", "8")])
def test_a_key_of_another_kind_is_said_to_be_that(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--head.kind", "global", *words, "--corpus", "nowhere", "--out", str(tmp_path / "ft")]
    assert finetune(["train", *given]) == 2
    shown = capsys.readouterr().err
    assert "head.width " in shown
    assert ": it is one of kind cells, " in shown
    assert shown.endswith(", not of global; leave it out\n")
