"""What a path holds, in words: a mistaken folder is answered with what it is, not only with what it is not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from harmonize.bounded_files import fits, read_small_json
from harmonize.settings import StoredRegion

CORPUS_MARKS = ("corpus.json", "metadata.parquet")
NNSSL_CHECKPOINT = "checkpoint_final.pth"
_LARGEST_JSON = 1 << 20
_SHOWN = 3


def seen_at(path: Path) -> str:
    """One phrase: "a finished fine-tuning run", "an empty folder", "no such folder" ..."""
    try:
        return _seen(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def is_encoder_config(config: object) -> bool:
    """Whether the content of a config.json is that of a pretrained encoder."""
    if not isinstance(config, dict):
        return False
    return isinstance(config.get("encoder"), dict) and "preprocessing" in config and "head" not in config


def is_preprocessing(value: object) -> bool:
    """Whether a value says how scans are prepared for an encoder, as far as it says anything of it."""
    if not isinstance(value, dict):
        return False
    spacing, norms = value.get("spacing_mm", [1.0] * 3), value.get("mri_norms", {})
    if not fits(spacing, [float]) or len(spacing) != 3 or not isinstance(norms, dict):
        return False
    return all(isinstance(norm, str) for norm in norms.values()) and is_region(value)


def is_region(facts: Mapping[str, Any]) -> bool:
    """Whether facts say what of each scan is stored as `harmonize.settings.region_facts` does, or nothing of it."""
    edges_mm = facts.get("region_mm")
    if edges_mm is not None and not (fits(edges_mm, [float]) and len(edges_mm) == 3):
        return False
    return "region" not in facts or facts["region"] in list(map(str, StoredRegion))


def is_model_config(config: object) -> bool:
    """Whether the content of a config.json is that of a fine-tuned model."""
    return isinstance(config, dict) and "encoder" in config and "head" in config


def read_json(path: Path) -> Any:
    """The content of a small JSON file; None where it is absent, damaged or something else."""
    try:
        return read_small_json(path, limit=_LARGEST_JSON)
    except (OSError, ValueError):
        return None


def _seen(path: Path) -> str:
    if not os.path.lexists(path):
        return "no such file or folder"
    if not path.exists():
        return "a link to something that is not there"
    if path.is_file():
        return f"a file{_kind_of_file(path)}"
    if not path.is_dir():
        return "neither a file nor a folder"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty folder"
    return _kind_of_folder(path, set(names)) or f"a folder that holds {_some(names)}"


def _kind_of_folder(path: Path, names: set[str]) -> str | None:
    config, run = read_json(path / CONFIG_NAME), read_json(path / "run.json")
    if is_model_config(config):
        return "a fine-tuned model (a finished run of `finetune train`)"
    if isinstance(run, dict) and "origin" in run:
        return f"a fine-tuning run without a model yet (status {run.get('status')})"
    if isinstance(run, dict) and "corpus" in run:
        return f"a pretraining run (status {run.get('status')})"
    if is_encoder_config(config):
        return "a pretrained encoder" + ("" if SAFETENSORS_SINGLE_FILE in names else " without its weights")
    if all(name in names for name in CORPUS_MARKS):
        return "a corpus of `harmonize`"
    if NNSSL_CHECKPOINT in names:
        return "an nnssl or nnU-Net checkpoint"
    if {"checkpoint.json", SAFETENSORS_SINGLE_FILE} <= names:
        return "a checkpoint of a run, not the run"
    if {"train.csv", "series"} <= names:
        return "a raw tree (series and their train.csv)"
    if any(name.lower().endswith(".dcm") for name in names):
        return "a folder of DICOM files"
    if isinstance(config, dict):
        model = config.get("model_type") or next(iter(config.get("architectures") or ()), None)
        return f"a model of another library ({model})" if model else f"a folder with a foreign {CONFIG_NAME}"
    return None


def _kind_of_file(path: Path) -> str:
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        return " of PyTorch weights"
    return " of weights; its folder is wanted" if path.suffix == ".safetensors" else ""


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
