"""A look at a few pictures of a stack whose headers leave in doubt whether it is several volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom.headers import Frame
from harmonize.voxels import interleaving

LOOKED_AT = 16
"""Slices that are read where the headers are in doubt."""

ReadPictures = Callable[[Sequence[Frame]], "NDArray[Any] | None"]
"""The rescaled values of pictures, shape (N, rows, columns), or None where they cannot be read."""


def are_copies(plane: Sequence[Frame], places: NDArray[np.int64], read: ReadPictures | None) -> bool:
    """Whether the pictures at one place are the same, looked at in two of the places that have several."""
    if read is None:
        return False
    shared = np.flatnonzero(np.bincount(places) > 1)
    for place in {int(shared[len(shared) // 3]), int(shared[2 * len(shared) // 3])}:
        values = read([plane[n] for n in np.flatnonzero(places == place).tolist()])
        if values is None or not (values == values[:1]).all():
            return False
    return True


def intensities_follow(
    plane: Sequence[Frame],
    places: NDArray[np.int64],
    values: Sequence[str],
    read: ReadPictures,
    limit: float = interleaving.APART,
) -> bool:
    """Whether the intensities alternate with a header's values, by a few slices from the middle of where it changes."""
    found = _around_change(plane, places, values, read)
    if found is None:
        return False
    samples, groups = found
    # Excitation in turns makes slices of one MR alternate a little; in CT only two volumes do.
    if plane[0].header.modality == "CT":
        return interleaving.alternates_with(samples, groups) or interleaving.follow_groups(samples, groups)
    return interleaving.follow_groups(samples, groups, limit)


def are_brighter(plane: Sequence[Frame], places: NDArray[np.int64], values: Sequence[str], read: ReadPictures) -> bool:
    """Whether slices with a header's value are brighter than those without, as contrast agent makes them."""
    found = _around_change(plane, places, values, read)
    if found is None:
        return False
    samples, groups = found
    return interleaving.are_brighter(samples, [bool(group) for group in groups])


def _around_change(
    plane: Sequence[Frame], places: NDArray[np.int64], values: Sequence[str], read: ReadPictures
) -> tuple[NDArray[np.float32], list[str]] | None:
    """Samples of a few slices from the middle of where a header changes, and its values there."""
    firsts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
    own = [values[n] for n in firsts]
    changes = np.flatnonzero([a != b for a, b in pairwise(own)])
    start = max(0, min(int(changes[len(changes) // 2]) - LOOKED_AT // 2, len(firsts) - LOOKED_AT))
    pictures = read([plane[n] for n in firsts[start : start + LOOKED_AT]])
    if pictures is None:
        return None
    return interleaving.sample_slices(pictures, axis=0), own[start : start + LOOKED_AT]
