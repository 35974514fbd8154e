"""Tells a cohort called MASK from a folder of masks: by what lies beside it, since its name says both.

Taking labels for images goes unseen, while labels without images are counted. So a folder is a cohort's only where
that is all that it can be.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harmonize.raw_tree import suffix_of
from harmonize.sources.nifti_labels import base_of_mask, holds_images, is_mask_name, places_of_labels
from harmonize.sources.nifti_tables import PARTICIPANTS
from harmonize.sources.volume_files import READ, stem_of
from harmonize.sources.volume_tree import BIDS


def is_cohort(folder: Path) -> bool:
    """Whether a folder whose name may mean labels, or be a study's, holds images.

    It holds labels where images lie beside it: in the folder above, or in one called images there. Else it is a data
    set of its own if it says so, or if it holds folders alone, as others beside it do that are called otherwise inside.
    """
    try:
        above, own = _Listed.of(folder.parent), _Listed.of(folder)
        beside = [name for name in above.folders if name != folder.name and not places_of_labels((name,))]
        if above.has_images or any(map(holds_images, beside)):
            return False
        if own.is_described:
            return True
        others = [found for name in beside if (found := _Listed.of(folder.parent / name)).folders]
    except OSError:
        # Whoever walks the tree says so.
        return False
    return not own.has_volumes and bool(others) and not any(own.shared & other.shared for other in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What lies in a folder.

    Attributes:
        folders: Names of the folders, but for hidden ones.
        shared: What they would be called in a folder of labels, and in one of images.
        has_volumes: Whether there are volumes in it.
        has_images: Whether some of them are no masks.
        is_described: Whether it is a data set's.
    """

    folders: tuple[str, ...]
    shared: frozenset[str]
    has_volumes: bool
    has_images: bool
    is_described: bool

    @classmethod
    def of(cls, folder: Path) -> _Listed:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        folders = tuple(name for name, is_folder in found if is_folder)
        files = {name for name, is_folder in found if not is_folder}
        stems = {stem_of(name) for name in files if suffix_of(name) in READ}
        return cls(
            folders=folders,
            shared=frozenset((base_of_mask(name) or name).casefold() for name in folders),
            has_volumes=bool(stems),
            has_images=any(not is_mask_name(stem, stems) for stem in stems),
            is_described=not files.isdisjoint((BIDS, PARTICIPANTS)),
        )
