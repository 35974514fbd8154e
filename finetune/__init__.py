"""Adapt a pretrained encoder to RSNA 2025 intracranial aneurysm detection, in stages."""

import harmonize.launcher  # noqa: F401  # before torch is loaded; see there
