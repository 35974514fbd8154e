"""The dataset card of a corpus, as the Hub shows it."""

from __future__ import annotations

from typing import Any

import yaml

from harmonize.corpus.card_parts import NOT_CLINICAL, citation_section, licence_header, licence_section
from harmonize.corpus.card_text import plain_text

__all__ = ["corpus_card", "plain_text"]

_TAGS = ["medical", "3d", "ct", "mri", "nifti", "headspark"]

_OPENING = """## Open it

```python
from datasets import load_dataset

scans = load_dataset("niftifolder", data_dir="THIS_FOLDER", split="train")
streamed = load_dataset("THIS_REPOSITORY", split="train", streaming=True)  # from the Hub, a scan at a time
```

A row is a scan: `image` (a nibabel image: its voxels, and the affine that leads to RAS+ mm), `mask` and `brain_mask`
where there are any, `modality`, `source`, `subject` (the patient), `shape`, `spacing` in mm, `unit`, and what else
`metadata.parquet` has. There is one split, `train`. Patients have several scans, so divide by them:

```python
import hashlib


def is_held_out(row, share=0.1, seed=0):  # as `headspark pretrain` divides
    key = f"{seed}/{row['source']}/{row['subject']}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < share * 2**64


train = streamed.filter(lambda row: not is_held_out(row))
held_out = streamed.filter(is_held_out)
```

`hf download THIS_REPOSITORY --repo-type dataset --local-dir CORPUS` gives the folder that `headspark pretrain` and
`finetune train` take. `rejected.parquet` has a row a rejected scan with its reason, `labels.parquet` (where a source
labels its scans) a row a labelled scan, rejected ones too, and `folds.parquet` (once a fine-tuning run has dealt them)
the fold of each labelled scan."""

_LIMITS = f"""## Use and limits

For pretraining and evaluating models of head CT and MRI in research. {NOT_CLINICAL}

The voxels were resampled and MRI was normalised: they are no substitute for the originals, and nobody looked at each of
them; `decisions` says what was found and done about a scan, and `harmonize report` draws it. Scanners, countries,
ages and diseases are those of the sources, which stand for no population. Ids are those that a source publishes, or
salted hashes; no text of an original's header is in the files. Faces are as the sources have them: where these were not
removed, a head can be recognised, so do not try to find out who anybody is."""


def corpus_card(info: dict[str, Any], accepted: list[dict[str, Any]], rejected: int, manifest_sha256: str = "") -> str:
    """The dataset card: what is in the corpus and how to open it, with the header that the Hub reads.

    Args:
        info: The content of corpus.json.
        accepted: Rows of metadata.parquet.
        rejected: How many scans were rejected.
        manifest_sha256: Of metadata.parquet; "" where it is not known.
    """
    sources = sorted({row["source"] for row in accepted})
    header: dict[str, Any] = {
        "pretty_name": "Harmonized head CT and MRI",
        **licence_header(sources, name="terms-of-the-sources"),
        "task_categories": ["image-feature-extraction"],
        "tags": _TAGS,
        "size_categories": [_size_category(len(accepted))],
    }
    spacing = _by(info["settings"]["spacing"])
    version = info["libraries"].get("headspark", "")
    norms = plain_text(", ".join(f"{source}: {chosen['mri_norm']}" for source, chosen in info["sources"].items()))
    subjects = len({(row["source"], row["subject"]) for row in accepted})
    how = f"RAS, {spacing} mm, int16 with its scale in the header"
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        "# Harmonized head CT and MRI",
        f"{len(accepted)} scans of {subjects} subjects ({rejected} rejected), written by `harmonize` of headspark "
        f"{plain_text(version)}.\nEvery volume is {how}; CT is in Hounsfield units.\nMRI is normalised ({norms})."
        f"{_region(info['settings'])}",
        _contents(accepted),
        _OPENING,
        _LIMITS,
        licence_section(sources, what="the scans"),
        _provenance(info, manifest_sha256),
        citation_section(version),
    ]
    return "\n\n".join(sections) + "\n"


def _contents(accepted: list[dict[str, Any]]) -> str:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in accepted:
        groups.setdefault((row["source"], row["modality"], row["unit"]), []).append(row)
    lines = ["| source | modality | unit | scans | subjects | with a mask |", "|---|---|---|---|---|---|"]
    for group, rows in sorted(groups.items()):
        masks = sum(row.get("mask_file_name") is not None for row in rows)
        counts = (len(rows), len({row["subject"] for row in rows}), masks)
        lines.append(f"| {' | '.join(map(plain_text, (*group, *counts)))} |")
    return "\n".join(lines)


def _provenance(info: dict[str, Any], manifest_sha256: str) -> str:
    """What it was made with and how: the settings are in corpus.json too, whose fingerprint of the salt stays there."""
    settings = {key: value for key, value in info["settings"].items() if key != "salt_fingerprint"}
    chosen = {**settings, "sources": info["sources"]}
    rows = [f"| {plain_text(key)} | {plain_text(value, longest=1000)} |" for key, value in sorted(chosen.items())]
    table = "\n".join(["| setting | value |", "|---|---|", *rows])
    libraries = ", ".join(f"{name} {version}" for name, version in info["libraries"].items())
    named = f"SHA-256 of `metadata.parquet`, whose rows hold the hash of every file: `{manifest_sha256}`.\n\n"
    return (
        f"## Recipe and provenance\n\n{named if manifest_sha256 else ''}{table}\n\n"
        f"{plain_text(libraries, longest=1000)}."
    )


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
