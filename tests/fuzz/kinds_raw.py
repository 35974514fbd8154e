"""Raw scans, read as `harmonize` reads them: discovery, then each scan into a corpus."""

from __future__ import annotations

import functools
import gzip
import io
import shutil
from pathlib import Path

from PIL import Image

from fuzz.damage import either, of_bytes, of_nifti, of_png, within
from fuzz.damage_dicom import of_compressed, of_deflated, of_dicom
from fuzz.kinds import Fault, Kind
from fuzz.valid import (
    OLD,
    SLICES,
    compressed_dicom,
    deflated_dicom,
    dicom_bytes,
    enhanced_dicom,
    plain_dicom,
    plain_nifti,
    slice_numbers,
)
from harmonize import sources
from harmonize.engine import one_scan
from harmonize.errors import Reason
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))
PICTURES = 8


def harmonized(source: str, root: Path, corpus: Path) -> int:
    """Bring a raw folder into a corpus; how many scans were accepted.

    Raises:
        Fault: A scan was refused for something that nobody foresaw.
    """
    shutil.rmtree(corpus, ignore_errors=True)
    accepted = 0
    for ref in sources.references(source, root):
        record = one_scan.process(ref, corpus=corpus, settings=SETTINGS)
        accepted += record.row is not None
        rejection = record.rejection
        if rejection and ("unexpected" in rejection.message or rejection.reason is Reason.WORKER_DIED):
            raise Fault(rejection.message)
    return accepted


def of_raw(source: str, folder: Path, target: Path, damage, *, alone: bool = False) -> Kind:
    read = functools.partial(harmonized, source, folder / "raw", folder / "corpus")
    return Kind(target=target, damage=damage, read=read, alone=alone)


def _series(folder: Path, make) -> Path:
    folder.mkdir(parents=True)
    for number in range(SLICES):
        (folder / f"{number}.dcm").write_bytes(dicom_bytes(make(1, number)))
    return folder / "2.dcm"


def dicom(folder: Path) -> Kind:
    """One slice of a CT series."""
    return of_raw("tcia", folder, _series(folder / "raw/1", plain_dicom), of_dicom)


def deflated(folder: Path) -> Kind:
    """One slice of a deflated series."""
    return of_raw("tcia", folder, _series(folder / "raw/1", deflated_dicom), of_deflated)


def enhanced(folder: Path) -> Kind:
    """A multi-frame file."""
    target = folder / "raw/1/1.dcm"
    target.parent.mkdir(parents=True)
    target.write_bytes(dicom_bytes(enhanced_dicom()))
    return of_raw("tcia", folder, target, of_dicom)


def _compressed(folder: Path, syntax: str, bits: int = 12) -> Kind:
    make = functools.partial(compressed_dicom, syntax=syntax, bits=bits)
    return of_raw("tcia", folder, _series(folder / "raw/1", make), of_compressed, alone=True)


def rle(folder: Path) -> Kind:
    """One slice of a run-length encoded series."""
    return _compressed(folder, "RLELossless")


def jpeg_lossless(folder: Path) -> Kind:
    """One slice in JPEG's lossless process."""
    return _compressed(folder, "JPEGLosslessProcess14_1")


def jpeg_baseline(folder: Path) -> Kind:
    """One slice in JPEG of 8 bits."""
    return _compressed(folder, "JPEGBaselineProcess1", bits=8)


def jpeg_extended(folder: Path) -> Kind:
    """One slice in JPEG of 12 bits."""
    return _compressed(folder, "JPEGExtendedProcess2_4")


def jpeg_ls(folder: Path) -> Kind:
    """One slice in JPEG-LS."""
    return _compressed(folder, "JPEGLSLossless")


def jpeg_2000(folder: Path) -> Kind:
    """One slice in JPEG 2000."""
    return _compressed(folder, "JPEG2000Lossless")


def rsna_dicom(folder: Path) -> Kind:
    """One slice of a series of the competition, whose rules forgive more."""
    return of_raw("rsna", folder, rsna_tree(folder / "raw"), of_dicom)


def rsna_tree(raw: Path) -> Path:
    """The competition's tree with one series and its tables; the path of a slice."""
    target = _series(raw / "series/1.2.1", plain_dicom)
    columns = (OLD / "raw/rsna/train.csv").read_text(encoding="utf-8").splitlines()[0]
    said = {"SeriesInstanceUID": "1.2.1", "PatientAge": "64", "PatientSex": "Female", "Modality": "CTA"}
    row = ",".join(said.get(name, "0") for name in columns.split(","))
    (raw / "train.csv").write_text(f"{columns}\n{row}\n", encoding="utf-8")
    (raw / "train_localizers.csv").write_text(
        "SeriesInstanceUID,SOPInstanceUID,coordinates,location\n1.2.1,1.2.1.2,\"{'x': 5.5, 'y': 6.5}\",Basilar Tip\n",
        encoding="utf-8",
    )
    return target


def nifti_tree(raw: Path, name: str, content: bytes) -> Path:
    """OpenMind's tree with one image and its table; the path of the image."""
    target = raw / f"OpenMind/ds000001/sub-01/anat/{name}"
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    (raw / "openneuro_metadata.csv").write_text(
        "unique_id,image_path,modality,anon_mask_path,anat_mask_path,image_quality_score,age,sex,health_status\n"
        f"one,ds000001/sub-01/anat/{name},T1w,,,2.5,40,F,healthy\n",
        encoding="utf-8",
    )
    return target


def nifti(folder: Path) -> Kind:
    """A plain NIfTI file."""
    target = nifti_tree(folder / "raw", "sub-01_T1w.nii", plain_nifti())
    return of_raw("openmind", folder, target, of_nifti)


def nifti_gz(folder: Path) -> Kind:
    """A packed one."""
    target = nifti_tree(folder / "raw", "sub-01_T1w.nii.gz", gzip.compress(plain_nifti()))
    return of_raw("openmind", folder, target, either(of_bytes, within(gzip.decompress, _pack, of_nifti)))


def _pack(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1)


def png(folder: Path) -> Kind:
    """One slice of DeepLesion."""
    return of_raw("deeplesion", folder, deeplesion_tree(folder / "raw"), of_png)


def deeplesion_tree(raw: Path) -> Path:
    """DeepLesion's tree with one run and its table; the path of a slice."""
    target = raw / "Images_png/000001_01_01/013.png"
    target.parent.mkdir(parents=True)
    for number in range(PICTURES):
        stream = io.BytesIO()
        Image.fromarray(slice_numbers(number)).save(stream, "png")
        (target.parent / f"{10 + number:03d}.png").write_bytes(stream.getvalue())
    (raw / "DL_info.csv").write_text(
        "File_name,Slice_range,Spacing_mm_px_,Patient_gender,Patient_age\n"
        '000001_01_01_012.png,"10, 17","4, 4, 5",M,34\n',
        encoding="utf-8",
    )
    return target
