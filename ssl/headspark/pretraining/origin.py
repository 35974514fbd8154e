"""What a pretraining run began with: its corpus, known by the hash of its manifest, and said for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonize.bounded_files import fits
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from harmonize.settings import region_facts
from headspark.folder_kind import is_region
from headspark.run.claim import NEW_FOLDER, STATE
from headspark.run.folder import RunKind

PRETRAINING = RunKind(
    name="pretraining",
    other="fine-tuning",
    key="corpus",
    free=frozenset(
        {
            "train.picture_every", "train.probe_every", "train.probe_labels",
            "train.trackers", "train.profile",
        }
    ),
)  # fmt: skip
STATE_SHAPE = {
    "corpus": {
        "manifest_sha256": str,
        "rejected": int,
        "spacing_mm": [float],
        "mri_norms": lambda norms: isinstance(norms, dict) and all(isinstance(norm, str) for norm in norms.values()),
        "groups": [{"source": str, "modality": str, "scans": int, "subjects": int}],
    },
    "libraries": dict,
    "revision": (str, type(None)),
}
"""What a model card needs of run.json, as `harmonize.bounded_files.fits` takes it."""


def began_with(state: Mapping[str, Any] | None, *, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The corpus for run.json, after a look at whether it is the one that a run began with.

    Args:
        state: run.json of the run that is taken up; None for a new one.
        corpus: The one that is given now.
        folder: The run's, for messages.

    Raises:
        UserError: With exit code 2: it is another.
    """
    manifest = corpus.manifest_sha256()
    if state is not None:
        if not fits(state, {"corpus": {"manifest_sha256": str}}):
            raise WrongUse(f"{folder}: its {STATE} is damaged; restore it, or {NEW_FOLDER}")
        if state["corpus"]["manifest_sha256"] != manifest:
            raise WrongUse(f"{folder}: the corpus is not the one that this run began with; {NEW_FOLDER}")
    return {"corpus": {"manifest_sha256": manifest, **summarise(corpus)}}


def summarise(corpus: Corpus) -> dict[str, Any]:
    """What a model card says about a corpus: scans by source and modality, spacing, region, normalisation."""
    scans = corpus.scans
    groups = scans.groupby(["source", "modality"], sort=True)
    return {
        "scans": len(scans),
        "rejected": len(corpus.rejected),
        "spacing_mm": list(corpus.spacing),
        **region_facts(corpus.region, corpus.circle_mm),
        "mri_norms": corpus.mri_norms,
        "groups": [
            {"source": source, "modality": modality, "scans": len(rows), "subjects": int(rows["subject"].nunique())}
            for (source, modality), rows in groups
        ],
    }


def check_state(folder: Path, state: Mapping[str, Any] | None) -> None:
    """Refuse a run.json that says too little for a model card.

    Raises:
        UserError: With exit code 2.
    """
    is_whole = state is not None and fits(state, STATE_SHAPE) and is_region(state["corpus"])
    if state is None or not is_whole or len(state["corpus"]["spacing_mm"]) != 3:
        raise WrongUse(f"{folder}: its {STATE} is damaged; restore it")
