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
from finetune.probing.fit import out_of_fold
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
    told = vectors_of(encoder, data.labelled_name(cell.seed), out, device=device, interrupt=interrupt).vectors
    tables = []
    for one in held:
        asked = vectors_of(encoder, one.split, out, device=device, interrupt=interrupt).vectors
        cases = [*training, *one.cases]
        features_NE = np.stack([
            *(told[case.source, case.scan_id] for case in training),
            *(asked[case.source, case.scan_id] for case in one.cases),
        ]).astype(np.float64)  # fmt: skip
        truth_NL = np.array([[case.labels[LABELS.index(PRESENT)]] for case in cases], dtype=np.float64)
        folds_N = np.repeat([0, 1], [len(training), len(one.cases)])
        said_NL = out_of_fold(
            "linear", "binary", features_NE, truth_NL, folds_N, np.array([case.subject for case in cases])
        )
        tables.append(_table(one, said_NL[len(training) :, 0]))
    return pd.concat(tables, ignore_index=True)


def _table(held: Held, said_N: np.ndarray) -> pd.DataFrame:
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
