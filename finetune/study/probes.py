"""Linear probes of frozen encoders as cells of a study: told of the same labelled series, asked about the same others.

Each encoder embeds each corpus once: a vector a series, the mean of its coarsest cells. That says little of a sac that
fills a thousandth of what is seen, for the random encoder and for the pretrained one alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune.evaluation.predictions import ID, MODALITY, SUBJECT
from finetune.probing.fit import Floats, fit_and_ask
from finetune.series import Case
from finetune.study import data
from finetune.study.cells import Held
from finetune.study.config import Cell
from finetune.study.table import LABELS, SPLIT, TARGETS
from finetune.tasks.aneurysm import PRESENT
from harmonize.corpus import Corpus
from headspark.embedding import Embeddings, Pooling, embed_corpus
from headspark.hub import load_encoder
from headspark.run.interrupt import Interrupt

EMBEDDINGS = "embeddings"
"""Folder of the vectors, a table an encoder and corpus."""


def vectors_of(encoder: Path, corpus: str, out: Path, *, device: torch.device, interrupt: Interrupt) -> Embeddings:
    """What a frozen encoder says of a corpus; made once.

    Args:
        encoder: Its folder.
        corpus: Name of the corpus.
        out: The study's folder.
        device: Where to compute.
        interrupt: Whether to stop.

    Raises:
        Interrupted: That was asked for; what was embedded is kept.
    """
    opened = Corpus.open(data.corpus_path(out, corpus))
    path = out / EMBEDDINGS / f"{encoder.name}_{corpus}.parquet"
    edges = tuple(max(int(shape[axis]) for shape in opened.scans["shape"]) for axis in range(3))
    pooling = Pooling(patch=edges)  # one tile a series: they are boxes of one size, and tiles would overlap
    network, asked = load_encoder(str(encoder)), lambda: bool(interrupt)
    found = embed_corpus(network, opened, path, name=encoder.name, pooling=pooling, device=device, asked=asked)
    interrupt.check()
    return found


def probe(
    encoder: Path,
    cell: Cell,
    training: list[Case],
    held: list[Held],
    out: Path,
    *,
    device: torch.device,
    interrupt: Interrupt,
) -> pd.DataFrame:
    """What a probe says of all held-out series; columns as `finetune.study.table.write_cell` wants them.

    Args:
        encoder: Folder of the frozen encoder.
        cell: Which.
        training: The series that the probe is told of.
        held: The series that it is asked about.
        out: The study's folder.
        device: Where to compute.
        interrupt: Whether to stop.

    Raises:
        Interrupted: That was asked for.
    """
    told = vectors_of(encoder, data.labelled_name(cell.seed), out, device=device, interrupt=interrupt)
    asked = [
        features(vectors_of(encoder, one.split, out, device=device, interrupt=interrupt), one.cases) for one in held
    ]
    said_N = fit_and_ask(
        "linear",
        "binary",
        features(told, training),
        np.array([case.labels[LABELS.index(PRESENT)] for case in training], dtype=np.float64),
        np.array([case.subject for case in training]),
        np.concatenate(asked),
    )[:, 0]
    ends = np.cumsum([len(one.cases) for one in held])[:-1]
    tables = [_table(one, own_N) for one, own_N in zip(held, np.split(said_N, ends), strict=True)]
    return pd.concat(tables, ignore_index=True)


def features(embeddings: Embeddings, cases: list[Case]) -> Floats:
    """(N, E): the vectors of series."""
    return np.stack([embeddings.vectors[case.source, case.scan_id] for case in cases]).astype(np.float64)


def _table(held: Held, said_N: Floats) -> pd.DataFrame:
    rows = [
        {
            ID: case.scan_id,
            SUBJECT: case.subject,
            MODALITY: case.modality,
            **dict.fromkeys(LABELS, np.nan),
            PRESENT: said,
            **dict(zip(TARGETS, case.labels, strict=True)),
        }
        for case, said in zip(held.cases, said_N.tolist(), strict=True)
    ]
    return pd.DataFrame(rows).merge(held.facts, on=ID, how="left").assign(**{SPLIT: held.split})
