"""Command lines of the docs are handed to the programs that they name, which end as soon as they have read them."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jsonargparse
from accelerate.commands.launch import launch_command_parser
from pages import ROOT
from torch.distributed.run import get_args_parser

from finetune.kaggle.packed import SUBMISSION, submission_parser
from harmonize import launcher
from headspark import config

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MAKEFILE = (ROOT / "Makefile").read_text()
OTHERS = {
    ".", "apptainer", "cd", "chmod", "cp", "dask", "docker", "done", "export", "for", "git", "hf", "kaggle",
    "nnUNetv2_preprocess_like_nnssl", "nnUNetv2_train_pretrained", "openssl", "pip", "python3", "source", "ssh",
    "tensorboard",
}  # fmt: skip
"""Programs that are not ours, and words of the shell."""

OWN_SOURCE = "arrays"
"""The source that docs/your-data.md has the reader write, which its own test tries."""


class Accepted(Exception):
    """A command line was read without a fault; nothing was done."""


class Refused(AssertionError):
    """A program of ours did not take its command line."""


def check(words: Sequence[str]) -> None:
    """Hand a command line to its program.

    Raises:
        Refused: It is not taken.
        AssertionError: Nobody knows the program.
    """
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program in OTHERS or (program, *rest[:2]) == ("python", "-m", "pip"):
        return
    if (program, *rest[:1]) == ("harmonize", OWN_SOURCE):
        rest = ["dicom", *rest[1:]]
    if program == "make":
        _check_make(rest)
    elif program == "sbatch":
        check(_batched(rest))
    elif program == "accelerate":
        assert rest[0] == "launch", words
        _check_launched(launch_command_parser(), rest[1:])
    elif program == "torchrun":
        _check_launched(get_args_parser(), rest)
    elif program == "python":
        script, given = _script(rest)
        if Path(script).name == SUBMISSION:  # which a command writes
            submission_parser().parse_args(given)
        elif given:
            _check_ours(script, given)
        else:  # it may read no command line, and do its work
            assert (ROOT / script).exists(), script
    else:
        assert program in SCRIPTS, f"{program}: no program of ours, nor one that is known to be of others"
        _check_ours(program, rest)


def _check_make(words: Sequence[str]) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    known = {*phony[1].split(), *re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE)}
    assert {word.split("=")[0] for word in words} <= known


def _check_launched(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            given = parser.parse_args(words)
    except SystemExit:
        raise Refused(f"{shlex.join(words)}: {said.getvalue().strip()}") from None
    _check_ours(given.training_script, given.training_script_args)


_SCRIPT_RUNS = {
    "pretrain": ["python", "ssl/pretrain.py"],
    "finetune": ["python", "-m", "finetune.train"],
    "cv": ["python", "-m", "finetune.cross_validation", "--fold", "0"],
    "predict": ["python", "-m", "finetune.predict", "--shard", "0/1"],
    "merge": ["harmonize", "merge"],
}
"""What the jobs of slurm/ run, before their own words."""


def _batched(words: Sequence[str]) -> list[str]:
    """What a job of ``sbatch`` runs, of what a script of slurm/ makes of its words."""
    own = {option for option in words if re.match("--(array|dependency)", option)}
    rest = list(itertools.dropwhile(lambda word: re.match(r"--[a-z-]+=", word), words))
    script = re.fullmatch(r"slurm/(\w+)\.sbatch", rest[0])
    assert script is not None, words
    assert (ROOT / rest[0]).exists(), words
    given = rest[1:]
    if script[1] == "harmonize":
        return ["harmonize", *given]
    if script[1] == "probe":
        _, _, *more = given
        if any(option.startswith("--array") for option in own):
            return ["headspark", "embed", more[1], "--encoder", "ENCODER", "--out", "EMB.parquet", *more[2:]]
        return ["finetune", "probe", "--encoder", "ENCODER", *more]
    return [*_SCRIPT_RUNS[script[1]], *given]


def _script(words: Sequence[str]) -> tuple[str, list[str]]:
    return (words[1], [*words[2:]]) if words[0] == "-m" else (words[0], [*words[1:]])


def _check_ours(script: str, words: Sequence[str]) -> None:
    """Run a console script, a module or a file of this repository as far as its command line."""
    said = io.StringIO()
    with _read_only(), redirect_stderr(said), mock.patch.object(sys, "argv", [script, *words]):
        try:
            if script in SCRIPTS:
                module, _, main = SCRIPTS[script].partition(":")
                getattr(importlib.import_module(module), main)()
            elif (ROOT / script).exists():
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
        except Accepted:
            return
        except SystemExit as end:
            said.write(f" (exit code {end.code})")
    raise Refused(f"{shlex.join([script, *words])}: {said.getvalue().strip()}")


def load(script: Path) -> ModuleType:
    """A script as a module; a folder is its ``__main__.py``."""
    path = script / "__main__.py" if script.is_dir() else script
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@contextmanager
def _read_only() -> Iterator[None]:
    """Programs raise `Accepted` where they would begin to work: recipes are read and checked, subcommands chosen."""
    parse_known_args, parse_recipe = argparse.ArgumentParser.parse_known_args, config.parse_recipe
    depth = 0

    def read_words(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            namespace, unknown = parse_known_args(self, *arguments, **options)
        finally:
            depth -= 1
        # A subcommand's parser is called by that of its program; a recipe's words are left to `read_recipe`.
        if depth or unknown or isinstance(self, jsonargparse.ArgumentParser):
            return namespace, unknown
        raise Accepted

    def read_recipe(*arguments: Any) -> None:
        parse_recipe(*arguments)
        raise Accepted

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", read_words),
        mock.patch.object(launcher, "end_with_launcher"),
        mock.patch.object(sys, "path", list(sys.path)),
    ):
        _exchange(parse_recipe, read_recipe)
        try:
            yield
        finally:
            _exchange(read_recipe, parse_recipe)


def _exchange(old: object, new: object) -> None:
    """`parse_recipe` in each module that has it by name."""
    for module in list(sys.modules.values()):
        if vars(module).get("parse_recipe") is old:
            vars(module)["parse_recipe"] = new
