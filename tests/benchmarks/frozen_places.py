"""What frozen features of an encoder tell of single places in a head: whether there is a sac, or a vessel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from harmonize.corpus import Corpus, read_volume
from harmonize.voxels.stored import StoredVolume
from headspark.channels import to_network_input
from headspark.recipe import Recipe
from headspark.vessels import find_vessels, look_of

STRIDE = 8
"""Total stride of the encoder."""

COARSE = 4
"""Stride of the finest map that is asked: finer ones show the intensities, whatever was learnt."""

PLACES, FOLDS = 24, 5
"""Of each sac or kind of place in a series; of the cross-validation."""

Cell = dict[str, Any]


@torch.inference_mode()
def asked(encoder: nn.Module, recipe: Recipe, pairs: Path) -> Cell:
    """Scores of the sacs' places with and without sacs, a pair each; and the areas under the curve of vessels."""
    corpus, table = Corpus.open(pairs), pd.read_csv(pairs.with_name("pairs_raw") / "rsna_counterfactuals.csv")
    rows = {row["scan_id"]: row for row in corpus.scans.to_dict("records")}
    table = table[table["with_sac"].isin(rows) & table["without_sac"].isin(rows)].reset_index(drop=True)
    sacs_PFC, vessels = [], []
    for pair in table.to_dict("records"):
        if not len(rows[pair["with_sac"]]["points"]):
            continue  # beyond the box that is stored
        rng, point = np.random.default_rng(pair["pair"]), rows[pair["with_sac"]]["points"][0]
        middle_mm = np.array([point[axis] for axis in "xyz"])
        places_mm = middle_mm + in_ball(rng, PLACES, max(pair["diameter_mm"] / 2, 1.0))
        both = []
        for name in ("with_sac", "without_sac"):
            row = rows[pair[name]]
            volume = read_volume(corpus.path / row["image_file_name"])
            x_1CDHW = network_input(volume, row["unit"], recipe)
            maps = [map_ for map_ in encoder(x_1CDHW) if map_.shape[2] * COARSE <= x_1CDHW.shape[2]]
            both.append(features_at(maps, voxels_of(places_mm, volume), x_1CDHW.shape[2:]))
            if row["mask_kind"] == "vessels":
                mask_XYZ = read_volume(corpus.path / row["mask_file_name"]).stored_XYZ > 0
                if mask_XYZ.any():
                    kinds = [where[rng.choice(len(where), PLACES)] for where in map(np.argwhere, (mask_XYZ, ~mask_XYZ))]
                    vessels.append(
                        (len(sacs_PFC), np.stack([features_at(maps, kind, x_1CDHW.shape[2:]) for kind in kinds]))
                    )
        sacs_PFC.append(np.stack(both))
    folds_P = np.arange(len(sacs_PFC)) % FOLDS
    found = held_out(sacs_PFC, folds_P)
    scores_P2 = [scores_2P.mean(1).tolist() for scores_2P in found]
    of_vessels = held_out([features for _, features in vessels], np.array([folds_P[pair] for pair, _ in vessels]))
    truth = np.repeat([1, 0], PLACES)
    return {
        "sac": scores_P2,
        "vessel": [
            [pair, float(roc_auc_score(truth, one.ravel()))] for (pair, _), one in zip(vessels, of_vessels, strict=True)
        ],
    }


def held_out(features_of: Sequence[NDArray[np.float32]], folds_N: NDArray[np.int_]) -> list[NDArray[np.float64]]:
    """Scores of what each unit is asked, by a logistic regression on the units of other folds.

    Args:
        features_of: A unit each: (2, places, features), of places of the kind that is asked about and of others.
        folds_N: Of the units.

    Returns:
        (2, places) of each unit.
    """
    scores: list[NDArray[np.float64]] = [np.zeros(0)] * len(features_of)
    for fold in np.unique(folds_N):
        taught = np.concatenate([one for one, its in zip(features_of, folds_N, strict=True) if its != fold], axis=1)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        classifier.fit(taught.reshape(-1, taught.shape[-1]), np.repeat([1, 0], taught.shape[1]))
        for unit in np.flatnonzero(folds_N == fold):
            asked_2NC = features_of[unit]
            scores[unit] = classifier.decision_function(asked_2NC.reshape(-1, asked_2NC.shape[-1])).reshape(2, -1)
    return scores


def network_input(volume: StoredVolume, unit: str, recipe: Recipe) -> Tensor:
    """A whole volume as the encoder takes it, its edges filled up to multiples of the stride."""
    values_XYZ = torch.from_numpy(volume.values())
    padding = [pad for edge in reversed(values_XYZ.shape) for pad in (0, -edge % STRIDE)]
    padded_XYZ = F.pad(values_XYZ, padding, value=float(values_XYZ.min()))
    return to_network_input(padded_XYZ, unit, recipe.data.windows, recipe.data.scaling)[None]


def features_at(maps: Sequence[Tensor], voxels_N3: NDArray[Any], shape: Sequence[int]) -> NDArray[np.float32]:
    """Features (N, C) of all maps at voxels of an input of this shape, between cells by trilinear interpolation."""
    edges_3 = torch.tensor(shape)
    grid_N3 = (2 * torch.from_numpy(np.asarray(voxels_N3, dtype=np.float32)) + 1) / edges_3 - 1
    grid_11N13 = grid_N3.flip(1).view(1, 1, -1, 1, 3).transpose(1, 2)
    found = [F.grid_sample(map_, grid_11N13, align_corners=False, padding_mode="border") for map_ in maps]
    return torch.cat(found, 1).flatten(2)[0].t().contiguous().numpy()


def voxels_of(places_mm: NDArray[np.float64], volume: StoredVolume) -> NDArray[np.float64]:
    """Voxel coordinates of places in the world."""
    return (places_mm - volume.affine[:3, 3]) / np.diag(volume.affine)[:3]


def in_ball(rng: np.random.Generator, count: int, radius: float) -> NDArray[np.float64]:
    """Places drawn evenly from a ball about 0, (count, 3)."""
    way_N3 = rng.normal(size=(count, 3))
    return way_N3 / np.linalg.norm(way_N3, axis=1, keepdims=True) * radius * np.cbrt(rng.random((count, 1)))


def vessels_found(corpus: Path) -> dict[str, dict[str, float]]:
    """By modality: how much of what is taken for vessels is an artery, and how much of the arteries is found."""
    opened, found = Corpus.open(corpus), {}
    rows = opened.scans[opened.scans["mask_kind"] == "vessels"]
    for modality, group in rows.groupby("modality"):
        shares = []
        for row in group.to_dict("records"):
            volume, look = read_volume(opened.path / row["image_file_name"]), look_of(row["modality"])
            truth_XYZ = read_volume(opened.path / row["mask_file_name"]).stored_XYZ > 0
            if look is not None and truth_XYZ.any():
                marked_XYZ = find_vessels(volume.values(), volume.spacing, unit=row["unit"], look=look)
                hits = int((marked_XYZ & truth_XYZ).sum())
                shares.append((hits / max(int(marked_XYZ.sum()), 1), hits / int(truth_XYZ.sum()), truth_XYZ.mean()))
        if shares:
            names = ("arteries_among_marked", "arteries_marked", "arteries_in_volume")
            found[str(modality)] = dict(zip(names, np.mean(shares, axis=0).tolist(), strict=True)) | {
                "scans": len(shares)
            }
    return found
