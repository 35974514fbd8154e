"""The DeepLesion tree: 16-bit Hounsfield coding, runs of slices, and one series with two spacings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harmonize import phantom

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deeplesion")
    phantom.write("deeplesion", out, scans=4, size=SIZE, seed=0)
    return out / "deeplesion"


@pytest.fixture(scope="module")
def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "DL_info.csv")


def test_pixels_are_hounsfield_units_plus_32768(root: Path, table: pd.DataFrame) -> None:
    lowest = []
    for row in table.itertuples():
        name = row.File_name
        image = Image.open(root / "Images_png" / name[:12] / name[13:])
        pixels = np.asarray(image)
        assert image.mode == "I;16"
        assert pixels.dtype == np.uint16
        assert pixels.shape == (SIZE, SIZE)
        values = pixels.astype(int) - 32768
        assert np.median(values[values > -200]) == pytest.approx(40, abs=60)
        assert values.max() > 300
        lowest.append(values.min())
    assert min(lowest) < -1024, "padding outside the circle lies below air"
    assert max(lowest) >= -1024


def test_every_run_is_complete_and_runs_of_a_series_are_apart(root: Path, table: pd.DataFrame) -> None:
    for name, rows in table.groupby(table["File_name"].str[:12]):
        numbers = {int(path.stem) for path in (root / "Images_png" / str(name)).iterdir()}
        ranges = sorted(tuple(int(part) for part in text.split(",")) for text in rows["Slice_range"])
        assert numbers == {number for first, last in ranges for number in range(first, last + 1)}
        assert all(after[0] > before[1] + 1 for before, after in pairwise(ranges))


def test_one_series_has_two_spacings(table: pd.DataFrame) -> None:
    spacings = table.groupby(table["File_name"].str[:12])["Spacing_mm_px_"].nunique()
    assert (spacings == 2).sum() == 1


def test_the_first_row_is_anterior(tmp_path: Path) -> None:
    phantom.write("deeplesion", tmp_path, scans=1, size=64, seed=0)
    (folder,) = (tmp_path / "deeplesion/Images_png").iterdir()
    stack = np.stack([np.asarray(Image.open(path)).astype(int) - 32768 for path in sorted(folder.iterdir())])
    # The head rest (about -300 HU) lies behind the head: in the lower rows.
    rest = np.argwhere((stack > -600) & (stack < -250))
    assert np.mean(rest[:, 1]) > 34
