"""Which of the decisions about a scan a person should hear of: whatever is not a matter of course."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ROUTINE = re.compile(
    r"\d+ slices of \w+, [\d.]+ mm apart"
    r"|Siemens mosaic cut into \d+ slices"
    r"|multi-frame file of \d+ frames"
    r"|gantry tilt of [\d.]+ degrees kept as shear"
    r"|bias field corrected by N4"
    r"|brain of \d+ ml found by SynthStrip"
    r"|all but the brain was blanked"
    r"|cropped to [\d:, ]+ of [\d x]+ voxels"
    r"|\d+ padding voxels set to -?\d+"
    r"|rescaled slice by slice \(\d+ different slopes or intercepts\)"
    r"|the direction cosines are rounded: made perpendicular unit vectors"
    r"|big-endian voxels"
    r"|header scale \S+ and offset \S+ applied"
    r"|\w+ mask used"
)
"""Decisions that say how a sound scan was handled. A new kind of decision is unusual until it is named here, so that
none is passed over by mistake."""


def unusual(decisions: Iterable[str]) -> list[str]:
    """The decisions that are no matter of course, in their order.

    Example:
        >>> unusual(["40 slices of CT, 3.000 mm apart", "missing slices: 2, interpolated between true positions"])
        ['missing slices: 2, interpolated between true positions']
    """
    return [line for line in decisions if not _ROUTINE.fullmatch(line)]
