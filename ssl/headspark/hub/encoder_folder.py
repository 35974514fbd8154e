"""An encoder as a Hugging Face model: config.json, model.safetensors and a card, in a folder or on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn

from harmonize.errors import UserError
from harmonize.files import write_text
from headspark.config import WRONG_USE, from_plain, to_plain
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.folder_kind import NNSSL_CHECKPOINT, is_encoder_config, is_preprocessing, read_json, seen_at
from headspark.folders import replaced
from headspark.weights import build_with, read_weights

CARD, CURVES, RECONSTRUCTION = "README.md", "curves.png", "reconstruction.png"
ENCODER_FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE, CARD, CURVES, RECONSTRUCTION)
"""All that `save_encoder` writes; a folder or repository with other files is not replaced."""

HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, FileNotFoundError, OfflineModeIsEnabled)
"""HTTPError is the base of the client's own errors and of its transport's, whichever library that is."""

_LIBRARY = "library_name: headspark"
_ONLY_A_HEADER = re.compile(r"\s*---\n.*?\n---\s*", re.DOTALL)
_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_HOW = "`python ssl/push.py RUN --folder ENCODER` writes one"
_SHOWN = 3


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
        _check_local(name)
        try:
            return super().from_pretrained(name, **options)
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise UserError(
                f"{name}: no such folder, and the Hub cannot be asked (offline, and not in its cache); {_HOW}"
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{name}: no such folder, and no such repository on the Hub (or one that needs `hf auth login`); {_HOW}"
            ) from error
        except HUB_ERRORS as error:
            raise UserError(f"{name}: no encoder's folder and no readable repository: {_first(error)}") from error
        except (TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{name}: its files do not make an encoder: {_first(error)}") from error
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror or error}") from error

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
        def download(name: str) -> Path:
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        is_local = Path(model_id).is_dir()
        if set(init) != {"encoder", "preprocessing"}:
            if not is_local and not init:
                download(CONFIG_NAME)  # the mixin goes on where that fails, and keeps the reason to itself
            raise UserError(f"{model_id}: it has no {CONFIG_NAME} of a headspark encoder; {_HOW}")
        # The mixin's own loader takes a pickle if there is no safetensors file, and lets missing weights pass.
        file = Path(model_id) / SAFETENSORS_SINGLE_FILE if is_local else download(SAFETENSORS_SINGLE_FILE)
        try:
            config = from_plain(EncoderConfig, init["encoder"])
        except UserError as error:
            raise UserError(f"{model_id}: its {CONFIG_NAME} makes no encoder: {error}") from error
        if not is_preprocessing(init["preprocessing"]):
            raise UserError(f"{model_id}: its {CONFIG_NAME} makes no encoder: preprocessing is not headspark's")
        weights = read_weights(file)
        where = f"{model_id}: its files do not make an encoder: {SAFETENSORS_SINGLE_FILE}"
        network = build_with(partial(build_encoder, config), weights, where=where, wanted=CONFIG_NAME)
        network.preprocessing = init["preprocessing"]  # type: ignore[assignment]  # a plain dict beside the modules
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
        UserError: With exit code 2: the folder holds something else, which stays as it is.
    """
    with replaced(folder, names=ENCODER_FILES, is_ours=_is_encoder, what="encoder") as temporary:
        on_hub(encoder, preprocessing, card).save_pretrained(temporary)


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
        UserError: The Hub refused, or could not be reached; what it had before is unchanged. With exit code 2: the
            repository holds something else than an encoder.
    """
    try:
        _refuse_foreign_repository(repo)
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


def _check_local(name: str) -> None:
    """Refuse a path that is no encoder's folder, before anybody asks the Hub for it."""
    path = Path(name)
    config = path / CONFIG_NAME
    if path.is_dir() and is_encoder_config(read_json(config)):
        if not (path / SAFETENSORS_SINGLE_FILE).is_file():
            raise UserError(f"{name}: a pretrained encoder without its weights: {SAFETENSORS_SINGLE_FILE} is missing")
        return
    if os.path.lexists(path):
        fault = "missing" if not config.is_file() else "damaged" if read_json(config) is None else "another's"
        is_nnssl = path.name == NNSSL_CHECKPOINT or (path / NNSSL_CHECKPOINT).is_file()
        how = "`headspark.interop.nnssl.read_nnssl` and `save_encoder` make one of it" if is_nnssl else _HOW
        raise UserError(f"{name}: no encoder there ({CONFIG_NAME} is {fault}), but {seen_at(path)}; {how}")
    if not _ON_THE_HUB.fullmatch(name) or name.startswith(("./", "../")):
        raise UserError(f"{name}: no such folder; an encoder's folder is wanted, or a repository user/name of the Hub")


def _is_encoder(folder: Path) -> bool:
    """Whether a folder that holds no other files than `ENCODER_FILES` was written by `save_encoder`."""
    card, config = folder / CARD, read_json(folder / CONFIG_NAME)
    return (is_encoder_config(config) and len(config) == 2) and (
        not card.is_file() or _LIBRARY in card.read_text(encoding="utf-8", errors="replace")
    )


def _refuse_foreign_repository(repo: str) -> None:
    """Refuse to write over what is on the Hub and is no encoder of ours.

    Raises:
        UserError: With exit code 2; nothing was written.
    """
    api = HfApi()
    try:
        names = set(api.list_repo_files(repo)) - {".gitattributes"}
    except RepositoryNotFoundError:
        return
    if not names:
        return
    if CONFIG_NAME in names and is_encoder_config(read_json(Path(hf_hub_download(repo, CONFIG_NAME)))):
        return  # what else is there stays: only the encoder's own names are written
    if names == {CARD} and _ONLY_A_HEADER.fullmatch(Path(hf_hub_download(repo, CARD)).read_text(encoding="utf-8")):
        return  # as the Hub's form leaves a new repository whose licence was chosen
    taken = ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    raise UserError(
        f"{repo}: the repository holds something else than an encoder of headspark ({taken}), which stays as it is; "
        "give --repo a new name",
        exit_code=WRONG_USE,
    )


def _first(error: Exception) -> str:
    """The first line of a message; the client's others repeat request ids and advice."""
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{SAFETENSORS_SINGLE_FILE} or {CONFIG_NAME} of an encoder is missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
