"""Which series a run takes and how often it draws them: by class, by modality and by how rare their places are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finetune.drawing import drawing_weights, limited, of_modalities, with_masked_share, with_pseudo_labelled
from finetune.samples import DataConfig
from finetune.series import Case
from harmonize.errors import WrongUse

PLACES = 3
"""Three places, and a fourth label for any of them."""


def case(number: int, modality: str, *places: int, present: bool | None = None) -> Case:
    labels = [int(place in places) for place in range(PLACES)]
    positive = bool(places) if present is None else present
    return Case(
        scan_id=f"{number:03}",
        subject=f"{number:03}",
        modality=modality,
        unit="HU" if modality == "CTA" else "zscore",
        image=Path("none"),
        mask=None,
        foreground_box=(0, 1) * 3,
        labels=(*labels, int(positive)),
    )


CASES = [
    *(case(number, "CTA", 0) for number in range(30)),
    *(case(number, "CTA") for number in range(30, 40)),
    *(case(number, "MRA", 0) for number in range(40, 44)),
    case(44, "MRA", 1),
    *(case(number, "MRA") for number in range(45, 90)),
    *(case(number, "T2w") for number in range(90, 100)),
]


def weights_of(**options: object) -> np.ndarray:
    return drawing_weights(CASES, places=PLACES, any_label=PLACES, **options)  # type: ignore[arg-type]


def test_positive_series_get_their_share_and_rare_places_more_of_it() -> None:
    weights = weights_of(positive_share=0.6)
    present = np.array([any(one.labels) for one in CASES])
    assert weights.sum() == pytest.approx(1)
    assert weights[present].sum() == pytest.approx(0.6)
    assert np.ptp(weights[~present]) == 0
    # Place 0 has 34 series, place 1 has one.
    assert weights[44] / weights[0] == pytest.approx(np.sqrt(34))


def test_balanced_by_modality_the_modality_tells_nothing_about_the_label() -> None:
    weights = weights_of(positive_share=0.6, balance="modality")
    present = np.array([any(one.labels) for one in CASES])
    modality = np.array([one.modality for one in CASES])
    assert weights.sum() == pytest.approx(1)
    for name in ("CTA", "MRA"):
        of_it = modality == name
        assert weights[of_it & present].sum() == pytest.approx(0.6 * weights[of_it].sum())
    shares = [weights[modality == name].sum() for name in ("CTA", "MRA", "T2w")]
    assert np.array(shares) / shares[2] == pytest.approx(np.sqrt([4.0, 5.0, 1.0]))
    assert weights[44] / weights[40] == pytest.approx(np.sqrt(34)), "rare in all series, not in those of its modality"


def test_a_single_class_gets_everything_and_a_positive_series_without_a_place_is_a_common_one() -> None:
    only = [case(1, "CTA", 0), case(2, "CTA", 0), case(3, "CTA", present=True)]
    for balance in ("presence", "modality"):
        weights = drawing_weights(only, places=PLACES, any_label=PLACES, positive_share=0.2, balance=balance)  # type: ignore[arg-type]
        assert weights == pytest.approx([1 / 3] * 3)


def test_a_pseudo_labelled_series_is_drawn_by_its_weight_against_an_average_labelled_one() -> None:
    weights = with_pseudo_labelled(np.array([0.7, 0.3]), 3, weight=0.5)
    assert weights.tolist() == [0.7, 0.3, 0.25, 0.25, 0.25]


def test_a_limit_takes_both_classes_and_all_modalities_and_more_contains_less() -> None:
    chosen = limited(CASES, 12, seed=0)
    count = Counter((any(one.labels), one.modality) for one in chosen)
    assert count == {(True, "CTA"): 3, (True, "MRA"): 3, (False, "CTA"): 2, (False, "MRA"): 2, (False, "T2w"): 2}
    assert [one.scan_id for one in chosen] == sorted(one.scan_id for one in chosen)
    assert {one.scan_id for one in limited(CASES, 8, seed=0)} < {one.scan_id for one in chosen}
    assert limited(list(reversed(CASES)), 12, seed=0) == list(reversed(chosen))
    assert limited(CASES, 12, seed=1) != chosen
    assert limited(CASES, 80, seed=0).count(CASES[44]) == 1
    assert sum(any(one.labels) for one in limited(CASES, 80, seed=0)) == 35, "all positives, and others instead"
    assert limited(CASES, 500, seed=0) == CASES


def test_modalities_are_named_as_in_the_corpus_or_as_in_headers() -> None:
    assert of_modalities(CASES, ()) == CASES
    assert {one.modality for one in of_modalities(CASES, ("MR",))} == {"MRA", "T2w"}
    assert {one.modality for one in of_modalities(CASES, ("CT", "T2w"))} == {"CTA", "T2w"}
    with pytest.raises(WrongUse, match=r"data\.modalities T1post: the corpus has series of CT, CTA, MR, MRA, T2w"):
        of_modalities(CASES, ("CT", "T1post"))


def test_series_with_a_mask_get_their_share_of_the_draws_and_keep_their_proportions() -> None:
    weights_N, masked_N = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, True, False, False])
    shared_N = with_masked_share(weights_N, masked_N, 0.75)
    np.testing.assert_allclose(shared_N, [0.25, 0.5, 0.25 * 3 / 7, 0.25 * 4 / 7])
    np.testing.assert_array_equal(with_masked_share(weights_N, masked_N, 0.0), weights_N)
    np.testing.assert_array_equal(with_masked_share(weights_N, ~masked_N & masked_N, 0.75), weights_N)
    with pytest.raises(WrongUse, match=r"data\.masked_share"):
        DataConfig(masked_share=1.5)
