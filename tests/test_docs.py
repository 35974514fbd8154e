"""README and docs: what stands there can be typed, run, followed and read."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import command_lines
import pytest
import torch
import yaml
from pages import CONSOLE, PAGES, ROOT, TEXT, Block, blocks, commands, inline_code, prose

import finetune.recipe
import headspark.recipe
from finetune.study import StudyConfig
from headspark import Encoder, load_encoder, save_encoder
from headspark.config import from_plain, recipe_keys, to_plain
from headspark.decoder import UNetDecoder
from headspark.encoder import EncoderConfig, build_encoder

FIXTURES = ROOT / "tests" / "fixtures" / "v0_1_0"
WIDTH = 120
LANGUAGES = {CONSOLE, TEXT, "python", "yaml"}
KEYS = {key for recipe in (headspark.recipe.Recipe, finetune.recipe.Recipe, StudyConfig) for key in recipe_keys(recipe)}
PROGRAMS = {*command_lines.SCRIPTS, "accelerate", "make", "python"}

EXAMPLES = {"SOURCE": "tcia", "NAME": "tcia", "RECIPE": "recipes/demo.yaml"}
"""What a command in the text leaves open."""

NOT_RUN = {
    "load_dataset": "asks the Hub",
    "read_nnssl": "reads a checkpoint of a gigabyte",
    "finetune.kaggle": "needs the competition's gateway",
}
"""What a block does that no test can; its imports and the names that it takes from them are looked up."""

NO_KEYS = {
    "train.csv", "decoder.safetensors", "encoder.stem", "encoder.stages", "encoder.preprocessing", "encoder.channels",
    "encoder.strides",
}  # fmt: skip
"""Files, attributes, and names of tensors, that look like keys of a recipe."""

OPTIONS_OF_OTHERS = {
    "--array", "--bind_all", "--cpus-per-task", "--exclusive", "--gres", "--install", "--logdir", "--mem", "--nnodes",
    "--no-requeue", "--nproc_per_node", "--nthreads", "--num_processes", "--nv", "--partition", "--rdzv-backend",
    "--signal",
}  # fmt: skip

OF_USERS = {"slurm/site.env"}
"""Files that users make in a checkout."""


def linked(folder: Path) -> dict[str, Any]:
    """Make a folder what the pages take it for; gives the names that they take for granted."""
    series = FIXTURES / "raw" / "rsna" / "series"
    places = {
        "CORPUS": FIXTURES / "corpus", "ENCODER": FIXTURES / "encoder", "FT": FIXTURES / "finetuned",
        "FOLDER": series, "SERIES_FOLDER": min(series.iterdir()),
    }  # fmt: skip
    for name, place in places.items():
        (folder / name).symlink_to(place)
    network = load_encoder(folder / "ENCODER")
    decoder = UNetDecoder(network.channels, network.strides, network.config.in_channels)
    about = network.preprocessing
    save_encoder(network, folder / "ENCODER_WITH_DECODER", preprocessing=about, decoder=decoder)
    return {"x_BCDHW": torch.randn(1, 3, 16, 16, 16), "network": network}


def with_segresnet(folder: Path) -> None:
    """The encoder's folder holds one of another kind."""
    (folder / "ENCODER").unlink()
    shape = EncoderConfig(kind="segresnet", features=(32, 64, 128, 256), blocks=(1, 2, 2, 4), strides=(1, 2, 2, 2))
    preprocessing = Encoder.from_pretrained(FIXTURES / "encoder").preprocessing
    save_encoder(build_encoder(shape), folder / "ENCODER", preprocessing=preprocessing)


