"""The names of RSNA 2025 intracranial aneurysm detection: 13 locations, the present label, mask values, the mirror."""

from __future__ import annotations

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
