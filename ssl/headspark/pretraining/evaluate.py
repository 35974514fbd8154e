"""How good a model is on held-out patches: a loss over masks that never change, and pictures of what it fills in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from headspark.data.batches import PretrainBatch, network_input, stack, vessel_steps
from headspark.data.cache import Store
from headspark.data.cohort import Cohort
from headspark.data.samples import CentralSamples, ValidationSamples
from headspark.masking import expand_cells
from headspark.pretraining.pictures import Triptych, write_triptychs
from headspark.pretraining.probe import knn_score
from headspark.recipe import Recipe
from headspark.spark import SparK, Term

PICTURE_ROWS = 3
PROBED_SCANS = 64
"""Scans of each side, trained on and held out, that the probe looks at."""


class Evaluator:
    """Looks at a model in eval mode; what it looks at is drawn once and never changes.

    Args:
        cohort: Scans.
        store: Their voxels.
        recipe: Sizes, masks, labels.
        accelerator: Device, precision, ranks.
        asked: Whether the run was asked to stop: then what is under way is left half done, and worth nothing.
    """

    def __init__(
        self, cohort: Cohort, store: Store, recipe: Recipe, accelerator: Accelerator, *, asked: Callable[[], bool]
    ) -> None:
        self._held_out = ValidationSamples(cohort, store, recipe.sampling)
        self._pictured = CentralSamples(cohort, store, recipe.sampling, limit=PICTURE_ROWS)
        self._probed = CentralSamples(cohort, store, recipe.sampling, limit=PROBED_SCANS)
        self._recipe, self._accelerator, self._asked = recipe, accelerator, asked

    @torch.no_grad()
    def validation_losses(self, model: SparK) -> dict[str, float]:
        """What the model is worth on the validation patches, which are shared out over the ranks.

        Returns:
            ``val_loss``, the mean squared error over scored, hidden voxels; and ``val_vessel_distance``, where the
            model predicts that and vessels are known. Empty where nothing was held out.
        """
        if not len(self._held_out):
            return {}
        accelerator, size = self._accelerator, self._recipe.train.batch
        totals_4 = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        mine = range(accelerator.process_index, len(self._held_out), accelerator.num_processes)
        for first in range(0, len(mine), size):
            if self._asked():
                break
            batch = stack([self._held_out[index] for index in mine[first : first + size]]).to(accelerator.device)
            x_BCDHW, scored_B1DHW = self._input(batch)
            with accelerator.autocast():
                steps_B1DHW = vessel_steps(batch, self._recipe.augment, patch=self._recipe.data.patch)
                output = model(x_BCDHW, batch.geometry, scored_B1DHW, None, steps_B1DHW)
            for place, term in enumerate((Term(output.error, output.scored_voxels), *output.terms.values())):
                totals_4[2 * place : 2 * place + 2] += torch.stack(
                    [term.value.double() * term.weight, term.weight.double()]
                )
        error, scored, distance, known = accelerator.reduce(totals_4, "sum").tolist()
        found = {"val_loss": error / scored} if scored else {}
        return found | ({"val_vessel_distance": distance / known} if known else {})

    @torch.no_grad()
    def draw(self, path: Path, model: SparK, *, step: int) -> None:
        """Write the middle slices of a few patches, held-out ones first, and what the model fills in."""
        rows = []
        for index in range(min(PICTURE_ROWS, len(self._pictured))):
            batch = stack([self._pictured[index]]).to(self._accelerator.device)
            x_BCDHW, scored_B1DHW = self._input(batch)
            with self._accelerator.autocast():
                filled_BCDHW = model.reconstruct(x_BCDHW, batch.geometry, scored_B1DHW)
            rows.append(_triptych(batch, x_BCDHW, filled_BCDHW.float()))
        write_triptychs(path, rows, title=f"step {step}")

    @torch.no_grad()
    def probe(self, encoder: nn.Module) -> dict[str, float]:
        """How well the frozen features of whole patches tell the recipe's labels apart; see `knn_score`."""
        features = []
        for index in range(len(self._probed)):
            if self._asked():
                return {}
            features.append(self._feature(encoder, index))
        features_ND = np.stack(features)
        found = {}
        for label in self._recipe.train.probe_labels:
            answers = [self._probed.label(index, label) for index in range(len(self._probed))]
            score = knn_score(features_ND, answers, self._probed.held_out)
            if score is not None:
                found[f"probe_{label}"], found[f"probe_{label}_chance"] = score
        return found

    def _feature(self, encoder: nn.Module, index: int) -> NDArray[np.float32]:
        x_BCDHW, _ = self._input(stack([self._probed[index]]).to(self._accelerator.device))
        with self._accelerator.autocast():
            coarsest_BCdhw = encoder(x_BCDHW)[-1]
        return coarsest_BCdhw.float().mean((0, 2, 3, 4)).cpu().numpy()

    def _input(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        data, augment = self._recipe.data, self._recipe.augment
        return network_input(batch, data.windows, augment, patch=data.patch, mri_scaling=data.scaling)


def _triptych(batch: PretrainBatch, x_BCDHW: Tensor, filled_BCDHW: Tensor) -> Triptych:
    middle = x_BCDHW.shape[-1] // 2
    # The second CT window shows more than brain alone; MRI is the same in all channels.
    channel = min(1, x_BCDHW.shape[1] - 1)
    mask_B1DHW = expand_cells(batch.geometry.mask_Bdhw, tuple(x_BCDHW.shape[2:]))
    return Triptych(
        title=batch.scan_ids[0][:24],
        original_XY=x_BCDHW[0, channel, :, :, middle].float().cpu().numpy(),
        mask_XY=mask_B1DHW[0, 0, :, :, middle].cpu().numpy(),
        reconstruction_XY=filled_BCDHW[0, channel, :, :, middle].cpu().numpy(),
    )
