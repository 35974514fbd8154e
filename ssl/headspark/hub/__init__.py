"""Encoders in folders and on the Hugging Face Hub."""

from headspark.hub.encoder_folder import Encoder, save_encoder
from headspark.hub.load import load_encoder
from headspark.hub.repository import push_encoder

__all__ = ["Encoder", "load_encoder", "push_encoder", "save_encoder"]
