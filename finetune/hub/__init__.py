"""Fine-tuned models in folders to pass on and on the Hugging Face Hub: what travels, its card, how to get it."""

from finetune.hub.fetch import fetch_model, fetched
from finetune.hub.folder import push_model, save_model

__all__ = ["fetch_model", "fetched", "push_model", "save_model"]
