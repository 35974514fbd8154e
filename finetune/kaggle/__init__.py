"""The competition's inference server."""

from finetune.kaggle.server import serve

__all__ = ["serve"]
