"""What version 0.1.0 made of real series and of the phantoms: nothing is refused or split that was one volume then."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import phantom, sources
from harmonize.errors import Rejection
from harmonize.scan import Scan
from harmonize.voxels import interleaving

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0" / "raw"

REAL = {
    "ct_ge_head_tilt_uneven/dicom": ([28], {}),
    "dicom2nifti_tests/failing/notavolume": ([], {"repeated_positions": 1}),
    "dicom2nifti_tests/failing/sliceincrement": ([4], {}),
    "dicom2nifti_tests/failing/sliceorientation": ([], {"mixed_geometry": 1, "too_few_slices": 1}),
    "dicom2nifti_tests/generic/compressed_j2k": ([4], {}),
    "dicom2nifti_tests/generic/compressed_jpeg": ([4], {}),
    "dicom2nifti_tests/generic/compressed_jpegls": ([4], {}),
    "dicom2nifti_tests/generic/compressed_rle": ([4], {}),
    "dicom2nifti_tests/philips/dti": ([], {"too_few_slices": 1}),
    "dicom2nifti_tests/siemens_multiframe": ([8], {}),
    "mr_localizers": ([35], {"localizer": 2}),
    "mr_localizers/01-anat-scout": ([], {"localizer": 1}),
    "mr_t1_enhanced_multiframe": ([96], {}),
    "mr_transfer_syntaxes": ([35], {}),
    ".": (
        [4, 4, 8, 28, 35, 35, 96],
        {"localizer": 2, "mixed_geometry": 1, "repeated_positions": 1, "too_few_slices": 2},
    ),
}
"""Slices of each volume, and the codes of the refusals, by folder."""

FIXED = {
    "deeplesion": ([11, 18, 24], {}),
    "openmind": ([20, 20, 20], {}),
    "rsna": ([24, 24, 24, 24, 24, 24], {}),
    "tcia": ([20, 23, 23], {"derived": 2, "localizer": 2}),
}
"""The same of the raw trees among the fixtures."""

MADE = {
    "deeplesion": (4, ([20, 24, 24, 24], {})),
    "openmind": (4, ([17, 17, 23, 23], {})),
    "rsna": (4, ([24, 24, 24, 24], {})),
    "tcia": (8, ([20, 22, 22, 22, 23, 23, 24, 24], {"derived": 2, "localizer": 4})),
}
"""Number of scans, and the same, of phantoms of 24 voxels and seed 1."""


def outcome(source: str, root: Path) -> tuple[list[Scan], tuple[list[int], dict[str, int]]]:
    """The scans of a raw tree, and how many slices they have and which codes the refusals."""
    scans, codes = [], Counter()
    for ref in sources.references(source, root):
        if source == "tcia" and ref.paths[0].suffix != ".dcm":
            continue  # the answers of other converters, which lie beside the series
        try:
            scans.append(sources.get(source).load(ref))
        except Rejection as rejection:
            codes[rejection.reason.value] += 1
    return scans, (sorted(scan.voxels_XYZ.shape[2] for scan in scans), dict(codes))


def seems_woven(scan: Scan) -> bool:
    return any(interleaving.seems_woven(interleaving.sample_slices(scan.voxels_XYZ, axis)) for axis in range(3))


@pytest.mark.realdata
@pytest.mark.parametrize("folder", REAL)
def test_real_series_are_what_they_were(real_data, folder):
    scans, found = outcome("tcia", real_data / folder)
    assert found == REAL[folder]
    assert not any(seems_woven(scan) for scan in scans)


@pytest.mark.realdata
def test_the_flag_is_silent_on_real_heads_in_nifti(real_data):
    names = sorted((real_data / "nifti_mit").glob("*.nii.gz")) + sorted(real_data.glob("mr_t1w_*/*.nii.gz"))
    assert len(names) == 5
    for name in names:
        voxels = np.asanyarray(nib.load(name).dataobj)
        assert not any(interleaving.seems_woven(interleaving.sample_slices(voxels, axis)) for axis in range(3)), name


@pytest.mark.parametrize("source", FIXED)
def test_series_of_the_fixtures_are_what_they_were(source):
    scans, found = outcome(source, FIXTURES / source)
    assert found == FIXED[source]
    assert not any(seems_woven(scan) for scan in scans)


@pytest.mark.parametrize("source", MADE)
def test_phantoms_of_another_seed_are_what_they_were(tmp_path, source):
    (root,) = phantom.write(source, tmp_path, scans=MADE[source][0], size=24, seed=1, workers=0)
    scans, found = outcome(source, root)
    assert found == MADE[source][1]
    assert not any(seems_woven(scan) for scan in scans)
