"""The recipes that come with the package: beside it in a checkout, inside it where a wheel was installed."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

from harmonize.errors import WrongUse

HERE = Path(__file__).resolve().parent
FOLDER, SUFFIX = "recipes", ".yaml"


SECTIONS = {
    "headspark pretrain": frozenset({"encoder", "mask", "decoder", "spark", "vessels", "hybrid", "optim"}),
    "finetune train": frozenset({"task", "view", "scratch", "head", "auxiliary", "condition", "losses", "stages"}),
    "finetune study": frozenset({"design", "pretraining", "finetuning", "arms", "power"}),
}
"""By command, the sections that its recipes have and no other's."""


def command_of(keys: Iterable[object]) -> str | None:
    """The command whose recipe has such keys, which may be dotted; None where they are of no command, or of several."""
    sections = {str(key).partition(".")[0] for key in keys}
    found = [command for command, own in SECTIONS.items() if own & sections]
    return found[0] if len(found) == 1 else None


def shipped_recipes() -> dict[str, Path]:
    """The files by their names: ``demo`` for ``recipes/demo.yaml``."""
    installed, checkout = HERE / FOLDER, HERE.parents[2] / FOLDER
    return {path.stem: path for path in sorted((installed if installed.is_dir() else checkout).glob(f"*{SUFFIX}"))}


def locate_recipe(given: Path, *, option: str = "--config ") -> Path:
    """The file that a user means, who gave a path, or the name of a recipe that comes with the package.

    A file of that name is taken before a recipe that comes along, a folder is not: `make demo` writes one that is named
    demo. ``demo``, ``demo.yaml`` and ``recipes/demo.yaml`` are names; anything longer is a path, which is left to
    whoever reads it.

    Args:
        given: What the user gave.
        option: What stands before it on the command line, for the message.

    Raises:
        WrongUse: A single word that is neither; with the nearest name.
    """
    if "\0" in str(given) or given.is_file() or given.is_absolute() or given.parent not in (Path(), Path(FOLDER)):
        return given
    shipped = shipped_recipes()
    name = given.name.removesuffix(SUFFIX)
    if name in shipped:
        return shipped[name]
    if given.suffix or given.exists():
        return given
    near = difflib.get_close_matches(name, shipped, n=1)
    guess = f"; did you mean {near[0]}?" if near else "; `headspark recipes` lists those that come along"
    raise WrongUse(f"{option}{given}: no such file, and no recipe of that name{guess}")


def purpose(recipe: Path) -> str:
    """What a recipe is for: the first sentence of the comment that its file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), recipe.read_text(encoding="utf-8").splitlines())
    first, stop, _ = " ".join(line.removeprefix("# ").strip() for line in lines).partition(". ")
    return first + stop.strip()
