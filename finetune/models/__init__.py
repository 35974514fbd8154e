"""Networks around an encoder."""
