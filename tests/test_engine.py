"""A run over a source: nothing done twice, nothing lost, the same bytes whatever happened on the way."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import engine, pool, sources
from harmonize.cli import main
from harmonize.corpus import Corpus, lock
from harmonize.corpus.target import LOCK
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(3.0, 3.0, 3.0))


def lay_out(root: Path, count: int = 5, broken: int = 1) -> Path:
    """A small OpenMind tree: `count` scans, of which the last `broken` are cut short."""
    random = np.random.default_rng(0)
    for index in range(count):
        path = root / f"OpenMind/ds00000{index % 2 + 1}/sub-{index:02d}/anat/sub-{index:02d}_T{index % 2 + 1}w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = random.normal(10, 4, (20, 20, 16))
        voxels[4:16, 4:16, 3:13] += 200 + 10 * index + 80 * random.random((12, 12, 10))
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
        if index >= count - broken:
            path.write_bytes(path.read_bytes()[:2000])
    return root


def content(corpus: Path) -> dict[str, str]:
    """Hash of every file of a corpus."""
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def run(root: Path, out: Path, settings: Settings = SETTINGS, **options) -> engine.Summary:
    return engine.run("openmind", root, out, settings, **({"workers": 0} | options))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "raw")


def test_every_scan_ends_in_the_manifest_or_among_the_rejected(root: Path, tmp_path: Path) -> None:
    summary = run(root, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    assert (summary.found, summary.accepted, dict(summary.rejected)) == (5, 4, {"truncated": 1})
    assert len(corpus.scans) == 4
    assert corpus.rejected["reason"].tolist() == ["truncated"]
    assert verify(tmp_path / "corpus") == []


def test_a_second_run_does_nothing_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "corpus")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus/images").rglob("*.gz")}
    bytes_before = content(tmp_path / "corpus")
    summary = run(root, tmp_path / "corpus")
    assert summary.known == 5
    assert content(tmp_path / "corpus") == bytes_before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus/images").rglob("*.gz")} == before


def test_a_file_that_went_missing_is_made_again(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "corpus")
    before = content(tmp_path / "corpus")
    next((tmp_path / "corpus/images").rglob("*.gz")).unlink()
    assert run(root, tmp_path / "corpus").known == 4
    assert content(tmp_path / "corpus") == before


def test_the_number_of_workers_does_not_change_a_byte(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_shards_that_are_merged_equal_one_run(root: Path, tmp_path: Path) -> None:
    settings = Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul")
    run(root, tmp_path / "whole", settings)
    for index in range(3):
        run(root, tmp_path / "parts", settings, shard=(index, 3))
    assert engine.merge(tmp_path / "parts") == (4, 1)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_the_manifest_is_rebuilt_from_the_files(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "corpus")
    before = content(tmp_path / "corpus")
    for name in ("metadata.parquet", "rejected.parquet", "README.md"):
        (tmp_path / "corpus" / name).unlink()
    engine.merge(tmp_path / "corpus")
    assert content(tmp_path / "corpus") == before


def test_what_was_repaired_is_tried_again(root: Path, tmp_path: Path) -> None:
    broken = root / "OpenMind/ds000001/sub-04/anat/sub-04_T1w.nii.gz"
    whole = lay_out(tmp_path / "other", broken=0)
    assert run(root, tmp_path / "corpus").accepted == 4
    broken.write_bytes((whole / broken.relative_to(root)).read_bytes())
    assert run(root, tmp_path / "corpus").accepted == 5
    assert Corpus.open(tmp_path / "corpus").rejected.empty
    run(root, tmp_path / "undisturbed")
    assert content(tmp_path / "corpus") == content(tmp_path / "undisturbed")
    assert run(root, tmp_path / "corpus", retry=True).known == 5


def test_what_was_refused_is_tried_again_when_asked(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "corpus")
    assert run(root, tmp_path / "corpus").known == 5
    assert run(root, tmp_path / "corpus", retry=True).known == 4


def test_a_raw_folder_that_vanishes_while_histograms_are_fitted_leaves_none(root: Path, tmp_path: Path) -> None:
    settings = Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul")

    def losing(function, references):
        for number, ref in enumerate(references):
            if number == 2:
                root.rename(tmp_path / "elsewhere")
            yield ref, function(ref)

    with pytest.raises(UserError, match="vanished during the run"):
        run(root, tmp_path / "corpus", settings, executor=losing)
    (tmp_path / "elsewhere").rename(root)
    run(root, tmp_path / "corpus", settings)
    run(root, tmp_path / "whole", settings)
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_an_unforeseen_fault_does_not_end_the_fit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = sources.get("openmind").load

    def failing(ref):
        if "sub-02" in ref.key:
            raise KeyError("DOE^JANE")
        return load(ref)

    monkeypatch.setattr("harmonize.sources.openmind.load", failing)
    summary = run(root, tmp_path / "corpus", Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul"))
    assert (summary.accepted, dict(summary.rejected)) == (3, {"unreadable": 1, "truncated": 1})


def test_n4_comes_before_the_fit_as_it_does_before_the_transform(root: Path, tmp_path: Path) -> None:
    for n4 in (False, True):
        run(root, tmp_path / str(n4), Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul", n4=n4), limit=2)
    plain, corrected = (np.load(tmp_path / name / "nyul/T1w.npy") for name in ("False", "True"))
    assert not np.array_equal(plain, corrected)


def test_a_scan_without_memory_is_tried_twice_and_recorded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def failing(ref):
        tries.append(ref.key)
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("harmonize.sources.openmind.load", failing)
        patched.setattr("harmonize.engine.one_scan.RETRY_AFTER_S", 0.0)
        assert dict(run(root, tmp_path / "corpus", limit=1).rejected) == {"worker_died": 1}
    assert len(tries) == 2
    assert run(root, tmp_path / "corpus", limit=1).accepted == 1


def test_who_waits_for_another_shard_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".lock"
    with lock.exclusive(path, "busy"):
        waiting = threading.Thread(target=lambda: lock.turn(path, waiting="please wait").__enter__())
        waiting.start()
        deadline = time.monotonic() + 60
        said = ""
        while "please wait" not in said:
            assert time.monotonic() < deadline
            said += capsys.readouterr().err
            time.sleep(0.01)
    waiting.join(timeout=60)
    assert not waiting.is_alive()


def test_a_limit_takes_the_first_scans_and_the_rest_can_follow(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path / "corpus", limit=2).accepted == 2
    assert run(root, tmp_path / "corpus").accepted == 4
    run(root, tmp_path / "whole")
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_nyul_is_fitted_once_a_modality_and_reused(root: Path, tmp_path: Path) -> None:
    settings = Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul")
    run(root, tmp_path / "corpus", settings)
    fitted = sorted((tmp_path / "corpus/nyul").iterdir())
    assert [path.name for path in fitted] == ["T1w.npy", "T2w.npy"]
    run(root, tmp_path / "other", settings, nyul_folder=tmp_path / "corpus/nyul")
    assert content(tmp_path / "other") == content(tmp_path / "corpus")
    medians = [row[4] for row in Corpus.open(tmp_path / "corpus").scans["intensity_percentiles"]]
    assert np.ptp(medians) < 0.2


@pytest.mark.parametrize("fault", ["missing", "cannot be read"])
def test_a_histogram_that_scans_were_made_with_is_never_fitted_again(
    root: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "corpus", tmp_path / "kept"
    nyul = replace(SETTINGS, mri_norm="nyul")
    run(root, out, nyul, limit=2)
    shutil.copytree(out / "nyul", kept)
    (out / "nyul/T1w.npy").unlink()
    if fault == "cannot be read":
        (out / "nyul/T1w.npy").write_bytes(b"no histogram")
    before = content(out)
    assert main(["verify", str(out)]) == 1
    assert f"nyul/T1w.npy: {fault}, and 2 scans were normalised with it" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"nyul/T1w\.npy"):
        run(root, out, nyul)
    assert {name: hash for name, hash in content(out).items() if not name.startswith("records/")} == {
        name: hash for name, hash in before.items() if not name.startswith("records/")
    }
    if fault == "missing":
        run(root, out, nyul, nyul_folder=kept)
        assert (out / "nyul/T1w.npy").read_bytes() == (kept / "T1w.npy").read_bytes()
        assert verify(out) == []


def test_other_histograms_for_the_same_corpus_are_refused(root: Path, tmp_path: Path) -> None:
    settings = Settings(spacing=(3.0, 3.0, 3.0), mri_norm="nyul")
    run(root, tmp_path / "corpus", settings)
    given = tmp_path / "given"
    given.mkdir()
    np.save(given / "T1w.npy", np.array([np.arange(11.0), np.linspace(1, 99, 11)]))
    with pytest.raises(UserError, match=r"T1w\.npy"):
        run(root, tmp_path / "corpus", settings, nyul_folder=given)


def test_a_scan_whose_process_dies_is_recorded_tried_again_and_takes_nobody_with_it(root: Path, tmp_path: Path) -> None:
    def killing(function, references):
        for ref in references:
            yield ref, pool.Died(-9) if "sub-00" in ref.key else function(ref)

    summary = run(root, tmp_path / "corpus", executor=killing)
    assert summary.accepted == 3
    assert summary.rejected == {"worker_died": 1, "truncated": 1}
    assert dict(run(root, tmp_path / "corpus").rejected) == {"truncated": 1}
    run(root, tmp_path / "whole")
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_a_second_run_at_the_same_time_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with lock.exclusive(out / LOCK, "busy"), pytest.raises(UserError, match="another run"):
        run(root, out)
    assert run(root, out).accepted == 4


def test_shards_run_side_by_side_but_not_twice(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with lock.shared(out / LOCK, "busy"):
        run(root, out, shard=(0, 2))
        with pytest.raises(UserError, match="another run"):
            run(root, out)
    with (
        lock.exclusive(out / "records/openmind.shard-1-of-2.jsonl", "busy"),
        pytest.raises(UserError, match="running already"),
    ):
        run(root, out, shard=(1, 2))


def test_a_full_disk_ends_the_run_and_says_what_to_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("harmonize.engine.one_scan.write_volume", full)
        with pytest.raises(UserError, match="No space left"):
            run(root, tmp_path / "corpus")
    assert run(root, tmp_path / "corpus").accepted == 4


def test_a_failing_read_is_tried_twice_and_again_in_the_next_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def failing(ref):
        tries.append(ref.key)
        raise OSError(5, "Input/output error", "/mnt/DOE^JANE")

    with monkeypatch.context() as patched:
        patched.setattr("harmonize.sources.openmind.load", failing)
        patched.setattr("harmonize.engine.one_scan.RETRY_AFTER_S", 0.0)
        summary = run(root, tmp_path / "corpus", limit=1)
    assert len(tries) == 2
    assert dict(summary.rejected) == {"io_error": 1}
    assert "DOE" not in (tmp_path / "corpus/records/openmind.jsonl").read_text()
    assert run(root, tmp_path / "corpus", limit=1).accepted == 1


def test_an_unforeseen_fault_in_one_scan_is_recorded_without_its_text(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(ref):
        raise KeyError("DOE^JANE")

    monkeypatch.setattr("harmonize.sources.openmind.load", failing)
    summary = run(root, tmp_path / "corpus")
    assert dict(summary.rejected) == {"unreadable": 5}
    assert "DOE" not in (tmp_path / "corpus/records/openmind.jsonl").read_text()


def test_a_root_without_scans_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match="no openmind scans"):
        run(tmp_path / "raw", tmp_path / "corpus")
    # The mistake binds nobody to its settings.
    run(lay_out(tmp_path / "right"), tmp_path / "corpus", Settings(spacing=(4.0, 4.0, 4.0)))
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "corpus")


def test_a_corpus_inside_its_own_raw_folder_is_wrong_use(root: Path) -> None:
    with pytest.raises(UserError, match="inside the raw folder"):
        run(root, root / "corpus")
