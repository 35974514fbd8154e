"""Fetching OpenMind: the table first, then only the images that match with their masks, the best first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import standin_files
import standin_hub
import standin_tls

from harmonize.cli import main
from harmonize.errors import UserError
from harmonize.fetch.openmind import ImageChoice, choose, fetch

REPO = "datasets/AnonRes/OpenMind"
IMAGE = "OpenMind/ds000{0}/sub-01/anat/sub-01_{1}.nii.gz"
TABLE = """\
image_path,modality,image_quality_score,anon_mask_path,anat_mask_path
ds0001/sub-01/anat/sub-01_T1w.nii.gz,T1w,2.5,,
ds0002/sub-01/anat/sub-01_T1w.nii.gz,T1w,1.0,ds0002/sub-01/anat/sub-01_T1w__Data/deface_mask.nii.gz,ds0002/shared/fb_mask.nii.gz
ds0003/sub-01/anat/sub-01_T1w.nii.gz,T1w,1.5,,ds0002/shared/fb_mask.nii.gz
ds0004/sub-01/anat/sub-01_T1w.nii.gz,T1w,,,
ds0005/sub-01/anat/sub-01_FLAIR.nii.gz,FLAIR,1.2,,
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[standin_hub.Hub]:
    monkeypatch.setattr("harmonize.fetch.openmind.BACKOFF_S", 0.01)
    with standin_hub.serving() as served:
        files = {"openneuro_metadata.csv": TABLE.encode()}
        for number, modality in enumerate(("T1w", "T1w", "T1w", "T1w", "FLAIR"), start=1):
            files[IMAGE.format(number, modality)] = f"image {number}".encode()
        files["OpenMind/ds0002/sub-01/anat/sub-01_T1w__Data/deface_mask.nii.gz"] = b"deface"
        files["OpenMind/ds0002/shared/fb_mask.nii.gz"] = b"head"
        served.repos[REPO] = standin_hub.Repo(private=False, commits=[files])
        yield served


def there(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in (out / "OpenMind").rglob("*") if path.is_file()}


def test_the_command_brings_what_matches_and_nothing_else(
    hub: standin_hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--modality", "T1w", "--max-score", "2.0", "--limit", "500", "--endpoint", hub.url]
    assert main(["fetch", "openmind", *words, "--out", str(tmp_path)]) == 0
    expected = {
        IMAGE.format(2, "T1w"),
        IMAGE.format(3, "T1w"),
        "OpenMind/ds0002/sub-01/anat/sub-01_T1w__Data/deface_mask.nii.gz",
        "OpenMind/ds0002/shared/fb_mask.nii.gz",
    }
    assert there(tmp_path) == expected
    assert set(hub.downloads) == {"openneuro_metadata.csv"} | expected
    assert hub.downloads[0] == "openneuro_metadata.csv"
    assert (tmp_path / IMAGE.format(2, "T1w")).read_bytes() == b"image 2"
    assert "2 images" in capsys.readouterr().out


def test_the_best_scores_come_first_and_unscored_images_last() -> None:
    rows = [
        dict(zip(("image_path", "modality", "image_quality_score"), line.split(",")[:3], strict=True))
        for line in TABLE.splitlines()[1:]
    ]
    names = [row["image_path"][:6] for row in choose(rows, ImageChoice(modalities=["t1w"]))]
    assert names == ["ds0002", "ds0003", "ds0001", "ds0004"]
    assert len(choose(rows, ImageChoice(max_score=5.0))) == 4
    assert [row["modality"] for row in choose(rows, ImageChoice(limit=2))] == ["T1w", "FLAIR"]


def test_a_second_run_fetches_nothing_again(hub: standin_hub.Hub, tmp_path: Path) -> None:
    fetch(ImageChoice(limit=2), tmp_path, endpoint=hub.url)
    hub.downloads.clear()
    assert fetch(ImageChoice(limit=2), tmp_path, endpoint=hub.url) == (2, [])
    assert hub.downloads == []


def test_a_busy_hub_is_asked_again_and_it_is_said(
    hub: standin_hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_downloads = 2
    assert fetch(ImageChoice(limit=1), tmp_path, endpoint=hub.url, workers=1) == (1, [])
    assert f"{hub.url}: answered 503; trying again in" in capsys.readouterr().err


def test_an_absent_image_is_counted_and_makes_the_exit_code_1(
    hub: standin_hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del hub.repos[REPO].files[IMAGE.format(3, "T1w")]
    assert main(["fetch", "openmind", "--modality", "T1w", "--endpoint", hub.url, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"missing: {IMAGE.format(3, 'T1w')}" in shown.out
    assert "3 images" in shown.out
    assert "1 could not be had" in shown.err


def test_an_unknown_dataset_or_a_choice_without_rows_is_named(hub: standin_hub.Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a/b: no such dataset"):
        fetch(ImageChoice(), tmp_path, repo="a/b", endpoint=hub.url)
    with pytest.raises(UserError, match="no image"):
        fetch(ImageChoice(modalities=["PET"]), tmp_path, endpoint=hub.url)


def test_a_hub_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot be reached"):
        fetch(ImageChoice(), tmp_path, endpoint="http://127.0.0.1:9")


def test_a_table_that_points_outside_is_refused(hub: standin_hub.Hub, tmp_path: Path) -> None:
    hub.repos[REPO].files["openneuro_metadata.csv"] = b"image_path,modality\n../../etc/passwd,T1w\n"
    with pytest.raises(UserError, match="leaves the tree"):
        fetch(ImageChoice(), tmp_path / "raw", endpoint=hub.url)


@pytest.mark.parametrize(
    "endpoint", ["ftp://a.org", "a.org", "http://[bad", "http://a.org:abc", "http://a b.org", "http://:1"]
)
def test_an_endpoint_that_is_no_address_is_wrong_use(
    tmp_path: Path, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "openmind", "--endpoint", endpoint, "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_trying_again_does_not_mend_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        standin_files.serving(standin_tls.server_side(tmp_path)) as secure,
        pytest.raises(UserError, match=r"certificate of 127.0.0.1 is not accepted \(self.signed certificate\)"),
    ):
        fetch(ImageChoice(), tmp_path, endpoint=secure.url)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("location", ["http://[bad/x", "http://a.org:abc/x", "ftp://127.0.0.1/x"])
def test_a_hub_that_leads_to_no_address_is_one_line(
    tmp_path: Path, location: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmonize.fetch.openmind.BACKOFF_S", 0.001)
    with standin_files.serving() as served:
        path = "/datasets/AnonRes/OpenMind/resolve/main/openneuro_metadata.csv"
        served.raw[path] = [f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()]
        assert main(["fetch", "openmind", "--endpoint", served.url, "--out", str(tmp_path)]) == 1
        assert f"error: {served.url}: " in capsys.readouterr().err


def test_a_name_that_is_no_datasets_is_wrong_use(hub: standin_hub.Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OWNER/NAME") as caught:
        fetch(ImageChoice(), tmp_path, repo="a/b/c", endpoint=hub.url)
    assert caught.value.exit_code == 2


def test_a_table_with_odd_rows_costs_no_other_image(hub: standin_hub.Hub, tmp_path: Path) -> None:
    odd = f".,T1w,1.0,,\nds0009/{'x' * 200_000},T2w,1.0,,\n"
    hub.repos[REPO].files["openneuro_metadata.csv"] += odd.encode()
    there, missing = fetch(ImageChoice(modalities=["T1w"], max_score=1.0), tmp_path, endpoint=hub.url)
    assert (there, missing) == (1, ["OpenMind/.: not in the dataset"])
