"""docs/harmonize.md leaves out no command but those of new sources, no column and no flag."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harmonize import cli
from harmonize.corpus import SCAN_SCHEMA
from harmonize.report.outliers import FLAGS
from harmonize.sources import SOURCES

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "harmonize.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^harmonize .*$", PAGE, re.MULTILINE)


def test_every_command_is_shown_and_every_source_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = set(re.findall(r"^    ([a-z]+)", capsys.readouterr().out, re.MULTILINE))
    shown = {line.split()[1] for line in COMMANDS}
    assert set(SOURCES) <= known
    assert known - set(SOURCES) <= shown <= known


def test_every_column_and_every_named_flag_is_explained() -> None:
    assert [name for name in SCAN_SCHEMA.names if f"`{name}`" not in PAGE] == []
    named = re.search(r"flags such as (.*?), which", PAGE, re.DOTALL)
    assert named
    assert {" ".join(flag.split()) for flag in re.findall(r"\*(.+?)\*", named[1], re.DOTALL)} <= set(FLAGS)
