"""The JSON of a NIfTI file, as dcm2niix writes it: contrast and scanner, by words that are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harmonize.bounded_files import fits, read_small_json
from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.kinds import mr_contrast

_VENDORS = ("Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "Fujifilm", "United Imaging", "Hyperfine")
_MODALITIES = frozenset({"CT", "PT"})
_MS = 1000.0
_MOST_TESLA = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a sidecar says.

    Attributes:
        contrast: ``CT``, ``PT``, or an MR contrast that its physics tell, ``MR`` at least; None where it says nothing.
        scanner: Maker and nominal field strength, such as ``Siemens 3 T``, no text of the file; "" where neither is
            known.
        notes: What was decided.
    """

    contrast: str | None = None
    scanner: str = ""
    notes: tuple[Decision, ...] = ()


def read_sidecar(path: Path | None) -> Sidecar:
    """What the one sidecar of an image says."""
    return sidecar_of([] if path is None else [content_of(path)])


Content = Mapping[str, object] | Decision
"""The keys of a sidecar, or why they cannot be read."""


def content_of(path: Path) -> Content:
    """The keys of a sidecar; one that cannot be read says nothing, and what is noted of it instead."""
    try:
        said = read_small_json(path)
    except ValueError:
        return DecisionKind.SIDECAR_UNREADABLE(why="it is no JSON")
    except OSError as error:
        return DecisionKind.SIDECAR_UNREADABLE(why=error.strerror or "it cannot be opened")
    return said if isinstance(said, dict) else DecisionKind.SIDECAR_UNREADABLE(why="it holds no keys")


def sidecar_of(contents: Iterable[Content]) -> Sidecar:
    """What the sidecars of an image say together; where two have the same key, the later one's counts."""
    said: dict[str, object] = {}
    notes = []
    for content in contents:
        if isinstance(content, Mapping):
            said |= content
        else:
            notes.append(content)
    return Sidecar(contrast=_contrast(said), scanner=_scanner(said), notes=tuple(dict.fromkeys(notes)))


def _contrast(said: Mapping[str, object]) -> str | None:
    modality = _text(said.get("Modality"))
    if modality in _MODALITIES:
        return modality
    if modality != "MR":
        return None
    return mr_contrast(
        image_type=_words(said.get("ImageType")),
        sequence=_words(said.get("ScanningSequence")),
        sequence_name=_text(said.get("SequenceName")),
        repetition_ms=_MS * _number(said.get("RepetitionTime")),
        echo_ms=_MS * _number(said.get("EchoTime")),
        inversion_ms=_MS * _number(said.get("InversionTime")),
    )


def _scanner(said: Mapping[str, object]) -> str:
    maker = _text(said.get("Manufacturer")).casefold()
    vendor = next((name for name in _VENDORS if maker.startswith(name.casefold())), "")
    tesla = _number(said.get("MagneticFieldStrength"))
    strength = f"{round(2 * tesla) / 2:g} T" if 0.25 <= tesla < _MOST_TESLA else ""
    return " ".join(filter(None, (vendor, strength)))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _words(value: object) -> tuple[str, ...]:
    words = value.replace("\\", "_").split("_") if isinstance(value, str) else value
    return tuple(word.upper() for word in words if isinstance(word, str)) if isinstance(words, list) else ()


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and fits(value, float) else math.nan
