"""Damaged files without end: `python tests/fuzz --help`."""
