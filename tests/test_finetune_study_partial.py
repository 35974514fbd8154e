"""A study that is not whole: what is compared, what its pages say is missing, and what was said beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import norm
from test_finetune_study import TOY
from test_finetune_study_numbers import rows_of

from finetune.evaluation.compare import WITHIN
from finetune.study import StudyConfig, write_results
from finetune.study.config import Cell
from finetune.study.plan import COMPUTED_NOW, powers, write_plan
from finetune.study.results import BEGIN, END
from finetune.study.table import INSIDE, OUTSIDE, PAIRS, PLAN, PLANNED, gather, read_study, write_cell
from harmonize.errors import UserError
from harmonize.labels import LOCATIONS
from headspark.config import from_plain

PLAIN = {
    **TOY,
    "design": {"labels": [4, 8], "seeds": [0, 1], "draws": 40},
    "arms": [*TOY["arms"], {**TOY["arms"][1], "name": "three_stage"}],
}
CONFIG = from_plain(StudyConfig, PLAIN)


def write(out: Path, cell: Cell, *, series: int = 32, pairs: int = 6) -> None:
    """Predictions of a cell that are drawn; half of the series are ill, at sites in turns."""
    rng = np.random.default_rng([cell.seed, cell.labelled, len(cell.arm)])
    tables = []
    for split, count in ((INSIDE, series), (OUTSIDE, series // 2), (PAIRS, 2 * pairs)):
        ill_N = (np.arange(count) + 1) % 2
        truths = {f"target: {site}": ill_N * (np.arange(count) // 2 % 3 == place) * (place < 3)
                  for place, site in enumerate(LOCATIONS)}  # fmt: skip
        more: dict[str, object] = dict(truths)
        if split == PAIRS:
            more["pair"] = np.repeat([f"pair-{number}" for number in range(pairs)], 2)
            more["diameter_mm"] = np.where(ill_N == 1, np.repeat([2.5, 4.0, 6.0], 2 * pairs // 3), np.nan)
        rows = rows_of(ill_N, norm.cdf(ill_N + rng.normal(size=count)), split, **more)
        if cell.arm.startswith("probe"):
            rows[list(LOCATIONS)] = np.nan
        tables.append(rows)
    write_cell(out, cell, pd.concat(tables))


def report(out: Path) -> tuple[str, str, str]:
    """The page, the section of the documentation, and the lines for a terminal."""
    docs = out / "page.md"
    docs.write_text(f"{BEGIN}\n{END}\n")
    said = "\n".join(write_results(out, docs=docs))
    return (out / "study.html").read_text(), docs.read_text(), said


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn, and not made into files."""

    def drawn(figure: object, *, dpi: int) -> bytes:
        figure.draw_without_rendering()  # type: ignore[attr-defined]
        return b"png"

    monkeypatch.setattr("harmonize.page.png_of", drawn)
    monkeypatch.setattr("finetune.study.results.png_of", drawn)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(PLAIN))
    return tmp_path


# ------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.usefixtures("quick")
@pytest.mark.timeout(240)
def test_after_each_cell_the_pages_can_be_written(out: Path) -> None:
    cells = CONFIG.cells()
    for count, cell in enumerate(cells, start=1):
        write(out, cell)
        page, section, said = report(out)
        missing = len(cells) - count
        assert (f"Not finished: {missing} of {len(cells)} cells" in page) == bool(missing)
        assert (f"{missing} of {len(cells)} cells are not finished" in section) == bool(missing)
        first = cells[:count]
        for labelled in CONFIG.design.labels:
            arms = [one.arm for one in first if one.labelled == labelled and one.seed == 0]
            why = "scratch has no predictions" if not arms else "no arm but scratch has predictions"
            told = f"With {labelled} labelled series nothing is compared: {why} there."
            for text in (page, said):
                assert (told in text) == (len(arms) < 2), (cell.name, labelled)
        assert "nan" not in said


