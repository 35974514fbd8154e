"""What a network is asked: labels, cases, targets and the score, one file a task."""
