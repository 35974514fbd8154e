"""Settle the rescale slope and intercept of every picture of a volume.

They are taken picture by picture, as the headers have them. Pictures that lack them get those on which all others
agree, and in a CT a few that say something else than most are put to the same test: the values have to resemble those
of the neighbouring slice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom_decode import stored_pictures
from harmonize.dicom_headers import Frame
from harmonize.dicom_layout import check_layout
from harmonize.errors import Reason, Rejection

Scaling = tuple[float, float]
"""Slope and intercept."""

CLEARLY = 2.0
"""By this factor a slice has to resemble its neighbour more for one scaling to be chosen over another."""

_SAME_SCALE = 1e-6
_SMALL = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaling:
    """What was found about the scaling of a volume.

    Attributes:
        stated: The headers give the intercept: what comes out is in the unit that they name.
        decisions: What was assumed.
    """

    stated: bool
    decisions: tuple[str, ...]


def settle_rescale(frames: Sequence[Frame]) -> tuple[list[Frame], Rescaling]:
    """Settle slope and intercept of the pictures of one volume, sorted along their normal.

    Returns:
        (the pictures, each with a slope and an intercept, what was found).

    Raises:
        Rejection: They are missing in some pictures, and neither the others nor the pixels tell them.
    """
    slopes = [frame.meaning.slope for frame in frames]
    intercepts = [frame.meaning.intercept for frame in frames]
    incomplete = [k for k in range(len(frames)) if slopes[k] is None or intercepts[k] is None]
    notes: list[str] = []
    stated = any(intercept is not None for intercept in intercepts)
    if not any(slope is not None for slope in slopes):
        slopes = [1.0] * len(frames)
        notes += ["the rescale slope is missing: 1 assumed"] if stated else []
    if not stated:
        intercepts = [0.0] * len(frames)
    gaps = [k for k in range(len(frames)) if slopes[k] is None or intercepts[k] is None]
    own = [(_or(slope, 1.0), _or(intercept, 0.0)) for slope, intercept in zip(slopes, intercepts, strict=True)]
    scalings = _fill(frames, own, gaps, (_agreed(slopes), _agreed(intercepts)), notes) if gaps else own
    modality = frames[0].header.modality
    if modality == "CT":
        scalings = _overrule(frames, scalings, set(incomplete), notes)
    if modality == "MR":
        scalings = _undo_philips_scaling(frames, scalings, notes)
    settled = [_with_scaling(frame, scaling) for frame, scaling in zip(frames, scalings, strict=True)]
    return settled, Rescaling(stated=stated, decisions=tuple(notes))


def _with_scaling(frame: Frame, scaling: Scaling) -> Frame:
    if (frame.meaning.slope, frame.meaning.intercept) == scaling:
        return frame
    return replace(frame, meaning=replace(frame.meaning, slope=scaling[0], intercept=scaling[1]))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _agreed(values: Sequence[float | None]) -> float | None:
    """The one value that all have that have any."""
    found = set(values) - {None}
    return found.pop() if len(found) == 1 else None


def _fill(
    frames: Sequence[Frame],
    own: Sequence[Scaling],
    gaps: Sequence[int],
    agreed: tuple[float | None, float | None],
    notes: list[str],
) -> list[Scaling]:
    """Give pictures without slope or intercept those of the others, or none where they plainly need none."""
    slope, intercept = agreed
    lacking = f"the rescale slope or intercept is missing in {len(gaps)} of {len(frames)} slices"
    if slope is None or intercept is None:
        raise Rejection(Reason.BAD_INTENSITY, f"{lacking}, and the others do not agree on one")
    filled, needless = list(own), 0
    told = sorted(set(range(len(frames))) - set(gaps))
    for k in gaps:
        filled[k] = slope, intercept
        if own[k] == filled[k] or not told:
            continue
        nearest = min(told, key=lambda other: abs(other - k))
        like_others, as_is = _unlikeness(frames, k, nearest, own[nearest], (filled[k], own[k]))
        if as_is * CLEARLY < like_others:
            filled[k] = own[k]
            needless += 1
        elif as_is < like_others:
            raise Rejection(Reason.BAD_INTENSITY, f"{lacking}, and their pixels do not bear out that of the others")
    notes.append(f"{lacking}: {len(gaps) - needless} read with {slope:g} and {intercept:g} as the others")
    if needless:
        notes.append(f"{needless} slices without rescale slope and intercept resemble their neighbours as they are")
    return filled


def _overrule(frames: Sequence[Frame], scalings: list[Scaling], settled: set[int], notes: list[str]) -> list[Scaling]:
    """Read the slices of a CT whose scaling is plainly that of most others like those, whatever their headers say."""
    most, count = Counter(scalings).most_common(1)[0]
    if count == len(frames) or 2 * count <= len(frames):
        return scalings
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
    if wrong:
        notes.append(
            f"the rescale slope or intercept of {wrong} slices contradicts their neighbours: that of most taken"
        )
    return found


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


def _undo_philips_scaling(frames: Sequence[Frame], scalings: list[Scaling], notes: list[str]) -> list[Scaling]:
    """Take out the private scale slope where it differs between the slices of a volume.

    The stored values of Philips are ``signal * scale``; the rescaled ones are for display (PS3.3 knows only these, the
    formula is ``signal = (stored * slope + intercept) / (slope * scale)``).
    """
    scales = {frame.meaning.scale for frame in frames}
    known = [scale for scale in scales if scale is not None]
    if not known or max(known) - min(known) <= _SAME_SCALE * max(known):
        return scalings
    if None in scales or any(slope == 0 for slope, _ in scalings):
        raise Rejection(Reason.BAD_INTENSITY, "a private scale slope differs between the slices and is missing in some")
    notes.append("a private scale slope that differs between the slices was taken out")
    return [
        (1 / frame.meaning.scale, intercept / (slope * frame.meaning.scale))  # type: ignore[operator]
        for frame, (slope, intercept) in zip(frames, scalings, strict=True)
    ]