@pytest.mark.usefixtures("quick")
def test_without_the_first_arm_nothing_is_compared_with_another(out: Path) -> None:
    for cell in CONFIG.cells():
        if cell.seed == 0 and cell.labelled == 4 and cell.arm in ("lp_ft", "three_stage"):
            write(out, cell)
    page, section, said = report(out)
    assert "With 4 labelled series nothing is compared: scratch has no predictions there." in page
    assert "No arm with pretraining has been compared with the one without yet." in said
    assert "minus scratch" not in page + section + said
    # An arm that came later is shown where it is, and only there.
    for cell in CONFIG.cells():
        if cell.seed == 0 and (cell.labelled == 8 or cell.arm == "scratch"):
            write(out, cell)
    (out / "cells" / "0004_three_stage_0" / "predictions.parquet").unlink()
    _, section, _ = report(out)
    assert "| 4 | in distribution | lp_ft |" in section
    assert "| 4 | in distribution | three_stage |" not in section
    assert "| 8 | in distribution | three_stage |" in section


@pytest.mark.usefixtures("quick")
def test_arms_without_a_seed_in_common_are_told(out: Path) -> None:
    for cell in CONFIG.cells():
        if cell.labelled == 4 and (cell.arm, cell.seed) in (("scratch", 0), ("lp_ft", 1)):
            write(out, cell)
    assert "of no seed have scratch, lp_ft all predictions there." in report(out)[2]


# -------------------------------------------------------------------------------------------- what was said beforehand


def planned_study(out: Path) -> dict[str, object]:
    """A study with a plan of another version of the formulas, and its first cells; the plan's error."""
    write_plan(CONFIG, out)
    plan = json.loads((out / PLAN).read_text())
    plan["power"][WITHIN][INSIDE] |= {"smallest": 0.987, "difference_error": 0.654}
    plan["assumed"]["auc"] = 0.51
    (out / PLAN).write_text(json.dumps(plan))
    for cell in CONFIG.cells()[:3]:
        write(out, cell)
    return plan


@pytest.mark.usefixtures("quick")
def test_what_was_said_beforehand_is_what_the_plan_said(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = planned_study(out)
    page, _, said = report(out)
    assert "0.987 was said beforehand to be the smallest to be seen" in said
    assert "<h2>What was said beforehand</h2>" in page
    assert "0.654" in page
    assert "auc 0.51" in page
    alone = tmp_path_factory.mktemp("alone")  # the table says it without the plan
    shutil.copy(out / "predictions.parquet", alone)
    write_results(alone)
    assert (alone / "study.html").read_text() == page
    numbers = json.loads((alone / "study.json").read_text())
    assert numbers["planned"] == {"said": "beforehand", "assumed": plan["assumed"], "power": plan["power"]}


@pytest.mark.usefixtures("quick")
def test_where_no_plan_was_kept_the_numbers_are_said_to_be_of_this_version(out: Path) -> None:
    for cell in CONFIG.cells()[:3]:
        write(out, cell)
    write_plan(CONFIG, out)
    assert not (out / PLAN).exists(), "nothing can be said beforehand any more"
    page, _, said = report(out)
    smallest = powers(CONFIG)[WITHIN, INSIDE].smallest
    assert f"{smallest:.3f} is, {COMPUTED_NOW}, the smallest to be seen" in said
    assert "beforehand" not in page
    assert COMPUTED_NOW in page
    assert json.loads((out / "study.json").read_text())["planned"]["said"] == COMPUTED_NOW
    assert read_study(out).planned is None


@pytest.mark.parametrize("text", ["{", "[]", '{"assumed": {"auc": "x"}, "power": {}}', '{"assumed": {}, "power": [1]}'])
def test_a_damaged_plan_is_refused_in_one_line(text: str, out: Path) -> None:
    write(out, CONFIG.cells()[0])
    (out / PLAN).write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: damaged") as caught:
        gather(CONFIG, out)
    assert "\n" not in str(caught.value)


def test_a_table_whose_plan_is_none_is_refused(out: Path) -> None:
    planned_study(out)
    gather(CONFIG, out)
    table = pq.read_table(out / "predictions.parquet")
    broken = table.replace_schema_metadata({**table.schema.metadata, PLANNED: b'{"assumed": 1}'})
    pq.write_table(broken, out / "predictions.parquet")
    with pytest.raises(UserError, match="does not say which study"):
        read_study(out)
