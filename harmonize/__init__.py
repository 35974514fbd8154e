"""Turn raw head CT and MRI of four sources into one corpus of RAS, isotropic NIfTI."""

__version__ = "0.1.0"
