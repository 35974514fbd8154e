"""The dataset card of a corpus, as the Hub shows it."""

from __future__ import annotations

import re
from typing import Any

from harmonize.corpus.terms import terms_of
from harmonize.terminal import printable

LONGEST_TEXT = 200
_MARKUP = re.compile(r"[\\`*_\[\]<>|~&$@#!]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def corpus_card(info: dict[str, Any], accepted: list[dict[str, Any]], rejected: int) -> str:
    """The dataset card: what is in the corpus and how to open it, with the header that the Hub reads.

    Args:
        info: The content of corpus.json.
        accepted: Rows of metadata.parquet.
        rejected: How many scans were rejected.
    """
    counts: dict[tuple[str, str, str], int] = {}
    for row in accepted:
        group = (row["source"], row["modality"], row["unit"])
        counts[group] = counts.get(group, 0) + 1
    table = "\n".join(f"| {' | '.join(map(plain_text, group))} | {count} |" for group, count in sorted(counts.items()))
    spacing = _by(info["settings"]["spacing"])
    region = _region(info["settings"])
    version = plain_text(info["libraries"].get("headspark", ""))
    sources = sorted({row["source"] for row in accepted})
    licences = "\n".join(
        f"| {plain_text(source)} | {terms_of(source).licence} | {terms_of(source).link} |" for source in sources
    )
    licence = "cc-by-4.0" if all(terms_of(source).licence == "CC-BY-4.0" for source in sources) else "other"
    norms = plain_text(", ".join(f"{source}: {chosen['mri_norm']}" for source, chosen in info["sources"].items()))
    return f"""---
pretty_name: Harmonized head CT and MRI
license: {licence}
task_categories:
- image-feature-extraction
tags:
- medical
- 3d
- ct
- mri
- nifti
- headspark
size_categories:
- {_size_category(len(accepted))}
---

# Harmonized head CT and MRI

{len(accepted)} scans ({rejected} rejected), written by `harmonize` of headspark {version}.
Every volume is RAS, {spacing} mm, int16 with its scale in the header; CT is in Hounsfield units.
MRI is normalised ({norms}).{region}

| source | modality | unit | scans |
|---|---|---|---|
{table}

```python
from datasets import load_dataset

scans = load_dataset("niftifolder", data_dir="THIS_FOLDER", split="train")
```

`metadata.parquet` has a row a scan, `rejected.parquet` a row a rejected scan with its reason, `labels.parquet` (where a
source labels its scans) a row a labelled scan, rejected ones too, and `folds.parquet` (once a fine-tuning run has dealt
them) the fold of each labelled scan.

The scans keep the licences of their sources:

| source | licence | terms |
|---|---|---|
{licences}
"""


def plain_text(text: object, *, longest: int = LONGEST_TEXT) -> str:
    """Text from a raw tree for Markdown, where it shows as it is: no markup, no link, no end of a cell or a line.

    Example:
        >>> plain_text("T1w"), plain_text("a|b <img>")
        ('T1w', 'a\\\\|b \\\\<img\\\\>')
    """
    shown = printable(str(text))
    return _MARKUP.sub(r"\\\g<0>", shown if len(shown) <= longest else f"{shown[:longest]}...")


def _region(settings: dict[str, Any]) -> str:
    """A line that says what of each scan is stored, where that is not all."""
    edges_mm = settings.get("circle_mm")
    if edges_mm:
        return f"\nOf each scan a box of {_by(edges_mm)} mm around the circle of Willis is stored."
    return "\nOf each scan the head is stored, with a margin." if settings.get("crop_foreground") else ""


def _by(edges_mm: list[float]) -> str:
    return " x ".join(f"{mm:g}" for mm in edges_mm)


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "n>1M"
