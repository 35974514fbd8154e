"""Recipes of strangers: nothing that they name is imported or opened, and none costs more than it is."""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from finetune.model_folder import read_bundle
from finetune.recipe import Recipe as FineTuning
from harmonize.errors import UserError
from headspark import Encoder
from headspark.config import from_plain, parse_recipe, recipe_parser
from headspark.encoder import EncoderConfig
from headspark.hub.export import export_run
from headspark.recipe import Recipe

VERSION_0_1_0 = Path(__file__).parent / "fixtures" / "v0_1_0"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Whether the module `payload` was imported; files that name it lie in the current folder."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "payload.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass x: pass\ndef f(*_): return {{}}\n"
    )
    (tmp_path / "inner.yaml").write_text("class_path: payload.x\ninit_args: {}\n")
    (tmp_path / "list.yaml").write_text("- class_path: payload.x\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    yield lambda: (tmp_path / "ran").exists() or "payload" in sys.modules
    sys.modules.pop("payload", None)


def read(*words: str, config_class: type = FineTuning) -> Any:
    return parse_recipe(recipe_parser(config_class, prog="test", description=""), config_class, words)[0]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def recipe(text: str) -> str:
    Path("recipe.yaml").write_text(text)
    return "recipe.yaml"


NAMING = [
    "scratch: inner.yaml", "scratch: payload.x", "scratch: {class_path: payload.x}", "scratch: [payload.x]",
    "scratch: '{class_path: payload.x}'", "scratch: {init_args: {}}", "scratch: {dict_kwargs: {}}",
    "scratch: {__path__: inner.yaml}", "scratch.class_path: payload.x", "scratch: {kind: {class_path: payload.x}}",
    "scratch: {features: inner.yaml}", "scratch: {features: [{class_path: payload.x}]}",
    "stages: 3", "stages: inner.yaml", "stages: list.yaml", "stages: payload.x", "stages: [inner.yaml]",
    "stages: [{class_path: payload.x}]", "stages: {class_path: payload.x}", "stages: [[{class_path: payload.x}]]",
    "data: {ct_windows: list.yaml}", "train: {threads: '{class_path: payload.x}'}", "train: {threads: inner.yaml}",
    "data: {<<: {class_path: payload.x}}", "config: inner.yaml", "print_config: payload.x", "help: payload.x",
    "debug: payload.x", "scratch.help: payload.x", "scratch: !!python/object/apply:payload.f []",
    "scratch: !!python/name:payload.f ''", "scratch: !!python/module:payload ''", "scratch: !payload.x {}",
]  # fmt: skip


@pytest.mark.parametrize("text", NAMING)
def test_nothing_that_a_recipe_names_is_imported_or_opened(imported: Callable[[], bool], text: str) -> None:
    refusal(lambda: read("--config", recipe(f"{text}\n")))
    assert not imported()


@pytest.mark.parametrize("section", ["inner.yaml", "payload.x", "{class_path: payload.x}", "[payload.x]"])
def test_a_section_on_the_command_line_is_keys_and_no_file(imported: Callable[[], bool], section: str) -> None:
    refusal(lambda: read("--scratch", section))
    refusal(lambda: read(f"--stages={section}"))
    assert not imported()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("inner.yaml", "keys are wanted for EncoderConfig, it is 'inner.yaml'"),
        (None, "keys are wanted for EncoderConfig, it is empty"),
        ([{"class_path": "payload.x"}], "keys are wanted for EncoderConfig, it is a list"),
        ({"class_path": "payload.x"}, "unknown key class_path"),
        ({"print_config": "payload.x"}, "unknown key print_config"),
        ({"features": "list.yaml"}, "features for EncoderConfig: a list is wanted, it is 'list.yaml'"),
        ({"features": [[1]]}, r"features[0] for EncoderConfig: a whole number is wanted, it is a list"),
        ({"norm": {"class_path": "payload.x"}}, "norm for EncoderConfig: one of instance, batch, group is wanted"),
        ({"drop_path": "payload.x:f"}, "drop_path for EncoderConfig: a number is wanted"),
    ],
)
def test_nothing_that_a_configuration_names_is_imported(imported: Callable[[], bool], values: Any, said: str) -> None:
    assert said in refusal(lambda: from_plain(EncoderConfig, values))
    assert not imported()


