"""More than two volumes, or a header that only one of them has: still none is woven into another."""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom_mixtures import STEP, dataset, item, levels, picture, said, save, write, write_enhanced

from harmonize.dicom import find_files, find_volumes, load_volume, reload_volume
from harmonize.errors import Reason, Rejection


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_volumes_numbered_one_after_the_other_are_as_many_as_they_are(tmp_path, count, modality):
    for n in range(count):
        numbers = {"InstanceNumber": lambda k, n=n: 100 * n + (k if n % 2 else 50 - k)}
        write(tmp_path, np.arange(8) * STEP + n * STEP / count, 100 + 200 * n, Modality=modality, **numbers)
    assert levels(tmp_path) == [{100 + 200 * n} for n in range(count)]
    assert "instance numbers" in said(tmp_path)


def test_the_times_of_slices_tell_in_which_order_volumes_were_acquired(tmp_path):
    for n in range(3):
        times = {"InstanceNumber": lambda k, n=n: 3 * k + n, "AcquisitionTime": lambda k, n=n: f"10{n:02d}{k:02d}"}
        write(tmp_path, np.arange(8) * STEP + n * STEP / 3, 100 + 200 * n, **times)
    assert levels(tmp_path) == [{100}, {300}, {500}]
    assert "acquisition time" in said(tmp_path)


