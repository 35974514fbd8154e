"""The valid files that are damaged: small, and accepted as they are."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

OLD = Path(__file__).resolve().parents[1] / "fixtures/v0_1_0"
"""A corpus, runs and models as version 0.1.0 wrote them."""

CT_CLASS, ENHANCED_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
SLICES = 6


def plain_nifti() -> bytes:
    """A T1w of 12 x 12 x 10 voxels."""
    voxels = np.full((12, 12, 10), 5, dtype=np.float32)
    voxels[3:9, 3:9, 2:8] = np.random.default_rng(0).normal(200, 30, (6, 6, 6))
    image = nib.Nifti1Image(voxels, np.diag([-4.0, 4, 5, 1]))
    image.set_qform(image.affine, 1)
    return image.to_bytes()


def _hu(seed: int) -> np.ndarray:
    hu = np.full((14, 14), -1000)
    hu[3:11, 3:11] = 40 + np.random.default_rng(seed).integers(0, 200, (8, 8))
    return hu


def plain_dicom(case: int, number: int, **elements: object) -> Dataset:
    """One slice of 14 x 14 pixels, 4 x 4 mm, 5 mm apart; None leaves an element out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CT_CLASS
    dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{case}.{number}"
    defaults = {
        "SOPClassUID": CT_CLASS, "SOPInstanceUID": f"1.2.{case}.{number}", "SeriesInstanceUID": f"1.2.{case}",
        "StudyInstanceUID": "1.2", "PatientID": f"case {case}", "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY"],
        "Rows": 14, "Columns": 14, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelSpacing": ["4.000000", "4.000000"], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, f"{5 * number}.000000"],
        "PixelData": _hu(case * SLICES + number).astype(np.int16).tobytes(),
    }  # fmt: skip
    for name, value in (defaults | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


def deflated_dicom(case: int, number: int) -> Dataset:
    """The same slice in the deflated transfer syntax."""
    dataset = plain_dicom(case, number)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def compressed_dicom(case: int, number: int, *, syntax: str, bits: int = 12) -> Dataset:
    """The same slice, of fewer bits, as GDCM compresses it.

    Args:
        case: Of the series.
        number: Of the slice.
        syntax: The transfer syntax by GDCM's name.
        bits: That are stored: 12 or 8.
    """
    step = 1 if bits > 8 else 5
    stored = ((_hu(case * SLICES + number) + 1000) // step).astype(np.uint16 if bits > 8 else np.uint8)
    plain = plain_dicom(
        case, number, PixelRepresentation=0, BitsAllocated=8 * stored.itemsize, BitsStored=bits, HighBit=bits - 1,
        RescaleIntercept=-1000, RescaleSlope=step, PixelData=stored.tobytes(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "slice.dcm")
        file.write_bytes(dicom_bytes(plain))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        made = dcmread(file)
    # GDCM may derive a new name, and tells the time.
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID
    del made.StudyDate, made.StudyTime
    return made


def enhanced_dicom() -> Dataset:
    """The slices as one file, with functional groups."""
    pixels = b"".join(_hu(number).astype(np.int16).tobytes() for number in range(SLICES))
    dataset = plain_dicom(
        1, 0, SOPClassUID=ENHANCED_CT_CLASS, PixelSpacing=None, ImageOrientationPatient=None, ImagePositionPatient=None,
        RescaleSlope=None, RescaleIntercept=None, NumberOfFrames=SLICES, PixelData=pixels,
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    )  # fmt: skip
    dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT_CLASS
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=[4, 4], SliceThickness=5)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[_item(RescaleIntercept=0, RescaleSlope=1, RescaleType="HU")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            FrameContentSequence=[_item(StackID="1", InStackPositionNumber=number + 1)],
            PlanePositionSequence=[_item(ImagePositionPatient=[0, 0, 5 * number])],
        )
        for number in range(SLICES)
    ]
    return dataset


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def dicom_bytes(dataset: Dataset) -> bytes:
    """A dataset as a file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def slice_numbers(number: int) -> np.ndarray:
    """The pixels of a DeepLesion slice: HU + 32768."""
    return (_hu(number) + 32768).astype(np.uint16)
