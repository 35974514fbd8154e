"""What a run says of a corpus that holds less of a head than its recipe or its encoder wants; recipes name one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.recipe import Recipe
from finetune.samples import DataConfig
from finetune.state import differences, shortfalls
from harmonize.corpus import Corpus, claim, write_manifest
from harmonize.settings import Settings, parse_spacing
from headspark.channels import DEFAULT_CT_WINDOWS
from headspark.config import from_plain, read_recipe
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.model_card import preprocessing_of
from headspark.pretraining.origin import summarise
from headspark.recipe import Recipe as Pretraining

ROOT = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = [path for path in sorted(ROOT.glob("rsna_*.yaml")) if "stages" in yaml.safe_load(path.read_text())]


def corpus_of(folder: Path, settings: Settings) -> Corpus:
    folder.mkdir(exist_ok=True)
    claim(folder, "rsna", settings)
    write_manifest(folder, [], [])
    return Corpus.open(folder)


def test_a_corpus_that_is_as_fine_and_as_large_as_the_recipe_wants_needs_no_word(tmp_path: Path) -> None:
    fine = corpus_of(tmp_path, Settings(spacing=(0.5, 0.5, 0.5), circle_mm=(120.0, 120.0, 120.0)))
    assert shortfalls(fine, DataConfig(patch=(200, 200, 200))) == []
    assert shortfalls(fine, DataConfig(patch=(100, 100, 100), spacing=1.0)) == []


def test_a_coarser_corpus_is_told(tmp_path: Path) -> None:
    (line,) = shortfalls(corpus_of(tmp_path, Settings(spacing=(0.5, 0.5, 1.0))), DataConfig(spacing=0.5))
    assert line.startswith("data.spacing 0.5: the corpus has 0.5 x 0.5 x 1 mm")
    assert line.endswith("harmonize with --spacing 0.5 to keep it")


def test_a_box_too_small_for_turned_patches_is_told_with_the_one_that_is_not(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, Settings(spacing=(0.5, 0.5, 0.5), circle_mm=(112.0, 112.0, 112.0)))
    (line,) = shortfalls(corpus, DataConfig(patch=(224, 224, 160)))
    assert line.startswith("data.patch [224, 224, 160]: is 112 x 112 x 80 mm, and reaches over 135 x 135 x 96 mm")
    assert "the corpus stores 112 x 112 x 112 mm" in line
    edges = parse_spacing(line.rpartition(" ")[2])
    larger = corpus_of(tmp_path / "larger", Settings(spacing=(0.5, 0.5, 0.5), circle_mm=edges))
    assert shortfalls(larger, DataConfig(patch=(224, 224, 160))) == []


def said_of(corpus: Corpus, seen: dict[str, Any]) -> list[str]:
    """What fine-tuning on a corpus says of an encoder that has seen something."""
    encoder = build_encoder(EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)))
    encoder.preprocessing = seen
    data = DataConfig(patch=(16, 16, 16), ct_windows=DEFAULT_CT_WINDOWS, mri_scaling="soft")
    return differences(encoder, corpus, "rsna", data)


def test_an_encoder_knows_the_region_of_its_corpus_and_another_one_is_told(tmp_path: Path) -> None:
    whole, head = (corpus_of(tmp_path / f"{crop}", Settings(crop_foreground=crop)) for crop in (False, True))
    circle = corpus_of(tmp_path / "circle", Settings(circle_mm=(112.0, 112.0, 96.0)))
    larger = corpus_of(tmp_path / "larger", Settings(circle_mm=(135.0, 135.0, 96.0)))
    recipe = from_plain(Pretraining, {"data": {"mri_scaling": "soft"}})
    seen = [preprocessing_of(recipe, summarise(corpus)) for corpus in (whole, head, circle)]
    assert [facts["region"] for facts in seen] == ["all", "head", "circle"]
    assert [facts.get("region_mm") for facts in seen] == [None, None, [112.0, 112.0, 96.0]]
    for corpus, facts in zip((whole, head, circle), seen, strict=True):
        assert said_of(corpus, facts) == []
    box = "112 x 112 x 96 mm around the circle of Willis"
    assert said_of(circle, seen[0]) == [f"the encoder was pretrained on whole scans, this corpus stores {box}"]
    (line,) = said_of(larger, seen[2])
    assert line.startswith(f"the encoder was pretrained on {box}, this corpus stores 135 x 135 x 96 mm")
    (line,) = said_of(whole, seen[1])
    assert "pretrained on heads without the air around them, this corpus stores whole scans" in line


def test_an_encoder_that_says_nothing_of_its_region_is_asked_nothing(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, Settings(circle_mm=(112.0, 112.0, 96.0)))
    seen = {"spacing_mm": [1.0] * 3, "ct_windows": list(DEFAULT_CT_WINDOWS), "mri_scaling": "soft"}
    assert said_of(corpus, seen) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_a_corpus_that_holds_what_it_asks_for(path: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^#   harmonize rsna .*$", path.read_text(), re.MULTILINE)
    options = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    edges = parse_spacing(options.get("region-mm", "112")) if options.get("region") == "circle" else None
    settings = Settings(spacing=parse_spacing(options["spacing"]), circle_mm=edges)
    assert shortfalls(corpus_of(tmp_path, settings), read_recipe(Recipe, path).data) == []
