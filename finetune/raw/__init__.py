"""Raw series in folders: which there are, and each harmonized; it loads no network, so that workers start quickly."""
