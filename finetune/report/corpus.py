"""What a report says of the corpus: what was left out, what disagrees, and what is out of the ordinary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.disagreements import RULES
from harmonize.corpus import Corpus
from harmonize.decisions import unusual
from harmonize.page import Page


def add_corpus(page: Page, state: Mapping[str, Any], corpus: Corpus | None, scan_ids: Sequence[str]) -> None:
    """Add the sections.

    Args:
        page: The report.
        state: run.json of the run, or of a fold: all folds see the same corpus.
        corpus: The run's; without it there is nothing to say of single series.
        scan_ids: Of the held-out series.
    """
    results = state.get("results") or {}
    if results.get("left_out"):
        page.heading("Left out")
        page.text("Series of the corpus that the run could not use, neither to train nor to judge:")
        page.table(["why", "series"], sorted(results["left_out"].items()))
    if results.get("disagreements"):
        page.heading("Labels, points and masks that disagree")
        page.text("In series that were trained on; none is left out for it.")
        found = sorted(results["disagreements"].items())
        page.table(["what", "series", "what counts"], [(what, count, RULES.get(what, "")) for what, count in found])
    if corpus is None:
        return
    page.heading("Out of the ordinary")
    rows = unusual_rows(corpus, scan_ids)
    page.text(
        "What harmonize decided about held-out series that is no matter of course."
        if rows
        else "Harmonize noted nothing out of the ordinary about a held-out series."
    )
    if rows:
        page.table(["series", "decision"], rows)


def unusual_rows(corpus: Corpus, scan_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(series, decision) of the held-out series about which something out of the ordinary was decided."""
    rows = corpus.scans[corpus.scans["scan_id"].isin(scan_ids)]
    return [
        (f"...{scan_id[-8:]}", line)
        for scan_id, decisions in sorted(zip(rows["scan_id"], rows["decisions"], strict=True), key=lambda row: row[0])
        for line in unusual(decisions)
    ]
