"""Publishing a corpus: only where the terms allow it, only the dataset itself, and it opens typed and streamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
import standin_hub
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.utils import get_session
from pages import blocks

from harmonize import corpus as layout
from harmonize.cli import main
from harmonize.corpus import Corpus
from harmonize.corpus.lock import exclusive
from harmonize.corpus.publish import LOCK
from harmonize.hub import large, reach

REPO, THERE = "user/heads", "datasets/user/heads"


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """OpenMind's scans alone, with all that a run leaves beside them."""
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, folder)
    rewrite(folder, [row for row in rows_of(folder) if row["source"] == "openmind"])
    shutil.rmtree(folder / "images/tcia")
    for name in ("records/openmind.jsonl", "report/index.html", ".lock", "images/openmind/.tmp-1-x.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("internal")
    return folder


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return Corpus.open(corpus).scans.to_dict("records")


def rewrite(corpus: Path, rows: list[dict[str, Any]]) -> None:
    layout.write_manifest(corpus, rows, [])


def publish(corpus: Path, *more: str) -> int:
    return main(["publish", str(corpus), "--repo", REPO, *more])


def test_the_dataset_is_pushed_without_what_is_internal(
    hub: standin_hub.Hub, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(corpus) == 0
    shown = capsys.readouterr()
    assert shown.out.strip().endswith(f"{hub.url}/{THERE}")
    assert standin_hub.TOKEN not in shown.out + shown.err
    assert hub.repos[THERE].private
    files = set(hub.repos[THERE].files) - {".gitattributes"}
    named = {row[name] for row in rows_of(corpus) for name in ("image_file_name", "mask_file_name") if row[name]}
    assert files == named | {"README.md", "corpus.json", "metadata.parquet", "rejected.parquet"}


def test_a_scan_that_was_withdrawn_is_gone_from_the_hub_too(hub: standin_hub.Hub, corpus: Path) -> None:
    assert publish(corpus, "--public") == 0
    assert not hub.repos[THERE].private
    gone, *rest = rows_of(corpus)
    for name in filter(None, (gone["image_file_name"], gone["mask_file_name"])):
        (corpus / name).unlink()
    rewrite(corpus, rest)
    assert publish(corpus) == 0
    assert gone["image_file_name"] not in hub.repos[THERE].files
    assert rest[0]["image_file_name"] in hub.repos[THERE].files


def test_an_upload_that_is_cut_in_the_middle_of_a_scan_sends_each_part_once(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {row["image_file_name"]: (corpus / row["image_file_name"]).stat().st_size for row in rows_of(corpus)}
    name, size = max(sizes.items(), key=lambda one: one[1])
    monkeypatch.setattr(large, "LARGE", size)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.part_bytes = size // 8
    hub.break_upload_after = size // 2
    assert publish(corpus) == 1
    assert "give the command again, what has arrived is not sent again" in capsys.readouterr().err
    hub.break_upload_after = None
    assert publish(corpus) == 0
    assert "of 9 parts have arrived" in capsys.readouterr().err
    assert hub.repos[THERE].files[name] == (corpus / name).read_bytes()


def test_a_hub_that_falls_silent_is_not_waited_for_for_ever(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reach, "SILENCE_S", 0.5)
    hub.silent.set()
    assert publish(corpus) == 1
    hub.silent.clear()
    assert "timed out; give the command again" in capsys.readouterr().err
    assert get_session().timeout.read is None  # as the client has it for all others
    assert publish(corpus) == 0


@pytest.mark.parametrize(
    "theirs",
    [
        {
            "README.md": b"---\nlicense: mit\n---\n\nMy thesis.",
            "images/a.png": b"precious",
            "metadata.parquet": b"mine",
        },
        {"corpus.json": b'{"title": "texts"}', "labels.parquet": b"mine"},
        {"probe.json": b"{}", "probe.parquet": b""},
    ],
)
def test_a_dataset_of_something_else_stays_as_it_is(
    hub: standin_hub.Hub, corpus: Path, theirs: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[THERE] = standin_hub.Repo(private=True, commits=[theirs])
    assert publish(corpus) == 2
    said = capsys.readouterr().err
    assert f"error: {REPO}: the repository holds something else than a corpus of headspark ({min(theirs)}" in said
    assert "give --repo a new name" in said
    assert hub.repos[THERE].commits == [theirs]
    assert hub.objects == {}


@pytest.mark.parametrize("theirs", [{}, {".gitattributes": b""}, {"README.md": b"---\nlicense: mit\n---\n"}])
def test_a_dataset_that_was_made_on_the_hubs_page_is_new(
    hub: standin_hub.Hub, corpus: Path, theirs: dict[str, bytes]
) -> None:
    hub.repos[THERE] = standin_hub.Repo(private=True, commits=[theirs])
    assert publish(corpus) == 0
    assert "metadata.parquet" in hub.repos[THERE].files


@pytest.mark.parametrize("source", ["tcia", "deeplesion", "rsna"])
def test_a_source_whose_terms_forbid_it_needs_the_users_word(
    hub: standin_hub.Hub, corpus: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = rows_of(corpus)
    rewrite(corpus, [first | {"source": source}, *rest])
    assert publish(corpus) == 1
    error = capsys.readouterr().err
    assert f"--i-may-share {source}" in error
    assert "https://" in error
    assert hub.repos == {}
    assert publish(corpus, "--i-may-share", source) == 0


def test_hashed_ids_without_a_salt_are_not_published(
    hub: standin_hub.Hub, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = rows_of(corpus)
    rewrite(corpus, [first | {"subject": "0123456789abcdef0123"}, *rest])
    assert publish(corpus) == 1
    assert "--salt" in capsys.readouterr().err
    assert hub.repos == {}


def test_a_corpus_with_a_missing_file_or_a_running_writer_is_refused(
    hub: standin_hub.Hub, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(corpus / LOCK, "busy"):
        assert publish(corpus) == 1
    assert "still writing" in capsys.readouterr().err
    (corpus / rows_of(corpus)[0]["image_file_name"]).unlink()
    assert publish(corpus) == 1
    assert "is missing" in capsys.readouterr().err
    assert hub.repos == {}


def test_a_corpus_that_may_only_be_read_is_published(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def only_to_read(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.is_relative_to(corpus) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, *more, **options)

    with exclusive(corpus / LOCK, "busy"):
        monkeypatch.setattr(Path, "open", only_to_read)
        assert publish(corpus) == 1
        assert "still writing" in capsys.readouterr().err
    assert publish(corpus) == 0
    (corpus / LOCK).unlink()
    assert publish(corpus) == 0


def test_a_wrong_token_is_one_line_that_does_not_show_it(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert publish(corpus) == 1
    shown = capsys.readouterr()
    assert "hf auth login" in shown.err
    assert "hf_wrong" not in shown.out + shown.err


def test_a_hub_that_is_away_or_a_name_that_is_none_is_one_line(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", standin_hub.TOKEN)
    assert publish(corpus) == 1
    assert "http://127.0.0.1:9: cannot be reached" in capsys.readouterr().err
    assert main(["publish", str(corpus), "--repo", "name"]) == 2
    assert "USER/NAME" in capsys.readouterr().err


def test_an_interrupted_upload_can_be_repeated(hub: standin_hub.Hub, corpus: Path) -> None:
    hub.fail_uploads = True
    assert publish(corpus) == 1
    assert "metadata.parquet" not in hub.repos[THERE].files
    hub.fail_uploads = False
    assert publish(corpus) == 0
    assert "metadata.parquet" in hub.repos[THERE].files


def test_an_upload_that_breaks_off_goes_on_with_what_is_missing(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before each new attempt
    hub.break_after = 3
    assert publish(corpus) == 1
    assert len(hub.objects) == 3
    assert "metadata.parquet" not in hub.repos[THERE].files
    hub.break_after = None
    assert publish(corpus) == 0
    assert len(hub.uploads) == len(set(hub.uploads)) > 3


def test_a_published_corpus_comes_back_whole_and_no_file_twice(
    hub: standin_hub.Hub, corpus: Path, tmp_path: Path
) -> None:
    assert publish(corpus) == 0
    image = rows_of(corpus)[0]["image_file_name"]
    back = tmp_path / "back"
    hf_hub_download(REPO, image, repo_type="dataset", local_dir=back)  # as far as an earlier download came
    hub.downloads.clear()
    snapshot_download(REPO, repo_type="dataset", local_dir=back)
    assert image not in hub.downloads
    assert len(hub.downloads) == len(set(hub.downloads)) > 5
    assert main(["verify", str(back)]) == 0
    assert Corpus.open(back).manifest_sha256() == Corpus.open(corpus).manifest_sha256()


def test_the_card_names_licences_and_terms(corpus: Path) -> None:
    card = (corpus / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "| openmind | CC-BY-4.0 | https://huggingface.co/datasets/AnonRes/OpenMind |" in card
    rows = rows_of(corpus)
    rewrite(corpus, [rows[0] | {"source": "rsna"}, *rows[1:]])
    assert "license: other" in (corpus / "README.md").read_text()


OPEN = """
import sys
from pathlib import Path

def look(scans):
    kinds = {name: type(kind).__name__ for name, kind in scans.features.items()}
    assert kinds["image"] == kinds["mask"] == "Nifti", kinds
    assert scans.features["modality"].dtype == "string"
    rows = sorted(scans, key=lambda row: row["scan_id"])
    assert [row["scan_id"] for row in rows] == ["scan-0", "scan-1", "scan-2", "scan-3"]
    assert rows[0]["image"].shape == rows[0]["mask"].shape == (40, 36, 44)
    assert rows[1]["mask"] is None
    assert list(rows[0]["spacing"]) == [1.0, 1.0, 1.0]

card, page = (Path(one).read_text() for one in sys.argv[1:3])
exec(card)  # gives scans and streamed, and divides by patients
look(scans)
look(streamed)
parts = [{(row["subject"], row["scan_id"]) for row in part} for part in (train, held_out)]
assert len(parts[0]) + len(parts[1]) == 4, parts
assert not {patient for patient, _ in parts[0]} & {patient for patient, _ in parts[1]}, parts
exec(page)
assert voxels.shape == (40, 36, 44), voxels.shape
assert affine.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
"""


def test_the_dataset_opens_typed_from_the_folder_and_streamed_from_the_hub(
    hub: standin_hub.Hub, corpus: Path, tmp_path: Path
) -> None:
    assert publish(corpus) == 0
    codes = re.findall(r"```python\n(.*?)```", (corpus / "README.md").read_text(), re.DOTALL)
    (tmp_path / "card.py").write_text(
        "\n".join(codes).replace("THIS_FOLDER", str(corpus)).replace("THIS_REPOSITORY", REPO)
    )
    (of_corpus,) = [one.code for one in blocks("python") if one.page == "hub.md" and "load_dataset" in one.code]
    (tmp_path / "page.py").write_text(of_corpus)
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path / "card.py"), str(tmp_path / "page.py")],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
