"""ADAM: cases in their folders, aneurysms in mm with their diameters, and what is treated apart."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from harmonize import phantom, sources
from harmonize.cli import main
from harmonize.corpus import Corpus
from harmonize.scan import LeftOut

AFFINE = np.array([[-0.5, 0, 0, 20], [0, -0.5, 0.1, 24], [0, 0.1, 0.8, -6], [0, 0, 0, 1]])
SHAPE = (40, 44, 24)


def case(
    root: Path,
    name: str,
    *,
    location: str | None,
    marks: dict[int, tuple[slice, ...]] | None = None,
    folders: tuple[str, ...] = ("orig", "pre"),
) -> None:
    """A case with images of noise, and a mask with values where they are wanted."""
    rng = np.random.default_rng(list(name.encode()))
    values = rng.normal(300, 40, SHAPE).clip(0).astype(np.int16)
    for folder in folders:
        for image in ("TOF", "struct_aligned"):
            save(root / name / folder / f"{image}.nii.gz", values)
    if marks is not None:
        mask = np.zeros(SHAPE, dtype=np.uint8)
        for value, place in marks.items():
            mask[place] = value
        save(root / name / "aneurysms.nii.gz", mask)
    if location is not None:
        (root / name / "location.txt").write_text(location, encoding="utf-8-sig")


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)


BALL = (slice(10, 14), slice(20, 24), slice(8, 10))
COIL = (slice(30, 34), slice(10, 12), slice(15, 17))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "adam"
    case(root, "10001B", location="11.5, 21.5, 8.5, 2.25\n", marks={1: BALL})
    case(root, "10001F", location="11, 21, 8, 3, 1\n 11.5,30.5,8.5,1\n", marks={1: BALL, 2: COIL})
    case(root, "10002", location="who knows\n", marks={1: BALL}, folders=("pre",))
    case(root, "20001", location="", marks={})
    case(root, "20002", location=None)
    return root


def mm(*voxel: float) -> np.ndarray:
    return AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]


def test_aneurysms_become_points_in_mm_with_diameters_and_treated_ones_are_told_apart(raw: Path) -> None:
    refs = list(sources.references("adam", raw))
    assert [ref.paths[0].relative_to(raw).as_posix() for ref in refs] == [
        "10001B/orig/TOF.nii.gz", "10001F/orig/TOF.nii.gz", "10002/pre/TOF.nii.gz", "20001/orig/TOF.nii.gz",
        "20002/orig/TOF.nii.gz",
    ]  # fmt: skip
    assert [(ref.subject, ref.session) for ref in refs] == [
        ("10001", "10001B"), ("10001", "10001F"), ("10002", None), ("20001", None), ("20002", None),
    ]  # fmt: skip
    first, second, third, healthy, unknown = (sources.get("adam").load(ref) for ref in refs)
    (point,) = first.annotations.points
    np.testing.assert_allclose(point.xyz_mm, mm(11.5, 21.5, 8.5), atol=1e-5)
    assert (point.label, point.diameter_mm, first.modality) == ("aneurysm", 4.5, "MRA")
    assert [(one.label, one.diameter_mm) for one in second.annotations.points[:2]] == [
        ("aneurysm", 6.0), ("aneurysm", 2.0),
    ]  # fmt: skip
    treated = second.annotations.points[2]
    assert treated.label == "treated aneurysm"
    np.testing.assert_allclose(treated.xyz_mm, mm(31.5, 10.5, 15.5), atol=1e-5)
    corner = np.linalg.norm(AFFINE[:3, :3] @ (1.5, 0.5, 0.5))
    assert treated.diameter_mm == pytest.approx(2 * max(corner, np.linalg.norm(AFFINE[:3, :3] @ (1.5, -0.5, 0.5))))
    # The text cannot be read: the mask says where it is.
    np.testing.assert_allclose(third.annotations.points[0].xyz_mm, mm(11.5, 21.5, 8.5), atol=1e-5)
    assert any("cannot be read" in str(decision) for decision in third.decisions)
    assert healthy.annotations.points == ()
    assert not any("cannot be read" in str(decision) for decision in healthy.decisions)
    assert unknown.annotations.points == ()
    assert any("cannot be read" in str(decision) for decision in unknown.decisions)


def test_what_is_not_taken_is_counted(raw: Path) -> None:
    (raw / "notes.txt").write_text("mine")
    left = [one for one in sources.get("adam").discover(raw) if isinstance(one, LeftOut)]
    assert sum(one.count for one in left if "structural" in one.why) == 9
    assert sum(one.count for one in left if "orig/ is read" in one.why) == 4
    assert sum(one.count for one in left if one.what == ".txt") == 1


@pytest.mark.parametrize(
    ("location", "marks", "labels", "why"),
    [
        ("", {1: BALL}, ["aneurysm"], "mask, which marks an aneurysm at none of its places: the places of the mask"),
        ("31, 40, 20, 2\n", {1: BALL}, ["aneurysm"], "mask, which marks an aneurysm at none of its places"),
        ("31.5, 10.5, 15.5, 1\n", {2: COIL}, ["treated aneurysm"], "mask, which marks an aneurysm as treated"),
        ("11.5, 21.5, 8.5, 2\n400, 21, 8, 2\n", {1: BALL}, ["aneurysm"], "image, which ends before a place"),
        ("400, 21, 8, 2\n", None, [], "image, which ends before a place: its places are left out"),
        ("11.5, 21.5, 8.5, 2\n", {}, ["aneurysm"], "mask, which marks no aneurysm: its places are taken"),
    ],
)
def test_a_text_that_image_or_mask_contradict_is_said_and_the_mask_is_believed(
    tmp_path: Path, location: str, marks: dict[int, tuple[slice, ...]] | None, labels: list[str], why: str
) -> None:
    case(tmp_path, "10001", location=location, marks=marks)
    (ref,) = sources.references("adam", tmp_path)
    scan = sources.get("adam").load(ref)
    assert [point.label for point in scan.annotations.points] == labels
    (told,) = (text for text in scan.decisions if text.startswith("location.txt contradicts the "))
    assert why in told
    for point in scan.annotations.points:
        place = COIL if point.label == "treated aneurysm" else BALL
        np.testing.assert_allclose(point.xyz_mm, mm(*((one.start + one.stop - 1) / 2 for one in place)), atol=0.5)


@pytest.mark.parametrize("name", ["orig/tof.nii.gz", "TOF.nii.gz", "raw/TOF.nii"])
def test_an_image_in_another_place_is_told_where_it_belongs(raw: Path, name: str) -> None:
    save(raw / "30001" / name, np.ones(SHAPE, dtype=np.int16))
    refused = {ref.key: ref.rejection for ref in sources.references("adam", raw) if ref.rejection}
    assert list(refused) == [f"30001/{name}"]
    assert "orig/TOF or pre/TOF" in str(refused[f"30001/{name}"])


def test_a_corpus_keeps_points_diameters_and_masks(raw: Path, tmp_path: Path) -> None:
    assert main(["adam", str(raw), "--out", str(tmp_path / "corpus")]) == 0
    scans = Corpus.open(tmp_path / "corpus").scans
    assert set(scans["source"]) == {"adam"}
    assert not scans["scan_id"].str.contains("1000").any()
    assert scans["subject"].nunique() == 4
    assert scans["labels"].isna().all()
    told = {tuple(point["label"] for point in row["points"]): row["point_diameters"] for _, row in scans.iterrows()}
    np.testing.assert_allclose(told[("aneurysm", "aneurysm", "treated aneurysm")][:2], [6, 2])
    masked = scans[scans["mask_file_name"].notna()]
    assert set(masked["mask_kind"]) == {"labels"}
    assert len(masked) == 4


def test_the_phantom_has_sacs_where_its_text_says(tmp_path: Path) -> None:
    phantom.write("adam", tmp_path, scans=10, size=24, seed=1)
    refs = list(sources.references("adam", tmp_path / "adam"))
    assert len(refs) == 10
    names = [ref.paths[0].parents[1].name for ref in refs]
    assert names == [
        "10001B", "10001F", "10002B", "10002F", "10003F", "10004B", "10004F", "10005B", "20005", "20010",
    ]  # fmt: skip
    scans = dict(zip(names, (sources.get("adam").load(ref) for ref in refs), strict=True))
    labels = {name: {point.label for point in scan.annotations.points} for name, scan in scans.items()}
    assert labels["20005"] == set()
    assert "treated aneurysm" in labels["10005B"]
    assert labels["10001B"] == {"aneurysm"}
    for name, scan in scans.items():
        mask = scan.masks["labels"]
        for point in scan.annotations.points:
            voxel = np.linalg.inv(mask.affine) @ [*point.xyz_mm, 1]
            value = {"aneurysm": 1, "treated aneurysm": 2}[point.label]
            near = mask.labels_XYZ[tuple(slice(max(int(v) - 1, 0), int(v) + 3) for v in voxel[:3])]
            assert (near == value).any(), name
