"""An encoder as a Hugging Face model: config.json, model.safetensors and a card, in a folder or on the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from harmonize.errors import UserError, WrongUse
from harmonize.files import write_text
from harmonize.hub import HUB_ERRORS, fetch_file, first_line, no_cache, not_had, reached, repo_of
from headspark.config import from_plain, to_plain
from headspark.decoder import UNetDecoder
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.folder_kind import NNSSL_CHECKPOINT, is_encoder_config, is_preprocessing, read_json, seen_at
from headspark.folders import replaced
from headspark.hub.own_words import refuse_own_words, sealed
from headspark.weights import build_with, read_weights

CARD, CURVES, RECONSTRUCTION = "README.md", "curves.png", "reconstruction.png"
DECODER = "decoder.safetensors"
ENCODER_FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE, DECODER, CARD, CURVES, RECONSTRUCTION)
"""All that `save_encoder` writes; a folder or repository with other files is not replaced."""

DECODER_CONFIG = {"kind": "unet", "file": DECODER}
"""What config.json says of a decoder that lies beside the encoder, under ``decoder``."""

NO_FOLDER = "no such folder, and "

_LIBRARY = "library_name: headspark"
_HOW = "`headspark push RUN --out ENCODER` writes one"


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
        self.network.preprocessing = preprocessing
        self.card: Card | None = None
        self.decoder: UNetDecoder | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Load an encoder from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: A folder that ``headspark push`` wrote, ``user/name``, or
                ``user/name@revision``.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` ... of huggingface_hub.

        Returns:
            The network as a plain module in eval mode, with ``channels``, ``strides``, ``config`` and
            ``preprocessing`` (a dict: spacing in mm, the region of a scan that was stored, the windows of CT, the
            normalisers and the scaling of MRI).

        Raises:
            UserError: There is no encoder, or its files do not fit each other.
        """
        name = str(pretrained_model_name_or_path)
        _check_local(name)
        repo, revision = repo_of(name) or (name, None)
        if revision is not None and options.setdefault("revision", revision) not in (None, revision):
            raise WrongUse(f"{name}: another revision than {options['revision']}; give one of them")
        options["revision"] = revision or options.get("revision")
        try:
            with asked(repo, **options):
                return super().from_pretrained(repo, **options)
        except RemoteEntryNotFoundError as error:
            missing = f"{SAFETENSORS_SINGLE_FILE} or {CONFIG_NAME} of an encoder is missing"
            raise UserError(f"{name}: no encoder's folder and no readable repository: {missing}") from error
        except HUB_ERRORS as error:
            token = options.get("token")
            raise UserError(not_had(name, error, else_=NO_FOLDER, how=_HOW, token=token)) from error
        except (TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{name}: its files do not make an encoder: {first_line(error)}") from error
        except OSError as error:
            fault = None if Path(repo).is_dir() else no_cache(name, error)
            raise fault or UserError(f"{name}: cannot be read: {error.strerror or error}") from error

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
        options: dict[str, Any] = {
            "revision": revision, "cache_dir": cache_dir, "force_download": force_download,
            "local_files_only": local_files_only, "token": token,
        }  # fmt: skip
        is_local = Path(model_id).is_dir()
        if set(init) != {"encoder", "preprocessing"}:
            if not is_local and not init:
                file_of(
                    model_id, CONFIG_NAME, **options
                )  # the mixin goes on where that fails, and keeps the reason to itself
            raise UserError(f"{model_id}: it has no {CONFIG_NAME} of a headspark encoder; {_HOW}")
        # The mixin's own loader takes a pickle if there is no safetensors file, and lets missing weights pass.
        file = file_of(model_id, SAFETENSORS_SINGLE_FILE, **options)
        try:
            config = from_plain(EncoderConfig, init["encoder"])
        except UserError as error:
            raise UserError(f"{model_id}: its {CONFIG_NAME} makes no encoder: {error}") from error
        if not is_preprocessing(init["preprocessing"]):
            raise UserError(f"{model_id}: its {CONFIG_NAME} makes no encoder: preprocessing is not headspark's")
        weights = read_weights(file)
        where = f"{model_id}: its files do not make an encoder: {SAFETENSORS_SINGLE_FILE}"
        network = build_with(partial(build_encoder, config), weights, where=where, wanted=CONFIG_NAME)
        network.preprocessing = init["preprocessing"]
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        _write_weights(save_directory / SAFETENSORS_SINGLE_FILE, self.network)
        if self.decoder is not None:
            _write_weights(save_directory / DECODER, self.decoder)
            facts = decoder_facts(self.decoder)
            config = {**cast(dict[str, Any], self._hub_mixin_config), "decoder": facts}
            write_text(save_directory / CONFIG_NAME, json.dumps(config, sort_keys=True, indent=2))
        if self.card is not None:
            for name, content in self.card.pictures.items():
                (save_directory / name).write_bytes(content)
            write_text(save_directory / CARD, sealed(self.card.text))


def save_encoder(
    encoder: MaskableEncoder,
    folder: Path,
    *,
    preprocessing: Mapping[str, Any],
    card: Card | None = None,
    decoder: UNetDecoder | None = None,
) -> None:
    """Write an encoder as a folder; an encoder that was there is replaced as a whole.

    Args:
        encoder: Of `headspark.encoder.build_encoder`.
        folder: Where; made if need be.
        preprocessing: Plain values for config.json.
        card: README.md and its pictures; None: the Hub's default card.
        decoder: The decoder that was pretrained with it, if that shall lie beside it.

    Raises:
        UserError: With exit code 2: the folder holds something else, or a card that was changed by hand; all of it
            stays as it is.
    """
    with replaced(folder, names=ENCODER_FILES, is_ours=_is_encoder, what="encoder") as temporary:
        on_hub(encoder, preprocessing, card, decoder).save_pretrained(temporary)


def on_hub(
    encoder: MaskableEncoder, preprocessing: Mapping[str, Any], card: Card | None, decoder: UNetDecoder | None
) -> Encoder:
    """The Hub's view of networks that exist already; they share their weights."""
    with torch.device("meta"):  # a shell that is filled with the network itself
        view = Encoder(encoder=to_plain(encoder.config), preprocessing=dict(preprocessing))
    view.network = encoder
    view.card, view.decoder = card, decoder
    return view


def file_of(model_id: str, name: str, **options: Any) -> Path:
    """Where a file of an encoder lies: in its folder, or in the cache of the Hub, which is asked for it first."""
    return Path(model_id) / name if Path(model_id).is_dir() else fetch_file(model_id, name, **options)


def asked(repo: str, **options: Any) -> AbstractContextManager[None]:
    """Ask the Hub for an encoder, or its cache where the Hub does not answer; a folder asks nobody.

    Args:
        repo: Folder, or ``user/name``.
        options: As for `Encoder.from_pretrained`.
    """
    if Path(repo).is_dir() or options.get("local_files_only"):
        return nullcontext()
    only = {key: options[key] for key in ("revision", "cache_dir") if key in options}
    return reached(repo, CONFIG_NAME, **only, else_=NO_FOLDER)


def decoder_facts(decoder: UNetDecoder) -> dict[str, Any]:
    """What config.json says of a decoder: `DECODER_CONFIG`, and what it gives where that is not the volume."""
    if not decoder.outputs:
        return DECODER_CONFIG
    outputs = [[name, count] for name, count in decoder.outputs.items()]  # a mapping would lose their order
    return {**DECODER_CONFIG, "stride": decoder.stride, "outputs": outputs}


def _write_weights(path: Path, network: nn.Module) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))


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
        message = f"{name}: no encoder there ({CONFIG_NAME} is {fault}), but {seen_at(path)}; {how}"
        raise UserError(message) if fault == "damaged" else WrongUse(message)
    if repo_of(name) is None:
        raise WrongUse(f"{name}: no such folder; an encoder's folder is wanted, or a repository user/name of the Hub")


def _is_encoder(folder: Path) -> bool:
    """Whether a folder that holds no other files than `ENCODER_FILES` was written by `save_encoder`.

    Raises:
        WrongUse: It was, and somebody has written into its card since.
    """
    card, config = folder / CARD, read_json(folder / CONFIG_NAME)
    refuse_own_words(card)
    return (is_encoder_config(config) and config.keys() <= {"encoder", "preprocessing", "decoder"}) and (
        not card.is_file() or _LIBRARY in card.read_text(encoding="utf-8", errors="replace")
    )
