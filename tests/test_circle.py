"""The box around the circle of Willis: its voxels are those of the whole head, and what it leaves out is told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from finetune.series import Case, Region, Spot
from finetune.views.region import cut_region
from harmonize import engine, phantom
from harmonize.cli import main
from harmonize.corpus import Corpus, read_volume
from harmonize.decisions import DecisionKind, kind_of
from harmonize.errors import Reason, Rejection, WrongUse
from harmonize.labels import LABELS, LOCATIONS, PRESENT
from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, make_grid, place_of, scan_head, vessel_mask
from harmonize.phantom.anatomy import make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.randomness import rng_of
from harmonize.pipeline import HarmonizedScan, harmonize_scan
from harmonize.scan import ARBITRARY, HU, Annotations, Mask, Point, Scan
from harmonize.settings import CIRCLE_MM, Settings, StoredRegion
from harmonize.voxels.circle import CIRCLE_BELOW_VERTEX_MM, first_voxel

SPACING = (2.0, 2.0, 2.0)
EDGES = (56.0, 60.0, 52.0)


def head_scan(seed: int, contrast: str = "CTA", *, tilt: float = 0.0, top: float = 0.0) -> Scan:
    """A head with an aneurysm at each of the 13 sites, from the neck to the vertex; `top` mm of that are cut off."""
    head = make_head(seed, "circle", resolution_mm=2.5, locations=LOCATIONS)
    centre = place_of(head.pose, CIRCLE_OF_WILLIS_MM, (0, 0, 10 - top / 2))
    extent = (208, 232, 208 - top)
    grid = make_grid(extent_mm=extent, spacing_mm=(4, 4, 4), centre_mm=centre, axes="LPS", tilt_deg=(tilt, 0, 0))
    points = tuple(Point(label=one.location, xyz_mm=one.centre_mm) for one in head.vessels.aneurysms)
    return Scan(
        voxels_XYZ=scan_head(head, grid, CONTRASTS[contrast], rng_of(seed)),
        affine=grid.affine,
        modality=contrast,
        unit=HU if contrast == "CTA" else ARBITRARY,
        masks={"vessels": Mask(labels_XYZ=vessel_mask(head, grid), affine=grid.affine)},
        annotations=Annotations(labels=dict.fromkeys(LABELS, 1), points=points),
    )


@pytest.fixture(scope="module")
def cta() -> Scan:
    return head_scan(0)


@pytest.fixture(scope="module", params=["CTA", "MRA"])
def scan(request: pytest.FixtureRequest, cta: Scan) -> Scan:
    return cta if request.param == "CTA" else head_scan(0, request.param, tilt=8.0)


def decided(found: HarmonizedScan, kind: DecisionKind) -> list[str]:
    return [line for line in found.decisions if line.kind is kind]


def part_of_whole(whole: HarmonizedScan, part: HarmonizedScan) -> tuple[slice, ...]:
    offset = (part.volume.affine[:3, 3] - whole.volume.affine[:3, 3]) / np.diagonal(whole.volume.affine)[:3]
    first = np.rint(offset).astype(int)
    np.testing.assert_allclose(offset, first, atol=1e-4)
    return tuple(slice(a, a + n) for a, n in zip(first, part.volume.stored_XYZ.shape, strict=True))


def test_the_box_holds_the_voxels_and_the_mask_of_the_whole_head(scan: Scan) -> None:
    whole = harmonize_scan(scan, Settings(spacing=SPACING))
    part = harmonize_scan(scan, Settings(spacing=SPACING, circle_mm=EDGES))
    assert part.volume.stored_XYZ.shape == (28, 30, 26)
    cut = part_of_whole(whole, part)
    # The MRI differs by the rounding of two int16 scales alone: it is normalised by the whole head, as always.
    tolerance = 0 if scan.unit == HU else whole.volume.slope + part.volume.slope
    np.testing.assert_allclose(part.volume.values(), whole.volume.values()[cut], atol=tolerance)
    assert part.mask_XYZ is not None
    assert whole.mask_XYZ is not None
    np.testing.assert_array_equal(part.mask_XYZ, whole.mask_XYZ[cut])
    (said,) = decided(part, DecisionKind.CIRCLE_CUT)
    within = ", ".join(f"{one.start}:{one.stop}" for one in cut)
    shape = " x ".join(map(str, whole.volume.stored_XYZ.shape))
    assert said == f"cut to 56 x 60 x 52 mm around the circle of Willis: {within} of {shape} voxels"


def test_the_bias_field_and_the_scale_of_mri_are_those_of_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmonize.voxels.intensity.N4_ITERATIONS", (10, 10))
    monkeypatch.setattr("harmonize.voxels.intensity.STATISTICS_VOXELS", 2000)
    scan = head_scan(3, "MRA")
    for options in ({"n4": True}, {"mri_norm": "fcm"}):
        whole = harmonize_scan(scan, Settings(spacing=(4.0, 4.0, 4.0), **options))
        part = harmonize_scan(scan, Settings(spacing=(4.0, 4.0, 4.0), circle_mm=EDGES, **options))
        cut = part_of_whole(whole, part)
        ours, theirs = part.volume.values(), whole.volume.values()[cut]
        # N4 works on a coarse copy, which is another one here.
        assert np.abs(ours - theirs).mean() < 0.03 * theirs.std()


def test_a_patch_is_cut_in_the_same_place_from_the_box_as_from_the_whole_head(scan: Scan) -> None:
    """So that a model that was trained on the one sees the same of the other."""
    places = []
    for chosen in (Settings(spacing=SPACING), Settings(spacing=SPACING, circle_mm=(100.0, 100.0, 100.0))):
        found = harmonize_scan(scan, chosen)
        region = region_of(found, scan, (16, 20, 18))
        places.append(region.findings.points_K3 - region.start)
    # The outline of a head is found within a voxel of the coarse look at the whole of it.
    np.testing.assert_allclose(places[0], places[1], atol=1.001)


def region_of(found: HarmonizedScan, scan: Scan, patch: tuple[int, int, int]) -> Region:
    """What fine-tuning keeps of a series, with its points."""
    points = scan.annotations.points
    case = Case(
        scan_id="1",
        subject="1",
        modality=found.modality,
        unit=found.unit,
        image=Path(),
        mask=None,
        foreground_box=found.foreground_box,
        labels=(1,) * len(LABELS),
        spots=tuple(Spot(label=LOCATIONS.index(point.label), xyz_mm=point.xyz_mm) for point in points),
    )
    box = found.foreground_box
    return cut_region(found.volume, patch, spacing=None, unit=found.unit, foreground_box=box, case=case)


@given(
    low=st.tuples(*[st.floats(0, 60)] * 3),
    size=st.tuples(st.floats(100, 180), st.floats(120, 220), st.floats(40, 400)),
    edge=st.integers(40, 260),
)
def test_a_box_is_laid_in_the_same_place_again_by_the_part_of_the_head_in_it(
    low: tuple[float, ...], size: tuple[float, ...], edge: int
) -> None:
    head = np.array([low, np.add(low, size)])
    box, spacing = np.full(3, edge), np.ones(3)
    first = first_voxel(head, spacing, box)
    inside = np.clip(head, first, first + edge)
    assert np.abs(first_voxel(inside, spacing, box) - first).max() <= 1
    middle = first + edge / 2
    assert middle[2] >= head[1, 2] - CIRCLE_BELOW_VERTEX_MM - 1


@pytest.mark.parametrize(("contrast", "tilt", "top"), [("CTA", 0, 0), ("MRA", -10, 60), ("T2w", 5, 0)])
def test_no_aneurysm_of_a_phantom_lies_outside_of_the_default_box(contrast: str, tilt: float, top: float) -> None:
    scan = head_scan(7, contrast, tilt=tilt, top=top)
    found = harmonize_scan(scan, Settings(spacing=SPACING, circle_mm=(CIRCLE_MM,) * 3))
    assert decided(found, DecisionKind.POINTS_OUTSIDE) == []
    assert max(found.volume.stored_XYZ.shape) == 56


def lies_in(found: HarmonizedScan, points_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    index = (points_mm - found.volume.affine[:3, 3]) / np.diagonal(found.volume.affine)[:3]
    return np.all((index >= -0.5) & (index < np.array(found.volume.stored_XYZ.shape) - 0.5), axis=1)


def test_what_lies_outside_of_a_small_box_is_counted_and_never_becomes_a_negative(cta: Scan) -> None:
    found = harmonize_scan(cta, Settings(spacing=SPACING, circle_mm=EDGES))
    inside = lies_in(found, np.array([point.xyz_mm for point in cta.annotations.points]))
    assert 0 < inside.sum() < len(inside)
    (said,) = decided(found, DecisionKind.POINTS_OUTSIDE)
    assert said.startswith(f"{(~inside).sum()} of 13 localizers lie outside")
    mask = cta.masks["vessels"]
    voxels = np.argwhere(mask.labels_XYZ) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    (said,) = decided(found, DecisionKind.VESSELS_CUT)
    assert said.startswith(f"{100 * (~lies_in(found, voxels)).mean():.1f} % of the vessel mask")
    region = region_of(found, cta, (16, 16, 16))
    assert len(region.findings.points_K3) == 13
    assert not region.findings.points_complete


def test_a_box_in_one_part_of_a_series_is_told(cta: Scan) -> None:
    part = replace(cta, decisions=(DecisionKind.CUT_AT_HOLE(number=1, count=2, most=5),))
    chosen = Settings(spacing=SPACING, circle_mm=EDGES)
    assert decided(harmonize_scan(part, chosen), DecisionKind.CIRCLE_IN_A_PART)
    assert not decided(harmonize_scan(cta, chosen), DecisionKind.CIRCLE_IN_A_PART)


def test_the_box_ends_where_the_field_of_view_does(cta: Scan) -> None:
    found = harmonize_scan(cta, Settings(spacing=SPACING, circle_mm=(400.0, 40.0, 400.0)))
    whole = harmonize_scan(cta, Settings(spacing=SPACING))
    assert found.volume.stored_XYZ.shape == (whole.volume.stored_XYZ.shape[0], 20, whole.volume.stored_XYZ.shape[2])


def test_a_fine_box_fits_where_the_whole_scan_would_be_too_large(cta: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmonize.voxels.grids.MAX_VOXELS", 2 * cta.voxels_XYZ.size)
    with pytest.raises(Rejection) as refusal:
        harmonize_scan(cta, Settings(spacing=(1.0, 1.0, 1.0)))
    assert refusal.value.reason is Reason.TOO_LARGE
    chosen = Settings(spacing=(1.0, 1.0, 1.0), circle_mm=(48.0, 48.0, 48.0))
    with monkeypatch.context() as patched:
        patched.setattr("harmonize.pipeline.circle.WORKING_SPACING_MM", 4.0)
        assert harmonize_scan(cta, chosen).volume.stored_XYZ.shape == (48, 48, 48)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 12)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 8)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    uneven=st.booleans(),
    unit=st.sampled_from((HU, ARBITRARY)),
    seed=st.integers(0, 2**16),
)
def test_any_scan_is_boxed_or_rejected(
    shape: tuple[int, ...], spacing: tuple[float, ...], angles: tuple[float, ...], uneven: bool, unit: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = random.uniform(-100, 100, 3)
    scan = Scan(
        voxels_XYZ=random.integers(-1000, 1000, shape).astype(np.int16),
        affine=affine,
        modality="CT",
        unit=unit,
        slice_offsets=np.cumsum(random.uniform(0.5, 2, shape[2])) if uneven else None,
    )
    with suppress(Rejection):
        found = harmonize_scan(scan, Settings(spacing=(1.0, 2.0, 3.0), circle_mm=(20.0, 30.0, 24.0)))
        assert all(1 <= count <= most for count, most in zip(found.volume.stored_XYZ.shape, (20, 15, 8), strict=True))
        whole = harmonize_scan(scan, Settings(spacing=(1.0, 2.0, 3.0)))
        cut = part_of_whole(whole, found)
        if unit == HU:
            assert np.abs(found.volume.stored_XYZ - whole.volume.stored_XYZ[cut]).max() <= 1


@pytest.mark.parametrize("edges", [(0.0, 60.0, 60.0), (60.0, float("nan"), 60.0), (60.0, 60.0, 1e6), (60.0, 60.0)])
def test_an_impossible_box_is_refused(edges: tuple[float, float, float]) -> None:
    with pytest.raises(WrongUse, match="--region-mm"):
        Settings(circle_mm=edges)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (root,) = phantom.write("rsna", tmp_path_factory.mktemp("raw"), scans=2, size=40, seed=3)
    return root


def rsna(raw: Path, out: Path, *options: str) -> int:
    return main(["rsna", str(raw), "--out", str(out), "--spacing", "2", "--workers", "0", *options])


def test_the_command_stores_the_box_and_says_so(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    assert rsna(raw, out, "--region", "circle", "--region-mm", "50,40,30") == 0
    assert "--region-mm 30: aneurysms lie outside of a box below 112 mm" in capsys.readouterr().err
    corpus = Corpus.open(out)
    assert corpus.region is StoredRegion.CIRCLE
    assert corpus.circle_mm == (50.0, 40.0, 30.0)
    assert {tuple(shape) for shape in corpus.scans["shape"]} == {(25, 20, 15)}
    assert read_volume(out / corpus.scans["image_file_name"][0]).stored_XYZ.shape == (25, 20, 15)
    assert "a box of 50 x 40 x 30 mm around the circle of Willis" in (out / "README.md").read_text()
    ill = corpus.scans[[labels[-1] == 1 for labels in corpus.scans["labels"]]]
    assert [len(points) for points in ill["points"]] == [1]
    assert all(DecisionKind.CIRCLE_CUT in map(kind_of, lines) for lines in corpus.scans["decisions"])
    assert rsna(raw, out) == 2
    assert "circle_mm [50.0, 40.0, 30.0], now None" in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0


def test_a_corpus_without_a_box_says_nothing_of_one(raw: Path, tmp_path: Path) -> None:
    for name, options in (("plain", ()), ("all", ("--region", "all"))):
        assert rsna(raw, tmp_path / name, *options) == 0
    plain, same = (Corpus.open(tmp_path / name) for name in ("plain", "all"))
    assert "circle_mm" not in plain.info["settings"]
    assert plain.info == same.info
    assert plain.manifest_sha256() == same.manifest_sha256()
    assert plain.region is StoredRegion.ALL
    assert plain.scans.loc[plain.scans["labels"].map(lambda labels: labels[-1]) == 1, "scan_id"].size == 1
    assert LABELS[-1] == PRESENT


def test_the_head_region_is_the_foreground_crop(raw: Path, tmp_path: Path) -> None:
    assert rsna(raw, tmp_path / "head", "--region", "head") == 0
    engine.run("rsna", raw, tmp_path / "crop", Settings(spacing=SPACING, crop_foreground=True), workers=0)
    head, crop = (Corpus.open(tmp_path / name) for name in ("head", "crop"))
    assert head.region is StoredRegion.HEAD
    assert "Of each scan the head is stored, with a margin." in (tmp_path / "head" / "README.md").read_text()
    assert head.manifest_sha256() == crop.manifest_sha256()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--region-mm", "112"], "--region-mm 112: does nothing without --region circle"),
        (["--region", "head", "--region-mm", "112"], "does nothing without --region circle"),
        (["--region", "circle", "--crop-foreground"], "--crop-foreground: the same as --region head"),
        (["--region", "circle", "--region-mm", "5"], "each 16 to 400 mm"),
        (["--region", "circle", "--region-mm", "a"], "--region-mm a: give one number or three"),
        (["--region", "circle", "--brain-model", __file__], "SynthStrip wants to see a whole head"),
        (["--region", "brain"], "brain"),
    ],
)
def test_options_that_contradict_each_other_are_one_line_and_2(
    options: list[str], said: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rsna(raw, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [error.splitlines()[-1]]
    assert not (tmp_path / "out").exists()
