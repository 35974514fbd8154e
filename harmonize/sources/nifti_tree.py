"""What lies in a folder of somebody's own NIfTI: which files are images, which are labels, which are sidecars."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.raw_tree import Folder, RawTree, suffix_of
from harmonize.sources.bids_sidecars import Sidecars
from harmonize.sources.cohorts import is_cohort
from harmonize.sources.nifti_labels import is_mask_name, is_other_mask_name, place_of, places_of_labels
from harmonize.sources.nifti_masks import DATASET
from harmonize.sources.nifti_tables import PARTICIPANTS
from harmonize.sources.volume_files import READ, stem_of
from harmonize.sources.volume_tree import BIDS, BesideRaw, volumes_in

_OWN_FILES = frozenset({BIDS, PARTICIPANTS, "participants.json", DATASET})

Places = tuple[tuple[str, ...], ...]


@dataclass(slots=True, kw_only=True)
class Seen:
    """What lies in the tree.

    Attributes:
        images: Volumes that are no masks, each with its folder below the root and its files.
        masks: Files of labels, with the places (`harmonize.sources.nifti_labels.place_of`) that their images are looked
            for in, the likeliest first.
        sidecars: JSON files about images.
        tables: BIDS's own, by the folder relative to the root.
    """

    images: list[tuple[Folder, tuple[Path, ...]]] = field(default_factory=list)
    masks: list[tuple[Path, Places]] = field(default_factory=list)
    sidecars: Sidecars = field(default_factory=Sidecars)
    tables: dict[str, Path] = field(default_factory=dict)


def look(tree: RawTree, root: Path, masks: Path | None, table: Path | None) -> Seen:
    """Sort the files of the tree, and of the folder of masks.

    Args:
        tree: Gets an account of what is neither.
        root: Of the tree.
        masks: A folder that the user names, which holds labels only.
        table: The user's.

    Raises:
        UserError: That folder holds no labels.
    """
    seen = Seen()
    if masks is not None:
        for folder in RawTree(masks).folders():
            in_it = _parts(folder)
            places = places_of_labels(in_it) or (place_of(in_it),)
            seen.masks += ((folder.path / name, places) for name in folder.names if suffix_of(name) in READ)
        if not seen.masks:
            raise WrongUse(f"--masks {masks}: holds no NIfTI files")
        if masks.is_relative_to(root):
            tree.pass_over(masks)
    # A head that was read once raw and once as what was made of it would count as two people.
    beside_raw = BesideRaw(root, by_subjects=True)
    cohorts = cache(lambda parts: is_cohort(root.joinpath(*parts)))
    for folder in tree.folders():
        parts = _parts(folder)
        if masks is not None and folder.path.is_relative_to(masks):
            continue
        if made := beside_raw.name_of(folder):
            count = sum(suffix_of(name) in READ for name in folder.names)
            tree.count("images", f"in {made}/ of a BIDS tree: not raw", count)
            continue
        _sort_in(folder, places_of_labels(parts, cohorts), seen, tree, table)
    return seen


def _sort_in(folder: Folder, beside: Places, seen: Seen, tree: RawTree, table: Path | None) -> None:
    images: list[str] = []
    stems = {stem_of(name) for name in folder.names if suffix_of(name) in READ}
    for name in folder.names:
        suffix, stem = suffix_of(name), stem_of(name)
        of_an_image = suffix == ".tsv" and (stem in stems or is_mask_name(stem))
        if name == PARTICIPANTS:
            seen.tables[folder.relative] = folder.path / name
        known = of_an_image or name in _OWN_FILES or folder.path / name == table
        if suffix in READ and (beside or is_mask_name(stem, stems)):
            seen.masks.append((folder.path / name, beside or (place_of(_parts(folder)),)))
        elif suffix in READ and is_other_mask_name(stem):
            # A mask of the brain or the face, or a parcellation: none is what the image is labelled for.
            tree.count("masks", "no names that pair them with images; --masks takes any")
        elif not known and (suffix != ".json" or not seen.sidecars.take(folder, name, beside=stem in stems)):
            images.append(name)
    seen.images += ((folder, paths) for paths in volumes_in(tree, folder, images))


def _parts(folder: Folder) -> tuple[str, ...]:
    return tuple(part for part in folder.relative.split("/") if part)
