"""Read what the header of a DICOM file says about each of its pictures.

A `Header` holds the facts of a file, a `Frame` those of one picture in it: a single-frame file has one, an enhanced
multi-frame file one per frame (from its functional groups), a Siemens mosaic one per tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

from harmonize.dicom import kinds
from harmonize.dicom import mosaic as mosaics
from harmonize.dicom.assumed import AS_AXIAL, ASSUMED_FIELD_OF_VIEW_MM, NO_STEP, assumed_place, assumed_step
from harmonize.dicom.decode import count_frames
from harmonize.dicom.elements import Elements, read_elements
from harmonize.dicom.geometry import is_plausible_step, slice_normal, straighten
from harmonize.dicom.layout import PixelLayout, check_frames, read_layout
from harmonize.dicom.meaning import Meaning, grey_rejection, read_meaning
from harmonize.dicom.traits import FrameTraits, read_identity, read_traits
from harmonize.errors import Reason, Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The facts of one file.

    Attributes:
        path: The file.
        pixels: How its pixels are stored.
        series_uid: SeriesInstanceUID, or empty.
        study_uid: StudyInstanceUID, or empty.
        patient_id: PatientID; never to be written anywhere.
        sop_uid: SOPInstanceUID, or empty.
        sop_class: SOP Class UID.
        modality: ``CT``, ``MR``, ``PT`` or what the file says.
        contrast: Name of the MR contrast where the header tells it safely, else the modality.
        units: PET units, e.g. ``BQML``.
        frames_of_file: Number of pictures in the file.
        identity: The values of `dicom_traits.IDENTITY`; never to be written anywhere.
        whole: Names the file, or the files that were cut from it, where it may hold a volume of its own; else empty.
    """

    path: Path
    pixels: PixelLayout
    series_uid: str
    study_uid: str
    patient_id: str
    sop_uid: str
    sop_class: str
    modality: str
    contrast: str
    units: str
    frames_of_file: int
    identity: tuple[str, ...] = ()
    whole: str = ""

    @property
    def export_traits(self) -> dict[str, str]:
        """Traits that the file has by its place: the folder, and itself where it may hold a volume of its own."""
        return {"folder": str(self.path.parent), "file": self.whole or "single-frame files"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture.

    Attributes:
        header: Its file.
        index: 0-based number in the file.
        position: ImagePositionPatient, LPS mm, or empty where the file does not say.
        orientation: ImageOrientationPatient, or empty.
        spacing: (row step, column step), mm, or empty.
        meaning: What its stored numbers mean.
        stack: StackID; pictures of different stacks are never one volume.
        instance: InstanceNumber (frame number in a multi-frame file), for ties only.
        traits: What may tell apart the volumes of a series, by the names of `dicom_traits.TRAITS`.
        rejection: Why this picture is no part of a scan (scout, reformat ...), or None.
        doubt: What would reject it, unless it lies in a full stack of slices (a scout by its description ...).
        assumed: How the geometry was assumed because the file has none; empty where it has.
        unsaid: What of it nothing in the file says: ``pixels``, ``steps``, ``directions``.
        straightened: The orientation was rounded in the file.
        rounded: Orientation and spacing are those of the slices around it, as the file has them with fewer digits.
    """

    header: Header
    index: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    meaning: Meaning
    stack: str
    instance: int
    traits: Mapping[str, str]
    rejection: Rejection | None
    doubt: Rejection | None = None
    assumed: str = ""
    unsaid: frozenset[str] = frozenset()
    straightened: bool = False
    rounded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What is told about a picture besides its place; see `Frame`."""

    meaning: Meaning
    rejection: Rejection | None
    doubt: Rejection | None


def read_frames(path: Path, *, keep_derived: bool = False, assume_geometry: bool = False) -> list[Frame]:
    """Read the header of a DICOM file.

    Args:
        path: The file.
        keep_derived: Accept reformats.
        assume_geometry: Give multi-frame files that lost their geometry an axial one in frame order, from the
            spacing elements that are left or else those of `harmonize.dicom.assumed`.

    Returns:
        The pictures in file order; none where the object is no picture (structure set, report, directory ...).

    Raises:
        Rejection: The file is damaged or lacks what every picture must have.
    """
    with path.open("rb") as stream:
        if not stream.read(1):
            raise Rejection(Reason.EMPTY, "an empty file")
        stream.seek(0)
        meta, elements = read_elements(stream)
        sop_class = elements.text(0x00080016) or meta.text(0x00020002)
        modality = kinds.scan_modality(sop_class, elements.text(0x00080060))
        if not kinds.is_image(sop_class, modality):
            return []
        return _picture_frames(path, stream, meta, elements, sop_class, modality, keep_derived, assume_geometry)


def _picture_frames(
    path: Path,
    stream: BinaryIO,
    meta: Elements,
    elements: Elements,
    sop_class: str,
    modality: str,
    keep_derived: bool,
    assume_geometry: bool,
) -> list[Frame]:
    image_type = tuple(part.upper() for part in elements.texts(0x00080008))
    per_frame = elements.items(0x52009230)
    shared = next(iter(elements.items(0x52009229)), None)
    mosaic = None if per_frame else mosaics.read_mosaic(elements, image_type)
    layout, counted = read_layout(stream, meta.text(0x00020010), elements, tiles=mosaic.tiles if mosaic else 1)
    if not counted and (per_frame or sop_class in kinds.MULTI_FRAME_CLASSES):
        layout = count_frames(stream, layout)
    check_frames(stream, layout)
    frame_count = mosaic.tiles if mosaic else layout.frames
    description = elements.text(0x0008103E)
    doubt = kinds.doubt(description)
    if mosaic is None and frame_count == 1 and not per_frame:
        doubt = doubt or mosaics.doubt(image_type)

    def describe(groups: Sequence[Elements] = (), frame_type: tuple[str, ...] = ()) -> _Description:
        types = image_type + frame_type
        rejection = kinds.rejection(
            sop_class=sop_class,
            modality=modality,
            image_type=types,
            description=description,
            corrections=tuple(filter(None, elements.texts(0x00280051))) if modality == "PT" else (),
            attenuation_method=elements.text(0x00541101),
            keep_derived=keep_derived,
        )
        meaning, unit = read_meaning(modality, (*groups, elements), image_type=types, description=description)
        return _Description(
            meaning=meaning,
            rejection=rejection or grey_rejection(layout.samples, layout.photometric) or unit,
            doubt=doubt,
        )

    header = Header(
        path=path,
        pixels=layout,
        series_uid=elements.text(0x0020000E),
        study_uid=elements.text(0x0020000D),
        patient_id=elements.text(0x00100020),
        sop_uid=elements.text(0x00080018) or meta.text(0x00020003),
        sop_class=sop_class,
        modality=modality,
        contrast=_contrast(elements, shared, per_frame[0] if per_frame else None, image_type, modality),
        units=elements.text(0x00541001),
        frames_of_file=frame_count,
        identity=read_identity(elements, modality),
        # The parts of a concatenation (PS3.3 C.7.6.16.2.2.4) are one object in several files.
        whole=(elements.text(0x00209161) or f"{elements.text(0x00080018)} {path}") if frame_count > 1 else "",
    )
    if mosaic:
        whole = _single_frame(header, elements, describe())
        return [replace(whole, index=tile, position=mosaic.tile_position(tile)) for tile in range(frame_count)]
    if per_frame and len(per_frame) != frame_count:
        raise Rejection(Reason.MISSING_METADATA, f"{frame_count} frames, but geometry for {len(per_frame)}")
    if per_frame:
        traits = FrameTraits(elements)
        return [
            _enhanced_frame(header, elements, shared, item, number, describe, traits)
            for number, item in enumerate(per_frame)
        ]
    if frame_count == 1:
        return [_single_frame(header, elements, describe())]
    return _bare_frames(header, elements, describe(), assume_geometry=assume_geometry)


def _single_frame(header: Header, elements: Elements, described: _Description) -> Frame:
    directions = elements.numbers(0x00200037)
    return Frame(
        header=header,
        index=0,
        position=elements.numbers(0x00200032),
        orientation=straighten(directions),
        straightened=straighten(directions) != directions,
        spacing=elements.numbers(0x00280030),
        meaning=described.meaning,
        stack=elements.text(0x00209056),
        instance=elements.integer(0x00200013) or 0,
        traits=read_traits(elements) | header.export_traits,
        rejection=described.rejection,
        doubt=described.doubt,
    )


def _enhanced_frame(
    header: Header,
    elements: Elements,
    shared: Elements | None,
    item: Elements,
    number: int,
    describe: Callable[[Sequence[Elements], tuple[str, ...]], _Description],
    traits: FrameTraits,
) -> Frame:
    @cache
    def group(sequence: int) -> Elements | None:
        for source in (item, shared):
            if source is not None and sequence in source and (found := source.items(sequence)):
                return found[0]
        return None

    plane, measures, orientation = group(0x00209113), group(0x00289110), group(0x00209116)
    content = group(0x00209111)
    frame_type = group(0x00189226) or group(0x00189329) or group(0x00189751)
    types = tuple(part.upper() for part in frame_type.texts(0x00089007)) if frame_type else ()
    # Rescaling, Philips' private values, and the real world values where the frame's groups hold them side by side.
    directions = orientation.numbers(0x00200037) if orientation else ()
    values = (group(0x00289145), group(0x2005140F), item, shared)
    described = describe([found for found in values if found is not None], types)
    return Frame(
        header=header,
        index=number,
        position=plane.numbers(0x00200032) if plane else (),
        orientation=straighten(directions),
        straightened=straighten(directions) != directions,
        spacing=measures.numbers(0x00280030) if measures else (),
        meaning=described.meaning,
        stack=content.text(0x00209056) if content else "",
        instance=number,
        traits=traits.of(group) | header.export_traits,
        rejection=described.rejection,
        doubt=described.doubt,
    )


def _bare_frames(header: Header, elements: Elements, described: _Description, *, assume_geometry: bool) -> list[Frame]:
    """The frames of a multi-frame file without functional groups."""
    spacing = elements.numbers(0x00280030)
    step, source = assumed_step(elements)
    unsaid = {"steps"} if source == NO_STEP else set()
    if assume_geometry and not (len(spacing) == 2 and all(map(is_plausible_step, spacing))):
        spacing = (ASSUMED_FIELD_OF_VIEW_MM / header.pixels.columns,) * 2
        unsaid.add("pixels")
        source += f", pixels of a field of view of {ASSUMED_FIELD_OF_VIEW_MM:g} mm"
    start, orientation, how = assumed_place(elements)
    unsaid |= {"directions"} if how == AS_AXIAL else set()
    advance = slice_normal(orientation) * step
    return [
        Frame(
            header=header,
            index=number,
            position=tuple((start + number * advance).tolist()) if assume_geometry else (),
            orientation=orientation if assume_geometry else (),
            spacing=spacing,
            meaning=described.meaning,
            stack="",
            instance=number,
            traits={"file": header.whole},
            rejection=described.rejection,
            doubt=described.doubt,
            assumed=f"{how}, with assumed spacing, {source}" if assume_geometry else "",
            unsaid=frozenset(unsaid),
        )
        for number in range(header.frames_of_file)
    ]


def _contrast(
    elements: Elements, shared: Elements | None, first: Elements | None, image_type: tuple[str, ...], modality: str
) -> str:
    if modality != "MR":
        return modality
    timing = next((found for group in (first, shared) if group for found in group.items(0x00189112)), elements)
    echo = next((found for group in (first, shared) if group for found in group.items(0x00189114)), None)
    b_value = elements.number(0x00189087, elements.number(0x0019100C))
    return kinds.mr_contrast(
        image_type=image_type,
        acquisition_contrast=elements.text(0x00089209),
        sequence=elements.texts(0x00180020),
        sequence_name=elements.text(0x00180024) or elements.text(0x00189005),
        angio=elements.text(0x00180025) == "Y" or elements.text(0x00189015) == "YES",
        b_value=b_value,
        repetition_ms=timing.number(0x00180080),
        echo_ms=echo.number(0x00189082) if echo else elements.number(0x00180081),
        inversion_ms=elements.number(0x00180082),
    )