@pytest.mark.parametrize("block", blocks(CONSOLE), ids=str)
def test_every_command_is_taken_by_its_program(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block.code):
        command_lines.check(words)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_the_text_lacks_nothing_but_arguments(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for code in inline_code(page):
        words = [EXAMPLES.get(word, word) for word in shlex.split(code)] if code.split()[0] in PROGRAMS else []
        if len(words) < 2 or "..." in words:
            continue
        try:
            command_lines.check(words)
        except command_lines.Refused as refused:
            if "required" not in str(refused):
                raise


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")} - {"hub.md"}))  # test_hub_cards
def test_python_runs_in_the_order_of_its_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = linked(tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        if block.page == page and not any(words in block.code for words in NOT_RUN):
            if "SegResNetDS" in block.code:
                with_segresnet(tmp_path)
            exec(compile(block.code, str(block), "exec"), names)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_what_python_imports_has_the_names_and_arguments_that_it_uses(block: Block) -> None:
    tree = ast.parse(block.code)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = resolved(node.func, names)
            if callable(called):
                keywords = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(called).bind_partial(*node.args, **keywords)


def resolved(node: ast.expr, names: dict[str, Any]) -> Any:
    """What ``a.b.c`` is where `names` knows a; None where it does not.

    Raises:
        AttributeError: It has no such name.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_part_of_a_recipe(block: Block) -> None:
    values = yaml.safe_load(block.code)
    fine_tuning = set(values) <= {field.name for field in dataclasses.fields(finetune.recipe.Recipe)}
    recipe = finetune.recipe.Recipe if fine_tuning else headspark.recipe.Recipe
    assert set(values) <= set(to_plain(from_plain(recipe, values)))


@pytest.mark.parametrize("page", PAGES)
def test_recipe_keys_in_the_text_exist(page: str) -> None:
    sections = {key.split(".")[0] for key in KEYS}
    named = {code.split(":")[0].split()[0] for code in inline_code(page)} - NO_KEYS
    dotted = {name for name in named if re.fullmatch(r"\w+\.(?!(?:py|yaml)$)\w+", name)}
    keys = {name for name in dotted if name.split(".")[0] in sections}
    assert keys - KEYS == set()


def options_of_the_code() -> set[str]:
    """Every word with two dashes in front that the code knows."""
    sources = [path for folder in ("harmonize", "ssl", "finetune", "tests") for path in (ROOT / folder).rglob("*.py")]
    return {option for path in sources for option in re.findall(r"[\"`](--[a-z][\w-]*)", path.read_text())}


def test_options_in_the_text_exist() -> None:
    known = options_of_the_code() | OPTIONS_OF_OTHERS | {f"--{key}" for key in KEYS}
    named = {
        (page, word.split("=")[0])
        for page in PAGES
        for code in inline_code(page)
        for word in code.split()
        if word.startswith("--")
    }
    assert {(page, option) for page, option in named if option not in known} == set()


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_of_the_code_in_the_text_exist(page: str) -> None:
    for code in inline_code(page):
        if re.fullmatch(r"(harmonize|ssl|headspark|finetune|tests|docs|recipes|slurm|\.ci)/[\w./-]*", code):
            code = code.replace("NAME", "tcia")
            assert (ROOT / code).exists() or (ROOT / "ssl" / code).exists() or code in OF_USERS, code
        elif re.fullmatch(r"(harmonize|headspark|finetune)(\.\w+)+", code):
            assert found(code), code


def found(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, thing = name, []
    while True:
        try:
            owner: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            thing.insert(0, last)
    for each in thing:
        owner = getattr(owner, each, None)
    return owner is not None


def anchors(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        place = folder / (file or page)
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.name), target


def test_the_readme_leads_to_every_page() -> None:
    assert {f"docs/{page}" for page in PAGES if page != "README.md"} <= set(
        re.findall(r"\]\(([^)#]+)", PAGES["README.md"])
    )


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_wrapped(page: str) -> None:
    lines = PAGES[page].splitlines()
    free = ("|", "![")  # rows of tables and pictures cannot be
    assert [number for number, line in enumerate(lines, 1) if len(line) > WIDTH and not line.startswith(free)] == []


def test_blocks_say_their_language() -> None:
    assert [block for block in blocks() if block.language not in LANGUAGES] == []
    assert [page for page in PAGES if re.search(r"^\n {4}\S", prose(page), re.MULTILINE)] == []
