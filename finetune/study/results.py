"""The section of results in a page of the documentation, between two marks, and its plots; the rest of it stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from finetune.evaluation.compare import SITES, WITHIN
from finetune.evaluation.text import difference, interval
from finetune.study.compared import ASKED, MEASURES, Compared
from finetune.study.figures import figure_scores
from finetune.study.findings import WHERE, sentences
from finetune.study.pairs import ALL, Detected
from finetune.study.table import Study
from harmonize.errors import WrongUse
from harmonize.files import atomic_path, write_text
from harmonize.page import png_of

IMAGES = "images"
PLOTS = {WITHIN: "presence", SITES: "sites"}
"""What is plotted, and the names of the files."""

BEGIN, END = "<!-- results of finetune study -->", "<!-- end of results -->"


def write_section(path: Path, study: Study, compared: Sequence[Compared], detected: Sequence[Detected]) -> None:
    """Write what a study says between the marks of a page, and its plots beside it, ``images/PAGE-*.png``.

    Args:
        path: Of the page, which has both marks.
        study: Whose.
        compared: Its comparisons.
        detected: Its detectability.

    Raises:
        WrongUse: As `read_page`.
    """
    before, _, rest = read_page(path).partition(BEGIN)
    plots = []
    if compared:
        (path.parent / IMAGES).mkdir(exist_ok=True)
        for measure, name in PLOTS.items():
            plots.append(f"{IMAGES}/{path.stem}-{name}.png")
            with atomic_path(path.parent / plots[-1]) as temporary:
                temporary.write_bytes(png_of(figure_scores(study.config, compared, measure=measure), dpi=90))
    lines = "\n".join(section(study, compared, detected, plots))
    write_text(path, f"{before}{BEGIN}\n\n{lines}\n\n{END}{rest.partition(END)[2]}")


def read_page(path: Path) -> str:
    """The text of a page that has a place for results.

    Raises:
        WrongUse: There is no such page, it is no text, or it lacks a mark.
    """
    if not path.is_file():
        raise WrongUse(f"--docs {path}: no such file; give a page of Markdown that is there")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WrongUse(f"--docs {path}: no text in UTF-8; give a page of Markdown") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise WrongUse(f"--docs {path}: wants the lines `{BEGIN}` and `{END}`, once each; add them where results go")
    return text


def section(
    study: Study, compared: Sequence[Compared], detected: Sequence[Detected], plots: Sequence[str] = ()
) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        study: Whose.
        compared: Its comparisons.
        detected: Its detectability.
        plots: Where those of `PLOTS` lie, in their order.
    """
    config = study.config
    answer, *more = sentences(study, compared, detected, each=False)
    pictures = (
        f"![{measure} against the number of labelled series, with intervals]({place})"
        for place, measure in zip(plots, PLOTS, strict=False)
    )
    for paragraph in (answer, *pictures, *more):
        yield from (
            [paragraph]
            if paragraph.startswith("!")
            else wrap(paragraph, 120, break_long_words=False, break_on_hyphens=False)
        )
        yield ""
    if study.missing:
        yield f"{len(study.missing)} of {len(config.cells())} cells are not finished."
        yield ""
    first = config.arms[0].name
    if compared:
        yield from _scores(first, compared)
    names = {arm.name for arm in config.arms}
    whole = [one for one in detected if one.by in (ALL, "size") and one.arm in names]
    if compared and whole:
        yield ""
    if whole:
        yield "| labelled | pairs | how many | arm | higher with the sac | minus " + first + " |"
        yield "|---:|---|---:|---|---|---|"
        for pair in whole:
            gain = "" if pair.arm == first else difference(pair.share_more)
            cells = [pair.labelled, pair.group, pair.pairs, pair.arm, interval(pair.share), gain]
            yield f"| {' | '.join(map(str, cells))} |".replace("  |", " |")


def _scores(first: str, compared: Sequence[Compared]) -> Iterator[str]:
    """The table of scores, and of differences to the first arm."""
    minus = " | ".join(f"minus {first}, {name}" for name in ASKED)
    yield f"| labelled | held out | arm | {' | '.join(MEASURES)} | {minus} |"
    yield "|---:|---|---|" + "---|" * (len(MEASURES) + len(ASKED))
    for one in compared:
        for run in one.comparison.runs:
            gains = [""] * len(ASKED)
            if run.name != first:
                gains = [difference(one.difference(run.name, name)) for name in ASKED]
            cells = [
                one.labelled,
                WHERE.get(one.split, one.split),
                run.name,
                *(interval(run.scores[name]) for name in MEASURES),
                *gains,
            ]
            yield f"| {' | '.join(map(str, cells))} |".replace("  |", " |")
