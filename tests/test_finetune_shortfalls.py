"""What a run says of a corpus that holds less of a head than its recipe asks for; the recipes name one that does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from finetune.recipe import Recipe
from finetune.samples import DataConfig
from finetune.state import shortfalls
from harmonize.corpus import Corpus, claim
from harmonize.settings import Settings, parse_spacing
from headspark.config import read_recipe

ROOT = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = [path for path in sorted(ROOT.glob("rsna_*.yaml")) if "stages" in yaml.safe_load(path.read_text())]


def corpus_of(folder: Path, settings: Settings) -> Corpus:
    folder.mkdir(exist_ok=True)
    claim(folder, "rsna", settings)
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_a_corpus_that_holds_what_it_asks_for(path: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^#   harmonize rsna .*$", path.read_text(), re.MULTILINE)
    options = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    edges = parse_spacing(options.get("region-mm", "112")) if options.get("region") == "circle" else None
    settings = Settings(spacing=parse_spacing(options["spacing"]), circle_mm=edges)
    assert shortfalls(corpus_of(tmp_path, settings), read_recipe(Recipe, path).data) == []
