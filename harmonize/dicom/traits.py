"""Which elements of a DICOM header tell the volumes of a series apart, and how far each is trusted.

`IDENTITY` says whose pictures they are: different patients, studies, frames of reference or modalities are never one
volume. `TRAITS` are constant within a volume (PS3.3 C.7.6, C.8.2, C.8.3, C.8.9, C.8.13, C.8.15), but may change from
block to block of a stack that a scanner acquired in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain

from harmonize.dicom.elements import Elements

IDENTITY = {
    "patient": 0x00100020,
    "patient name": 0x00100010,
    "patient birth date": 0x00100030,
    "patient sex": 0x00100040,
    "study": 0x0020000D,
    "frame of reference": 0x00200052,
    "modality": 0x00080060,
}
"""By name, in the order in which they are looked at."""

EXAMINATION = "study_date", ("accession", "age")
"""A trait that sets pictures apart as `IDENTITY` does, where each of its values has its own of one of the others."""

PATIENT = frozenset({"patient", "patient name", "patient birth date", "patient sex"})
"""Those of `IDENTITY` that name a person."""


RELATIVE_TOLERANCE = 0.01
"""Header numbers that differ by less are one number, written twice."""


class Trust(Enum):
    """What it takes for different values of a trait to be different volumes; at shared places they always are."""

    SURE = "their slices interleave"
    DOUBTFUL = "their slices interleave, and their intensities differ too"
    BRIGHTER = "as doubtful ones, or where slices with the value are the brighter ones, be it by little"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """One header value.

    Attributes:
        label: What a person calls it.
        trust: When different values are different volumes.
        tags: Where a single-frame file has it; the first that is there counts.
        tolerance: Numbers that differ by no more, or by `RELATIVE_TOLERANCE`, are the same; None for text.
        raw: The bytes are compared: private elements whose representation an implicit file does not tell.
        absence: When slices without the value, between those with one, are another volume.
    """

    label: str
    trust: Trust = Trust.SURE
    tags: tuple[int, ...] = ()
    tolerance: float | None = None
    raw: bool = False
    absence: Trust = Trust.DOUBTFUL


TRAITS: Mapping[str, Trait] = {
    # These seven come first in every release: the numbers of a series' volumes, and so their names, depend on it.
    "echo": Trait(label="echo time", tags=(0x00180081,), tolerance=0.01),
    "b_value": Trait(label="b-value", tolerance=1.0),
    "gradient": Trait(label="gradient direction"),
    "image_type": Trait(label="image type", tags=(0x00080008,)),
    "temporal": Trait(label="temporal position", tags=(0x00200100,)),
    # Two interleaved packages of one 2D MR have two acquisition numbers, two phases of a CT as well.
    "acquisition": Trait(label="acquisition number", tags=(0x00200012,)),
    "trigger": Trait(label="trigger time", trust=Trust.DOUBTFUL, tags=(0x00181060,)),
    "component": Trait(label="complex component", tags=(0x00089208,)),
    "component_ge": Trait(label="complex component", tags=(0x0043102F,), raw=True),
    "kernel": Trait(label="kernel", tags=(0x00181210,)),
    "thickness": Trait(label="slice thickness", tags=(0x00180050,), tolerance=0.05),
    "echo_number": Trait(label="echo number", tags=(0x00180086,)),
    "inversion": Trait(label="inversion time", tags=(0x00180082,), tolerance=1.0),
    "flip": Trait(label="flip angle", tags=(0x00181314,), tolerance=0.5),
    "repetition": Trait(label="repetition time", trust=Trust.DOUBTFUL, tags=(0x00180080,), tolerance=1.0),
    "b_value_private": Trait(label="b-value", tags=(0x20011003,), raw=True),
    "gradient_private": Trait(label="gradient direction", tags=(0x0019100E, 0x200510B0), raw=True),
    "phase": Trait(label="cardiac phase", trust=Trust.DOUBTFUL, tags=(0x00209241, 0x00209153)),
    "phase_private": Trait(label="cardiac phase", trust=Trust.DOUBTFUL, tags=(0x20011008,), raw=True),
    "spacing": Trait(label="spacing between slices", tags=(0x00180088,), tolerance=0.05),
    "sequence": Trait(label="sequence", tags=(0x00180024,)),
    "scanning": Trait(label="scanning sequence", tags=(0x00180020,)),
    "options": Trait(label="scan options", tags=(0x00180022,)),
    "coil": Trait(label="coil", tags=(0x0051100F, 0x00181250)),
    "kvp": Trait(label="tube voltage", tags=(0x00180060,), tolerance=1.0),
    "agent": Trait(label="contrast agent", tags=(0x00180010,), absence=Trust.BRIGHTER),
    "diameter": Trait(label="reconstruction diameter", tags=(0x00181100,), tolerance=1.0),
    "tilt": Trait(label="gantry tilt", tags=(0x00181120,), tolerance=0.5),
    "filter": Trait(label="filter", tags=(0x00181160,)),
    "event": Trait(label="irradiation event", tags=(0x00083010,)),
    "rescale_type": Trait(label="rescale type", tags=(0x00281054,)),
    "units": Trait(label="units", tags=(0x00541001,)),
    "correction": Trait(label="correction", tags=(0x00280051,)),
    "target": Trait(label="reconstruction target", tags=(0x00189318,), raw=True),
    "frame_time": Trait(label="frame reference time", trust=Trust.DOUBTFUL, tags=(0x00541300,), tolerance=1.0),
    "description": Trait(label="series description", tags=(0x0008103E,)),
    "protocol": Trait(label="protocol", tags=(0x00181030,)),
    "device": Trait(label="scanner", tags=(0x00181000, 0x00081090, 0x00080070)),
    "software": Trait(label="software", tags=(0x00181020,)),
    "age": Trait(label="patient age", tags=(0x00101010,)),
    "accession": Trait(label="accession number", tags=(0x00080050,)),
    "study_time": Trait(label="study time", tags=(0x00080030,)),
    "series_time": Trait(label="series time", tags=(0x00080031,)),
    "study_date": Trait(label="study date", tags=(0x00080020,)),
    "study_id": Trait(label="study id", tags=(0x00200010,)),
    "institution": Trait(label="institution", tags=(0x00080080,)),
    "weight": Trait(label="patient weight", tags=(0x00101030,), tolerance=0.5),
    "size": Trait(label="patient size", tags=(0x00101020,), tolerance=0.005),
    "agent_time": Trait(label="start of contrast agent", tags=(0x00181042,)),
    "agent_volume": Trait(label="volume of contrast agent", tags=(0x00181041,), tolerance=0.5),
    "velocity": Trait(label="velocity encoding"),
    "exposure": Trait(label="exposure", trust=Trust.DOUBTFUL, tags=(0x00181152, 0x00181150), tolerance=1.0),
    "current": Trait(label="tube current", trust=Trust.DOUBTFUL, tags=(0x00181151,), tolerance=1.0),
    "acquired": Trait(label="acquisition time", trust=Trust.DOUBTFUL, tags=(0x0008002A, 0x00080032)),
    "dimension": Trait(label="dimension index", trust=Trust.DOUBTFUL),
    "stack": Trait(label="stack"),
    "series": Trait(label="series number", tags=(0x00200011,)),
    "file": Trait(label="file"),
    "derivation": Trait(label="derivation", trust=Trust.DOUBTFUL, tags=(0x00082111,)),
    "comments": Trait(label="comments", trust=Trust.DOUBTFUL, tags=(0x00204000,)),
    "window": Trait(label="display window", trust=Trust.DOUBTFUL, tags=(0x00281050,)),
    "content_time": Trait(label="content time", trust=Trust.DOUBTFUL, tags=(0x00080033,)),
    "created": Trait(label="creation time", trust=Trust.DOUBTFUL, tags=(0x00080013,)),
    "folder": Trait(label="folder", trust=Trust.DOUBTFUL),
}
"""By name, in the order in which they are tried."""

EXPORT_TRAITS = ("stack", "series", "file", "derivation", "comments", "window", "content_time", "created", "folder")
"""Traits in which two copies of one volume may differ."""

NEVER_IN_COPIES = frozenset(("echo", "b_value", "gradient", "image_type", "temporal", "acquisition", "trigger"))
"""Traits in which no two copies differ; others are believed only of pictures that are no copies of each other."""

MEASURED_TRAITS = tuple(name for name in TRAITS if name not in EXPORT_TRAITS)
"""All others."""

ORDERS = ("acquired", "content_time")
"""Times that differ from slice to slice still say in which order these were made."""

DOUBTFUL_BUT_IN_CT = frozenset({"acquisition"})
"""In CT a second acquisition number is a second rotation of the tube; elsewhere it may be a package of slices."""

_NAME_OF = {tag: (name, trait.raw) for name, trait in TRAITS.items() for tag in trait.tags}
_TAGS = frozenset(_NAME_OF)
_NUMBERS = frozenset(name for name, trait in TRAITS.items() if trait.tolerance is not None)
_ALTERNATIVES = tuple((name, trait.tags) for name, trait in TRAITS.items() if len(trait.tags) > 1)

_VELOCITY = (0x00189090, 0x00189091, 0x00189217)
"""Direction, least and largest velocity that is encoded."""

_PLACE_POINTERS = frozenset({0x00200032, 0x00209056, 0x00209057, 0x00209156, 0x00189074, 0x00189151})
"""Dimensions of a multi-frame file along which one volume extends: position, stack, slice, and when it was acquired."""


_WRITTEN: Mapping[str, Callable[[str], str]] = {
    "patient name": lambda text: "".join(filter(str.isalnum, text.upper())),
    "patient birth date": lambda text: "".join(filter(str.isdigit, text)) or text,
    "patient sex": lambda text: text.upper()[:1],
}
"""One way to write what may be written in several."""


def read_identity(elements: Elements, modality: str) -> tuple[str, ...]:
    """The values of `IDENTITY` of a file, empty where absent; names, dates and sex without the ways to write them."""
    found = []
    for name, tag in IDENTITY.items():
        text = modality if name == "modality" else elements.text(tag)
        found.append(_WRITTEN.get(name, str)(text))
    return tuple(found)


def bare_id(patient_id: str) -> str:
    """A patient's id without case, punctuation and leading zeros; two patients may differ in these alone.

    Example:
        >>> bare_id("a-00123"), bare_id("00123"), bare_id("123")
        ('A00123', '123', '123')
    """
    return "".join(filter(str.isalnum, patient_id.upper())).lstrip("0")


def read_traits(elements: Elements) -> dict[str, str]:
    """The traits of a single-frame file, or those that the frames of a multi-frame file share; absent ones left out."""
    found: dict[str, str] = {}
    present = elements.present(_TAGS)
    for tag in present:
        name, raw = _NAME_OF[tag]
        text = elements.raw(tag).hex() if raw else elements.text(tag)
        if text:
            found[name] = text
    for name, tags in _ALTERNATIVES:
        there = [tag for tag in tags if tag in present]
        if len(there) > 1:  # the first that says something counts, not the one that was read last
            texts = (elements.raw(tag).hex() if TRAITS[name].raw else elements.text(tag) for tag in there)
            found[name] = next(filter(None, texts), "")
    b_value = elements.text(0x0019100C) or join(elements.numbers(0x00189087)) or elements.text(0x00431039)
    if b_value:
        found["b_value"] = b_value
    gradient = join(elements.numbers(0x00189089))
    if gradient:
        found["gradient"] = gradient
    if 0x001910BB in elements:
        found.setdefault(
            "gradient_private", "\\".join(elements.text(tag) for tag in (0x001910BB, 0x001910BC, 0x001910BD))
        )
    return {name: text for name, text in found.items() if _can_be(name, text)}


def _can_be(name: str, text: str) -> bool:
    """Whether a text is no "nan" or infinity where a number is due; these say as much as no value does."""
    return name not in _NUMBERS or not _is_infinite(text)


@lru_cache(maxsize=256)
def _is_infinite(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


GroupReader = Callable[[int], Elements | None]


class FrameTraits:
    """Reads the traits of the frames of one enhanced multi-frame file from their functional groups (PS3.3 C.7.6.16).

    Args:
        elements: The file's dataset.
    """

    def __init__(self, elements: Elements) -> None:
        self._shared_traits = read_traits(elements)
        # InstanceNumber and the like count files here; AcquisitionNumber and ImageType are the frames' own.
        for name in ("acquisition", "image_type"):
            self._shared_traits.pop(name, None)
        pointers = [item.raw(0x00209165) for item in elements.items(0x00209222)]
        self._columns = [
            column for column, raw in enumerate(pointers) if len(raw) == 4 and _pointer(raw) not in _PLACE_POINTERS
        ]

    def of(self, group: GroupReader) -> dict[str, str]:
        """The traits of a frame; `group` gives the frame's (or the shared) item of a functional group sequence."""
        found = dict(self._shared_traits)
        echo, diffusion, content = group(0x00189114), group(0x00189117), group(0x00209111)
        gradient = next(iter(diffusion.items(0x00189076)), None) if diffusion else None
        frame_type = group(0x00189226) or group(0x00189329) or group(0x00189751)
        measures, timing, modifier = group(0x00289110), group(0x00189112), group(0x00189115)
        kernel, tube, cardiac = group(0x00189314), group(0x00189325), group(0x00189118)
        bolus, velocity, time = group(0x00189341), group(0x00189197), group(0x00209310)
        own = {
            "echo": join(echo.numbers(0x00189082)) if echo else "",
            "b_value": join(diffusion.numbers(0x00189087)) if diffusion else "",
            "gradient": join(gradient.numbers(0x00189089)) if gradient else "",
            "image_type": frame_type.text(0x00089007).upper() if frame_type else "",
            "component": frame_type.text(0x00089208) if frame_type else "",
            "temporal": (join(content.numbers(0x00209128)) if content else "")
            or (join(time.numbers(0x0020930D)) if time else ""),
            "acquired": (content.text(0x00189074) or content.text(0x00189151)) if content else "",
            "velocity": join(tuple(chain.from_iterable(map(velocity.numbers, _VELOCITY)))) if velocity else "",
            "acquisition": join(content.numbers(0x00209156)) if content else "",
            "thickness": measures.text(0x00180050) if measures else "",
            "repetition": timing.text(0x00180080) if timing else "",
            "flip": timing.text(0x00181314) if timing else "",
            "inversion": join(modifier.numbers(0x00189079)) if modifier else "",
            "kernel": kernel.text(0x00181210) if kernel else "",
            "diameter": kernel.text(0x00181100) if kernel else "",
            "kvp": tube.text(0x00180060) if tube else "",
            "agent": "\\".join(filter(None, map(bolus.text, (0x00189342, 0x00189343)))) if bolus else "",
            "phase": (join(cardiac.numbers(0x00209153)) or join(cardiac.numbers(0x00209241))) if cardiac else "",
        }
        if self._columns and content:
            indices = content.numbers(0x00209157)
            own["dimension"] = join(tuple(indices[column] for column in self._columns if column < len(indices)))
        converted = group(0x00209171)  # what a legacy converted file keeps of each single-frame header
        if converted:
            found |= read_traits(converted)
        found.update((name, value) for name, value in own.items() if value and _can_be(name, value))
        return found


def trust_of(name: str, modality: str) -> Trust:
    """How far a trait is trusted in pictures of a modality."""
    if name in DOUBTFUL_BUT_IN_CT and modality != "CT":
        return Trust.DOUBTFUL
    return TRAITS[name].trust


def same_number(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers of headers are one, written twice."""
    return abs(b - a) <= max(tolerance, RELATIVE_TOLERANCE * abs(b))


def join(values: tuple[float, ...]) -> str:
    """Numbers as one text, which is empty where one of them is none.

    Example:
        >>> join((0.5, 1000.0)), join((math.nan,))
        ('0.5\\\\1000', '')
    """
    if not all(map(math.isfinite, values)):
        return ""
    return "\\".join(f"{value:g}" for value in values)


def _pointer(raw: bytes) -> int:
    return int.from_bytes(raw[:2], "little") << 16 | int.from_bytes(raw[2:4], "little")
