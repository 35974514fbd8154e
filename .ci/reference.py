"""Write docs/api.md, docs/keys.md, docs/recipes.md and the rooms in docs/architecture.md; run by `make reference`.

All but docs/recipes.md, which `gallery` writes, come from docstrings: docs/api.md has the names that stay, with their
signatures; docs/keys.md every key of both recipes. A name that is gone, or a key that its class does not explain under
``Attributes:``, ends the command.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from headspark.config.kinds import KINDS, is_list, kinds_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import gallery  # noqa: E402

WIDTH = 120
NEWS = "Written by `make reference` from the docstrings; a test says whether it is current."

PROMISED = {
    "harmonize.corpus": ("Corpus", "StoredVolume", "read_volume"),
    "harmonize.pipeline": ("harmonize_scan", "HarmonizedScan"),
    "harmonize.scan": ("Scan", "Annotations", "Mask", "Point", "ScanRef"),
    "harmonize.settings": ("Settings spacing",),
    "harmonize.errors": ("UserError", "Rejection", "Reason"),
    "headspark": ("load_encoder", "Encoder from_pretrained", "save_encoder"),
    "headspark.hub": ("push_encoder",),
    "headspark.encoder": ("EncoderConfig", "build_encoder", "MaskableEncoder forward"),
    "headspark.masking": ("MaskConfig", "mask_grid", "draw_mask"),
    "headspark.packed": (
        "encode_visible",
        "PackedBlocks pack dense voxel_mask shape block",
        "MaskGeometry blocks",
        "UnsupportedOperation",
    ),
    "headspark.channels": ("to_network_input",),
    "headspark.interop": ("read_nnssl", "write_nnssl", "NnsslCheckpoint"),
    "headspark.config": ("read_recipe", "to_yaml"),
    "headspark.train": ("train",),
    "finetune.train": ("train",),
    "finetune.predict": ("Predictor", "Answer", "NoAnswer"),
    "finetune.hub": ("fetch_model", "save_model", "push_model", "fetch_probe", "save_probe", "push_probe"),
    "finetune.metrics": ("Score",),
    "finetune.tasks.aneurysm": ("competition_score",),
    "finetune.kaggle": ("serve",),
}
"""Names that other people's code may use; behind some, the only methods and properties that are promised."""

PACKAGES = {"harmonize": "harmonize", "headspark": "ssl/headspark", "finetune": "finetune"}
RECIPES = {
    "Pretraining": ("headspark.recipe", "Recipe"),
    "Fine-tuning": ("finetune.recipe", "Recipe"),
    "Transfer study": ("finetune.study.config", "StudyConfig"),
}


def api() -> str:
    """The page of promised names."""
    lines = [
        "# API reference", "", NEWS,
        "These are the names that stay: import them from where they stand here. Everything else may move.", "",
    ]  # fmt: skip
    for module, names in PROMISED.items():
        room = importlib.import_module(module)
        lines += [f"## `{module}`", "", *wrapped(first_sentence(room)), ""]
        for promise in names:
            name, *only = promise.split()
            if not hasattr(room, name):
                raise SystemExit(f"{module}.{name} is gone: name it anew in PROMISED")
            lines += [f"### `{name}`", "", *entry(name, getattr(room, name), only), ""]
    return "\n".join(lines).rstrip() + "\n"


def entry(name: str, thing: Any, only: Sequence[str]) -> Iterator[str]:
    """What a name is: signature, first sentence, and the fields and methods of a class (`only` some of them)."""
    if not inspect.isclass(thing):
        yield from (*block([signature("def", name, thing)]), "", *wrapped(first_sentence(thing)))
        return
    own = [(method, function) for method, function in methods(thing) if method in (only or [method])]
    heads = [signature("    def", method, function, bound=True) for method, function in own]
    if not dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
        yield from (*block([signature("class", name, thing.__init__, bound=True).removesuffix(" -> None"), *heads]), "")
    elif heads:
        yield from (*block([f"class {name}", *heads]), "")
    yield from wrapped(first_sentence(thing))
    listed = [(field, meaning) for field, meaning in attributes(thing).items() if field in fields(thing)]
    listed += [(f"{method}()", first_sentence(function)) for method, function in own]
    listed += [
        (item, first_sentence(value))
        for item, value in vars(thing).items()
        if is_property(item, value) and item in (only or [item])
    ]
    if listed:
        yield ""
    for item, meaning in listed:
        yield from wrapped(f"- `{item}`: {meaning}", indent="  ")


