"""Encoders in folders and on the Hugging Face Hub."""

from headspark.hub.encoder_folder import Encoder, push_encoder, save_encoder

__all__ = ["Encoder", "push_encoder", "save_encoder"]
