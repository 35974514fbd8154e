"""DICOM series of a small head, as they come from anywhere, and fine-tuned models that know nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from finetune.model_folder import Bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.models.heads.global_pool import GlobalConfig
from finetune.models.heads.segmentation import SegmentationConfig
from finetune.samples import DataConfig
from finetune.tasks import make_task
from finetune.tasks.aneurysm import AneurysmConfig
from finetune.tasks.masks import MasksConfig
from finetune.tasks.table import TableConfig
from finetune.views.box import BoxConfig
from finetune.views.patches import PatchesConfig
from harmonize.settings import Settings
from headspark.encoder import EncoderConfig, build_encoder

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


def write_series(
    folder: Path, uid: str = "1.2.3", *, patient: str = "A", slices: range = range(20), brain: int = 40, **changes: Any
) -> None:
    """An axial head CT of 4 mm voxels; a change that is None takes its element away."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:32, :32]
    r = (x - 15.5) ** 2 + (y - 15.5) ** 2
    plane = (np.where(r < 150, brain + x % 5, np.where(r < 190, 1600, -1000)) + 1024).astype("<i2")
    for k in slices:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID, dataset.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CT
        dataset.SOPClassUID, dataset.Modality, dataset.InstanceNumber = CT, "CT", k + 1
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{patient.encode().hex()}.{k}"
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.PatientID = uid, f"1.9.{len(patient)}", patient
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-62, -62, 4 * k], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [4, 4], 4
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 32, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelData = 1, -1024, plane.tobytes()
        for name, value in changes.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(folder / f"{patient}{uid}_{k:02d}.dcm", enforce_file_format=True)


def write_mr_series(folder: Path, uid: str = "1.2.4", **changes: Any) -> None:
    """The same of MR, whose numbers have no unit."""
    bare = {"SOPClassUID": MR, "Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}
    write_series(folder, uid, **{"brain": 1500, **bare, **changes})


def save_model(folder: Path, *, seed: int = 0, width: int = 4, **data: Any) -> Path:
    """An untrained model of 16 x 16 x 16 voxels of 6 mm; `seed` draws its weights, `data` changes the recipe's data."""
    return _save(folder, AneurysmConfig(), CellsConfig(stride=2, width=width), BoxConfig(), seed=seed, **data)


def save_table_model(folder: Path, task: TableConfig) -> Path:
    """The same that answers a user's table."""
    return _save(folder, task, GlobalConfig(), BoxConfig())


def save_masks_model(folder: Path, task: MasksConfig) -> Path:
    """The same that draws masks."""
    return _save(folder, task, SegmentationConfig(), PatchesConfig())


def _save(folder: Path, task: Any, head: Any, view: Any, *, seed: int = 0, **data: Any) -> Path:
    torch.manual_seed(seed)
    encoder = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
    config = DataConfig(**{"patch": (16, 16, 16), "spacing": 6.0, **data})
    network = Network(build_encoder(encoder), head, (), make_task(task))
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)  # so that two models differ by more than a rounding
    bundle = Bundle(
        encoder=encoder, head=head, data=config, settings=Settings(spacing=(4.0,) * 3), task=task, view=view
    )
    save_bundle(folder, bundle, network.state_dict())
    return folder