def methods(thing: type) -> list[tuple[str, Any]]:
    """Public methods that a class defines itself; of one that is called, that too."""
    found = []
    for name, value in vars(thing).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            found.append((name, function))
    return found


def is_property(name: str, value: object) -> bool:
    """Whether a name of a class is a property that all may read."""
    return isinstance(value, property | functools.cached_property) and not name.startswith("_")


def fields(thing: type) -> set[str]:
    """The fields of a dataclass or named tuple."""
    if dataclasses.is_dataclass(thing):
        return {field.name for field in dataclasses.fields(thing)}
    return set(getattr(thing, "_fields", ()))


class Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature(kind: str, name: str, thing: Any, *, bound: bool = False) -> str:
    """``def name(a: int) -> str``, without self for what is bound; one parameter a line where it is long."""
    whole = inspect.signature(thing)
    parameters = [
        each.replace(annotation=Bare(each.annotation)) if isinstance(each.annotation, str) else each
        for each in list(whole.parameters.values())[bound:]
    ]
    text = str(inspect.Signature(parameters, return_annotation=Bare(whole.return_annotation)))
    line = f"{kind} {name}{text}"
    if len(line) <= WIDTH:
        return line
    indent = " " * (len(kind) - len(kind.lstrip()) + 4)
    inner, _, after = text[1:].rpartition(")")
    parts = re.split(r", (?![^\[(]*[\])])", inner)
    return "\n".join([f"{kind} {name}(", *(f"{indent}{part}," for part in parts), f"{indent[4:]}){after}"])


def block(lines: list[str]) -> list[str]:
    """Lines as a block of code."""
    return ["```text", *"\n".join(lines).splitlines(), "```"]


def first_sentence(thing: Any) -> str:
    """The first paragraph of a docstring."""
    text = inspect.getdoc(thing) or ""
    if not text:
        raise SystemExit(f"{thing} has no docstring")
    return markdown(text.split("\n\n")[0])


