"""What `finetune probe` found out about an encoder, as a part of its model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonize.corpus.card import plain_text
from harmonize.errors import WrongUse
from headspark.folder_kind import read_json

BASELINES = ("random", "intensities")
"""Names that `finetune probe` gives to an untrained encoder and to a table of intensities."""

_NUMBERS = ("value", "low", "high")
_TEXTS = ("encoder", "probe", "label", "metric")


def read_probe(path: Path, sha256: str) -> str:
    """The rows about an encoder and the baselines, of all scans, as Markdown.

    Args:
        path: What ``finetune probe --json`` wrote.
        sha256: Hash of the encoder's weights, as `headspark.weights.weights_sha256` gives it.

    Raises:
        WrongUse: It is something else, or it is about other encoders.
    """
    found: Any = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("encoders"), dict) or not _are_rows(found.get("rows")):
        raise WrongUse(f"--probe {path}: is not what `finetune probe --json` writes; give that file")
    name = next((name for name, own in found["encoders"].items() if own == sha256), None)
    if name is None:
        raise WrongUse(f"--probe {path}: is about other weights than these; probe what `headspark push --out` exports")
    known = {name: "this encoder", **dict.fromkeys(BASELINES, "")}
    lines = ["| encoder | probe | label | labels | measure | value (95 %) | scans |", "|---|---|---|---|---|---|---|"]
    for row in found["rows"]:
        if row["encoder"] in known and row.get("group") == "all":
            told = (row[key] for key in ("probe", "label", "labels", "metric"))
            cells = [known[row["encoder"]] or row["encoder"], *told]
            lines.append(f"| {' | '.join(plain_text(str(cell)) for cell in (*cells, _value(row), row['n']))} |")
    counts = " of ".join(f"{found[key]} {key}" for key in ("scans", "patients") if type(found.get(key)) is int)
    return (
        f"## Probe\n\nFrozen features, {counts or 'unknown scans'}; beside the same network untrained (random) and a "
        "table of intensities. Intervals: bootstrap over patients.\n\n" + "\n".join(lines)
    )


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and _is_row(row) for row in rows)


def _is_row(row: Mapping[str, Any]) -> bool:
    texts = all(isinstance(row.get(key), str) for key in _TEXTS)
    numbers = all(row.get(key) is None or _is_number(row[key]) for key in _NUMBERS)
    return texts and numbers and isinstance(row.get("labels"), int | str) and type(row.get("n")) is int


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(row: Mapping[str, Any]) -> str:
    if row.get("value") is None:
        return "-"
    if row.get("low") is None or row.get("high") is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
