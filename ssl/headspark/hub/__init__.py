"""Encoders in folders and on the Hugging Face Hub."""
