"""What `finetune probe` found, as a table on the Hub: a dataset that opens anywhere, and the file that a card takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from harmonize.bounded_files import fits
from harmonize.corpus.card_parts import NOT_CLINICAL, citation_section
from harmonize.corpus.card_text import plain_text
from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json, write_text
from harmonize.hub import check_repo, check_tag, fetch_file, push_folder, reached, refuse_foreign_repository
from harmonize.hub.faults import DATASET, HUB_ERRORS, not_had
from harmonize.provenance import library_versions
from headspark.folder_kind import read_json
from headspark.folders import replaced
from headspark.hub.encoder_folder import CARD
from headspark.hub.own_words import refuse_own_words, sealed

PROBE, TABLE = "probe.json", "probe.parquet"
PROBE_FILES = (PROBE, TABLE, CARD)
"""All that a repository of a probe holds; one with other files is not written to."""

_NUMBER = (float, type(None))
_ROW = {
    "encoder": str, "probe": str, "label": str, "labels": (int, str), "group": str, "metric": str,
    "value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "n": int,
}  # fmt: skip
_FACTS = {"kind": str, "scans": int, "patients": int, "folds": int, "draws": int, "seed": int, "corpus_sha256": str}
_CONTENT = {"rows": [_ROW], "differences": [_ROW], "encoders": dict}
_SCHEMA = pa.schema([
    ("encoder", pa.string()), ("encoder_sha256", pa.string()), ("probe", pa.string()), ("label", pa.string()),
    ("labels", pa.string()), ("group", pa.string()), ("metric", pa.string()), ("value", pa.float64()),
    ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int64()), ("is_difference", pa.bool_()),
])  # fmt: skip
_HOW = "`finetune push PROBE.json --repo USER/NAME` writes one"


def is_probe(path: Path) -> bool:
    """Whether a path is a file that ``finetune probe --json`` wrote."""
    return path.is_file() and path.suffix == ".json"


def save_probe(source: Path, folder: Path) -> None:
    """Write a probe as a folder to pass on: `PROBE_FILES`.

    Args:
        source: What ``finetune probe --json`` wrote.
        folder: Where; made if need be. A probe that was there is replaced.

    Raises:
        WrongUse: It is something else, or `folder` holds something else, which stays as it is.
    """
    content = _read(source)
    with replaced(folder, names=PROBE_FILES, is_ours=_is_ours, what="probe") as temporary:
        _write(content, temporary)


def push_probe(source: Path, repo: str, *, private: bool = True, tag: str | None = None) -> str:
    """Push what `save_probe` writes to the Hub, as a dataset, in one commit; the repository is made if need be.

    Args:
        source: What ``finetune probe --json`` wrote.
        repo: ``user/name``.
        private: Make a new repository private; one that is there stays as visible as it is.
        tag: Revision that the commit can be fetched by from now on.

    Returns:
        The commit's address.

    Raises:
        UserError: The Hub refused, or could not be reached.
        WrongUse: `source` is something else, or the repository holds something else.
    """
    check_repo(repo)
    check_tag(tag)
    content = _read(source)
    refuse_foreign_repository(repo, mark=PROBE, is_ours=partial(fits, shape=_CONTENT), what="a probe", kind=DATASET)
    with tempfile.TemporaryDirectory(prefix="headspark-push-") as name:
        _write(content, Path(name))
        message = "Push a probe of headspark"
        return push_folder(Path(name), repo, kind=DATASET, message=message, private=private, tag=tag).address


def fetch_probe(repo: str, *, revision: str | None = None) -> Path:
    """Fetch a probe into the cache of the Hub's client.

    Args:
        repo: ``user/name`` of a dataset.
        revision: Branch, tag or commit; None takes the newest.

    Returns:
        The file, as ``headspark push --probe`` takes it.

    Raises:
        UserError: There is none.

    Example::

        from finetune.hub import fetch_probe

        path = fetch_probe("user/name")
    """
    try:
        with reached(repo, PROBE, kind=DATASET, revision=revision):
            found = fetch_file(repo, PROBE, kind=DATASET, revision=revision)
    except HUB_ERRORS as error:
        raise UserError(not_had(repo, error, kind=DATASET, how=_HOW)) from error
    if not fits(read_json(found), _CONTENT):
        raise UserError(f"{repo}: its {PROBE} is not what `finetune probe --json` writes; {_HOW}")
    return found


def _read(path: Path) -> dict[str, Any]:
    """What travels of a probe: numbers, and the names of encoders, labels and groups; no notes, which quote tables.

    Raises:
        WrongUse: It is no probe.
    """
    found: Any = read_json(path)
    if not fits(found, _CONTENT) or not all(isinstance(one, str) for one in found["encoders"].values()):
        raise WrongUse(f"{path}: is not what `finetune probe --json` writes; give that file")
    facts = {key: found[key] for key, kind in _FACTS.items() if fits(found.get(key), kind)}
    rows = {name: [{key: row[key] for key in _ROW} for row in found[name]] for name in ("rows", "differences")}
    return {**facts, "encoders": found["encoders"], **rows}


def _write(content: Mapping[str, Any], folder: Path) -> None:
    write_json(folder / PROBE, content)
    rows = [
        {**row, "labels": str(row["labels"]), "encoder_sha256": content["encoders"].get(row["encoder"]),
         "is_difference": name == "differences"}
        for name in ("rows", "differences")
        for row in content[name]
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / TABLE)
    write_text(folder / CARD, sealed(_card(content)))


def _card(content: Mapping[str, Any]) -> str:
    header = {
        "pretty_name": "Probes of encoders for head CT and MRI",
        "license": "cc-by-4.0",
        "tags": ["headspark", "medical", "3d", "ct", "mri"],
        "size_categories": ["n<1K" if len(content["rows"]) + len(content["differences"]) < 1000 else "1K<n<10K"],
        "configs": [{"config_name": "default", "data_files": TABLE}],
    }
    facts = "\n".join(f"| {key} | {plain_text(content[key])} |" for key in _FACTS if key in content)
    encoders = "\n".join(f"| {plain_text(name)} | `{plain_text(sha)}` |" for name, sha in content["encoders"].items())
    rows = [row for row in content["rows"] if row["group"] == "all" and row["labels"] == "all"]
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# Probes of encoders for head CT and MRI

What frozen encoders know about labels, found out by `finetune probe` of headspark, beside the same network untrained
(`random`) and a table of intensities (`intensities`).

{_table(rows)}

Of all training labels and all scans; the table has the curves of few labels, the groups of patients, and the paired
differences (`is_difference`) too. Intervals are of 95 %, from a bootstrap over patients.

```python
from datasets import load_dataset

rows = load_dataset("THIS_REPOSITORY", split="train")
```

| | |
|---|---|
{facts}

| encoder | SHA-256 of its weights |
|---|---|
{encoders}

## Use and limits

To choose between encoders in research. {NOT_CLINICAL} The numbers speak of other patients of the same data, not of
other places, other folds or another pretraining; of a group without a row nothing is known.

{citation_section(library_versions()["headspark"])}
"""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| encoder | probe | label | measure | value | 95 % | scans |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        shown = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("value", "low", "high")]
        cells = (row["encoder"], row["probe"], row["label"], row["metric"], shown[0], f"{shown[1]} to {shown[2]}")
        lines.append(f"| {' | '.join(plain_text(cell) for cell in (*cells, row['n']))} |")
    return "\n".join(lines)


def _is_ours(folder: Path) -> bool:
    refuse_own_words(folder / CARD)
    return fits(read_json(folder / PROBE), _CONTENT)
