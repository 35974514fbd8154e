"""Run a study: corpora, pretraining, fine-tunings, probes. Whatever is there already is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from finetune.evaluation.predictions import PREDICTIONS
from finetune.probing.features import random_like
from finetune.recipe import Recipe
from finetune.study import data
from finetune.study.begun import ENCODERS, PRETRAINED_ENCODER, RECIPES, check_encoder, check_same, encoder_of_cell
from finetune.study.cells import Held, ask, fine_tune, labelled_cases, read_held, recipe_of_cell, run_folder
from finetune.study.config import PRETRAINED, PROBE, Cell, RunConfig, StudyConfig
from finetune.study.plan import NUMBERS, PAGE, write_plan
from finetune.study.probes import probe
from finetune.study.table import CELLS, PLAN, cell_path, gather, write_cell
from harmonize.corpus import Corpus
from harmonize.corpus.lock import exclusive
from harmonize.errors import WrongUse
from harmonize.files import write_json
from harmonize.terminal import warn
from headspark.config import parse_recipe, read_recipe, recipe_parser
from headspark.config.shipped import locate_recipe
from headspark.embed import device_of
from headspark.hub import load_encoder, save_encoder
from headspark.hub.export import export_run
from headspark.recipe import Recipe as PretrainRecipe
from headspark.run.folder import FINISHED, read_state
from headspark.run.interrupt import Interrupt, Interrupted, interrupts
from headspark.train import train as pretrain

PRETRAINING, SECONDS = "pretraining", "seconds.json"
LOCK = ".lock"
"""Held while heads and encoder are made; cells may be run by several processes, each other ones."""
_OURS = {CELLS, PREDICTIONS, PLAN, PAGE, NUMBERS, SECONDS, LOCK, *RECIPES}


def run_study(config: StudyConfig, out: Path, *, only: Sequence[str] = (), device: torch.device | None = None) -> bool:
    """Run what is missing of a study.

    Args:
        config: The study's.
        out: Its folder; an unfinished study is taken up.
        only: Names of cells; empty: all of them.
        device: Where probes and predictions are computed; None: the GPU where there is one.

    Returns:
        Whether all that was asked for is done; False after a signal, when what was done has been saved.

    Raises:
        UserError: The folder is another study's, or a part of it failed.
    """
    cells = _chosen(config.cells(), only)
    base = read_run(Recipe, config.finetuning, "finetuning.recipe")
    pretraining = read_run(PretrainRecipe, config.pretraining, "pretraining.recipe")
    _check_alike(base, pretraining)
    # Last, for it writes the recipes of a new study down.
    check_same(out, config, pretraining, base, ours=_OURS)
    write_plan(config, out)
    left = [cell for cell in cells if not cell_path(out, cell).is_file()]
    if left:
        done = _run_cells(config, base, pretraining, left, out, device or device_of(None))
        if not done:
            return False
    gather(config, out)
    return True


def _run_cells(
    config: StudyConfig,
    base: Recipe,
    pretraining: PretrainRecipe,
    cells: Sequence[Cell],
    out: Path,
    device: torch.device,
) -> bool:
    busy = f"{out}: another process makes its heads and its encoder; wait for that, then give the command again"
    try:
        with interrupts(), exclusive(out / LOCK, busy), _timed(out, "data"):
            data.make(config, out, folds=base.data.folds)
        with interrupts() as interrupt:
            interrupt.begin()
            with exclusive(out / LOCK, busy), _timed(out, PRETRAINING):
                if not _pretrained(pretraining, out):
                    return False
                check_encoder(config, out)
            held = read_held(base, out)
            for number, cell in enumerate(cells, start=1):
                interrupt.check()
                warn(f"cell {number} of {len(cells)}: {cell.name}")
                with _timed(out, cell.name):
                    rows = _run_cell(config, base, cell, held, out, device, interrupt)
                    if rows is None:
                        return False
                    write_cell(out, cell, rows, encoder=encoder_of_cell(config, cell, out))
    except Interrupted:
        return False
    return True


def _run_cell(
    config: StudyConfig,
    base: Recipe,
    cell: Cell,
    held: list[Held],
    out: Path,
    device: torch.device,
    interrupt: Interrupt,
) -> pd.DataFrame | None:
    """What a cell says of all held-out series; None after a signal.

    Raises:
        Interrupted: Or this.
    """
    if cell.arm.startswith(PROBE):
        recipe = recipe_of_cell(base, config, replace(cell, arm=config.arms[0].name))
        corpus = Corpus.open(data.corpus_path(out, data.labelled_name(cell.seed)))
        training = labelled_cases(recipe, corpus, run_folder(out, cell))
        drawn = replace(cell, seed=config.design.seeds[0])  # one random encoder, since each embeds all series
        encoder = encoder_of(drawn, out, pretrained=cell.arm.endswith(PRETRAINED))
        return probe(encoder, cell, training, held, out, device=device, interrupt=interrupt)
    encoder = encoder_of(cell, out, pretrained=config.arm(cell.arm).pretrained)
    if not fine_tune(recipe_of_cell(base, config, cell), cell, out, encoder=encoder):
        return None
    return ask(out, cell, held, device=device, interrupt=interrupt)


def _pretrained(recipe: PretrainRecipe, out: Path) -> bool:
    """Pretrain, and export the encoder; False after a signal."""
    folder = out / ENCODERS / PRETRAINED_ENCODER
    if (folder / "config.json").is_file():
        return True
    run = out / PRETRAINING
    state = read_state(run) if run.is_dir() else None
    if (state is None or state["status"] != FINISHED) and not pretrain(
        recipe, corpus=data.corpus_path(out, data.UNLABELLED), out=run
    ):
        return False
    exported = export_run(run)
    save_encoder(exported.model.encoder, folder, preprocessing=exported.preprocessing, card=exported.card)
    return True


def encoder_of(cell: Cell, out: Path, *, pretrained: bool) -> Path:
    """Folder of the encoder that a cell begins with; a random one is drawn by the cell's seed.

    A random encoder goes the way of the pretrained one, so that arms of one seed differ in its weights alone: the same
    input, and the same first weights of the head.

    Args:
        cell: Which.
        out: The study's folder.
        pretrained: Which of the two.
    """
    folder = out / ENCODERS / PRETRAINED_ENCODER
    if pretrained:
        return folder
    begun = out / ENCODERS / f"random_{cell.seed}"
    if not (begun / "config.json").is_file():
        like = load_encoder(str(folder))
        network = random_like(like.config, like.preprocessing, seed=cell.seed)
        save_encoder(network, begun, preprocessing=like.preprocessing)
    return begun


def read_run(recipe_class: Any, config: RunConfig, key: str) -> Any:
    """The recipe of a run, with the study's changes.

    Args:
        recipe_class: Of pretraining or fine-tuning.
        config: Names it.
        key: Of the study's recipe that does.

    Raises:
        UserError: There is none, or a key does not fit.
    """
    path = locate_recipe(Path(config.recipe), option=f"{key} ")
    if not config.options:
        return read_recipe(recipe_class, path)
    parser = recipe_parser(recipe_class, prog="recipe", description="")
    return parse_recipe(parser, recipe_class, ["--config", str(path), *config.options])[0]


def _check_alike(base: Recipe, pretraining: PretrainRecipe) -> None:
    """Refuse runs that do not fit each other, before hours are spent.

    Raises:
        WrongUse: Says which keys differ.
    """
    if base.view.pictures:
        raise WrongUse(
            f"finetuning.recipe: view.kind {base.view.kind} shows pictures, and a pretrained encoder volumes"
        )
    if base.data.windows != pretraining.data.windows:
        raise WrongUse("data.ct_windows: the recipes of pretraining and of fine-tuning cut other windows")


def _chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of these names.

    Raises:
        WrongUse: There is none of a name.
    """
    names = {cell.name: cell for cell in cells}
    strange = [name for name in only if name not in names]
    if strange:
        raise WrongUse(f"--cells {strange[0]}: there is none; choose of {', '.join(names)}")
    return [names[name] for name in only] if only else list(cells)


@contextmanager
def _timed(out: Path, what: str) -> Iterator[None]:
    """Add the seconds of a part to those that it took before."""
    began = time.monotonic()
    try:
        yield
    finally:
        path = out / SECONDS
        known = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, {**known, what: round(known.get(what, 0.0) + time.monotonic() - began, 1)})
