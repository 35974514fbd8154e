"""Settle the rescale slope and intercept of every picture of a volume.

They are taken picture by picture, as the headers have them. Pictures that lack them get those on which all others
agree, and in a CT a few that say something else than most are put to the same test: the values have to resemble those
of the neighbouring slice. Where two halves contradict each other, the one that shows a head in Hounsfield units counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.decode import stored_pictures
from harmonize.dicom.headers import Frame
from harmonize.dicom.layout import check_layout
from harmonize.dicom.units import TISSUE_SHARE_UNSIGNED, shows_head
from harmonize.errors import Reason, Rejection

Scaling = tuple[float, float]
"""Slope and intercept."""

CLEARLY = 2.0
"""By this factor a slice has to resemble its neighbour more for one scaling to be chosen over another."""

_LOOKED_AT = 8
"""So many slices of each half, or places where they meet, are read where two halves contradict each other."""

_SAME_SCALE = 1e-6
_SMALL = 1 << 14


def settle_rescale(frames: Sequence[Frame]) -> tuple[list[Frame], bool, list[Decision]]:
    """Settle slope and intercept of the pictures of one volume, sorted along their normal.

    Returns:
        (the pictures, each with a slope and an intercept; whether the headers give the intercept, so that what comes
        out is in the unit that they name; what was assumed).

    Raises:
        Rejection: They are missing in some pictures, and neither the others nor the pixels tell them.
    """
    slopes = _plausible([frame.meaning.slope for frame in frames], lambda slope: math.isfinite(slope) and slope != 0)
    intercepts = _plausible([frame.meaning.intercept for frame in frames], math.isfinite)
    modality = frames[0].header.modality
    decisions: list[Decision] = []
    no_slope, no_intercept = (not any(value is not None for value in values) for values in (slopes, intercepts))
    # Only in CT does the unit hang on the intercept: that of MR and PET is nearly always 0.
    stated = not no_intercept or (modality != "CT" and not no_slope)
    if no_slope:
        slopes = [1.0] * len(frames)
        decisions += [DecisionKind.SLOPE_ASSUMED()] if not no_intercept else []
    if no_intercept:
        intercepts = [0.0] * len(frames)
        decisions += [DecisionKind.INTERCEPT_ZERO_ASSUMED()] if modality != "CT" and not no_slope else []
    own = [(_or(slope, 1.0), _or(intercept, 0.0)) for slope, intercept in zip(slopes, intercepts, strict=True)]
    agreed = _agreed(slopes), _agreed(intercepts)
    filled = {
        k: (_or(slope, _or(agreed[0], math.nan)), _or(intercept, _or(agreed[1], math.nan)))
        for k, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True))
        if slope is None or intercept is None
    }
    scalings, noted = _fill(frames, own, filled) if filled else (own, [])
    decisions += noted
    if modality == "CT":
        scalings, noted = _overrule(frames, scalings, set(filled))
        decisions += noted
    if modality == "MR":
        scalings, noted = _undo_philips_scaling(frames, scalings)
        decisions += noted
    settled = [_with_scaling(frame, scaling) for frame, scaling in zip(frames, scalings, strict=True)]
    return settled, stated, decisions


def _with_scaling(frame: Frame, scaling: Scaling) -> Frame:
    if (frame.meaning.slope, frame.meaning.intercept) == scaling:
        return frame
    return replace(frame, meaning=replace(frame.meaning, slope=scaling[0], intercept=scaling[1]))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _plausible(values: list[float | None], is_plausible: Callable[[float], bool]) -> list[float | None]:
    """The values without those that cannot be true, where others can; none can: all as they are, to be rejected."""
    kept = [value if value is not None and is_plausible(value) else None for value in values]
    return kept if any(value is not None for value in kept) else values


def _agreed(values: Sequence[float | None]) -> float | None:
    """The one value that all have that have any."""
    found = set(values) - {None}
    return found.pop() if len(found) == 1 else None


def _fill(
    frames: Sequence[Frame], own: Sequence[Scaling], filled: Mapping[int, Scaling]
) -> tuple[list[Scaling], list[Decision]]:
    """Give pictures that lack slope or intercept those of the others, unless they plainly need none.

    Args:
        frames: The pictures.
        own: Their scalings, with 1 and 0 for what they lack.
        filled: By number, those of the pictures that lack something, with NaN where the others do not agree.

    Returns:
        (the scalings of all pictures, what was decided).
    """
    lacking = f"the rescale slope or intercept is missing in {len(filled)} of {len(frames)} slices"
    if any(map(math.isnan, (number for scaling in filled.values() for number in scaling))):
        raise Rejection(Reason.BAD_INTENSITY, f"{lacking}, and the others do not agree on one")
    chosen, needless = list(own), 0
    told = [k for k in range(len(frames)) if k not in filled]
    for k, scaling in filled.items():
        if own[k] != scaling and told:
            nearest = min(told, key=lambda other: abs(other - k))
            like_others, as_is = _unlikeness(frames, k, nearest, own[nearest], (scaling, own[k]))
            if as_is * CLEARLY < like_others:
                needless += 1
                continue
            if as_is < like_others:
                raise Rejection(Reason.BAD_INTENSITY, f"{lacking}, and their pixels do not bear out that of the others")
        chosen[k] = scaling
    found = [DecisionKind.RESCALE_FILLED(lacking=len(filled), count=len(frames), filled=len(filled) - needless)]
    if needless:
        found.append(DecisionKind.RESCALE_NEEDLESS(count=needless))
    return chosen, found


def _overrule(
    frames: Sequence[Frame], scalings: list[Scaling], settled: set[int]
) -> tuple[list[Scaling], list[Decision]]:
    """Read the slices of a CT whose scaling is plainly that of most others like those, whatever their headers say."""
    (most, count), *others = Counter(scalings).most_common()
    if len(others) == 1 and 2 * count == len(frames):
        return _of_halves(frames, scalings)
    if count == len(frames) or 2 * count <= len(frames):
        return scalings, []
    like_most = [k for k, scaling in enumerate(scalings) if scaling == most]
    found, wrong = list(scalings), 0
    for k, scaling in enumerate(scalings):
        if scaling == most or k in settled:
            continue
        nearest = min(like_most, key=lambda other: abs(other - k))
        as_most, as_said = _unlikeness(frames, k, nearest, most, (most, scaling))
        if as_most * CLEARLY < as_said:
            found[k] = most
            wrong += 1
    return found, [DecisionKind.RESCALE_OVERRULED(count=wrong)] if wrong else []


def _of_halves(frames: Sequence[Frame], scalings: list[Scaling]) -> tuple[list[Scaling], list[Decision]]:
    """Settle two scalings of which each is that of half of the slices of a CT."""
    edges = [k for k in range(len(frames) - 1) if scalings[k] != scalings[k + 1]]
    jumps = [_unlikeness(frames, k, k + 1, scalings[k + 1], (scalings[k], scalings[k + 1])) for k in _some_of(edges)]
    as_said, alike = np.sum(jumps, axis=0)
    if alike * CLEARLY >= as_said:
        return scalings, []
    shown = []
    for scaling in dict.fromkeys(scalings):
        half = _some_of([k for k, own in enumerate(scalings) if own == scaling])
        values_ZYX = np.stack([_sample(frames[k]) for k in half]) * scaling[0] + scaling[1]
        if shows_head(values_ZYX, TISSUE_SHARE_UNSIGNED):
            shown.append(scaling)
    if len(shown) != 1:
        raise Rejection(
            Reason.BAD_INTENSITY,
            "two halves of the slices have a rescale slope or intercept each, their values jump from one to the "
            "other, and nothing tells which is true",
        )
    return shown * len(frames), [DecisionKind.RESCALE_BY_AIR(count=len(frames) // 2)]


def _some_of(numbers: Sequence[int]) -> Sequence[int]:
    return numbers[:: -(-len(numbers) // _LOOKED_AT)]


def _unlikeness(
    frames: Sequence[Frame], k: int, other: int, scaling: Scaling, candidates: Sequence[Scaling]
) -> list[float]:
    """Mean difference of a picture, under each candidate, from another one."""
    one, two = (_sample(frames[number]) for number in (k, other))
    reference = two * scaling[0] + scaling[1]
    return [float(abs(one * slope + intercept - reference).mean()) for slope, intercept in candidates]


def _sample(frame: Frame) -> NDArray[np.float64]:
    layout = frame.header.pixels
    check_layout(layout)
    ((stored, _),) = stored_pictures([(frame.header.path, layout, frame.index)])
    step = 1 if stored.size < _SMALL else 2
    return stored[::step, ::step].astype(np.float64)


def _undo_philips_scaling(frames: Sequence[Frame], scalings: list[Scaling]) -> tuple[list[Scaling], list[Decision]]:
    """Take out the private scale slope where it differs between the slices of a volume.

    The stored values of Philips are ``signal * scale``; the rescaled ones are for display (PS3.3 knows only these, the
    formula is ``signal = (stored * slope + intercept) / (slope * scale)``).
    """
    scales = {frame.meaning.scale for frame in frames}
    known = [scale for scale in scales if scale is not None]
    if not known or max(known) - min(known) <= _SAME_SCALE * max(known):
        return scalings, []
    if None in scales or any(slope == 0 for slope, _ in scalings):
        raise Rejection(Reason.BAD_INTENSITY, "a private scale slope differs between the slices and is missing in some")
    undone = [
        (1 / frame.meaning.scale, intercept / (slope * frame.meaning.scale))  # type: ignore[operator]
        for frame, (slope, intercept) in zip(frames, scalings, strict=True)
    ]
    return undone, [DecisionKind.PRIVATE_SCALE_UNDONE()]
