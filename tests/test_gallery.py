"""docs/recipes.md has every recipe, with what it costs, and says of a number where it comes from."""

from __future__ import annotations

import json
import re

import pytest
from command_lines import load
from pages import PAGES, ROOT

PAGE = PAGES["recipes.md"]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
ESTIMATES = load(ROOT / "tests" / "benchmarks" / "estimate_recipes.py")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_stands_there_once_with_its_cost(name: str) -> None:
    (row,) = re.findall(rf"^\| \[`{name}\.yaml`\].*$", PAGE, re.MULTILINE)
    *_, last = [cell.strip() for cell in row.strip("|").split("|")]
    assert re.fullmatch(r"~\d+|less than 1|\[\d+\]\(\S+\)|not measured", last), row


def test_nothing_else_stands_there() -> None:
    assert sorted(re.findall(r"^\| \[`(\w+)\.yaml`\]", PAGE, re.MULTILINE)) == RECIPES


@pytest.mark.parametrize("name", ["demo", "rsna_mip", "masks_demo"])
def test_estimates_are_those_of_the_recipe_as_it_is(name: str) -> None:
    found = json.loads((ROOT / "docs" / "benchmarks" / "recipe_costs.json").read_text())["recipes"][name]
    assert ESTIMATES.cost(ROOT / "recipes" / f"{name}.yaml") == pytest.approx(found, rel=0.05)


def test_what_is_counted_is_what_a_convolution_computes() -> None:
    import torch

    with torch.device("meta"):
        layer, x = torch.nn.Conv3d(2, 3, 3, padding=1, bias=False), torch.empty(1, 2, 8, 8, 8)
    flops, kept = ESTIMATES.counted(lambda: layer(x).square())
    assert flops == 2 * 2 * 3 * 3**3 * 8**3
    assert kept == 4 * (2 + 3) * 8**3
