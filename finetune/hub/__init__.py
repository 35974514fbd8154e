"""Fine-tuned models and probes in folders and on the Hugging Face Hub: what travels, its card, how to get it."""

from finetune.hub.fetch import fetch_model, fetched
from finetune.hub.folder import push_model, save_model
from finetune.hub.probes import fetch_probe, push_probe, save_probe

__all__ = ["fetch_model", "fetch_probe", "fetched", "push_model", "push_probe", "save_model", "save_probe"]
