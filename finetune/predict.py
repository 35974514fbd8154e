"""From a folder with one DICOM series to the 14 probabilities."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.bundle import load_model, read_bundle
from finetune.inference import predict_region
from finetune.patches import cut_region
from harmonize.errors import Rejection, UserError
from harmonize.pipeline import harmonize_scan
from harmonize.sources.rsna import load_series
from harmonize.volume import Volume


class Predictor:
    """A fine-tuned model that is loaded once and asked many times.

    Args:
        folder: Of a finished `finetune.train` run.
        device: Where to compute; None takes a GPU if there is one.

    Raises:
        UserError: No finished run there.
    """

    def __init__(self, folder: Path, *, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bundle = read_bundle(folder)
        self.model = load_model(folder, self.bundle).to(memory_format=torch.channels_last_3d).to(self.device)

    def __call__(self, series: Path) -> dict[str, float]:
        """Probabilities by label, in the competition's order.

        Args:
            series: Folder of one DICOM series.

        Raises:
            UserError: The series cannot be used; says why.
        """
        if not series.is_dir():
            raise UserError(f"{series}: no such folder; give the folder of one DICOM series", exit_code=2)
        try:
            scan = harmonize_scan(load_series(series), self.bundle.settings)
        except Rejection as error:
            raise UserError(f"{series}: {error.message} ({error.reason}); give another series") from error
        volume = Volume(stored_XYZ=scan.stored_XYZ, slope=scan.slope, inter=scan.inter, affine=scan.affine)
        data = self.bundle.data
        region = cut_region(
            volume, data.patch, spacing=data.spacing, unit=scan.unit, foreground_box=scan.foreground_box
        )
        return predict_region(self.model, region, data, self.device)
