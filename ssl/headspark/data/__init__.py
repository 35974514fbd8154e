"""From a corpus to batches: which scans, where they are kept decoded, which crops are cut, how they are augmented."""
