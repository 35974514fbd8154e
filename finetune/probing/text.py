"""A report card of encoders in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.evaluation.measures import NAMES
from finetune.evaluation.text import table
from finetune.probing.judge import ALL, Card, Row


def card_lines(card: Card) -> Iterator[str]:
    """The card: encoders side by side, curves, labels, groups, differences, and what was left out."""
    facts = card.facts
    headline = facts["headline"]
    yield f"{facts['scans']} scans of {facts['patients']} patients, {facts['folds']} folds; {facts['kind']}"
    yield f"intervals: 95 %, {facts['bootstrap_draws']} draws of patients; - where a number is undefined"
    whole = [row for row in card.rows if row.group == ALL]
    overall = [row for row in whole if row.probe == "knn"]
    label = overall[0].label
    encoders = list(dict.fromkeys(row.encoder for row in card.rows))
    of_all = [row for row in whole if row.label == label and row.labels == ALL]
    columns = [(probe, metric) for probe, metric in dict.fromkeys((row.probe, row.metric) for row in of_all)]
    for probe in dict.fromkeys(probe for probe, _ in columns):
        yield ""
        yield f"{probe} probe: {label}"
        own = [metric for one, metric in columns if one == probe]
        yield from table(
            ["encoder", *(NAMES[metric] for metric in own)],
            [[name, *(_cell(of_all, encoder=name, probe=probe, metric=metric) for metric in own)] for name in encoders],
        )
    shots = [count for count in dict.fromkeys(row.labels for row in whole) if count != ALL]
    if shots:
        yield ""
        yield f"{NAMES[headline]} by number of labels: {label}"
        curve = [row for row in whole if row.label == label and row.metric == headline and row.probe == "linear"]
        yield from table(
            ["encoder", *map(str, shots), ALL],
            [[name, *(_cell(curve, encoder=name, labels=count) for count in (*shots, ALL))] for name in encoders],
        )
    labels = [one for one in dict.fromkeys(row.label for row in whole) if one != label]
    if labels:
        yield ""
        yield f"{NAMES[headline]} of each label, linear probe"
        own_rows = [row for row in whole if row.label in labels]
        yield from table(
            ["label", *encoders],
            [[one, *(_cell(own_rows, encoder=name, label=one) for name in encoders)] for one in labels],
        )
    groups = list(dict.fromkeys(row.group for row in card.rows if row.group != ALL))
    if groups:
        yield ""
        yield f"{NAMES[headline]} of groups, linear probe"
        own_rows = [row for row in card.rows if row.group != ALL]
        sizes = {row.group: row.n for row in own_rows}
        yield from table(
            ["group", "scans", *encoders],
            [[one, sizes[one], *(_cell(own_rows, encoder=name, group=one) for name in encoders)] for one in groups],
        )
    yield ""
    yield f"Differences in {NAMES[headline]}, linear probe, all labels: {label}"
    pairs = [
        row
        for row in card.differences
        if (row.probe, row.label, row.labels, row.metric) == ("linear", label, ALL, headline)
    ]
    yield from table(["", "difference"], [[row.encoder, _text(row)] for row in pairs])
    if card.notes:
        yield ""
        yield from (f"note: {note}" for note in card.notes)


def _cell(rows: Sequence[Row], **wanted: object) -> str:
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return _text(found[0]) if found else "-"


def _text(row: Row) -> str:
    if row.value is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
