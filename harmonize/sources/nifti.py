"""A lab's own NIfTI images, in whatever folders: BIDS names, nnU-Net's layout or neither, with masks and a table.

All ids count as private. What an image shows is said by the table's column of contrasts, the option, nnU-Net's
dataset.json, the BIDS suffix or another word of the name, a folder, or the JSON sidecars, the first that there is; a
dataset.json that names one channel only stands last, for its images may be of several kinds. A CT that nothing names is
known by its air.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from harmonize.decisions import Decision
from harmonize.errors import Reason, Rejection, Stage, WrongUse
from harmonize.raw_tree import VOLUME_SUFFIXES, RawTree, suffix_of
from harmonize.scan import LeftOut, Scan, ScanRef, annotations_of, raise_if_rejected
from harmonize.sources.contrast_words import CONTRASTS, contrast_of
from harmonize.sources.first_look import check_root, nothing_found
from harmonize.sources.nifti_contrast import named_contrast, settled
from harmonize.sources.nifti_labels import IMAGES_OF, place_of
from harmonize.sources.nifti_masks import DATASET, Image, MaskFile, ValueNames, all_are_masks, pair, read_mask
from harmonize.sources.nifti_names import case_of, read_name
from harmonize.sources.nifti_tables import PARTICIPANTS, rows_of
from harmonize.sources.nifti_tree import Places, Seen, look
from harmonize.sources.own_columns import impersonal
from harmonize.sources.own_table import Row
from harmonize.sources.sidecars import Sidecar
from harmonize.sources.volume_files import read_volume_file, stem_of
from harmonize.terminal import warn

SOURCE = "nifti"

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}")

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this source can be told besides its folder."""
    parser.add_argument(
        "--modality",
        metavar="NAME",
        help=f"what every image shows that the table says nothing of: {', '.join(CONTRASTS)}, or another word",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="a row an image (column file) or a person (column subject): modality, age, sex, and labels or whatever "
        f"else the corpus shall know; default the {PARTICIPANTS} of the folder and of those in it",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="labels of the images, under the images' names; those that lie beside them or in nnU-Net's labelsTr are "
        "found without",
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What `discover` takes of the options.

    Raises:
        UserError: A contrast that is no word, no such table or folder.
    """
    modality = None if options.modality is None else contrast_of(options.modality) or options.modality
    if modality is not None and _WORD.fullmatch(modality) is None:
        raise WrongUse(f"--modality {modality}: no word of letters and digits; use one of {', '.join(CONTRASTS)}")
    if modality is not None and modality not in CONTRASTS:
        close = difflib.get_close_matches(modality, CONTRASTS, n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(CONTRASTS)
        warn(f"note: --modality {modality}: none of {known}; taken for an MRI contrast of that name{guess}")
    if options.table is not None and not options.table.is_file():
        raise WrongUse(f"--table {options.table}: no such file")
    if options.masks is not None and not options.masks.is_dir():
        raise WrongUse(f"--masks {options.masks}: no such folder")
    return {
        "modality": modality,
        "table": options.table and options.table.absolute(),
        "masks": options.masks and options.masks.absolute(),
    }


def discover(
    root: Path, *, modality: str | None = None, table: Path | None = None, masks: Path | None = None
) -> Iterator[ScanRef | LeftOut]:
    """Yield every image below a folder, ordered by path; at last what was not taken.

    Args:
        root: The folder.
        modality: What all images show that the table says nothing of.
        table: A user's table; by default BIDS's own, of the root and of each data set in it.
        masks: A folder of labels.

    Raises:
        UserError: There is no image, or the table does not say what its rows are about.
    """
    check_root(SOURCE, root)
    root = root.absolute()
    tree = RawTree(root, claims=lambda name: suffix_of(name) in VOLUME_SUFFIXES)
    seen = look(tree, root, masks, table)
    if not seen.images and not tree.unread:
        if masks is not None and (masks.is_relative_to(root) or root.is_relative_to(masks)):
            raise all_are_masks(root, masks, [path for path, _ in seen.masks])
        tree.count("masks", "no image", sum(path.is_relative_to(root) for path, _ in seen.masks))
        raise nothing_found(SOURCE, root, tree.seen())
    names = ValueNames()
    images = _images(seen, names, masks)
    mask_of = pair(images, [_mask_file(path, places, root, masks, names) for path, places in seen.masks], tree)
    rows, told = rows_of(images, table, seen.tables, tree)
    whose = [(row.subject or image.name.subject, row.values) for image, row in rows]
    kept = impersonal(whose, table.name if table else PARTICIPANTS, told=told)
    found = []
    for (image, row), values in zip(rows, kept, strict=True):
        sidecar = seen.sidecars.of(image.relative[: -len(suffix_of(image.relative))])
        found.append(_reference(root, image, row, values, modality, mask_of.get(image.relative), sidecar))
    _tell_people(found)
    for path in seen.sidecars.unused():
        tree.leave(path.name, "about no image")
    yield from found
    yield from tree.rest(SOURCE)


def load(ref: ScanRef) -> Scan:
    """Read one image with its mask.

    Raises:
        Rejection: See `harmonize.nifti.read_nifti`; or no known contrast, or a CT that is not in HU.
    """
    raise_if_rejected(ref)
    image = read_volume_file(*ref.paths)
    voxels, modality, unit, decided = settled(
        image,
        ref.modality,
        by_only_channel="by_only_channel" in ref.meta,
        several=cast(tuple[str, ...], ref.meta.get("several", ())),
    )
    decisions = [*cast(tuple[Decision, ...], ref.meta.get("notes", ())), *image.decisions, *decided]
    scan_masks = {}
    path = ref.meta.get("mask")
    if isinstance(path, Path):
        mask, noted = read_mask(path, voxels, image.affine)
        decisions += noted
        if mask is not None:
            scan_masks["labels"] = mask
    return Scan(
        voxels_XYZ=voxels,
        affine=image.affine,
        modality=modality,
        unit=unit,
        masks=scan_masks,
        annotations=annotations_of(ref.meta),
        decisions=tuple(decisions),
    )


def _images(seen: Seen, names: ValueNames, masks: Path | None) -> list[Image]:
    """The images, with the case and the channel of those in nnU-Net's folders.

    Args:
        seen: What lies in the tree.
        names: Where channels are named.
        masks: The user's folder of masks, whose names tell cases wherever they lie.
    """
    labels: dict[tuple[str, ...] | None, set[str]] = {}
    for path, places in seen.masks:
        given = masks is not None and path.is_relative_to(masks)
        for place in (None,) if given else places:
            labels.setdefault(place, set()).add(stem_of(path.name))
    found = []
    for folder, paths in seen.images:
        relative, stem = folder.key(paths[0].name), stem_of(paths[0].name)
        folders = tuple(relative.split("/")[:-1])
        case, number = stem, 0
        channels: Mapping[int, str | None] = {}
        if folders and IMAGES_OF.fullmatch(folders[-1]):
            data_set = names.data_set(folder.path.parent)
            channels = data_set.channels if data_set else {}
            cases = labels.get(None, set()) | labels.get(place_of(folders), set())
            case, number = case_of(stem, cases, channels)
        found.append(
            Image(
                paths=paths,
                relative=relative,
                name=read_name(folders, case),
                case=case,
                channel=channels.get(number),
                is_only_channel=len(channels) == 1,
            )
        )
    return found


def _mask_file(path: Path, places: Places, root: Path, masks: Path | None, names: ValueNames) -> MaskFile:
    top = masks if masks is not None and path.is_relative_to(masks) else root
    return MaskFile(path=path, places=places, names=names.of(path, top))


def _reference(
    root: Path,
    image: Image,
    row: Row,
    values: Mapping[str, str],
    option: str | None,
    mask: MaskFile | None,
    sidecar: Sidecar,
) -> ScanRef:
    notes = [*row.notes, *sidecar.notes]
    modality, by, fault = named_contrast(image, row, option, sidecar.contrast, notes)
    if image.name.is_part:
        fault = Rejection(Reason.DERIVED, "the phase, or one part of complex numbers", stage=Stage.DISCOVER)
    table = dict(values)
    if sidecar.scanner:
        table.setdefault("scanner", sidecar.scanner)
    meta: dict[str, object] = {"age": row.age, "sex": row.sex, "notes": tuple(notes), "table": table}
    if by == DATASET and image.is_only_channel:
        meta["by_only_channel"] = True
    if modality is None and image.name.several:
        meta["several"] = image.name.several
    if mask is not None:
        meta |= {"mask": mask.path, "mask_labels": dict(mask.names)}
    return ScanRef(
        source=SOURCE,
        key=image.relative,
        root=root,
        paths=image.paths,
        subject=row.subject or image.name.subject,
        session=row.session or image.name.session,
        modality=modality,
        meta=meta,
        rejection=fault,
    )


def _tell_people(found: Sequence[ScanRef]) -> None:
    """Warn where the folders name one person only, though there are many images: nothing could be held out."""
    if len(found) > 1 and len({ref.subject for ref in found}) == 1:
        log.warning("all %d images count as one person's; a table with the columns file and subject tells them apart",
                    len(found))  # fmt: skip
