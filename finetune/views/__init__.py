"""What a network sees of a head: one file a view."""
