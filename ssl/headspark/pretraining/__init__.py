"""What a pretraining run has besides what every run has: its model and state, its corpus, and what it is judged by."""
