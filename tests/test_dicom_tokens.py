"""The quick header scan finds what pydicom finds, or leaves the file to it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from harmonize.dicom.elements import read_elements
from harmonize.dicom.tokens import NeedsPydicom, bytes_of, scan_file, scan_items
from harmonize.errors import Rejection


def assert_as_pydicom(scanned, dataset):
    assert set(scanned) == {int(tag) for tag in dataset.keys()}  # noqa: SIM118
    for tag, (_, value) in scanned.items():
        element = dataset.get_item(tag)
        if isinstance(value, list):
            for item, expected in zip(value, element.value, strict=True):
                assert_as_pydicom(item, expected)
        elif isinstance(element, RawDataElement):
            assert value == (element.value or b"")


def encoded(syntax=ExplicitVRLittleEndian, undefined=False):
    """A file with a nested sequence, a private element and a long one, as bytes."""
    inner, outer, dataset = Dataset(), Dataset(), Dataset()
    inner.CodeValue = "X"
    outer.ConceptCodeSequence = Sequence([inner, inner])
    outer["ConceptCodeSequence"].is_undefined_length = undefined
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2"
    dataset.PatientName = "Marker^Text"
    dataset.ContentSequence = Sequence([outer, Dataset()])
    dataset["ContentSequence"].is_undefined_length = undefined
    dataset.Rows, dataset.PixelSpacing = 7, [0.5, 0.25]
    dataset.private_block(0x29, "OWNER", create=True).add_new(0x10, "OB", b"\1\2" * 50_000)
    dataset.PixelData = b"\0\0"
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    dataset.save_as(stream, little_endian=little, implicit_vr=implicit, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_scan_finds_the_elements_that_pydicom_finds(syntax, undefined):
    content = encoded(syntax, undefined)
    stream = io.BytesIO(content)
    meta, scanned, explicit = scan_file(stream)
    assert bytes_of(meta, 0x00020010).rstrip(b"\0").decode() == syntax
    assert explicit == (syntax == ExplicitVRLittleEndian)
    assert_as_pydicom(scanned, dcmread(io.BytesIO(content), stop_before_pixels=True))
    assert content[stream.tell() :][:4] == b"\xe0\x7f\x10\x00"


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_values_and_nested_items_are_the_same_in_every_encoding(syntax, undefined):
    _, elements = read_elements(io.BytesIO(encoded(syntax, undefined)))
    assert elements.integer(0x00280010) == 7
    assert elements.numbers(0x00280030) == (0.5, 0.25)
    assert elements.text(0x00100010) == "Marker^Text"
    first, empty = elements.items(0x0040A730)
    assert [item.text(0x00080100) for item in first.items(0x0040A168)] == ["X", "X"]
    assert empty.items(0x0040A168) == []
    assert 0x00280011 not in elements
    assert elements.integer(0x00280011) is None


def test_another_byte_order_is_left_to_pydicom():
    with pytest.raises(NeedsPydicom):
        scan_file(io.BytesIO(encoded(ExplicitVRBigEndian)))


@pytest.mark.parametrize("undefined", [False, True])
def test_a_deflated_file_is_scanned_as_far_as_its_pixels(undefined):
    content = encoded(DeflatedExplicitVRLittleEndian, undefined)
    _, scanned, explicit = scan_file(io.BytesIO(content))
    assert explicit
    assert_as_pydicom(scanned, dcmread(io.BytesIO(content), stop_before_pixels=True))


def test_a_sequence_that_is_none_is_refused():
    with pytest.raises(NeedsPydicom):
        scan_items(b"\1\2\3\4\5\6\7\x08\x09", explicit=True)


@settings(max_examples=200, deadline=None)
@given(
    cut=st.integers(0, 2000),
    noise=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=6),
    undefined=st.booleans(),
)
def test_damaged_headers_are_read_or_refused_but_never_crash(cut, noise, undefined):
    content = bytearray(encoded(undefined=undefined))
    for place, byte in noise:
        content[place] = byte
    try:
        _, elements = read_elements(io.BytesIO(bytes(content[: max(cut, 140)])))
        elements.items(0x0040A730)
        elements.numbers(0x00280030)
    except Rejection:
        return


@pytest.mark.realdata
def test_the_scan_agrees_with_pydicom_on_every_real_file(real_data):
    quick = 0
    for path in sorted(real_data.rglob("*.dcm")):
        with path.open("rb") as stream:
            try:
                _, scanned, _ = scan_file(stream)
            except NeedsPydicom:
                continue
            offset = stream.tell()
        with path.open("rb") as stream:
            assert_as_pydicom(scanned, dcmread(stream, stop_before_pixels=True))
            assert stream.tell() == offset
        quick += 1
    assert quick >= 70
