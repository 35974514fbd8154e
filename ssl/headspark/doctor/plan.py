"""Which batch, cache and workers this machine would take for a recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.pool import cores
from headspark.config import read_recipe
from headspark.data.cache import MEMORY_SHARE, choose_cache
from headspark.data.cohort import read_cohort
from headspark.data.decoders import decoded_bytes
from headspark.data.memory import free_memory, gib
from headspark.doctor.section import Section
from headspark.pretraining.state import prepare
from headspark.recipe import Recipe
from headspark.run.device import make_accelerator

SCAN = 256 * 256 * 200 * 2
"""Bytes of a whole head at 1 mm, int16."""


def examine_plan(config: Path | None, corpus: Path | None) -> Section:
    """What a run of pretraining would begin with here; on a GPU its batch is tried.

    Args:
        config: A recipe; None: one of only defaults.
        corpus: To train on; None: how much of any would be kept is said.

    Raises:
        WrongUse: There is no such recipe or corpus, or one that cannot be meant so.
    """
    found = Section(name="run")
    try:
        recipe = Recipe() if config is None else read_recipe(Recipe, config)
        name = "a recipe of only defaults" if config is None else config.name
        batch, accumulate, tried = _batch(recipe)
        cache = _cache(recipe, corpus)
    except WrongUse:
        raise
    except (UserError, RuntimeError) as error:  # also a GPU that is full, or another process's alone
        found.text, found.findings = ["cannot begin"], [str(error).partition("\n")[0]]
        return found
    workers, most = recipe.data.workers, cores()
    threads = recipe.train.threads or most
    found.facts = {
        "recipe": name, "batch": batch, "accumulate": accumulate, "tried": tried, "cache": cache, "workers": workers,
        "worker_kind": recipe.data.worker_kind, "threads": threads,
    }  # fmt: skip
    how = "which fit the GPU" if tried else "as it says: without a GPU none is tried"
    found.text = [
        f"{name}: train.batch {batch}, train.accumulate {accumulate}, {how}",
        cache,
        f"data.workers {workers} of kind {recipe.data.worker_kind}, {threads} threads of PyTorch",
    ]
    if workers > most:
        found.findings.append(f"data.workers {workers} on {most} cores: set data.workers {max(most - 1, 1)}")
    if tried and batch < recipe.train.batch:
        found.findings.append(
            f"train.batch {recipe.train.batch} does not fit the GPU: a run takes {batch} and train.accumulate "
            f"{accumulate}, which gives the same steps more slowly"
        )
    return found


def _batch(recipe: Recipe) -> tuple[int, int, bool]:
    """Samples of a pass, passes of a step, and whether they were tried."""
    train = recipe.train
    if not torch.cuda.is_available():
        return train.batch, train.accumulate, False
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(precision=train.precision, threads=train.threads, out=Path(folder))
        plan = prepare(recipe, accelerator).plan
    return plan.batch, plan.accumulate, True


def _cache(recipe: Recipe, corpus: Path | None) -> str:
    """Which cache and why, in one line."""
    data = recipe.data
    if corpus is None and data.cache != "auto":
        return f"cache {data.cache}: as the recipe says"
    if corpus is None:
        most = MEMORY_SHARE * free_memory()
        return f"cache ram for up to {gib(most)} of decoded scans: about {most / SCAN:.0f} whole heads at 1 mm"
    needed = decoded_bytes(read_cohort(Corpus.open(corpus), data).scans, recipe.decoder_of_scans)
    choice = choose_cache(data.cache, needed=needed, local_ranks=1, cache_dir=data.cache_folder, run_name=str(corpus))
    return choice.reason
