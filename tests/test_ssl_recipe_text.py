"""The text of a recipe: what YAML or a parser would pass over in silence is refused with its key and its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune.recipe import Recipe as FineTuning
from harmonize.errors import UserError
from headspark.config import from_plain, parse_recipe, recipe_parser, run_command
from headspark.config.text import LARGEST_INT, walk
from headspark.recipe import Recipe


def parse(*words: str, config_class: type = Recipe) -> Any:
    return parse_recipe(recipe_parser(config_class, prog="test", description=""), config_class, words)[0]


def refusal(*words: str, config_class: type = Recipe) -> str:
    with pytest.raises(UserError) as error:
        parse(*words, config_class=config_class)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def refusal_of(folder: Path, text: str | bytes, config_class: type = Recipe) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refusal("--config", str(path), config_class=config_class)
    return said.replace(str(path), "RECIPE")


# Twice


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {patch: 32}\noptim: {lr: 1}\n\ndata: {patch: 16}\n", "data stands twice, in lines 1 and 4"),
        ("train:\n  steps: 3\n  batch: 1\n  steps: 4\n", "train.steps stands twice, in lines 2 and 4"),
        ("train: {steps: 3, steps: 3}\n", "train.steps stands twice, in line 1"),
        ("train.steps: 3\ntrain:\n  steps: 4\n", "train.steps stands twice, in lines 1 and 3"),
        ("data:\n  weights:\n    CT: 1\n    'CT': 2\n", "data.weights.CT stands twice, in lines 3 and 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    assert refusal_of(tmp_path, text) == f"recipe RECIPE: {said}; keep one"


def test_a_key_of_a_stage_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = "stages:\n- {name: a, steps: 1, head_lr: 1.0}\n- name: b\n  steps: 1\n  head_lr: 1.0\n  steps: 5\n"
    assert "stages[1].steps stands twice, in lines 4 and 6" in refusal_of(tmp_path, text, FineTuning)
    parse("--stages", "[{name: a, steps: 1, head_lr: 1.0}, {name: b, steps: 1, head_lr: 1.0}]", config_class=FineTuning)


trees = st.recursive(
    st.integers(0, 9),
    lambda below: st.dictionaries(st.sampled_from("abcdef"), below, min_size=1, max_size=4),
    max_leaves=9,
)


@given(tree=trees, data=st.data())
def test_any_tree_with_any_key_twice_is_refused_and_no_other(tree: Any, data: st.DataObject) -> None:
    assume(isinstance(tree, dict))
    text = yaml.safe_dump(tree)
    paths = [written.path for written in walk(text, where="recipe")]
    assert len(paths) == len(set(paths))
    assert [yaml.safe_load(text.splitlines()[w.line - 1].split(":")[0]) for w in walk(text, where="recipe")] == [
        path.rpartition(".")[2] for path in paths
    ]
    chosen = data.draw(st.sampled_from(paths))
    lines = text.splitlines()
    line = next(written.line for written in walk(text, where="recipe") if written.path == chosen)
    indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]
    below = next(
        (n for n in range(line, len(lines)) if len(lines[n]) - len(lines[n].lstrip()) <= len(indent)), len(lines)
    )
    again = [*lines[:below], f"{indent}{chosen.rpartition('.')[2]}: 1", *lines[below:]]
    with pytest.raises(UserError, match=rf"recipe: {chosen} stands twice, in lines {line} and {below + 1}; keep one"):
        list(walk("\n".join(again), where="recipe"))


def test_what_is_merged_in_may_be_overruled(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: &base {steps: 3, batch: 4}\noptim: {lr: 1.0}\n")
    assert parse("--config", str(path)).train.batch == 4
    assert [w.path for w in walk("a: &a {x: 1}\nb: {<<: *a, x: 2}\n", where="r")] == ["a", "a.x", "b", "b.<<", "b.x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optim.lr", "1e-3", "--train.steps=4", "--optim.lr=1e-4"], "--optim.lr stands twice on the command line"),
        (["--train", "{steps: 5, steps: 6}"], "--train: train.steps stands twice"),
        (["--train.steps", "5", "--train", "{steps: 6}"], "--train.steps stands twice on the command line"),
        (["--data.weights", "{CT: 1, CT: 2}"], "data.weights.CT stands twice"),
        (["--data.weights.CT", "1", "--data.weights.CT", "2"], "--data.weights.CT stands twice"),
    ],
)
def test_an_option_that_stands_twice_is_refused(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_options_of_the_command_itself_count_once_too(tmp_path: Path) -> None:
    parser = recipe_parser(Recipe, prog="test", description="")
    parser.add_argument("--out", type=Path)
    with pytest.raises(UserError, match="--out stands twice"):
        parse_recipe(parser, Recipe, ["--out", "a", "--out=b"])
    assert parse_recipe(parser, Recipe, ["--debug", "--out", "a", "--debug"])[1].out == Path("a")


def test_an_option_overrules_the_recipe_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {steps: 7, batch: 5}\n")
    for words in (["--train.steps", "9", "--config", str(path)], [f"--config={path}", "--train", "{steps: 9}"]):
        assert (parse(*words).train.steps, parse(*words).train.batch) == (9, 5)
    assert "--config stands twice" in refusal("--config", str(path), "--config", str(path))


# Text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# ok\n# für uns\ntrain: {steps: 1}\n".encode("latin-1"), "line 2 is not UTF-8; save it as UTF-8"),
        ("train: {steps: 1}\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (bytes(range(256)), "cannot be read"),
        (b"\x00\x01\x02", "special characters are not allowed"),
        (b"train:\n\tsteps: 3\n", "a tab; YAML is indented with spaces (line 2)"),
        (b"train: {steps: 3}\n---\ntrain: {steps: 4}\n", "another document (line 2)"),
        (b"a: &a {b: *a}\n", "a value that holds itself"),
        (b"? [a]\n: b\n", "unhashable key (line 1)"),
        (b"\n# nothing\n", "holds no keys"),
        (b"- a\n- b\n", "holds no keys"),
        (b"train: 5\n", "train in RECIPE: a section of keys is wanted, it is 5"),
        (b"optim: {lr: 1.0}\ntrain:\n", "train in RECIPE: a section of keys is wanted, it is empty"),
        (b"config: other.yaml\n", "a recipe cannot name another"),
        (b"2024: 1\n", "unknown key 2024 (YAML reads 2024 as a int)"),
        (b"train: !!python/name:os.system\n", "could not determine a constructor"),
        (b"\xef\xbb\xbftrain: {stepps: 1}\n", "unknown key train.stepps in RECIPE; did you mean train.steps?"),
    ],
)
def test_what_is_no_text_of_a_recipe_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal_of(tmp_path, content)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("train: {steps: 3}  # für uns\r\n".encode("utf-8-sig"))
    assert parse("--config", str(path)).train.steps == 3


def test_a_folder_a_pipe_and_a_name_of_nothing_are_no_recipes(tmp_path: Path) -> None:
    assert "Is a directory" in refusal("--config", str(tmp_path))
    assert "no regular file" in refusal("--config", "/dev/null")
    assert "No such file" in refusal("--config", str(tmp_path / "nowhere.yaml"))
    assert "cannot be read" in refusal("--config", "a\0b")


# Values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "train: {precision: no}",
            "train.precision: Expected a Literal['fp32', 'bf16', 'fp16']. Got value: False; YAML",
        ),
        ("train: {ema: no}", "train.ema: Expected one of float, NoneType. Got value: False; YAML reads yes, no"),
        ("train: {steps: yes}", "train.steps: Expected a int. Got value: True; YAML"),
        ("data: {weights: {no: 1}}", "unknown key data.weights.no (YAML reads no as a bool)"),
        ("data: {cache: null}", "data.cache in RECIPE: one of auto, ram, shared, disk, none is wanted, it is empty"),
        ("optim: {lr: }", "optim.lr in RECIPE: a number is wanted, it is empty"),
        ("data: {weights: ~}", "data.weights in RECIPE: a mapping is wanted, it is empty"),
        ("train: {steps: 0100}", "line 1: train.steps 0100 is 64 to YAML; write the number out"),
        ("train: {steps: 1:30}", "line 1: train.steps 1:30 is 90 to YAML"),
        ("optim: {lr: 1:30.5}", "line 1: optim.lr 1:30.5 is 90.5 to YAML; write the number out"),
        ("optim: {lr: 1e}", "optim.lr: Expected a float. Got value: 1e"),
        ("optim: {betas: [0.9]}", "optim.betas: Expected one of tuple[float, float], NoneType. Got value: [0.9]"),
        ("optim: {lr: .inf}", "optim.lr inf: must be a finite number"),
        ("optim: {lr: 1e999}", "optim.lr inf: must be a finite number"),
        ("optim: {min_lr: .nan}", "optim.min_lr nan: must be"),
        ("data: {weights: {CT: 1e999}}", "data.weights.CT inf: must be a finite number"),
        (f"train: {{seed: {2**70}}}", "line 1: train.seed: too large a number"),
        (f"optim: {{lr: {'9' * 400}}}", "optim.lr: too large a number"),
        ("train: {threads: 99999999}", "train.threads 99999999: use 1 to 1024"),
        ("data: {workers: 99999999}", "data.workers 99999999: use 0 to 1024"),
        ("data: {val_seed: -1}", "data.val_seed -1: must be 0 or more"),
    ],
)
def test_a_value_that_yaml_or_a_machine_takes_otherwise_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal_of(tmp_path, text)


@pytest.mark.parametrize("number", [2**63, 2**70, -(10**19), 10**63, -(10**400)])
@pytest.mark.parametrize("key", ["train.seed", "optim.lr", "data.patch", "train.steps"])
def test_no_number_beyond_64_bits_is_taken_from_anywhere(key: str, number: int) -> None:
    section, name = key.split(".")
    if key != "optim.lr" or number != 2**63:  # which is a rate, if not a useful one
        assert key in refusal(f"--{key}={number}")
    with pytest.raises(UserError, match=key):
        from_plain(Recipe, {section: {name: number}})


def test_the_largest_seed_runs() -> None:
    assert parse("--train.seed", str(LARGEST_INT)).train.seed == LARGEST_INT
    torch.manual_seed(LARGEST_INT)


def test_a_misspelt_key_of_a_stage_has_its_nearest_one(tmp_path: Path) -> None:
    text = "stages:\n- {name: a, steps: 1, head_lrr: 1.0}\n"
    said = refusal_of(tmp_path, text, FineTuning)
    assert said == "unknown key stages[0].head_lrr in RECIPE; did you mean stages[0].head_lr?"
    stages = json.dumps([{"name": "a", "stepss": 1}])
    assert "did you mean stages[0].steps?" in refusal("--stages", stages, config_class=FineTuning)
    assert "stages[0] on the command line: keys are wanted, it is 5" in refusal(
        "--stages", "[5]", config_class=FineTuning
    )
    assert "did you mean train.steps?" in refusal("--train", "{stepps: 5}")
    for option, key in (("stages[0].steps", "stages"), ("stages.0.steps", "stages"), ("data.patch[1]", "data.patch")):
        said = refusal(f"--{option}", "3", config_class=FineTuning)
        assert said.startswith(
            f"--{option} on the command line: {key} is a list, of which a part cannot be given alone"
        )
        assert f"(--{key} '[...]')" in said
    assert ".help" not in refusal("--stagess", "3", config_class=FineTuning)


# What a machine cannot do


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory."),
        PermissionError(13, "Permission denied", "/locked/run"),
        OSError(28, "No space left on device"),
    ],
)
def test_want_of_memory_room_or_leave_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> int:
        raise error

    assert run_command(command, []) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(type(error)):
        run_command(command, ["--debug"])


def test_other_faults_keep_their_traceback() -> None:
    def command(argv: object) -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(command, [])
