"""What lies beside a lab's own NIfTI images: a table of people, sidecars, nnU-Net's description, masks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from fuzz.damage import of_csv, of_json, of_nifti
from fuzz.kinds import Kind
from fuzz.kinds_raw import of_raw
from fuzz.valid import plain_nifti


def _tree(raw: Path) -> Path:
    """One case in nnU-Net's layout, with a sidecar; the folder."""
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    (raw / "imagesTr/a_0000.nii").write_bytes(plain_nifti())
    said = {"Modality": "MR", "Manufacturer": "GE", "MagneticFieldStrength": 3, "EchoTime": 0.09, "RepetitionTime": 4.5}
    (raw / "imagesTr/a_0000.json").write_text(json.dumps(said | {"ScanningSequence": "SE"}), encoding="utf-8")
    described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "core": 1, "whole": [1, 2], "edema": 2}}
    (raw / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    labels = np.zeros((12, 12, 10), dtype=np.uint8)
    labels[4:8, 4:8, 3:7] = 2
    image = nib.Nifti1Image(labels, np.diag([-4.0, 4, 5, 1]))
    image.set_qform(image.affine, 1)
    (raw / "labelsTr/a.nii").write_bytes(image.to_bytes())
    return raw


def participants_tsv(folder: Path) -> Kind:
    """A table of people, which is read without being asked for."""
    target = _tree(folder / "raw") / "participants.tsv"
    target.write_text("participant_id,age,sex,modality,grade\na,40,F,T1w,2\nb,41,M,,1\n", encoding="utf-8")
    return of_raw("nifti", folder, target, of_csv)


def sidecar(folder: Path) -> Kind:
    """The JSON beside an image."""
    return of_raw("nifti", folder, _tree(folder / "raw") / "imagesTr/a_0000.json", of_json)


def dataset_json(folder: Path) -> Kind:
    """nnU-Net's description of a data set."""
    return of_raw("nifti", folder, _tree(folder / "raw") / "dataset.json", of_json)


def labels_mask(folder: Path) -> Kind:
    """A mask of an image that is sound."""
    return of_raw("nifti", folder, _tree(folder / "raw") / "labelsTr/a.nii", of_nifti)
