"""What every run has: its folder, state, checkpoints, metrics, signals, and the device it computes on."""