def test_nothing_that_a_folder_of_ours_names_is_imported(imported: Callable[[], bool], tmp_path: Path) -> None:
    payload = {"class_path": "payload.x", "init_args": {}}
    encoder, model, run = (tmp_path / name for name in ("encoder", "model", "run"))
    for folder in (encoder, model, run):
        folder.mkdir()
        save_file({}, folder / "model.safetensors")
    for config in (payload, {"kind": payload}, {"kind": "payload.x"}, "inner.yaml", ["payload.x"]):
        (encoder / "config.json").write_text(json.dumps({"encoder": config, "preprocessing": {}}))
        refusal(lambda: Encoder.from_pretrained(encoder))
        whole = json.loads((VERSION_0_1_0 / "finetuned" / "config.json").read_text())
        for part in ("encoder", "head", "data", "harmonize"):
            (model / "config.json").write_text(json.dumps(whole | {part: config}))
            refusal(lambda: read_bundle(model))
    (run / "run.json").write_text('{"status": "finished", "corpus": {}}')
    (run / "recipe.yaml").write_text("encoder: ../inner.yaml\n")
    refusal(lambda: export_run(run))
    assert not imported()


def test_a_recipe_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {seed: 3}\n")
    opened: list[object] = []
    real = os.open

    def watched(name: Any, *more: Any, **options: Any) -> int:
        opened.append(name)
        return real(name, *more, **options)

    monkeypatch.setattr(os, "open", watched)
    assert read("--config", str(path)).train.seed == 3
    assert opened.count(path) == 1


def test_a_recipe_has_no_other_recipe_read(imported: Callable[[], bool]) -> None:
    Path("other.yaml").write_text("train: {seed: 3}\n")
    assert "a recipe cannot name another" in refusal(lambda: read("--config", recipe("config: other.yaml\n")))


def bomb(levels: int, *, merged: bool = False) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        before = f"*a{level - 1}"
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{before}, {before}]}}" if merged else f"[{before}, {before}]"))
    return "\n".join(lines) + "\n"


def quoted_bomb(levels: int) -> str:
    return "[&a [x, x]" + "".join(f", &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(levels)) + "]"


COSTLY = {
    "aliases": (bomb(28), "more than 10000 values"),
    "merged aliases": (bomb(28, merged=True), "more than 10000 values"),
    "aliases in a text": (f"train: {{seed: '{quoted_bomb(25)}'}}\n", "a whole number is wanted"),
    "brackets": ("[" * 10_000 + "]" * 10_000, "more than 32 levels"),
    "braces": ("{a: " * 5_000 + "1" + "}" * 5_000, "more than 32 levels"),
    "indents": ("\n".join("  " * level + "a:" for level in range(200)), "more than 32 levels"),
    "a long text": ("data: {fold: " + "x" * 100_000 + "}\n", "more than 4096 characters"),
    "a large file": ("# " + "x" * 300_000 + "\ntrain: {seed: 1}\n", "larger than 262144 bytes"),
    "sixties": ("train: {seed: " + ":".join(["1"] * 1800) + "}\n", "write the number out"),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_recipe_costs_no_more_than_a_recipe(tmp_path: Path, kind: str) -> None:
    text, said = COSTLY[kind]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.process_time()
    assert said in refusal(lambda: read("--config", str(path)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", ["aliases", "merged aliases", "aliases in a text"])
def test_aliases_cost_no_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(COSTLY[kind][0])
    tracemalloc.start()
    try:
        refusal(lambda: read("--config", str(path)))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_the_command_line_has_the_same_bounds() -> None:
    assert "more than 10000 values" in refusal(lambda: read("--data.ct_windows", quoted_bomb(25)))
    assert "more than 32 levels" in refusal(lambda: read("--stages", "[" * 5_000))


def test_harmless_aliases_stay(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("augment: {mirror: &half 0.5, noise: *half}\ndata: {<<: {fold: 1}, workers: 0}\n")
    found = read("--config", str(path))
    assert (found.augment.mirror, found.augment.noise, found.data.fold) == (0.5, 0.5, 1)


@pytest.mark.parametrize("value", ['!!int ""', "!!timestamp x", "!!bool x", '!!float ""', "!!binary abc", "!!set {a}"])
def test_a_tag_that_does_not_fit_is_one_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train: {{seed: {value}}}\n")
    refusal(lambda: read("--config", str(path), config_class=Recipe))
