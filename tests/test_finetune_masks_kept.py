"""`finetune predict --masks` again: a mask counts as drawn for the scan that it is of, and for no other."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from standin_series import save_masks_model, write_series

from finetune.cli import main
from finetune.tasks.masks import MasksConfig

EDGES = (18, 20, 22)
"""Of the images of three patients, so that the shape of a mask tells whose it is."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = MasksConfig(sources=("nifti",), masks="labels", labels={"lesion": 1}, modalities=("CT",))
    return save_masks_model(tmp_path_factory.mktemp("draws"), task)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / "raw" / f"sub-{number}" / "ct.nii", edge) for number, edge in enumerate(EDGES)]


def write_image(path: Path, edge: int) -> Path:
    grid = np.indices((edge,) * 3)
    ball = ((grid - edge / 2) ** 2).sum(0) < (0.4 * edge) ** 2
    values = np.where(ball, 40 + grid[0] % 5, -1000).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])), path)
    return path


def draw(model: Path, *paths: Path, out: Path) -> int:
    return main(["predict", str(model), *map(str, paths), "--masks", str(out), "--device", "cpu"])


def edges(out: Path) -> dict[str, int]:
    return {path.name.removesuffix(".nii.gz"): nib.load(path).shape[0] for path in sorted(out.glob("*.nii.gz"))}


def test_images_of_one_name_each_get_their_own_mask_however_they_are_given(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    for image in images:
        assert draw(model, image, out=out) == 0
        assert "masks: 1 masks\n" in capsys.readouterr().err.replace(str(out), "masks")
    expected = dict(zip(("ct", "ct_2", "ct_3"), EDGES, strict=True))
    assert edges(out) == expected
    assert draw(model, *reversed(images), out=out) == 0
    assert "0 masks; 3 were there before" in capsys.readouterr().err
    assert edges(out) == expected
    lines = [json.loads(line) for line in (out / "masks.scans.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == [f"{name}.nii.gz" for name in expected]
    assert "sub-" not in (out / "masks.scans.jsonl").read_text()


def test_whose_mask_got_a_number_is_said(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(model, *images[:2], out=tmp_path / "masks") == 0
    said = capsys.readouterr().err
    assert f"note: {images[1]}: its mask is ct_2.nii.gz, for that of another scan has its name" in said
    assert str(images[0]) not in said


def test_an_image_that_was_replaced_is_drawn_anew_and_one_that_broke_is_told_from_its_former_mask(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    assert draw(model, *images, out=out) == 0
    write_image(images[1], 26)
    images[2].write_bytes(b"no image")
    capsys.readouterr()
    assert draw(model, *images, out=out) == 0
    assert edges(out) == {"ct": EDGES[0], "ct_2": 26, "ct_3": EDGES[2]}
    said = capsys.readouterr().err
    assert "1 masks, 1 of them anew, for their scans have changed; 1 were there before" in said
    assert f"note: {images[2]}: ct_3.nii.gz is of what was there before" in said


def test_a_mask_that_is_gone_is_drawn_under_its_name_and_a_file_of_somebody_else_stays(
    model: Path, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    assert draw(model, *images[:2], out=out) == 0
    (out / "ct.nii.gz").unlink()
    assert draw(model, images[1], images[0], out=out) == 0
    assert edges(out) == {"ct": EDGES[0], "ct_2": EDGES[1]}
    (out / "ct_3.nii.gz").write_bytes(b"mine")
    assert draw(model, images[2], out=out) == 0
    assert (out / "ct_3.nii.gz").read_bytes() == b"mine"
    assert nib.load(out / "ct_4.nii.gz").shape[0] == EDGES[2]


def test_a_line_that_was_never_finished_counts_as_none(model: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "masks"
    assert draw(model, *images[:2], out=out) == 0
    record = out / "masks.scans.jsonl"
    record.write_bytes(record.read_bytes()[:-30])  # as of a process that was killed; the mask comes after it
    (out / "ct_2.nii.gz").unlink()
    assert draw(model, *images, out=out) == 0
    assert edges(out) == dict(zip(("ct", "ct_2", "ct_3"), EDGES, strict=True))


def test_a_folder_of_masks_without_a_word_of_their_scans_is_refused_and_stays(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    assert draw(model, images[0], out=out) == 0
    (out / "masks.scans.jsonl").unlink()
    assert draw(model, *images, out=out) == 2
    assert "masks.scans.jsonl, which says of which scan each of them is" in capsys.readouterr().err
    assert edges(out) == {"ct": EDGES[0]}


def test_series_of_one_uid_in_a_folder_keep_a_mask_each(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "one", "1.2.3", patient="A")
    out = tmp_path / "masks"
    assert draw(model, tmp_path / "one", out=out) == 0
    assert list(edges(out)) == ["one"]
    write_series(tmp_path / "one", "1.2.3", patient="BB", slices=range(16))
    write_series(tmp_path / "one", "1.2.4", patient="CCC")
    for told in ("3 masks", "0 masks; 3 were there before"):
        assert draw(model, tmp_path / "one", out=out) == 0
        assert told in (said := capsys.readouterr().err)
        assert f"note: {tmp_path / 'one'}: one.nii.gz is of what was there before" in said
        assert list(edges(out)) == ["1.2.3", "1.2.3_2", "1.2.4", "one"]
