"""A rejection: one value from where it is found to its row of rejected.parquet, with the stage that it happened in."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize.corpus import journal
from harmonize.engine import one_scan
from harmonize.errors import Reason, Rejection, Stage
from harmonize.scan import ScanRef
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(4.0, 4.0, 4.0))
SHAPE = (20, 20, 20)


def head() -> np.ndarray:
    """A ball of varied signal in noisy air, shape `SHAPE`."""
    values = np.random.default_rng(0).uniform(0, 20, SHAPE)
    places = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2
    inside = (places**2).sum(axis=0) < 64
    return np.where(inside, 600 + 10 * values, values).astype(np.float32)


def reference(tmp_path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> ScanRef:
    path = tmp_path / "raw" / "sub-1_T1w.nii"
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1]) if affine is None else affine), path)
    return ScanRef(source="openmind", key=path.name, root=path.parent, paths=(path,), subject="sub-1", modality="T1w")


def rejection_of(ref: ScanRef, tmp_path: Path) -> Rejection:
    found = one_scan.rejected_at_sight(ref, SETTINGS) or one_scan.process(ref, corpus=tmp_path, settings=SETTINGS)
    assert found.rejection is not None
    return found.rejection


def test_a_sound_scan_is_accepted(tmp_path: Path) -> None:
    record = one_scan.process(reference(tmp_path, head()), corpus=tmp_path, settings=SETTINGS)
    assert record.rejection is None
    assert record.row is not None


def test_an_empty_file_is_found_without_opening_it(tmp_path: Path) -> None:
    ref = reference(tmp_path, head())
    ref.paths[0].write_bytes(b"")
    assert rejection_of(ref, tmp_path) == Rejection(Reason.EMPTY, "an empty file", stage=Stage.DISCOVER)


def test_a_file_that_is_cut_fails_while_it_is_loaded(tmp_path: Path) -> None:
    ref = reference(tmp_path, head())
    ref.paths[0].write_bytes(ref.paths[0].read_bytes()[:5000])
    found = rejection_of(ref, tmp_path)
    assert (found.reason, found.stage) == (Reason.TRUNCATED, Stage.LOAD)


def test_an_impossible_spacing_fails_while_it_is_resampled(tmp_path: Path) -> None:
    found = rejection_of(reference(tmp_path, head(), np.diag([400.0, 4, 4, 1])), tmp_path)
    assert (found.reason, found.stage) == (Reason.BAD_GEOMETRY, Stage.RESAMPLE)


def test_a_constant_head_fails_while_it_is_normalised(tmp_path: Path) -> None:
    found = rejection_of(reference(tmp_path, np.where(head() > 300, 500, 0).astype(np.float32)), tmp_path)
    assert (found.reason, found.stage) == (Reason.BAD_INTENSITY, Stage.NORMALISE)


def test_a_disk_that_fails_twice_fails_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(path: Path, *_: object, **__: object) -> None:
        tries.append(path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(one_scan, "write_volume", fail)
    monkeypatch.setattr(one_scan, "RETRY_AFTER_S", 0)
    found = rejection_of(reference(tmp_path, head()), tmp_path)
    assert (found.reason, found.stage) == (Reason.IO_ERROR, Stage.WRITE)
    assert len(tries) == 2


def test_a_fault_that_nobody_foresaw_names_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_scan, "normalise_scan", lambda *_: 1 / 0)
    found = rejection_of(reference(tmp_path, head()), tmp_path)
    assert (found.reason, found.stage) == (Reason.UNREADABLE, Stage.NORMALISE)
    assert found.message.startswith("unexpected ZeroDivisionError in")


def test_equal_rejections_are_one_key_and_survive_pickling() -> None:
    one, two = (Rejection(Reason.LOCALIZER, "a localizer", stage=Stage.DISCOVER) for _ in range(2))
    assert len({one, two, pickle.loads(pickle.dumps(one))}) == 1
    assert one != two.at(Stage.LOAD)


def test_a_copy_holds_no_frame_of_the_fault() -> None:
    with pytest.raises(Rejection) as caught:
        raise Rejection(Reason.EMPTY, "no voxels")
    assert caught.value.__traceback__ is not None
    assert caught.value.at(Stage.LOAD).__traceback__ is None


def test_a_row_gives_its_rejection_back() -> None:
    rejection = Rejection(Reason.TRUNCATED, "cut", stage=Stage.RESAMPLE)
    row = journal.rejected_row("tcia", "hash", rejection)
    assert row == {
        "source": "tcia", "raw_hash": "hash", "stage": "resample", "reason": "truncated", "message": "cut",
    }  # fmt: skip
    assert journal.rejection_of(row) == rejection


@pytest.mark.parametrize("odd", [{"reason": "from the future"}, {"stage": None}, {"message": 5}, {"reason": []}])
def test_a_row_of_another_version_gives_none(odd: dict[str, object]) -> None:
    assert journal.rejection_of(journal.rejected_row("tcia", "x", Rejection(Reason.EMPTY, "")) | odd) is None
