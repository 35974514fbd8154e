"""Charts: histograms drawn through percentiles hold the share of voxels that they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from harmonize.report.charts import density
from harmonize.settings import PERCENTILES


def test_the_density_through_percentiles_is_near_the_true_one() -> None:
    at = np.linspace(-2.5, 2.5, 501)
    found = density(norm.ppf(np.array(PERCENTILES) / 100), at)
    assert found.sum() * (at[1] - at[0]) == pytest.approx(0.987, abs=0.01)
    assert np.abs(found - norm.pdf(at)).max() < 0.08


def test_tied_percentiles_and_constant_scans_have_a_finite_density() -> None:
    at = np.linspace(-1, 6, 50)
    tied = density(np.array([0.0, 0, 0, 1, 2, 3, 3, 3, 5]), at)
    assert np.isfinite(tied).all()
    assert (tied >= 0).all()
    assert density(np.full(9, 3.0), at).tolist() == [0.0] * 50
