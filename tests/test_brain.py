"""Brain masks: in their place, on disk beside the scan, and never applied unasked.

The network is replaced by one of the right architecture with made-up weights, or by the true distance to a ball.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from harmonize import cli
from harmonize.corpus import Corpus, read_volume
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.settings import Settings
from harmonize.voxels import brain

CENTRE_MM, RADIUS_MM = np.array([3.0, -5.0, 9.0]), 22.0


def test_a_frame_is_put_around_a_volume_and_taken_off_again() -> None:
    values = np.random.default_rng(0).random((5, 9, 4)).astype(np.float32)
    sides = np.array([8, 6, 8])
    back = brain._out_of_frame(brain._into_frame(values, sides, 0.0), np.array(values.shape))
    np.testing.assert_array_equal(back[:, 2:8], values[:, 2:8])
    assert (back[:, [0, 1, 8]] == brain.FAR_MM).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.2, 2.0)])
def test_the_mask_lies_where_the_brain_is(
    spacing: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shape = tuple(round(70 / mm) for mm in spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTRE_MM + np.array([5, 0, -5]) - np.array(spacing) * (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(count) for count in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(index * spacing + affine[:3, 3] - CENTRE_MM, axis=-1)
    values = 300.0 - distance.astype(np.float32)

    def network(x: torch.Tensor) -> torch.Tensor:
        # Brightness falls with the distance from the centre, so brightness tells the distance.
        bright = x[0, 0]
        brightest = np.percentile(values - values.min(), brain.BRIGHTEST_PERCENTILE)
        away = 300 - (bright * brightest + values.min())
        return torch.where(bright > 0, away - RADIUS_MM, torch.tensor(brain.FAR_MM))[None, None]

    monkeypatch.setattr(brain, "_model", lambda *_: network)
    found = brain.brain_mask(values, affine, tmp_path / "none")
    wanted = distance < RADIUS_MM + brain.BORDER_MM
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.97


def test_a_file_that_holds_no_weights_is_a_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("nipreps.synthstrip", reason="needs headspark[brain]")
    for name, content in (("text.pt", b"no weights"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no weights of SynthStrip"):
            brain.brain_mask(np.zeros((8, 8, 8)), np.eye(4), tmp_path / name)
    words = ["openmind", str(tmp_path), "--out", str(tmp_path / "corpus"), "--brain-model", str(tmp_path / "text.pt")]
    assert cli.main(words) == 2
    assert not (tmp_path / "corpus").exists()
    with pytest.raises(UserError, match="no such file"):
        Settings(brain_model=tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="needs --brain-model"):
        Settings(apply_brain=True)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """SynthStrip's architecture with weights by hand: the brighter, the deeper in the brain."""
    model = pytest.importorskip("nipreps.synthstrip.model", reason="needs headspark[brain]").StripModel()
    first, last = model.encoder[0], model.remaining
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # One channel carries the image through: down the first level, over its skip, and to the end.
        skipped = last[0].conv.in_channels - first[-1].conv.out_channels
        for conv, channel in ((first[0].conv, 0), (first[1].conv, 0), (last[0].conv, skipped), (last[1].conv, 0)):
            conv.weight[0, channel, 1, 1, 1] = 1
        last[-1].conv.weight[0, 0, 1, 1, 1] = -200
        last[-1].conv.bias[0] = 100
    torch.save({brain.STATE: model.state_dict()}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "raw/OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    voxels = np.random.default_rng(0).normal(10, 4, (20, 20, 16))
    voxels[4:16, 4:16, 3:13] += 200
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-3.0, 3, 3, 1])), path)
    return tmp_path / "raw"


def test_a_brain_mask_is_stored_shown_and_not_applied_unless_asked(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain, "MIN_SIDE", brain.SIDE_STEP)
    common = ["openmind", str(root), "--mri-norm", "zscore", "--spacing", "2", "--workers", "0"]
    assert cli.main([*common, "--out", str(tmp_path / "plain")]) == 0
    assert cli.main([*common, "--out", str(tmp_path / "mask"), "--brain-model", str(weights)]) == 0
    applying = ["--brain-model", str(weights), "--apply-brain"]
    assert cli.main([*common, "--out", str(tmp_path / "applied"), *applying]) == 0
    plain, mask, applied = (Corpus.open(tmp_path / name).scans.iloc[0] for name in ("plain", "mask", "applied"))
    assert plain["brain_mask_file_name"] is None
    assert mask["sha256"] == plain["sha256"]
    assert "SynthStrip" in mask["decisions"][-1]
    found = read_volume(tmp_path / "mask" / mask["brain_mask_file_name"]).stored_XYZ > 0
    assert mask["brain_mask_file_name"].endswith("__brain.nii.gz")
    kept = read_volume(tmp_path / "applied" / applied["image_file_name"]).values()
    # The bright box: 12 x 12 x 10 voxels of 3 mm, on a grid of 2 mm.
    assert found.sum() * 2**3 == pytest.approx(12 * 12 * 10 * 3**3, rel=0.15)
    assert np.ptp(kept[~found]) == 0
    assert np.ptp(kept[found]) > 0
    assert not (tmp_path / "plain/report").exists()
    for name in ("mask", "applied"):
        assert verify(tmp_path / name) == []
        page = tmp_path / name / "report/index.html"
        assert mask["scan_id"] in page.read_text()
        page.unlink()
        assert cli.main(["merge", str(tmp_path / name)]) == 0
        assert page.is_file()
    assert cli.main([*common, "--out", str(tmp_path / "plain"), "--brain-model", str(weights)]) == 2
