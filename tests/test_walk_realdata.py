"""Real head scans walk the whole way: raw files, corpus, masked pretraining, encoder folder, the same features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harmonize.corpus import Corpus, read_volume
from headspark import Encoder

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
HEADS = {
    "ds900001/sub-01/anat/sub-01_T1w.nii.gz": "mr_t1w_studyforrest/studyforrest_t1w.nii.gz",
    "ds900002/sub-01/anat/sub-01_T1w.nii.gz": "nifti_mit/stroke_T1.nii.gz",
    "ds900002/sub-01/anat/sub-01_T2w.nii.gz": "nifti_mit/stroke_T2.nii.gz",
    "ds900002/sub-01/anat/sub-01_FLAIR.nii.gz": "nifti_mit/stroke_FLAIR.nii.gz",
    "ds900003/sub-01/anat/sub-01_FLAIR.nii.gz": "nifti_mit/torchio_fernando_t2flairlike_0.75x0.75x5.5.nii.gz",
}
SERIES = {
    "ge_head_ct": "ct_ge_head_tilt_uneven/dicom",
    "xa30_t1w": "mr_t1_enhanced_multiframe",
    "siemens_multiframe": "dicom2nifti_tests/siemens_multiframe",
    "scouts": "mr_localizers",
}


def call(*command: str, expected: int = 0) -> str:
    done = subprocess.run(
        [str(PROGRAMS / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == expected, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def lay_out(real_data: Path, root: Path) -> None:
    rows = ["image_path,modality"]
    for name, origin in HEADS.items():
        link = root / "openmind" / "OpenMind" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real_data / origin)
        rows.append(f"{name},{name.rsplit('_', 1)[1].removesuffix('.nii.gz')}")
    (root / "openmind" / "openneuro_metadata.csv").write_text("\n".join(rows) + "\n")
    for name, origin in SERIES.items():
        target = root / "tcia" / name
        target.mkdir(parents=True)
        for file in sorted((real_data / origin).rglob("*.dcm")):
            (target / "_".join(file.relative_to(real_data / origin).parts)).symlink_to(file)


@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_real_scans_walk_from_raw_files_to_an_encoder_with_the_same_features(real_data: Path, tmp_path: Path) -> None:
    lay_out(real_data, tmp_path)
    corpus, run, folder = tmp_path / "corpus", tmp_path / "run", tmp_path / "encoder"
    call("harmonize", "openmind", str(tmp_path / "openmind"), "--out", str(corpus), "--workers", "2")
    call("harmonize", "tcia", str(tmp_path / "tcia"), "--out", str(corpus), "--workers", "2")
    call("harmonize", "verify", str(corpus))

    manifest = Corpus.open(corpus)
    assert {"T1w", "T2w", "FLAIR", "CT"} <= set(manifest.scans["modality"])
    assert len(manifest.scans[manifest.scans["source"] == "openmind"]) == len(HEADS)
    assert "localizer" in set(manifest.rejected["reason"])
    tilted = manifest.scans[manifest.scans["modality"] == "CT"].iloc[0]
    assert any("tilt" in line for line in tilted["decisions"])
    hu = read_volume(corpus / tilted["image_file_name"])
    assert (hu.slope, hu.inter) == (1.0, 0.0)
    assert hu.stored_XYZ.min() >= -1024

    call(
        "accelerate", "launch", "ssl/pretrain.py", "--config", "recipes/demo.yaml", "--corpus", str(corpus),
        "--out", str(run), "--train.steps", "60", "--train.checkpoint_every", "30", "--data.workers", "1",
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]  # the same crops and masks every time
    assert losses[-1] < 0.7 * losses[0], losses

    call("python", "ssl/push.py", str(run), "--folder", str(folder))
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in folder.iterdir()}
    encoder = Encoder.from_pretrained(str(folder))
    last = sorted((run / "checkpoints").glob("step_*"))[-1]
    trained = load_file(last / "model.safetensors")
    in_run = Encoder.from_pretrained(str(folder))
    in_run.load_state_dict(
        {key.removeprefix("encoder."): value for key, value in trained.items() if key.startswith("encoder.")}
    )
    x_BCDHW = torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for exported, original in zip(encoder(x_BCDHW), in_run.eval()(x_BCDHW), strict=True):
            assert torch.equal(exported, original)
