"""Decisions: a line of text that knows its kind, and whose kind is found again when only the text is left."""

from __future__ import annotations

import json
import pickle
from string import Formatter

import pyarrow as pa
import pytest

from harmonize.decisions import ROUTINE, Decision, DecisionKind, kind_of, unusual

VALUES = {
    "value": -1024,
    "intercept": -1024,
    "exponent": -70,
    "slope": 1e-30,
    "inter": -0.5,
    "modality": "CT",
    "why": "its picture is not in the series",
    "doubt": "RescaleType does not say HU",
    "box": "1:20, 0:31, 2:9",
    "shape": "20 x 31 x 9",
}


def sample(kind: DecisionKind) -> Decision:
    """A decision of that kind, with numbers and words as they come."""
    fields = {name: form for _, name, form, _ in Formatter().parse(kind.value) if name}
    return kind(**{name: VALUES.get(name, 3 if form else "Basilar Tip") for name, form in fields.items()})


@pytest.mark.parametrize("kind", DecisionKind, ids=lambda kind: kind.name)
def test_the_kind_of_a_stored_text_is_found_again(kind: DecisionKind) -> None:
    stored = json.loads(json.dumps([sample(kind)]))[0]
    assert type(stored) is str
    assert kind_of(stored) is kind
    assert kind_of(sample(kind)) is kind


def test_a_decision_is_its_text_in_the_manifest_and_between_processes() -> None:
    decision = DecisionKind.SLICES(count=40, modality="CT", step_mm=3)
    assert pa.array([[decision]], pa.list_(pa.string())).to_pylist() == [["40 slices of CT, 3.000 mm apart"]]
    again = pickle.loads(pickle.dumps(decision))
    assert (again, again.kind) == ("40 slices of CT, 3.000 mm apart", DecisionKind.SLICES)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the file has no geometry: taken as axial, in frame order, with assumed spacing",
         DecisionKind.GEOMETRY_ASSUMED),
        ("the rescale intercept is missing: -1024 assumed, since air is stored as 0", DecisionKind.INTERCEPT_ASSUMED),
        ("slices 1 to 60, spacing from the table", DecisionKind.PNG_RUN),
        ("volume 1 of 2 at the same positions, told apart by echo time", DecisionKind.ONE_OF_VOLUMES),
        ("localizer dropped (Basilar Tip): its picture has no geometry", DecisionKind.LOCALIZER_DROPPED),
        ("mask dropped: it cannot be read (EOFError)", DecisionKind.VESSELS_DROPPED),
        ("header scale 1e-05 and offset -32768 applied", DecisionKind.HEADER_SCALE),
    ],
)  # fmt: skip
def test_texts_of_version_0_1_0_have_their_kinds(text: str, kind: DecisionKind) -> None:
    assert kind_of(text) is kind


@pytest.mark.parametrize("text", ["", "anything else", "40 slices", "cropped to", "5 voxels were lost"])
def test_a_text_of_no_kind_is_unusual(text: str) -> None:
    assert kind_of(text) is None
    assert unusual([text]) == [text]


def test_what_is_routine_is_not_unusual() -> None:
    lines = [sample(kind) for kind in DecisionKind]
    assert [line.kind for line in unusual(lines)] == [kind for kind in DecisionKind if kind not in ROUTINE]


def test_a_missing_value_is_a_fault_of_the_producer() -> None:
    with pytest.raises(KeyError):
        DecisionKind.SLICES(count=40)