def attributes(thing: Any) -> dict[str, str]:
    """What stands under ``Attributes:`` in a docstring, by name."""
    text = inspect.cleandoc(thing.__doc__ or "")
    found = re.search(r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.split(r"^ {4}(?=\w+:)", found[1], flags=re.MULTILINE)[1:] if found else []
    return {name: markdown(meaning) for name, _, meaning in (each.partition(":") for each in entries)}


def markdown(text: str) -> str:
    """Words of a docstring in one line, with code as Markdown has it."""
    return " ".join(text.split()).replace("``", "`")


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of the page."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def keys() -> str:
    """The page of recipe keys."""
    lines = [
        "# Recipe keys", "", NEWS,
        "Each is an option of the command line too: `--train.steps 5000`, `--mask.ratio \"[0.6, 0.9]\"`.", "",
    ]  # fmt: skip
    for title, (module, name) in RECIPES.items():
        recipe = getattr(importlib.import_module(module), name)
        lines += [f"## {title}", "", *wrapped(f"`{module}.{name}`: {first_sentence(recipe)}"), ""]
        hints, meanings = typing.get_type_hints(recipe), explained(recipe)
        for field in dataclasses.fields(recipe):
            section, in_list = section_of(hints[field.name])
            kinds = kinds_of(field)
            if not kinds and KINDS in field.metadata:
                continue  # nothing to choose from yet
            if section is None and not kinds:
                raise SystemExit(f"{module}: {field.name} is no section")
            in_list = is_list(field) if kinds else in_list
            shown = f"{field.name}[]" if in_list else field.name
            lines += [f"### {title}: `{shown}`", "", *wrapped(meanings[field.name]), ""]
            for one in dict.fromkeys((kinds or {"": section}).values()):
                if kinds:
                    named = ", ".join(f"`kind: {kind_}`" for kind_, other in kinds.items() if other is one)
                    lines += [*wrapped(f"With {named}: {first_sentence(one)}"), ""]
                lines += ["| key | type | default | meaning |", "|---|---|---|---|", *rows(shown, one), ""]
            if in_list and field.default:
                default = [dataclasses.asdict(one) for one in field.default]  # type: ignore[union-attr]
                lines += ["Default:", "", "```yaml", *yaml.safe_dump({field.name: default}, sort_keys=False,
                          default_flow_style=None, width=WIDTH - 20).splitlines(), "```", ""]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def explained(config: Any) -> dict[str, str]:
    """The meaning of each field of a configuration, and of those that it inherits.

    Raises:
        SystemExit: A field has none.
    """
    found = {name: meaning for one in reversed(config.__mro__) for name, meaning in attributes(one).items()}
    for field in dataclasses.fields(config):
        if field.name not in found:
            raise SystemExit(f"{config.__module__}.{config.__name__}: Attributes do not explain {field.name}")
    return found


def section_of(hint: Any) -> tuple[Any, bool]:
    """The configuration class behind a field, and whether the field is a list of them."""
    if dataclasses.is_dataclass(hint):
        return hint, False
    inner = [one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)]
    return (inner[0], True) if inner else (None, False)


def rows(prefix: str, config: Any) -> Iterator[str]:
    """A row a key."""
    hints, meanings = typing.get_type_hints(config), explained(config)
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            default = written(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = written(field.default_factory())
        else:
            default = "required"
        cells = (f"`{prefix}.{field.name}`", kind(hints[field.name]), default, meanings[field.name])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def written(value: Any) -> str:
    """A default as a recipe would give it."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text.strip()}`"


def kind(hint: Any) -> str:
    """A type in the words of a recipe."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "keys as above"
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(one) for one in inner)
    if origin is tuple:
        return f"list of {kind(inner[0])}" if inner[-1] is ... else f"{len(inner)} x {kind(inner[0])}"
    if origin is not None and issubclass(origin, typing.Mapping):
        return f"map of {kind(inner[0])} to {kind(inner[1])}"
    return {type(None): "null", bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}[hint]


def architecture() -> str:
    """The page of the house, with its rooms as they stand."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package, folder in PACKAGES.items():
        begin, end = f"<!-- rooms of {package} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{rooms(package, ROOT / folder)}\n\n{end}{rest.partition(end)[2]}"
    return text


def rooms(package: str, folder: Path) -> str:
    """A table of the rooms of a package, from the top floor down, as `.importlinter` has them."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    floors = contracts[f"importlinter:contract:{package}"]["layers"].split("\n")[1:]
    lines = ["| floor | room | what it is | its files |", "|---:|---|---|---|"]
    for number, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        for name in floor.split(" | "):
            path = folder / name
            files = [f"`{file.stem}`" for file in sorted(path.glob("*.py")) if not file.stem.startswith("__")]
            below = [f"`{each.parent.name}/`" for each in sorted(path.glob("*/__init__.py"))]
            module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            what = markdown((ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n\n")[0])
            shown = f"{name}/" if path.is_dir() else f"{name}.py"
            lines.append(f"| {number} | `{shown}` | {what} | {' '.join([*below, *files])} |")
    return "\n".join(lines)


PAGES = {
    "docs/api.md": api,
    "docs/keys.md": keys,
    "docs/architecture.md": architecture,
    "docs/recipes.md": gallery.gallery,
}


def main() -> int:
    """Write the pages."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
