"""The network for the geometry that stripped series do not say: what it is shown, what it learns, where it is used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from standin_gateway import strip_series
from standin_series import save_model

from finetune.cli import main
from finetune.finder.survey import Survey
from finetune.geometry import GeometryReader, read_geometry, save_geometry
from finetune.geometry import lessons as lessons_file
from finetune.geometry import teach as teach_file
from finetune.geometry.lessons import Lesson, draw_stack
from finetune.geometry.network import SHAPE, WAYS, GeometryNetwork, told
from finetune.geometry.reader import few_voxels, scaled
from finetune.geometry.teach import teach
from finetune.kaggle.packed import read_pack
from harmonize.dicom.estimate import estimate_stack
from harmonize.errors import UserError, WrongUse
from harmonize.phantom import rsna
from harmonize.phantom.rsna.plan import plan_series
from harmonize.sources.dicom_series import load_series

MM = 4.0
OUTWARD = {"axial": "SPL", "sagittal": "RIP", "coronal": "PIL"}
"""Where slices, rows and columns advance to."""


def survey(values_XYZ: NDArray[np.floating]) -> Survey:
    return Survey(
        values_XYZ=torch.from_numpy(values_XYZ.copy()).float(),
        first_mm=(0.0, 0.0, 0.0),
        spacing=(MM, MM, MM),
        anchor_mm=(0.0, 0.0, 0.0),
        unit="arbitrary",
        extent_mm=tuple((size - 1) * MM for size in values_XYZ.shape),  # type: ignore[arg-type]
    )


def head(size: float = 1.0, *, seed: int = 0) -> Lesson:
    """A head with a neck, a nose and a darker brain, RAS; its field of view is no larger than it has to be."""
    x, y, z = np.ogrid[-90 * size : 90 * size : MM, -115 * size : 100 * size : MM, -100 * size : 95 * size : MM]
    x, y, z = x / size, y / size, z / size
    skull = (x / 77) ** 2 + (y / 98) ** 2 + (z / 84) ** 2 < 1
    neck = (x / 55) ** 2 + ((y + 20) / 60) ** 2 + 0 * z < (z < 0)
    nose = (x / 15) ** 2 + ((y - 92) / 15) ** 2 + ((z + 30) / 20) ** 2 < 1
    brain = (x / 65) ** 2 + (y / 85) ** 2 + ((z - 5) / 65) ** 2 < 1
    values = 500.0 * (skull | neck | nose) - 250.0 * brain + 30 * np.random.default_rng(seed).normal(size=skull.shape)
    return Lesson(survey=survey(values), subject=str(seed), ways=("axial",), slices=60)


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_is_cut_the_way_that_it_says(way: str) -> None:
    x, y, z = np.meshgrid(*(np.arange(size) for size in (40, 50, 30)), indexing="ij")
    for values, towards, against in ((x, "R", "L"), (y, "A", "P"), (z, "S", "I")):
        lesson = Lesson(survey=survey(values.astype(float)), subject="a", ways=(way,), slices=20)
        stack = draw_stack(lesson, np.random.default_rng(0), varied=False)
        slopes = [float(stack.x_1ZYX[0].diff(dim=axis).mean()) for axis in range(3)]
        signs = [np.sign(round(slope, 4)) for slope in slopes]
        assert signs == [(letter == towards) - (letter == against) for letter in OUTWARD[way]]
    sizes = {"R": 40, "L": 40, "A": 50, "P": 50, "S": 30, "I": 30}
    slices, rows, columns = (sizes[letter] * MM for letter in OUTWARD[way])
    np.testing.assert_allclose(stack.log_extents_2.exp(), [np.sqrt(rows * columns), slices], rtol=1e-5)
    torch.testing.assert_close(stack.told_T, told(20, int(rows), int(columns), is_ct=False), atol=2e-3, rtol=0)


def test_a_turned_stack_runs_the_other_way_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons_file, "AS_SCANNED", 1.0)
    z = np.broadcast_to(np.arange(30.0), (40, 50, 30))
    lesson = Lesson(survey=survey(z), subject="a", ways=("axial",), slices=20)
    drawn = [draw_stack(lesson, np.random.default_rng(seed)) for seed in range(12)]
    assert {stack.turned for stack in drawn} == {0.0, 1.0}
    for stack in drawn:
        assert (stack.x_1ZYX[0].diff(dim=0).mean() < 0) == (stack.turned > 0)


def test_voxels_of_a_file_are_seen_as_those_that_were_learned_from() -> None:
    lesson = head(seed=3)
    learned = draw_stack(lesson, np.random.default_rng(0), varied=False).x_1ZYX[0]
    voxels_ZYX = lesson.survey.values_XYZ.numpy().transpose(2, 1, 0)[:, ::-1, ::-1]
    seen = scaled(few_voxels(voxels_ZYX), "arbitrary")
    assert seen.shape == SHAPE
    assert np.corrcoef(seen.flatten(), learned.flatten())[0, 1] > 0.97
    fine = np.kron(voxels_ZYX, np.ones((2, 3, 3)))
    assert np.corrcoef(scaled(few_voxels(fine), "arbitrary").flatten(), seen.flatten())[0, 1] > 0.97


@pytest.fixture(scope="module")
def reader() -> GeometryReader:
    heads = [head(size, seed=seed) for seed, size in enumerate(np.linspace(0.9, 1.1, 12))]
    made = teach([replace(one, ways=(WAYS[k % 3],)) for k, one in enumerate(heads)], steps=60, seed=1)
    assert made is not None
    return made


def test_it_learns_how_stacks_of_heads_lie_and_how_large_they_are(reader: GeometryReader) -> None:
    right, off, count = 0, [], 0
    for seed in range(20, 26):
        lesson = head(1.0, seed=seed)
        values_XYZ = lesson.survey.values_XYZ.numpy()
        for way, stack_ZYX in (
            ("axial", values_XYZ.transpose(2, 1, 0)[:, ::-1, ::-1]),
            ("sagittal", values_XYZ.transpose(0, 2, 1)[:, ::-1, ::-1]),
            ("coronal", values_XYZ.transpose(1, 2, 0)[::-1, ::-1, ::-1]),
        ):
            found = reader(np.ascontiguousarray(stack_ZYX), "arbitrary")
            assert found is not None
            count += 1
            right += (found.way, found.direction) == (way, 1)
            off += [abs(np.log(found.pixel_mm / MM)), abs(np.log(found.step_mm / MM))]
    assert right >= 0.8 * count
    assert np.median(off) < 0.12
    held = reader.facts["held_out"]
    assert isinstance(held, dict)
    assert held["wrong_way"] <= held["stacks"] // 4


def test_where_it_is_unsure_the_outline_counts(reader: GeometryReader) -> None:
    voxels_ZYX = np.ascontiguousarray(head().survey.values_XYZ.numpy().transpose(2, 1, 0)[:, ::-1, ::-1])
    unsure = replace(reader, spread_2=(1e3, 1e3))
    assert unsure(voxels_ZYX, "arbitrary") == estimate_stack(voxels_ZYX, "arbitrary")
    assert reader(voxels_ZYX, "arbitrary") != estimate_stack(voxels_ZYX, "arbitrary")
    assert reader(voxels_ZYX[:1], "arbitrary") is None, "one slice says nothing of a distance"
    assert reader(np.full_like(voxels_ZYX, -1000.0), "HU") is None, "nothing is seen"


def test_it_comes_back_as_it_was_written(reader: GeometryReader, tmp_path: Path) -> None:
    save_geometry(tmp_path, reader)
    again = read_geometry(tmp_path)
    voxels_ZYX = np.ascontiguousarray(head(seed=5).survey.values_XYZ.numpy().transpose(2, 1, 0)[:, ::-1, ::-1])
    one = again(voxels_ZYX, "arbitrary")
    assert one == replace(reader, spread_2=again.spread_2)(voxels_ZYX, "arbitrary")
    assert one != estimate_stack(voxels_ZYX, "arbitrary")
    assert again.facts == json.loads(json.dumps(reader.facts))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"spread": [0.0]}))
    with pytest.raises(UserError, match="damaged, or of another version"):
        read_geometry(tmp_path)
    with pytest.raises(WrongUse, match="no geometry network; `finetune geometry` makes one"):
        read_geometry(tmp_path / "nothing")


def test_too_few_subjects_are_refused() -> None:
    with pytest.raises(UserError, match="9 subjects are too few"):
        teach([head(seed=seed) for seed in range(9)], steps=1)


def test_a_submission_takes_it_along(reader: GeometryReader, tmp_path: Path) -> None:
    network = GeometryNetwork()
    with torch.no_grad():  # one that says the same of every stack
        network.out.weight.zero_()
        network.out.bias.copy_(torch.tensor([0.1, -0.2, -3.0, -3.0, 0.0, 0.0, 9.0, 9.0]))
    (tmp_path / "geometry").mkdir()
    save_geometry(tmp_path / "geometry", replace(reader, network=network.eval(), spread_2=(1.0, 1.0)))
    words = ["kaggle", str(save_model(tmp_path / "model")), "--geometry", str(tmp_path / "geometry")]
    assert main([*words, "--out", str(tmp_path / "pack")]) == 0
    asked = read_pack(tmp_path / "pack").predictor()
    plan = replace(plan_series(0, seed=3), multiframe=True, segmented=False)
    rsna.write_series(tmp_path / "raw", plan, 24, "protocol")
    stripped = strip_series(tmp_path / "raw" / "series" / plan.uid, tmp_path / "stripped")
    scan = load_series(stripped, asked.estimate)
    (told_of,) = (line for line in asked.answer(stripped).warnings if "by the head that is seen" in line)
    assert "coronal, last frame first" in told_of
    np.testing.assert_allclose(
        np.linalg.norm(scan.affine[:3, :2], axis=0), 200 * np.exp(0.1) / np.sqrt(np.prod(scan.voxels_XYZ.shape[:2]))
    )
    assert main(["kaggle", str(tmp_path / "model"), "--geometry", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert not (tmp_path / "b").exists()


def test_a_corpus_with_a_damaged_scan_teaches_by_the_others(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    first, *_ = sorted((corpus / "images").rglob("*.nii.gz"))
    first.write_bytes(b"no image")
    words = ["geometry", "--corpus", str(corpus), "--out", str(tmp_path / "geometry"), "--steps", "1"]
    assert main(words) == 1
    assert "subjects are too few" in capsys.readouterr().err
    assert not (tmp_path / "geometry").exists()
    monkeypatch.setattr(teach_file, "FEWEST", 4)
    assert main(words) == 0
    assert "note: 1 of 6 scans left out, the first: " in capsys.readouterr().err
    assert read_geometry(tmp_path / "geometry").facts["series"] == 4
    assert main([*words, "--scans", "3"]) == 1
    assert "subjects are too few" in capsys.readouterr().err
    for seed in ("-1", "99999999999999999999"):
        assert main([*words, "--seed", seed]) == 2
        assert f"argument --seed: {seed} is " in capsys.readouterr().err
    assert read_geometry(tmp_path / "geometry").facts["series"] == 4, "what was there stays"
