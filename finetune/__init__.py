"""Adapt a pretrained encoder to RSNA 2025 intracranial aneurysm detection, in stages."""
