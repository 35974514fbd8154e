"""The features that are judged: encoders', those of the same networks untrained, and intensities alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.evaluation.compare import own_names
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.settings import PERCENTILES
from headspark.config import from_plain
from headspark.embedding import Embeddings, Pooling, embed_corpus, read_embeddings
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.hub import load_encoder
from headspark.weights import weights_sha256

RANDOM, INTENSITIES = "random", "intensities"
"""Names of the baselines."""

Vectors = Mapping[tuple[str, str], NDArray[np.float32]]


def random_like(config: EncoderConfig, preprocessing: Mapping[str, Any], *, seed: int = 0) -> MaskableEncoder:
    """An encoder of the same shape with the weights that it begins with.

    Args:
        config: Its shape.
        preprocessing: What its scans go through.
        seed: Of the weights; torch's own generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_encoder(config).eval()
    network.preprocessing = dict(preprocessing)
    return network


def intensities(corpus: Corpus) -> Vectors:
    """Percentiles of each scan's intensities, as the manifest has them, beside which unit they are in."""
    units = sorted(set(corpus.scans["unit"]))
    found = {}
    for row in corpus.scans.to_dict("records"):
        own = row["intensity_percentiles"]
        percentiles = np.zeros(len(PERCENTILES)) if own is None else np.asarray(own, np.float32)
        of_unit = [percentiles * (row["unit"] == unit) for unit in units]  # numbers of two units are not compared
        is_unit = [float(row["unit"] == unit) for unit in units]
        found[row["source"], row["scan_id"]] = np.concatenate([*of_unit, is_unit]).astype(np.float32)
    return found


def vectors_of(
    encoders: Sequence[str],
    corpus: Corpus,
    folder: Path,
    *,
    device: torch.device,
    batch: int = 1,
    seed: int = 0,
    asked: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Embeddings], dict[str, Vectors]]:
    """Vectors of each encoder, and of the baselines: its untrained like, one for each shape and input, and intensities.

    Args:
        encoders: Folders, repositories of the Hub, or tables of `headspark embed`.
        corpus: Whose scans.
        folder: Where tables of vectors are kept; those that are there already are not made again.
        device: Where to compute.
        batch: Tiles of a forward pass.
        seed: Of the untrained weights.
        asked: Whether to stop.

    Raises:
        UserError: An encoder or a table cannot be read.
    """
    names = own_names([Path(one).stem if one.endswith(".parquet") else Path(one).name for one in encoders])
    if {RANDOM, INTENSITIES} & set(names):
        raise WrongUse(f"--encoder: none can be called {RANDOM} or {INTENSITIES}, which are the baselines; rename it")
    # All of them, before hours are spent on the first.
    found: dict[str, Embeddings | MaskableEncoder] = {
        name: read_embeddings(Path(one)) if one.endswith(".parquet") else load_encoder(one)
        for name, one in zip(names, encoders, strict=True)
    }
    made: dict[str, Embeddings] = {}
    untrained: dict[str, tuple[EncoderConfig, Mapping[str, Any], Pooling]] = {}
    for name, one in found.items():
        if asked():
            break
        made[name] = (
            one
            if isinstance(one, Embeddings)
            else _kept(one, corpus, folder, name, device=device, batch=batch, asked=asked)
        )
        facts = made[name].facts
        kept = facts["pooling"]
        pooling = Pooling(kind=kept["kind"], patch=tuple(kept["patch"]), overlap=kept["overlap"])
        config = from_plain(EncoderConfig, facts["config"])
        untrained[repr((config, facts["preprocessing"], pooling))] = (config, facts["preprocessing"], pooling)
    vectors: dict[str, Vectors] = {INTENSITIES: intensities(corpus)}
    baselines = own_names([RANDOM] * len(untrained))
    for name, (config, preprocessing, pooling) in zip(baselines, untrained.values(), strict=True):
        if asked():
            break
        network = random_like(config, preprocessing, seed=seed)
        vectors[name] = _kept(
            network, corpus, folder, name, pooling=pooling, device=device, batch=batch, asked=asked
        ).vectors
    return made, vectors | {name: one.vectors for name, one in made.items()}


def _kept(
    network: MaskableEncoder, corpus: Corpus, folder: Path, name: str, *, pooling: Pooling | None = None, **how: Any
) -> Embeddings:
    """Vectors of an encoder, in a table of its name.

    Where that holds another's, as of an encoder of the same name or of untrained weights of another seed, the table
    has a name with the hash of what it is of.
    """
    try:
        return embed_corpus(network, corpus, folder / f"{safe(name)}.parquet", name=name, pooling=pooling, **how)
    except WrongUse:
        facts = (weights_sha256(network.state_dict()), network.preprocessing, pooling)
        own = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
        return embed_corpus(network, corpus, folder / f"{safe(name)}-{own}.parquet", name=name, pooling=pooling, **how)


def safe(name: str) -> str:
    """A name as that of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def stacked(vectors: Mapping[str, Vectors], keys: Sequence[tuple[str, str]]) -> dict[str, NDArray[np.float64]]:
    """(N, E) of each encoder.

    Args:
        vectors: By name of encoder, and by source and scan id.
        keys: The scans, which all encoders have.

    Raises:
        UserError: Vectors of an encoder differ in length.
    """
    found = {}
    for name, own in vectors.items():
        rows = [own[key] for key in keys]
        if len({len(row) for row in rows}) != 1:
            raise UserError(f"{name}: vectors of several lengths; embed the corpus again")
        found[name] = np.stack(rows).astype(np.float64)
    return found
