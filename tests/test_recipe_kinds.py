"""Parts of a recipe that are picked by their kind: each brings its own keys, in files and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from harmonize.errors import WrongUse
from headspark.config import from_plain, parse_recipe, recipe_keys, recipe_parser, to_plain
from headspark.config.kinds import one_of, some_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    edge: float = 2.0
    names: dict[str, float] = field(default_factory=dict)


SHAPES = {"round": Round, "square": Square}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    size: int = 1
    frame: Round | Square = one_of(SHAPES, "round")
    shapes: tuple[Round | Square, ...] = some_of(SHAPES, (Round(),))


def read(*argv: str) -> Drawing:
    return parse_recipe(recipe_parser(Drawing, prog="draw", description=""), Drawing, argv)[0]


def test_nothing_said_gives_the_defaults() -> None:
    assert read() == Drawing()


def test_a_file_and_the_command_line_pick_kinds(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("frame: {kind: square, edge: 3}\nshapes: [{kind: square, names: {Left: 2}}, {kind: round}]\n")
    assert read("--config", str(file)).frame == Square(edge=3)
    assert read("--config", str(file)).shapes == (Square(names={"Left": 2.0}), Round())
    assert read("--config", str(file), "--frame.edge", "4").frame == Square(edge=4)
    assert read("--frame.kind", "square", "--frame.edge", "5").frame == Square(edge=5)
    assert read("--frame", "{kind: square, edge: 6}").frame == Square(edge=6)
    assert read("--shapes", "[{kind: square, edge: 7}]").shapes == (Square(edge=7),)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--frame.edge", "4"], "unknown key --frame.edge"),
        (["--frame.kind", "squares"], "frame.kind 'squares': there is none of that name, but round, square; did you"),
        (["--shapes", "[{edge: 4}]"], "shapes[0].kind: is missing; one of round, square"),
        (["--shapes", "[{kind: round, edge: 4}]"], "unknown key shapes[0].edge on the command line"),
        (["--shapes", "[{kind: oval}]"], "shapes[0].kind 'oval'"),
        (["--shapes", "{kind: round}"], "shapes on the command line: a list is wanted"),
        (["--shapes", "[{kind: round, radius: far}]"], "shapes"),
        (["--frame.kind", "square", "--frame.kind", "round"], "--frame.kind stands twice"),
    ],
)
def test_what_does_not_fit_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(WrongUse) as caught:
        read(*argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_values_come_back() -> None:
    drawing = Drawing(frame=Square(edge=9), shapes=(Round(radius=2), Square(names={"a": 1.0})))
    assert from_plain(Drawing, to_plain(drawing)) == drawing


def test_the_keys_of_all_kinds_are_keys() -> None:
    assert {"frame.radius", "frame.edge", "frame.kind", "frame.names", "shapes"} <= set(recipe_keys(Drawing))


def test_the_defaults_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--frame.kind", "square", "--print_config")
    assert "kind: square\n  edge: 2.0\n" in capsys.readouterr().out
