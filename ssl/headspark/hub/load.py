"""Load a pretrained encoder, and the decoder that was pretrained with it, from a folder or from the Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import RemoteEntryNotFoundError

from harmonize.errors import UserError, WrongUse
from harmonize.hub import HUB_ERRORS, not_had, repo_of
from headspark.decoder import UNetDecoder
from headspark.encoder import MaskableEncoder
from headspark.encoder.base import MOST_CHANNELS
from headspark.folder_kind import read_json
from headspark.hub.encoder_folder import DECODER, DECODER_CONFIG, Encoder, asked, file_of
from headspark.weights import build_with, read_weights


@overload
def load_encoder(
    path_or_repo: str | Path, *, revision: str | None = None, decoder: Literal[False] = False
) -> MaskableEncoder: ...


@overload
def load_encoder(
    path_or_repo: str | Path, *, revision: str | None = None, decoder: Literal[True]
) -> tuple[MaskableEncoder, UNetDecoder]: ...


def load_encoder(
    path_or_repo: str | Path, *, revision: str | None = None, decoder: bool = False
) -> MaskableEncoder | tuple[MaskableEncoder, UNetDecoder]:
    """Load a pretrained encoder.

    Args:
        path_or_repo: A folder that ``headspark push`` wrote, or ``user/name`` on the Hub, or ``user/name@revision``.
        revision: Branch, tag or commit of the repository; None takes the newest. A folder has none.
        decoder: Load the decoder too, which lies there after ``headspark push --decoder``. It takes the encoder's maps:
            ``decoder(encoder(x_BCDHW))`` is the predicted volume, (B, C, D, H, W). Of an encoder that
            ``finetune export`` wrote it is what `decoder.outputs` names, in cells of `decoder.stride` voxels.

    Returns:
        The encoder, a plain module in eval mode with ``config``, ``channels``, ``strides`` and ``preprocessing``; with
        `decoder` a pair of it and the decoder, likewise.

    Raises:
        UserError: There is no encoder, no decoder, or their files do not fit each other.
        WrongUse: A revision of a folder.

    Example::

        from headspark import load_encoder

        encoder = load_encoder("user/name", revision="step_050000")  # every push is tagged with its step
        maps = encoder(x_BCDHW)  # finest first
    """
    name = str(path_or_repo)
    if revision is not None and Path(name).is_dir():
        raise WrongUse(f"{name}: a folder has no revision {revision}; give a repository of the Hub, or no revision")
    encoder = cast(MaskableEncoder, Encoder.from_pretrained(name, revision=revision))
    if not decoder:
        return encoder
    found = load_decoder(name, encoder, revision=revision)
    if found is None:
        raise UserError(f"{name}: an encoder without a decoder; `headspark push RUN --decoder` stores both")
    return encoder, found


def load_decoder(
    path_or_repo: str | Path, encoder: MaskableEncoder, *, revision: str | None = None
) -> UNetDecoder | None:
    """The decoder beside an encoder that was just loaded.

    Args:
        path_or_repo: Of the encoder.
        encoder: What was loaded.
        revision: Of the repository.

    Returns:
        The decoder in eval mode; None where there is none.

    Raises:
        UserError: There is one that cannot be read, or does not fit.
    """
    name = str(path_or_repo)
    repo, named = repo_of(name) or (name, None)
    revision = named or revision
    try:
        with asked(repo, revision=revision):
            config: Any = read_json(file_of(repo, CONFIG_NAME, revision=revision))
            stored = config.get("decoder") if isinstance(config, dict) else None
            if stored is None:
                return None
            file = file_of(repo, DECODER, revision=revision)
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{name}: its {CONFIG_NAME} names a {DECODER} that is missing; push it again") from error
    except HUB_ERRORS as error:
        raise UserError(not_had(name, error)) from error
    stride, outputs = _stride_and_outputs(stored, encoder)
    if stride is None:
        raise UserError(f"{name}: its {CONFIG_NAME} names a decoder that this headspark does not know; push it again")
    weights = read_weights(file)
    first, channels = encoder.strides.index(stride), sum(outputs.values()) or encoder.config.in_channels
    build = partial(UNetDecoder, encoder.channels[first:], encoder.strides[first:], channels)
    decoder = build_with(build, weights, where=f"{name}: {DECODER}", wanted=f"its {CONFIG_NAME}").eval()
    decoder.outputs = outputs
    return decoder


def _stride_and_outputs(stored: object, encoder: MaskableEncoder) -> tuple[int | None, dict[str, int]]:
    """What config.json says of a decoder; no stride where it says nothing that is known."""
    facts = dict(stored) if isinstance(stored, dict) else {}
    stride, outputs = facts.pop("stride", encoder.strides[0]), facts.pop("outputs", [])
    known = facts == DECODER_CONFIG and type(stride) is int and stride in encoder.strides[:-1]
    if not known or not isinstance(outputs, list) or not all(map(_is_output, outputs)):
        return None, {}
    return stride, dict(outputs)


def _is_output(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    name, channels = value
    return isinstance(name, str) and type(channels) is int and 1 <= channels <= MOST_CHANNELS
