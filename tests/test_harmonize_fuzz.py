"""Damaged inputs by the hundred: no crash, nothing outside the corpus, nothing lost, no wrong geometry accepted."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fuzz.valid import SLICES, dicom_bytes, plain_dicom, plain_nifti
from PIL import Image

from harmonize import engine
from harmonize.corpus import Corpus
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.identity import salted_hash
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))
NIFTI_CASES = 240
PNG_CASES = 90
DICOM_CASES = 120


def patched(content: bytes, offset: int, kind: str, value: float) -> bytes:
    patch = struct.pack(f"<{kind}", value)
    return content[:offset] + patch + content[offset + len(patch) :]


def nan_voxels(content: bytes, dice: random.Random) -> bytes:
    voxels = np.frombuffer(content, dtype="<f4", offset=352).copy()
    voxels[dice.sample(range(voxels.size), int(voxels.size * dice.choice((0.01, 0.4, 0.9))))] = np.nan
    return content[:352] + voxels.tobytes()


NIFTI_DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "gzip cut": lambda content, dice: gzip.compress(content)[: dice.randrange(0, 900)],
    "gzip garbled": lambda content, dice: (lambda packed, at: packed[:at] + dice.randbytes(8) + packed[at + 8 :])(
        gzip.compress(content), dice.randrange(0, 900)
    ),
    "plain cut": lambda content, dice: content[: dice.randrange(0, len(content))],
    "header garbled": lambda content, dice: (lambda at: content[:at] + dice.randbytes(4) + content[at + 4 :])(
        dice.randrange(0, 344)
    ),
    "dimension": lambda content, dice: patched(
        content, dice.choice((40, 42, 44, 46)), "h", dice.choice((0, -1, 1, 2, 5, 30000))
    ),
    "spacing": lambda content, dice: patched(
        content, dice.choice((280, 300, 320)), "f", dice.choice((0.0, float("nan"), float("inf"), 1e9, 1e-9))
    ),
    "data type": lambda content, dice: patched(content, 70, "h", dice.choice((0, 1, 32, 128, 1536, -7, 999))),
    "offset": lambda content, dice: patched(content, 108, "f", dice.choice((0.0, -1.0, 1e9, float("nan")))),
    "scale": lambda content, dice: patched(content, 112, "f", dice.choice((float("inf"), float("nan"), 1e38, -1.0))),
    "NaN voxels": nan_voxels,
    "empty": lambda content, dice: b"",
    "other file": lambda content, dice: dice.randbytes(dice.randrange(1, 4000)),
}


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hundreds_of_damaged_nifti_files_end_in_the_manifest_or_among_the_rejected(tmp_path: Path) -> None:
    dice, whole = random.Random(7), plain_nifti()
    for index in range(NIFTI_CASES):
        name = list(NIFTI_DAMAGES)[index % len(NIFTI_DAMAGES)]
        path = tmp_path / f"raw/OpenMind/ds000001/sub-{index:03d}/anat/sub-{index:03d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(NIFTI_DAMAGES[name](whole, dice))
    before = everything_below(tmp_path)
    summary = engine.run("openmind", tmp_path / "raw", tmp_path / "corpus", SETTINGS, workers=0)

    assert summary.accepted + summary.rejected.total() == NIFTI_CASES
    # A fault that no one foresaw would carry this reason with this message.
    rejected = Corpus.open(tmp_path / "corpus").rejected
    assert not rejected["message"].str.contains("unexpected").any(), rejected["message"].unique()
    assert {path.partition("/")[0] for path in everything_below(tmp_path) - before} == {"corpus"}
    assert verify(tmp_path / "corpus") == []
    by_hash = Corpus.open(tmp_path / "corpus").scans.set_index("raw_hash")
    for path in sorted((tmp_path / "raw/OpenMind").rglob("*.nii.gz")):
        key = salted_hash("", "openmind", path.relative_to(tmp_path / "raw/OpenMind").as_posix())
        if key in by_hash.index:
            content = path.read_bytes()
            image = nib.Nifti1Image.from_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
            assert tuple(by_hash.loc[key, "raw_shape"]) == image.shape[:3]
            usable = np.isfinite(image.affine).all() and np.linalg.det(image.affine) != 0
            affine = image.affine if usable else image.header.get_qform()
            assert np.allclose(by_hash.loc[key, "raw_spacing"], nib.affines.voxel_sizes(affine), rtol=1e-4)


def test_damaged_png_runs_end_in_the_manifest_or_among_the_rejected(tmp_path: Path) -> None:
    dice = random.Random(11)
    hu = np.full((14, 14), -1000)
    hu[3:11, 3:11] = 40 + np.random.default_rng(0).integers(0, 200, (8, 8))
    rows = ["File_name,Slice_range,Spacing_mm_px_"]
    spacings = ("4, 4, 5", "0, 4, 5", "-4, 4, 5", "nan, 4, 5", "4, 4", "1e9, 1e9, 1e9", "x", "", "4, 4, 4")
    for index in range(PNG_CASES):
        series = f"{index:06d}_01_01"
        folder = tmp_path / "raw/Images_png" / series
        folder.mkdir(parents=True)
        for number in range(10, 18):
            Image.fromarray((hu + 32768).astype(np.uint16)).save(folder / f"{number:03d}.png")
        damaged = folder / "013.png"
        content = damaged.read_bytes()
        if index % 3 == 0:
            damaged.write_bytes(content[: dice.randrange(0, len(content))])
        elif index % 3 == 1:
            at = dice.randrange(0, len(content) - 8)
            damaged.write_bytes(content[:at] + dice.randbytes(6) + content[at + 6 :])
        spacing = spacings[index % len(spacings)] if index % 3 == 2 else "4, 4, 5"
        rows.append(f'{series}_012.png,"10, 17","{spacing}"')
    rows += ['../../etc_01_01_001.png,"1, 2","1, 1, 1"', ",,", '000000_01_01_012.png,"x","1, 1, 1"']
    (tmp_path / "raw/DL_info.csv").write_text("\n".join(rows) + "\n")
    summary = engine.run("deeplesion", tmp_path / "raw", tmp_path / "corpus", SETTINGS, workers=0)
    assert summary.accepted + summary.rejected.total() == PNG_CASES
    rejected = Corpus.open(tmp_path / "corpus").rejected
    assert not rejected["message"].str.contains("unexpected").any(), rejected["message"].unique()
    assert verify(tmp_path / "corpus") == []


MISSING_TAGS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated", "PixelData",
    "SeriesInstanceUID", "SOPClassUID", "Modality", "PixelRepresentation", "StudyInstanceUID", "PatientID",
)  # fmt: skip
FALSE_NUMBERS = (b"0.000000", b"-4.00000", b"nan     ", b"inf     ", b"1e+30   ", b"        ", b"4,0     ", b"1e-30   ")
NAMES_OUTSIDE = ("../../../outside", "/outside", "..", "../" * 20 + "outside", "a/b", "1.2/../../outside")
SEVERAL = range(1, SLICES)
"""Slices that are damaged where one damaged slice alone would only be left out."""


def damaged_series(case: int, dice: random.Random) -> dict[str, bytes]:
    """File names and contents of a series with one kind of damage."""
    one = dice.randrange(SLICES)
    elements: dict[int, dict[str, object]] = {number: {} for number in range(SLICES)}
    hurt = dice.choice(([one], list(SEVERAL), list(range(SLICES))))
    kind = case % 8
    for number in hurt:
        if kind == 0:
            elements[number] = {MISSING_TAGS[case // 8 % len(MISSING_TAGS)]: None}
        elif kind == 1:
            elements[number] = {"Rows": 60000} if case % 16 == 1 else {"NumberOfFrames": 2_000_000}
        elif kind == 2:
            name = NAMES_OUTSIDE[case // 8 % len(NAMES_OUTSIDE)]
            elements[number] = {"SeriesInstanceUID": name, "PatientID": name, "StudyInstanceUID": name}
        elif kind == 3:
            elements[number] = dice.choice(
                ({"RescaleSlope": 0}, {"BitsStored": 40}, {"SamplesPerPixel": 3}, {"ImageOrientationPatient": [1] * 6})
            )
    files = {f"{number}.dcm": dicom_bytes(plain_dicom(case, number, **own)) for number, own in elements.items()}
    for name in [f"{number}.dcm" for number in hurt]:
        content = files[name]
        if kind == 4:
            files[name] = content[: dice.randrange(0, len(content))]
        elif kind == 5:
            files[name] = content.replace(b"4.000000", FALSE_NUMBERS[case // 8 % len(FALSE_NUMBERS)])
        elif kind == 6:
            place = f"{5 * int(name[0])}.000000".encode()
            files[name] = content.replace(place, b"nan".ljust(len(place)))
        elif kind == 7:
            files |= {f"._{name}": content[:200], f"empty{name}": b"", f"text{name}": b"no DICOM file" * 30}
    return files


@pytest.mark.filterwarnings("ignore:.*(Invalid value|value length).*:UserWarning")
@pytest.mark.parametrize(
    "region", [{"crop_foreground": True}, {"circle_mm": (24.0, 30.0, 18.0)}], ids=["head", "circle"]
)
def test_damaged_dicom_series_end_in_the_manifest_or_among_the_rejected(region: dict[str, Any], tmp_path: Path) -> None:
    dice = random.Random(5)
    for case in range(DICOM_CASES):
        folder = tmp_path / f"raw/{case:03d}"
        folder.mkdir(parents=True)
        for name, content in damaged_series(case, dice).items():
            (folder / name).write_bytes(content)
    before = everything_below(tmp_path)
    settings = Settings(spacing=(6.0, 6.0, 6.0), **region)
    summary = engine.run("tcia", tmp_path / "raw", tmp_path / "corpus", settings, workers=0)

    assert {path.partition("/")[0] for path in everything_below(tmp_path) - before} == {"corpus"}
    assert summary.accepted >= DICOM_CASES // 8
    assert len(summary.rejected) >= 6
    corpus = Corpus.open(tmp_path / "corpus")
    assert summary.accepted + summary.rejected.total() == len(corpus.scans) + len(corpus.rejected)
    assert not corpus.rejected["message"].str.contains("unexpected").any(), corpus.rejected["message"].unique()
    assert verify(tmp_path / "corpus") == []
    # What remains of a series lies where it lay: no damage above changes a true number into another plausible one.
    for row in corpus.scans.itertuples():
        assert tuple(row.raw_shape[:2]) == (14, 14)
        assert row.raw_shape[2] <= SLICES
        assert np.allclose(row.raw_spacing, (4, 4, 5))


def one_image_with_table(root: Path, table: str) -> Path:
    path = root / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii"
    path.parent.mkdir(parents=True)
    path.write_bytes(plain_nifti())
    (root / "openneuro_metadata.csv").write_text(table)
    return root


@pytest.mark.parametrize("table", ["", "\n\n", "a,b,c\n1,2,3\n", "image_path\nx\n", "\x00\x00,\x00\n"])
def test_a_table_without_the_needed_columns_is_one_line(tmp_path: Path, table: str) -> None:
    raw = one_image_with_table(tmp_path / "raw", table)
    with pytest.raises(UserError, match=r"openneuro_metadata\.csv") as caught:
        engine.run("openmind", raw, tmp_path / "corpus", SETTINGS, workers=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", ["T1w", 'T1w,"', "T1w,../../x", ",,,,,", "\x00,\x00", "T1w,ds000001/sub-01\r\r\n"])
def test_damaged_rows_of_a_table_do_not_cost_the_image(tmp_path: Path, rows: str) -> None:
    raw = one_image_with_table(tmp_path / "raw", f"modality,image_path\n{rows}")
    assert engine.run("openmind", raw, tmp_path / "corpus", SETTINGS, workers=0).accepted == 1


@pytest.mark.parametrize("name", ["..", "../../x", "a/../../b", "/etc/passwd", "..\\..\\x", "nul\x00", "ü" * 300])
def test_no_public_name_leaves_the_corpus(tmp_path: Path, name: str) -> None:
    from harmonize.identity import safe_name

    made = safe_name(name)
    assert (tmp_path / made).parent == tmp_path
    assert not made.startswith(".")
    assert len(made) < 200


def test_no_text_of_a_header_or_a_table_reaches_the_corpus(tmp_path: Path, capfd) -> None:
    voxels = np.full((12, 12, 10), 5, dtype=np.float32)
    voxels[3:9, 3:9, 2:8] = np.random.default_rng(0).normal(200, 30, (6, 6, 6))
    image = nib.Nifti1Image(voxels, np.diag([-4.0, 4, 5, 1]))
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = b"MARKER"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MARKER"))
    folder = tmp_path / "raw/private_MARKER/MARKER_JANE"
    folder.mkdir(parents=True)
    nib.save(image, folder / "MARKER_T1w.nii.gz")
    (folder / "MARKER_T2w.nii.gz").write_bytes(gzip.compress(b"MARKER" * 100))
    (tmp_path / "raw/openneuro_metadata.csv").write_text(
        "image_path,modality,age,sex,health_status,unique_id\n"
        "private_MARKER/MARKER_JANE/MARKER_T1w.nii.gz,T1w,MARKER,MARKER,MARKER,MARKER\n"
    )
    engine.run("openmind", tmp_path / "raw", tmp_path / "corpus", SETTINGS, workers=0)
    written = [path for path in (tmp_path / "corpus").rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        content = path.read_bytes()
        unpacked = gzip.decompress(content) if path.suffix == ".gz" else content
        assert b"MARKER" not in unpacked, path
        assert "MARKER" not in path.relative_to(tmp_path / "corpus").as_posix()
    said = capfd.readouterr()
    assert "MARKER" not in said.out + said.err
