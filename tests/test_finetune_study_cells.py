"""What cells of a study began with, and what its probes say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_finetune_study import TOY
from test_finetune_study_numbers import rows_of

from finetune.evaluation.predictions import ID
from finetune.probing.fit import out_of_fold
from finetune.recipe import Recipe as FinetuneRecipe
from finetune.series import Case
from finetune.study import StudyConfig, probes
from finetune.study import run as runner
from finetune.study.begun import FINETUNING_RECIPE, PRETRAINING_RECIPE, RECIPES, check_same
from finetune.study.cells import Held
from finetune.study.config import Cell, RunConfig
from finetune.study.run import read_run, run_study
from finetune.study.table import INSIDE, OUTSIDE, PAIR, cell_path, check_encoders, gather, write_cell
from harmonize.errors import UserError, WrongUse
from harmonize.labels import LABELS, PRESENT
from headspark.config import from_plain, read_recipe
from headspark.recipe import Recipe as PretrainRecipe
from headspark.run.interrupt import Interrupt

CONFIG = from_plain(StudyConfig, TOY)
ONE, OTHER = "1" * 64, "2" * 64


def write(out: Path, encoders: dict[str, str | None]) -> None:
    """A few predictions of each cell whose arm is named."""
    for cell in CONFIG.cells():
        if cell.arm in encoders:
            write_cell(out, cell, rows_of(np.arange(8) % 2, np.full(8, 0.5), INSIDE), encoder=encoders[cell.arm])


# ------------------------------------------------------------------------------------------------- what they began with


def test_cells_of_two_pretrained_encoders_are_refused_and_named(tmp_path: Path) -> None:
    probe = "probe of the pretrained encoder"
    write(tmp_path, {"scratch": None, "lp_ft": ONE, probe: ONE})
    assert len(gather(CONFIG, tmp_path).rows) == 3 * 8
    write(tmp_path, {"lp_ft": None})
    gather(CONFIG, tmp_path)  # as older versions wrote it
    write(tmp_path, {"lp_ft": OTHER})
    with pytest.raises(
        UserError, match="began with another pretrained encoder than the others; delete their folders"
    ) as caught:
        gather(CONFIG, tmp_path)
    assert "\n" not in str(caught.value)
    # Those go that the next cells would not agree with, however many they are.
    with pytest.raises(UserError, match=r"cells: 0004_lp_ft_0 began with another .* than that of this folder"):
        check_encoders(CONFIG, tmp_path, now=ONE)
    with pytest.raises(UserError, match=r"cells: 0004_probe_of_the_pretrained_encoder_0 began"):
        check_encoders(CONFIG, tmp_path, now=OTHER)
    cell_path(tmp_path, CONFIG.cells()[1]).write_bytes(b"")
    with pytest.raises(UserError, match=r"0004_lp_ft_0.*: damaged, .*; delete it to run that cell again"):
        check_encoders(CONFIG, tmp_path, now=ONE)


@pytest.mark.parametrize(
    ("name", "key", "option"),
    [
        (PRETRAINING_RECIPE, "train.steps 2, now 3", ("--train.steps", "3")),
        (FINETUNING_RECIPE, "head.width 4, now 8", ("--head.width", "8")),
    ],
)
def test_a_study_whose_recipes_changed_is_refused(
    name: str, key: str, option: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_run_cells", lambda *_: False)
    assert not run_study(CONFIG, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"study.yaml", "plan.json", *RECIPES}
    assert not run_study(CONFIG, tmp_path)
    # The recipe that the study names now says something else.
    read = read_run

    def changed(recipe_class: type, config: RunConfig, key: str) -> object:
        if (recipe_class is PretrainRecipe) == (name == PRETRAINING_RECIPE):
            words = list(config.options)
            words[words.index(option[0]) + 1] = option[1]
            config = replace(config, options=tuple(words))
        return read(recipe_class, config, key)

    monkeypatch.setattr(runner, "read_run", changed)
    with pytest.raises(WrongUse, match=f"{name}: this study began with {key} is asked for") as caught:
        run_study(CONFIG, tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / name).unlink()  # a folder of an older version
    assert not run_study(CONFIG, tmp_path)
    assert (tmp_path / name).is_file()


def test_what_changes_no_number_may_change_and_long_keys_are_named_alone(tmp_path: Path) -> None:
    pretraining = read_run(PretrainRecipe, CONFIG.pretraining, "")
    base = read_run(FinetuneRecipe, CONFIG.finetuning, "")
    check_same(tmp_path, CONFIG, pretraining, base, ours=())
    assert read_recipe(PretrainRecipe, tmp_path / PRETRAINING_RECIPE) == pretraining
    other = replace(base, data=replace(base.data, workers=3))
    check_same(tmp_path, CONFIG, pretraining, other, ours=())
    arms = tuple(replace(arm, name=f"{arm.name}_") for arm in CONFIG.arms)
    with pytest.raises(WrongUse, match=r"this study began with another arms; give that"):
        check_same(tmp_path, replace(CONFIG, arms=arms), pretraining, base, ours=())


# ----------------------------------------------------------------------------------------------------------- the probes


def test_a_probe_says_what_one_said_that_was_fitted_on_one_of_two_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, vectors = np.random.default_rng(0), {}

    def cases(split: str, count: int) -> list[Case]:
        found = []
        for number in range(count):
            ill = float(number % 2)
            name = f"{split}-{number}"
            vectors["rsna", name] = (rng.normal(size=12) + 0.5 * ill).astype(np.float32)
            found.append(
                Case(
                    scan_id=name, subject=f"{split}-p{number // 2}", modality="CTA", unit="HU", image=tmp_path,
                    mask=None, foreground_box=(), labels=tuple(ill for _ in LABELS), source="rsna",
                )
            )  # fmt: skip
        return found

    training, asked = cases("labelled", 24), {INSIDE: cases(INSIDE, 17), OUTSIDE: cases(OUTSIDE, 6)}
    held = [
        Held(split=split, cases=own, regions={}, facts=pd.DataFrame({ID: [case.scan_id for case in own], PAIR: None}))
        for split, own in asked.items()
    ]
    monkeypatch.setattr(probes, "vectors_of", lambda *_, **__: SimpleNamespace(vectors=vectors))
    cell = Cell(labelled=24, arm="probe of a random encoder", seed=0)
    device, interrupt = torch.device("cpu"), Interrupt()
    said = probes.probe(tmp_path, cell, training, held, tmp_path, device=device, interrupt=interrupt)
    assert list(said[ID]) == [case.scan_id for own in asked.values() for case in own]
    for split, own in asked.items():
        both = [*training, *own]
        expected_NL = out_of_fold(
            "linear",
            "binary",
            np.stack([vectors["rsna", case.scan_id] for case in both]).astype(np.float64),
            np.array([[case.labels[LABELS.index(PRESENT)]] for case in both]),
            np.repeat([0, 1], [len(training), len(own)]),
            np.array([case.subject for case in both]),
        )
        np.testing.assert_allclose(said[said["split"] == split][PRESENT], expected_NL[len(training) :, 0], rtol=1e-12)
