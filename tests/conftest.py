"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
import standin_hub
import torch

from harmonize import corpus as corpora
from harmonize.files import sha256_of
from harmonize.hub import reach
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels.stored import StoredVolume

torch.set_num_threads(1)

# A shell that starts a command in the background has it ignore Ctrl-C, and so would all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["fixtures"]
"""What earlier versions wrote, and the scripts that had it written: those run with the code of their time."""


REAL_DATA = Path(os.environ.get("HEADSPARK_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
NO_REAL_DATA = f"no real scans at {REAL_DATA}: set HEADSPARK_REAL_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(NO_REAL_DATA)
    return REAL_DATA


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a line of its own what a green run did not see."""
    skipped = sum(NO_REAL_DATA in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"skipped tests on real scans: {skipped} ({NO_REAL_DATA})", yellow=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[standin_hub.Hub]:
    """The Hub, as a server in this process that the real client talks to."""
    with standin_hub.serving() as served:
        monkeypatch.setattr(hub_constants, "ENDPOINT", served.url)
        template = hub_constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", served.url)
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(hub_constants, "HF_HOME", str(tmp_path / "hub-home"))
        monkeypatch.setattr(reach, "_away", {})
        monkeypatch.setenv("HF_TOKEN", standin_hub.TOKEN)
        yield served


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder where permissions bind: while the test runs, the superuser is nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder, own = Path(name), os.geteuid()
        folder.chmod(0o777)
        if own == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if own == 0:
                os.seteuid(own)
            for path, _, _ in os.walk(folder):
                Path(path).chmod(0o700)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 6 scans of 40 x 36 x 44 voxels: 4 MRI (the first with defaced voxels), 2 CT; 5 subjects."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        is_ct = number >= 4
        source, modality = ("tcia", "CT") if is_ct else ("openmind", "T1w")
        subject, scan_id = f"sub-{max(number, 1)}", f"scan-{number}"
        corpora.claim(folder, source, Settings())
        shape = (40, 36, 44)
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
        head = x**2 + y**2 + z**2 < 0.8
        blob = np.exp(-8 * ((x - rng.uniform(-0.4, 0.4)) ** 2 + (y - rng.uniform(-0.4, 0.4)) ** 2 + z**2))
        texture = rng.normal(size=shape)
        if is_ct:
            stored = np.where(head, 40 + 60 * blob + 5 * texture, -1000).astype(np.int16)
            slope, unit = 1.0, "HU"
        else:
            stored = (np.where(head, 2 * blob + 0.2 * texture, -2) / 1e-3).astype(np.int16)
            slope, unit = 1e-3, "zscore"
        image = corpora.image_name(source, subject, scan_id)
        corpora.write_volume(folder / image, StoredVolume(stored_XYZ=stored, affine=np.eye(4), slope=slope))
        row = dict.fromkeys(corpora.SCAN_SCHEMA.names)
        if number == 0:
            labels = np.where(head, 1, 0).astype(np.uint8)
            labels[:, 30:] = np.where(head[:, 30:], 2, 0)
            row |= {"mask_file_name": corpora.mask_name(source, subject, scan_id), "mask_kind": "anatomy"}
            corpora.write_volume(folder / row["mask_file_name"], StoredVolume(stored_XYZ=labels, affine=np.eye(4)))
            row["mask_sha256"] = sha256_of(folder / row["mask_file_name"])
        values = stored[head] * slope
        row |= {
            "image_file_name": image, "scan_id": scan_id, "source": source, "subject": subject, "modality": modality,
            "shape": list(shape), "spacing": [1.0] * 3, "unit": unit, "sha256": sha256_of(folder / image),
            "intensity_percentiles": np.percentile(values, PERCENTILES).tolist(),
            "foreground_box": [2, 38, 2, 34, 2, 42], "decisions": [], "raw_hash": f"hash-{number}",
            "raw_shape": list(shape), "raw_spacing": [1.0] * 3, "sex": "FM"[number % 2],
        }  # fmt: skip
        rows.append(row)
    corpora.write_manifest(folder, rows, [])
    return folder


@pytest.fixture(scope="session")
def finder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finder of boxes that learned nothing: it is never unsure, and lays the box about the middle of what it sees."""
    from finetune.finder import Finder, save_finder
    from finetune.finder.network import FinderNetwork
    from harmonize.labels import LOCATIONS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("finder")
    template_P3 = np.random.default_rng(0).normal(scale=20.0, size=(len(LOCATIONS), 3))
    facts: dict[str, object] = {"fold": 0, "folds": 2, "fold_seed": 0}
    network = FinderNetwork(len(LOCATIONS)).eval()
    save_finder(folder, Finder(network=network, template_P3=template_P3, most_doubt_mm=1e6, facts=facts))
    return folder
