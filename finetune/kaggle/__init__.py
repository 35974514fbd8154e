"""The competition's inference server, and the folder that carries it there."""

from finetune.kaggle.server import serve

__all__ = ["serve"]
