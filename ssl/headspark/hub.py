"""An encoder as a Hugging Face model: config.json, model.safetensors and a card, in a folder or on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from harmonize.errors import UserError
from harmonize.files import TEMPORARY, write_text
from headspark.config import WRONG_USE, from_plain, to_plain
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder

CARD = "README.md"
HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, FileNotFoundError)
"""HTTPError is the base of the client's own errors and of its transport's, whichever library that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What stands beside the weights.

    Attributes:
        text: README.md, with the header that the Hub reads.
        pictures: PNG files by the name that the text gives them.
    """

    text: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)


class Encoder(
    nn.Module, PyTorchModelHubMixin, library_name="headspark", tags=["medical-imaging", "self-supervised", "3d"]
):
    """The Hub's view of an encoder. What `from_pretrained` gives is the plain network, without this wrapping.

    Args:
        encoder: `headspark.encoder.EncoderConfig` as plain values; in config.json under this name.
        preprocessing: What a scan must have gone through before the network sees it; likewise.

    Example::

        from headspark import Encoder

        encoder = Encoder.from_pretrained("user/name")      # or a folder
        maps = encoder(x_BCDHW)                              # finest first; see encoder.strides, encoder.channels
    """

    def __init__(self, *, encoder: dict[str, Any], preprocessing: dict[str, Any]) -> None:
        super().__init__()
        self.network = build_encoder(from_plain(EncoderConfig, encoder))
        self.network.preprocessing = preprocessing  # type: ignore[assignment]  # a plain dict beside the modules
        self.card: Card | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Load an encoder from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: A folder that ``ssl/push.py`` wrote, or ``user/name``.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` ... of huggingface_hub.

        Returns:
            The network as a plain module in eval mode, with ``channels``, ``strides``, ``config`` and
            ``preprocessing`` (a dict: spacing in mm, the windows of CT, the normaliser of MRI).

        Raises:
            UserError: There is no encoder, or its files do not fit each other.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir() and not (Path(name) / CONFIG_NAME).is_file():
            raise UserError(f"{name}: no encoder there ({CONFIG_NAME} is missing); `python ssl/push.py` writes one")
        try:
            return super().from_pretrained(name, **options)
        except HUB_ERRORS as error:
            raise UserError(f"{name}: no encoder's folder and no readable repository: {_first(error)}") from error
        except (TypeError, ValueError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{name}: its files do not make an encoder: {_first(error)}") from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **init: Any,
    ) -> Any:
        # The mixin's own loader takes a pickle if there is no safetensors file, and lets missing weights pass.
        file = Path(model_id) / SAFETENSORS_SINGLE_FILE
        if not Path(model_id).is_dir():
            file = Path(
                hf_hub_download(
                    model_id,
                    SAFETENSORS_SINGLE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        network = cls(**init).network
        network.load_state_dict(safetensors.torch.load_file(file))
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        (save_directory / SAFETENSORS_SINGLE_FILE).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
        if self.card is not None:
            for name, content in self.card.pictures.items():
                (save_directory / name).write_bytes(content)
            write_text(save_directory / CARD, self.card.text)


def save_encoder(
    encoder: MaskableEncoder, folder: Path, *, preprocessing: Mapping[str, Any], card: Card | None = None
) -> None:
    """Write an encoder as a folder; an encoder that was there is replaced as a whole.

    Args:
        encoder: Of `headspark.encoder.build_encoder`.
        folder: Where; made if need be.
        preprocessing: Plain values for config.json.
        card: README.md and its pictures; None: the Hub's default card.

    Raises:
        UserError: With exit code 2: the folder holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder}: not empty and no encoder; give --folder a new one", exit_code=WRONG_USE)
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    on_hub(encoder, preprocessing, card).save_pretrained(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def push_encoder(
    encoder: MaskableEncoder,
    repo: str,
    *,
    preprocessing: Mapping[str, Any],
    card: Card | None = None,
    private: bool = False,
) -> str:
    """Push an encoder to the Hub in one commit; the repository is made if need be.

    Returns:
        The commit's address.

    Raises:
        UserError: The Hub refused, or could not be reached; what it had before is unchanged.
    """
    try:
        return str(on_hub(encoder, preprocessing, card).push_to_hub(repo, private=private))
    except (*HUB_ERRORS, RuntimeError) as error:  # the client wraps a failed upload in a RuntimeError
        raise UserError(f"{repo}: {_first(error)}; log in with `hf auth login`, then give the command again") from error


def on_hub(encoder: MaskableEncoder, preprocessing: Mapping[str, Any], card: Card | None) -> Encoder:
    """The Hub's view of a network that exists already; they share their weights."""
    with torch.device("meta"):  # a shell that is filled with the network itself
        view = Encoder(encoder=to_plain(encoder.config), preprocessing=dict(preprocessing))
    view.network = encoder
    view.card = card
    return view


def _first(error: Exception) -> str:
    """The first line of a message; the client's others repeat request ids and advice."""
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{SAFETENSORS_SINGLE_FILE} or {CONFIG_NAME} is missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
