"""The names of RSNA 2025 intracranial aneurysm detection: 13 locations, the present label, mask values, the mirror."""

from __future__ import annotations

from collections.abc import Mapping

LOCATIONS = (
    "Left Infraclinoid Internal Carotid Artery",
    "Right Infraclinoid Internal Carotid Artery",
    "Left Supraclinoid Internal Carotid Artery",
    "Right Supraclinoid Internal Carotid Artery",
    "Left Middle Cerebral Artery",
    "Right Middle Cerebral Artery",
    "Anterior Communicating Artery",
    "Left Anterior Cerebral Artery",
    "Right Anterior Cerebral Artery",
    "Left Posterior Communicating Artery",
    "Right Posterior Communicating Artery",
    "Basilar Tip",
    "Other Posterior Circulation",
)
PRESENT = "Aneurysm Present"
LABELS = (*LOCATIONS, PRESENT)
"""The 14 columns of train.csv and of a submission, in the competition's order."""

MASK_VALUES = (6, 5, 8, 7, 10, 9, 13, 12, 11, 4, 3, 2, 1)
"""Value of each of `LOCATIONS` in the competition's vessel masks (``*_cowseg.nii``)."""

MIRRORED = (1, 0, 3, 2, 5, 4, 6, 8, 7, 10, 9, 11, 12, 13)
"""Index of each of `LABELS` after a left-right flip of the head; an involution."""

_WORDS = {"true": 1, "false": 0}


def read_labels(row: Mapping[str, str]) -> tuple[dict[str, int] | None, str]:
    """The 14 labels of a row of train.csv, or why they cannot be used.

    ``1``, ``1.0`` and ``True`` are positive. A location may not be positive where no aneurysm is present; an aneurysm
    without a location is possible, because it may lie elsewhere.

    Args:
        row: Text by column, at least those of `LABELS`.

    Returns:
        (labels by name or None, the fault or "").

    Example:
        >>> read_labels(dict.fromkeys(LABELS, "0"))[1]
        ''
        >>> read_labels(dict.fromkeys(LABELS, "2"))
        (None, '14 of the 14 labels say neither yes nor no')
    """
    values = {name: _label(row[name]) for name in LABELS}
    empty = sum(not row[name].strip() for name in LABELS)
    odd = sum(value is None for value in values.values()) - empty
    if empty:
        return None, f"{empty} of the {len(LABELS)} labels {'is' if empty == 1 else 'are'} empty"
    if odd:
        return None, f"{odd} of the {len(LABELS)} labels {'say' if odd > 1 else 'says'} neither yes nor no"
    labels = {name: value for name, value in values.items() if value is not None}
    if not labels[PRESENT] and any(labels.values()):
        return None, f"a location is positive although {PRESENT} is 0"
    return labels, ""


def in_order(labels: Mapping[str, int] | None) -> tuple[int, ...]:
    """Labels by name as a row with the columns of `LABELS`; 0 everywhere where there are none.

    Example:
        >>> in_order(dict.fromkeys(LABELS, 0) | {"Basilar Tip": 1, PRESENT: 1})
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1)
    """
    return tuple(0 if labels is None else labels[name] for name in LABELS)


def _label(text: str) -> int | None:
    said = text.strip().lower()
    if said in _WORDS:
        return _WORDS[said]
    try:
        value = float(said) if said.isascii() and "_" not in said else None
    except ValueError:
        return None
    return int(value) if value in (0, 1) else None
