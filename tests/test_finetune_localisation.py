"""Candidates: where they lie, what models and tiles see together, and what they are worth beside marked points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_finetune_tiles import BAG, LEFT_MCA, RIGHT_MCA, cut, head, view_of
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.candidates import Candidate, find_candidates, read_table, rows_of, table_of, together
from finetune.evaluation.detection import measured, read_finding_sizes
from finetune.evaluation.localisation import Localisation, localise
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.text import localisation_lines
from finetune.inference import look_at
from finetune.predict.journal import Row, journal_at
from finetune.predict.table import write_tables
from finetune.regions import RegionDecoder
from finetune.report.localisation import add_localisation
from finetune.series import Case, Spot
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.errors import UserError
from harmonize.labels import LABELS, LOCATIONS
from harmonize.page import Page

CPU = torch.device("cpu")
TASK = AneurysmTask()


def ball(shape: Sequence[int], centre: Sequence[float], radius: float, peak: float) -> np.ndarray:
    """Falls evenly from the peak to 0 at twice the radius, where it has half of it."""
    distance = np.linalg.norm(np.indices(shape) - np.reshape(centre, (3, 1, 1, 1)), axis=0)
    return peak * np.clip(1 - distance / (2 * radius), 0, 1)


def test_each_blob_is_one_candidate_in_its_middle_with_its_size_and_place() -> None:
    shape, near = (30, 24, 20), (7, 12, 10)
    heat = np.maximum(ball(shape, near, 3, 0.8), ball(shape, (22, 8, 5), 2, 0.3))
    places = np.zeros((2, *shape))
    places[0, :15], places[1, 15:] = 1, 1
    to_mm = np.diag([2.0, 2.0, 2.0, 1.0])
    to_mm[:3, 3] = (-30, 10, 5)
    first, second = find_candidates(heat, to_mm, places)
    np.testing.assert_allclose(first.xyz_mm, np.array(near) * 2 + (-30, 10, 5), atol=0.1)
    np.testing.assert_allclose(second.xyz_mm, np.array((22, 8, 5)) * 2 + (-30, 10, 5), atol=0.1)
    assert first.size_mm == pytest.approx(12, abs=1)  # a radius of three cells of 2 mm
    assert second.size_mm == pytest.approx(8, abs=1)
    assert (first.score, second.score) == (pytest.approx(0.8), pytest.approx(0.3))
    np.testing.assert_allclose([first.places_P, second.places_P], np.eye(2))


def test_a_cold_map_and_one_that_is_no_number_have_no_candidates() -> None:
    assert find_candidates(np.full((4, 4, 4), 1e-5), np.eye(4)) == []
    assert find_candidates(np.full((4, 4, 4), np.nan), np.eye(4)) == []


class Glows(nn.Module):
    """Sees something in each bright cell of two voxels, at the left artery in the half of a tile where that lies."""

    def forward(self, x: Tensor, group_B: Tensor | None = None) -> dict[str, Tensor]:
        bright = F.max_pool3d(x[:, :1], 2)[:, 0]
        territory = torch.zeros(len(x), len(LOCATIONS), *bright.shape[1:])
        half = bright.shape[1] // 2
        territory[:, LEFT_MCA, :half], territory[:, RIGHT_MCA, half:] = 9, 9
        return {"labels": torch.zeros(len(x), len(LABELS)), "presence": 20 * bright - 10, "territory": territory}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("sac", "place"), [((3, 9, 4), LEFT_MCA), ((12, 3, 12), RIGHT_MCA)])
def test_a_candidate_lies_where_the_scan_is_bright_and_has_its_side(
    sac: tuple[int, int, int], place: int, *, mirror: bool
) -> None:
    volume = head((16, 16, 16), sac)
    data = dataclasses.replace(BAG, inference="box", mirror=mirror)
    (said,) = look_at(Glows(), [cut(volume, whole=False)], data, TASK, view_of(), CPU)
    assert said.candidates is not None
    (one,) = said.candidates
    middle = np.array(sac) // 2 * 2 + 0.5  # of the cell
    np.testing.assert_allclose(one.xyz_mm, volume.affine[:3, :3] @ middle + volume.affine[:3, 3], atol=1e-4)
    assert int(np.argmax(one.places_P)) == place
    assert one.score > 0.9


@pytest.mark.parametrize("sac", [(3, 3, 3), (44, 20, 2), (22, 10, 60)])
def test_tiles_see_one_candidate_wherever_it_lies(sac: tuple[int, int, int]) -> None:
    volume = head((45, 24, 64), sac)
    (said,) = look_at(Glows(), [cut(volume)], BAG, TASK, view_of(), CPU)
    assert said.candidates is not None
    (one,) = said.candidates
    assert math.dist(one.xyz_mm, volume.affine[:3, :3] @ np.array(sac) + volume.affine[:3, 3]) < 1.8


def test_a_resampled_region_places_it_too_and_a_cache_knows_where_it_lies() -> None:
    volume = head((40, 40, 40), spacing=0.5)
    volume.stored_XYZ[28:33, 10:15, 19:24] = 2000
    region = cut(volume, whole=False, spacing=1.0)
    (said,) = look_at(Glows(), [region], dataclasses.replace(BAG, inference="box"), TASK, view_of(1.0), CPU)
    assert said.candidates is not None
    sac_mm = volume.affine[:3, :3] @ np.array((30, 12, 21)) + volume.affine[:3, 3]
    assert math.dist(said.candidates[0].xyz_mm, sac_mm) < 1.8
    case = case_at(())
    decoder = RegionDecoder(Holds(region))  # type: ignore[arg-type]
    assert decoder.assemble(case, decoder.decode(case, row_major=True)).origin_mm == region.origin_mm


@dataclasses.dataclass
class Holds:
    """A view that has one region."""

    region: object

    def load(self, case: Case) -> object:
        return self.region


def seen(x: float, score: float, places: tuple[float, ...] = ()) -> Candidate:
    return Candidate(xyz_mm=(x, 0.0, 0.0), size_mm=5.0, score=score, places_P=places)


def test_models_that_see_the_same_agree_and_what_one_alone_sees_counts_less() -> None:
    both, alone = together([[seen(0, 0.8, (1.0, 0.0)), seen(50, 0.6)], [seen(2, 0.8, (0.0, 1.0))]], [1.0, 1.0])
    assert (both.score, both.xyz_mm[0], both.places_P) == (pytest.approx(0.8), pytest.approx(1.0), (0.5, 0.5))
    assert alone.xyz_mm[0] == 50
    assert alone.score < 0.05


def case_at(spots: Sequence[Spot], **more: object) -> Case:
    return Case(
        scan_id=str(more.pop("scan_id", "a")), subject="a", modality="MRA", unit="zscore", image=Path("a"), mask=None,
        foreground_box=(0, 1) * 3, labels=(), spots=tuple(spots), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def spot(x: float, label: int = 0, diameter_mm: float | None = None, *, counts: bool = True) -> Spot:
    return Spot(label=label, xyz_mm=(x, 0.0, 0.0), diameter_mm=diameter_mm, counts=counts)


def located(
    spots: dict[str, list[Spot]], candidates: dict[str, list[Candidate]], labels: tuple[str, ...] = ("l", "r", "any")
) -> Localisation | None:
    names = tuple(sorted(spots))
    table = pd.DataFrame({"scan_id": names, "candidates": [rows_of(candidates.get(n, []), labels) for n in names]})
    rows = table_of(table, ["scan_id"])
    assert rows is not None
    targets = np.array([[0, 0, int(any(one.counts for one in spots[name]))] for name in names])
    predictions = Predictions(
        name="run", labels=labels, overall="any", scan_ids_N=names, subjects_N=names,
        modalities_N=tuple("CTA" if name < "c" else "MRA" for name in names), folds_N=None,
        targets_NL=targets, probabilities_NL=targets * 0.5,
    )  # fmt: skip
    cases = {name: case_at(found, scan_id=name) for name, found in spots.items()}
    return localise(predictions, rows, cases, draws=50)


def test_hits_and_false_candidates_are_counted_as_by_hand() -> None:
    found = located(
        {"a": [spot(0, 0)], "b": [spot(0, 1), spot(40, 0)], "c": [], "d": [spot(0, 0)]},
        {
            "a": [seen(4.9, 0.9, (1, 0)), seen(1, 0.5, (1, 0)), seen(70, 0.3, (1, 0))],  # a hit, the same, a false one
            "b": [seen(5.1, 0.8, (1, 0)), seen(42, 0.4, (1, 0))],  # false, and the second finding
            "c": [seen(10, 0.7, (1, 0))],
        },
    )
    assert found is not None
    assert (found.series, found.findings) == (4, 4)
    assert found.hit_rate.share.value == pytest.approx(1 / 3)
    assert {one.name: (one.count, one.share.value) for one in found.by_modality} == {"CTA": (2, 0.5), "MRA": (1, 0.0)}
    assert (found.named.count, found.named.share.value, found.distance_mm) == (1, 1.0, pytest.approx(4.9))
    # Scores of false ones: 0.8, 0.7, 0.3; of findings: 0.9, 0, 0.4, 0. A quarter a series is one in four.
    froc = {one.name: one.share.value for one in found.froc}
    assert froc == {"0.125": 0.25, "0.25": 0.25, "0.5": 0.5, "1": 0.5, "2": 0.5, "4": 0.5, "8": 0.5}
    assert found.mean.value == pytest.approx(3 / 7)
    assert found.curve.tolist() == [[0, 0.25], [0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.75, 0.5]]
    assert {one.name: (one.count, one.share.value) for one in found.sites} == {
        "l": (3, pytest.approx(2 / 3)), "r": (1, 0.0),
    }  # fmt: skip


def test_a_large_finding_is_hit_within_its_radius_and_what_was_treated_is_neither_found_nor_false() -> None:
    spots = {"a": [spot(0, 0, 14.0)], "b": [spot(0, -1, counts=False)], "c": [spot(0, 0, 4.0)]}
    found = located(spots, {"a": [seen(6.9, 0.9)], "b": [seen(3, 0.8)], "c": [seen(6.9, 0.7)]})
    assert found is not None
    assert (found.findings, found.hit_rate.share.value) == (2, 0.5)
    assert len(found.curve) == 2  # the one false candidate is that of c
    assert {one.name: one.share.value for one in found.sizes} == {"3 to 5 mm": 0.0, "10 mm and more": 1.0}


def test_series_that_cannot_be_compared_are_left_out_and_said() -> None:
    labels = ("l", "r", "any")
    table = pd.DataFrame({"scan_id": ["a"], "candidates": [rows_of([seen(0, 0.9)], labels)]})
    rows = table_of(table, ["scan_id"])
    assert rows is not None
    names = ("a", "b", "c", "d")
    predictions = Predictions(
        name="run", labels=labels, overall="any", scan_ids_N=names, subjects_N=names, modalities_N=None, folds_N=None,
        targets_NL=np.array([[1, 0, 1]] * 4), probabilities_NL=np.full((4, 3), 0.5),
    )  # fmt: skip
    cases = {"a": case_at([spot(0)]), "b": case_at([]), "c": case_at([spot(0)], spots_complete=False)}
    found = localise(predictions, rows, cases, draws=20)
    assert found is not None
    assert (found.series, found.hit_rate.share.value) == (1, 1.0)
    assert dict(found.left_out) == {
        "positive without a point": 1, "with a point that was lost": 1, "not in the corpus": 1,
    }  # fmt: skip
    text = "\n".join(localisation_lines(found))
    assert "Hit rate within 5 mm" in text
    assert "left out: 1 not in the corpus" in text
    page = Page("A run")
    add_localisation(page, found)
    assert "<h2>Hit rate within 5 mm</h2>" in page.html()
    assert localise(predictions, rows, {}, draws=20) is None


def test_sizes_of_a_table_reach_the_points_they_are_about(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text(
        "SeriesInstanceUID,location,diameter_mm\na,l,3.5\nb,l,4\nb,r,6\nb,r,8\nc,elsewhere,9\n"
    )
    cases = {"a": [spot(0, 1)], "b": [spot(0, 0), spot(9, 1)], "c": [spot(0, -1)], "d": [spot(0, 0, 2.0)]}
    found = measured(
        {name: case_at(spots, scan_id=name) for name, spots in cases.items()},
        read_finding_sizes(tmp_path / "sizes.csv"),
        ("l", "r", "any"),
    )
    assert {name: [one.diameter_mm for one in case.spots] for name, case in found.items()} == {
        "a": [3.5], "b": [4.0, 8.0], "c": [9.0], "d": [2.0],
    }  # fmt: skip


def test_a_damaged_table_of_candidates_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "candidates.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="damaged, or no table of candidates"):
        read_table(tmp_path / "candidates.parquet")
    pd.DataFrame({"scan_id": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks the column rank"):
        read_table(tmp_path / "other.parquet")


def test_candidates_survive_a_stopped_prediction_and_stand_beside_its_table(tmp_path: Path) -> None:
    rows = tuple(rows_of([seen(1.5, 0.75, (0.25, 0.75))], ("l", "r", "any")))
    told = Row(
        place="0a", state="s", part=0, parts=1, series="1.2", folder="a", kind="MR", probabilities=(0.1, 0.2, 0.3),
        candidates=rows,
    )  # fmt: skip
    older = dataclasses.replace(told, place="0b", series="1.3", candidates=None)
    path = tmp_path / "p.journal.jsonl"
    with journal_at(path, {"labels": ["l", "r", "any"]}) as journal:
        for row in (told, older):
            journal.add(row)
    assert "candidates" not in path.read_text().splitlines()[2]
    with journal_at(path, {"labels": ["l", "r", "any"]}) as journal:
        assert journal._rows == {"0a": [told], "0b": [older]}
    write_tables(tmp_path / "p.csv", [told, older], ("l", "r", "any"))
    assert (tmp_path / "p.candidates.csv").read_text().splitlines() == [
        "SeriesInstanceUID,rank,label,label_probability,x,y,z,size_mm,score", "1.2,1,r,0.75,1.5,0.0,0.0,5.0,0.75",
    ]  # fmt: skip
    write_tables(tmp_path / "p.csv", [older], ("l", "r", "any"))
    assert not (tmp_path / "p.candidates.csv").exists()
