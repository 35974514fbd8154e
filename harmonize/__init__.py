"""Turn raw head CT and MRI of public sources, and of your own, into one corpus of RAS, isotropic NIfTI."""

from pathlib import Path

_INSTALLED = Path(__file__).with_name("version.txt")
"""Written when headspark is built or installed, from the tags of its history; a bare copy of the code has none."""

__version__ = _INSTALLED.read_text(encoding="utf-8").strip() if _INSTALLED.is_file() else "0.1.0"
