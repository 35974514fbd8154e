"""The harmonize command: exit codes, one-line errors, and the whole way from phantom to verify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize.cli import main
from harmonize.corpus import Corpus


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """One good scan and one that is cut."""
    folder = tmp_path / "raw/OpenMind/ds000001/sub-01/anat"
    folder.mkdir(parents=True)
    voxels = np.full((16, 16, 12), 5, dtype=np.float32)
    voxels[4:12, 4:12, 3:9] = np.random.default_rng(0).normal(200, 30, (8, 8, 6))
    for name in ("sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), folder / name)
    cut = folder / "sub-01_T2w.nii.gz"
    cut.write_bytes(cut.read_bytes()[:900])
    return tmp_path / "raw"


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def harmonize(raw: Path, out: Path, *more: object) -> int:
    return call("openmind", raw, "--out", out, "--spacing", "4", "--workers", "0", *more)


def test_rejected_scans_are_listed_and_the_exit_code_is_0(raw: Path, tmp_path: Path, capsys) -> None:
    assert harmonize(raw, tmp_path / "corpus") == 0
    said = capsys.readouterr()
    counts = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert (counts["accepted"], counts["rejected"], counts["truncated"]) == ("1", "1", "1")
    assert "rejected" in said.err
    assert Corpus.open(tmp_path / "corpus").spacing == (4.0, 4.0, 4.0)


def test_strict_makes_a_rejection_a_failure(raw: Path, tmp_path: Path, capsys) -> None:
    assert harmonize(raw, tmp_path / "corpus", "--strict") == 1
    assert "error: " in capsys.readouterr().err


def test_nothing_usable_is_a_failure(raw: Path, tmp_path: Path, capsys) -> None:
    (raw / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz").unlink()
    assert harmonize(raw, tmp_path / "corpus") == 1
    assert "no usable scan" in capsys.readouterr().err


def test_verify_says_whole_or_names_the_faults(raw: Path, tmp_path: Path, capsys) -> None:
    harmonize(raw, tmp_path / "corpus")
    assert call("verify", tmp_path / "corpus") == 0
    assert "whole" in capsys.readouterr().out
    next((tmp_path / "corpus/images").rglob("*.gz")).unlink()
    assert call("verify", tmp_path / "corpus") == 1
    said = capsys.readouterr().out
    assert "missing" in said
    assert "delete the files named" in said


def test_the_files_behind_hashes_are_named_to_who_has_the_salt(raw: Path, tmp_path: Path, capsys) -> None:
    corpus = tmp_path / "corpus"
    harmonize(raw, corpus, "--salt", "s")
    assert f"harmonize locate openmind RAW {corpus}" in capsys.readouterr().out
    assert call("locate", "openmind", raw, corpus, "--salt", "s") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "truncated" in line
    assert line.endswith(str(raw / "OpenMind/ds000001/sub-01/anat/sub-01_T2w.nii.gz"))
    (row,) = Corpus.open(corpus).scans.itertuples()
    for name in (row.scan_id, row.raw_hash):
        assert call("locate", "openmind", raw, corpus, name, "--salt", "s") == 0
        assert "accepted: " in capsys.readouterr().out
    assert call("locate", "openmind", raw, corpus) == 2
    assert "another --salt" in capsys.readouterr().err
    assert call("locate", "openmind", raw, corpus, "nothing", "--salt", "s") == 1
    assert "only 0 of 1 names" in capsys.readouterr().err
    assert call("locate", "openmind", raw, corpus, row.scan_id, row.raw_hash, row.scan_id, "--salt", "s") == 0
    capsys.readouterr()
    assert call("locate", "openmind", raw, corpus, row.scan_id, "nobody", "--salt", "s") == 1
    assert capsys.readouterr().err.rstrip().endswith("; not nobody")


def test_rsna_is_not_fetched_but_the_way_to_it_is_named(tmp_path: Path, capsys) -> None:
    assert call("fetch", "rsna", "--out", tmp_path) == 1
    said = capsys.readouterr().err
    assert "https://www.kaggle.com/competitions/" in said
    assert f"-p {tmp_path}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["openmind", "RAW", "--out", "X", "--spacng", "2"], "--spacng: unknown option; did you mean --spacing?"),
        (["opnmind", "RAW"], "opnmind: unknown command; did you mean openmind?"),
        (["openmind", "RAW"], "--out"),
        (["openmind", "RAW", "--out", "X", "--spacing", "a"], "--spacing a"),
        (["openmind", "RAW", "--out", "X", "--spacing", "-1"], "--spacing -1: give one number or three"),
        (["openmind", "RAW", "--out", "X", "--spacing", "1,0,0.5"], "--spacing 1,0,0.5: give one number or three"),
        (["locate", "nifti", "RAW"], "are required: CORPUS; see"),
        (["--verison"], "--verison; did you mean --version?"),
        (["openmind", "RAW", "--out", "X", "--shard", "4/4"], "0 to N - 1"),
        (["openmind", "RAW", "--out", "X", "--mri-norm", "best"], "best"),
        (["openmind", "RAW", "--out", "X", "--limit", "0"], "--limit"),
        (["openmind", "RAW", "--out", "X", "--mri-norm", "zscore", "--nyul", "F"], "--nyul"),
        (["openmind", "/nowhere", "--out", "X"], "/nowhere: no such folder"),
        (["openmind", "RAW", "more", "--out", "X"], "more: unknown argument"),
        ([], "harmonize --help"),
    ],
)
def test_wrong_use_is_one_line_and_2(arguments: list[str], said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RAW").mkdir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harmonize", "verify", str(tmp_path), "--debug"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_is_quick_because_it_loads_no_heavy_library() -> None:
    code = (
        "import sys; from harmonize.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'SimpleITK', 'matplotlib', 'pandas', 'pyarrow', 'nibabel', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_shards_and_merge_make_a_corpus(raw: Path, tmp_path: Path) -> None:
    for index in range(2):
        assert harmonize(raw, tmp_path / "corpus", "--shard", f"{index}/2") == 0
    assert call("merge", tmp_path / "corpus") == 0
    assert len(Corpus.open(tmp_path / "corpus").scans) == 1
    assert call("verify", tmp_path / "corpus") == 0


def test_merge_names_the_shards_that_never_ran(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    for index in (1, 3):
        assert harmonize(raw, corpus, "--shard", f"{index}/4") == 0
    source = next((corpus / "records").glob("*.shard-1-of-4.jsonl")).name.split(".")[0]
    assert call("merge", corpus) == 1
    assert f"shards {source} 0/4, {source} 2/4 never ran; run" in capsys.readouterr().out
    assert harmonize(raw, corpus, "--shard", "2/4") == 0
    assert call("merge", corpus) == 1
    assert f"shard {source} 0/4 never ran since the last merge; run" in capsys.readouterr().out
    assert harmonize(raw, corpus) == 0
    assert call("merge", corpus) == 0
    assert call("verify", corpus) == 0


@pytest.mark.parametrize("last", [[(1, 2)], [(0, 3), (1, 3), (2, 3)]])
def test_a_merge_between_the_shards_of_an_array_forgets_none(
    raw: Path, tmp_path: Path, last: list[tuple[int, int]]
) -> None:
    harmonize(raw, tmp_path / "whole")
    corpus = tmp_path / "corpus"
    harmonize(raw, corpus, "--shard", "0/2")
    assert call("merge", corpus) == 1
    for index, count in last:
        harmonize(raw, corpus, "--shard", f"{index}/{count}")
    assert call("merge", corpus) == 0
    assert call("merge", corpus) == 0
    there = [{path.relative_to(root) for path in root.rglob("*")} for root in (corpus, tmp_path / "whole")]
    assert there[0] == there[1]
    assert (corpus / "metadata.parquet").read_bytes() == (tmp_path / "whole/metadata.parquet").read_bytes()


def test_all_four_phantoms_go_into_one_corpus_that_verifies(tmp_path: Path) -> None:
    raw, corpus = tmp_path / "raw", tmp_path / "corpus"
    assert call("phantom", "--source", "all", "--out", raw, "--scans", "2", "--size", "32", "--seed", "1") == 0
    for source in ("openmind", "tcia", "deeplesion", "rsna"):
        assert call(source, raw / source, "--out", corpus, "--spacing", "4", "--workers", "0") == 0
    assert call("verify", corpus) == 0
    assert set(Corpus.open(corpus).scans["source"]) == {"openmind", "tcia", "deeplesion", "rsna"}