def test_slices_excited_in_three_packages_are_one_volume(tmp_path):
    numbers = {"InstanceNumber": lambda k: k // 3 + 8 * (k % 3)}
    times = {"AcquisitionTime": lambda k: f"10{k % 3:02d}{k // 3:02d}"}
    write(tmp_path, np.arange(24) * STEP, 100, Modality="MR", **numbers, **times)
    assert levels(tmp_path) == [{100}]


def write_noisy(folder, offsets, level, noise=4, **elements):
    """A disc of bone with `level` in it, in air and noise."""
    for k, offset in enumerate(offsets):
        own = {key: value(k) if callable(value) else value for key, value in elements.items()}
        grain = np.random.default_rng(100 * level + k).normal(0, noise, (16, 16))
        pixels = np.where(picture(1, 0) > 0, level, np.where(picture(1, -15) > 0, 900, -1000)) + grain
        ds = dataset(np.rint(pixels).astype(np.int16), ImagePositionPatient=[0, 0, float(offset)], **own)
        save(ds, folder / f"{level}-{k:03d}.dcm")


def test_slices_that_excitation_in_turns_makes_unlike_are_one_mr_whatever_their_times(tmp_path):
    for n, level in enumerate((300, 550)):
        times = {"AcquisitionTime": lambda k, n=n: f"10{n:02d}{k:02d}", "InstanceNumber": lambda k, n=n: 2 * k + n}
        write_noisy(tmp_path, np.arange(10) * STEP + n * STEP / 2, level, noise=60, Modality="MR", **times)
    assert "volume" not in said(tmp_path)
    (volume,) = find_volumes(find_files(tmp_path))
    assert load_volume(volume).voxels_XYZ.shape[2] == 20


def middles(folder):
    """The mean of the middle of each accepted volume and its spread from slice to slice."""
    scans = [reload_volume(found.paths, found.part) for found in find_volumes(find_files(folder))]
    means = [scan.voxels_XYZ[5:11, 5:11].mean(axis=(0, 1)) for scan in scans]
    return sorted((round(float(mean.mean())), bool(np.ptp(mean) < 8)) for mean in means)


def test_a_small_difference_that_numbers_confirm_makes_two_volumes_in_ct(tmp_path):
    for n, level in enumerate((40, 60)):
        numbers = {"InstanceNumber": lambda k, n=n: 100 * n + k}
        write_noisy(tmp_path, np.arange(10) * STEP + n * STEP / 2, level, **numbers)
    assert middles(tmp_path) == [(40, True), (60, True)]


@pytest.mark.parametrize("turn", [(0, 1, 2), (0, 1, 2, 3), (0, 0, 1, 1), (0, 0, 0, 1, 1, 1)])
def test_slices_that_come_back_with_any_turn_are_refused_where_no_header_sorts_them(tmp_path, turn):
    for k in range(24):
        level = 100 + 200 * turn[k % len(turn)]
        write(tmp_path, [k * STEP / 3], level, name=f"{k:03d}", InstanceNumber=k + 1)
    (volume,) = find_volumes(find_files(tmp_path))
    with pytest.raises(Rejection, match="woven") as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.MIXED_VOLUMES


@pytest.mark.parametrize("element", ["ConvolutionKernel", "KVP", "AcquisitionNumber"])
def test_a_slice_of_another_kind_among_the_others_is_told(tmp_path, element):
    write(tmp_path, np.arange(20) * STEP, 100, **{element: lambda k: "70" if k == 9 else "30"})
    (volume,) = find_volumes(find_files(tmp_path))
    assert any("1 slices say another" in line for line in load_volume(volume).decisions)


@pytest.mark.parametrize(
    "elements",
    [
        {"KVP": lambda k: None if k == 9 else 120},
        {"SliceThickness": lambda k: 5.001 if k == 9 else 4.999},
        {"AcquisitionNumber": lambda k: k // 5},
        {"AcquisitionNumber": lambda k: k},
        {"SliceThickness": lambda k: 2.5 if k < 3 else 5},
        {"Modality": "MR", "AcquisitionNumber": lambda k: 1 + (k == 9)},
    ],
)
def test_nothing_is_told_of_blocks_counters_rounding_and_what_is_missing(tmp_path, elements):
    write(tmp_path, np.arange(20) * STEP, 100, **elements)
    (volume,) = find_volumes(find_files(tmp_path))
    assert not any("say another" in line for line in load_volume(volume).decisions)


def test_a_native_phase_has_no_contrast_agent(tmp_path):
    write(tmp_path, np.arange(8) * STEP, 100, InstanceNumber=lambda k: 2 * k)
    write(
        tmp_path, np.arange(8) * STEP + STEP / 2, 102, InstanceNumber=lambda k: 2 * k + 1, ContrastBolusAgent="Iodine"
    )
    assert levels(tmp_path) == [{100}, {102}]
    assert "contrast agent" in said(tmp_path)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_agent_that_is_hardly_seen_tells_two_phases_apart(tmp_path, modality):
    for n, (level, agent) in enumerate([(40, {}), (48, {"ContrastBolusAgent": "Iodine"})]):
        numbers = {"InstanceNumber": lambda k, n=n: 2 * k + n}
        write_noisy(tmp_path, np.arange(9) * STEP + n * STEP / 2, level, noise=8, Modality=modality, **numbers, **agent)
    assert [round(mean / 8) for mean, _ in middles(tmp_path)] == [5, 6]
    assert "contrast agent and intensity" in said(tmp_path)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_agent_that_every_other_slice_of_one_scan_lost_tears_nothing(tmp_path, modality):
    lost = {"ContrastBolusAgent": lambda k: "Iodine" if k % 2 else None}
    write_noisy(tmp_path, np.arange(20) * STEP, 40, noise=8, Modality=modality, **lost)
    assert "volume" not in said(tmp_path)
    assert len(middles(tmp_path)) == 1


@pytest.mark.parametrize("element", ["SeriesDescription", "ConvolutionKernel", "ProtocolName"])
def test_another_value_that_one_of_two_volumes_lacks_counts_where_intensities_follow(tmp_path, element):
    write(tmp_path, np.arange(8) * STEP, 100, InstanceNumber=lambda k: 2 * k)
    write(tmp_path, np.arange(8) * STEP + STEP / 2, 300, InstanceNumber=lambda k: 2 * k + 1, **{element: "venous"})
    assert levels(tmp_path) == [{100}, {300}]


@pytest.mark.parametrize("element", ["SeriesDescription", "ContrastBolusAgent"])
@pytest.mark.parametrize("lost", [lambda k: k % 5 == 2, lambda k: k in (3, 4, 9), lambda k: k > 8])
def test_a_value_that_some_slices_of_one_volume_lost_splits_nothing(tmp_path, element, lost):
    write(tmp_path, np.arange(22) * STEP, 100, **{element: lambda k: None if lost(k) else "venous"})
    assert levels(tmp_path) == [{100}]
    assert "volume" not in said(tmp_path)


def test_a_description_that_every_other_slice_of_one_volume_lost_splits_nothing(tmp_path):
    write(tmp_path, np.arange(16) * STEP, 100, SeriesDescription=lambda k: "head" if k % 2 else None)
    assert "volume" not in said(tmp_path)


def test_frames_say_whether_contrast_agent_was_given(tmp_path):
    given = [item(ContrastBolusAgentAdministered=word, ContrastBolusAgentDetected=word) for word in ("NO", "YES")]
    frames = [(100 + 2 * n, {"ContrastBolusUsageSequence": given[n]}) for _ in range(8) for n in (0, 1)]
    write_enhanced(tmp_path / "a.dcm", np.arange(16) * STEP / 2, 0, frames)
    assert levels(tmp_path) == [{100}, {102}]


FRAMES = {
    "acquisition time": lambda n: {"FrameContentSequence": item(FrameAcquisitionDateTime=f"2020010110{n:02d}00")},
    "time offset": lambda n: {"TemporalPositionSequence": item(TemporalPositionTimeOffset=10.0 * n)},
    "velocity": lambda n: {"MRVelocityEncodingSequence": item(VelocityEncodingDirection=np.eye(3)[n].tolist())},
}


@pytest.mark.parametrize("header", FRAMES)
@pytest.mark.parametrize("shift", [0.0, STEP / 3])
def test_frames_in_any_order_are_sorted_by_what_they_say(tmp_path, header, shift):
    frames = [(k * STEP + n * shift, 100 + 200 * n, FRAMES[header](n)) for k in range(8) for n in range(3)]
    if not shift:  # what is drawn in a frame depends on its number, so woven ones lie in the order of their places
        frames = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]
    write_enhanced(tmp_path / "a.dcm", [z for z, *_ in frames], 0, [(level, groups) for _, level, groups in frames])
    assert levels(tmp_path) == [{100}, {300}, {500}]


def test_frames_that_each_have_a_time_of_their_own_are_one_volume(tmp_path):
    frames = [
        (100, {"FrameContentSequence": item(StackID="1", FrameAcquisitionDateTime=f"20200101{10 + k % 2}{k:02d}00")})
        for k in range(16)
    ]
    write_enhanced(tmp_path / "a.dcm", np.arange(16) * STEP, 0, frames)
    assert levels(tmp_path) == [{100}]
    assert "volume" not in said(tmp_path)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("turn", [2, 3])
def test_a_header_across_what_alternates_sorts_nothing(tmp_path, modality, turn):
    for n, level in enumerate((40, 140)):
        numbers = {"InstanceNumber": lambda k, n=n: 100 * n + k}
        current = {"XRayTubeCurrent": lambda k, n=n: 100 + 100 * ((2 * k + n) // turn % 2)}
        write_noisy(tmp_path, np.arange(12) * STEP + n * STEP / 2, level, Modality=modality, **numbers, **current)
    assert middles(tmp_path) == [(40, True), (140, True)]
    assert "instance numbers" in said(tmp_path)
