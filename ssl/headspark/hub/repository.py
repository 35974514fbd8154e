"""Encoders in repositories of the Hugging Face Hub: pushed in one commit, over nothing but an encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME

from harmonize.hub import check_repo, push_folder, refuse_foreign_repository
from headspark.decoder import UNetDecoder
from headspark.encoder import MaskableEncoder
from headspark.folder_kind import is_encoder_config
from headspark.hub.encoder_folder import DECODER, Card, on_hub


def push_encoder(
    encoder: MaskableEncoder,
    repo: str,
    *,
    preprocessing: Mapping[str, Any],
    card: Card | None = None,
    decoder: UNetDecoder | None = None,
    private: bool = True,
    tag: str | None = None,
) -> str:
    """Push an encoder to the Hub in one commit; the repository is made if need be.

    Args:
        encoder: Of `headspark.encoder.build_encoder`.
        repo: ``user/name``.
        preprocessing: Plain values for config.json.
        card: README.md and its pictures; None: the Hub's default card.
        decoder: The decoder that was pretrained with it, if that shall be there too.
        private: Make a new repository private; one that is there stays as visible as it is.
        tag: Revision that the commit can be loaded by from now on, such as ``step_050000``.

    Returns:
        The commit's address.

    Raises:
        UserError: The Hub refused, or could not be reached; what it had before is unchanged.
        WrongUse: The repository holds something else than an encoder, or `repo` is no name of one.
    """
    check_repo(repo)
    stale = [DECODER] if decoder is None else []  # of an encoder that was there before
    refuse_foreign_repository(repo, mark=CONFIG_NAME, is_ours=is_encoder_config, what="an encoder")
    with tempfile.TemporaryDirectory(prefix="headspark-push-") as name:
        on_hub(encoder, preprocessing, card, decoder).save_pretrained(name)
        message = "Push an encoder of headspark" + (f", {tag}" if tag else "")
        done = push_folder(Path(name), repo, message=message, delete=stale, private=private, tag=tag)
    return done.address
