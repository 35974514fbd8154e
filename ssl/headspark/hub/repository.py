"""Encoders in repositories of the Hugging Face Hub: pushed in one commit, over nothing but an encoder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import RepositoryNotFoundError

from harmonize.errors import WrongUse
from harmonize.hub import UPLOAD_ERRORS, check_reached, check_repo, push_folder, refused
from headspark.decoder import UNetDecoder
from headspark.encoder import MaskableEncoder
from headspark.folder_kind import is_encoder_config, read_json
from headspark.hub.encoder_folder import CARD, DECODER, Card, on_hub

_ONLY_A_HEADER = re.compile(r"\s*---\n.*?\n---\s*", re.DOTALL)
_SHOWN = 3


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
    refuse_foreign_repository(repo, is_ours=is_encoder_config, what="an encoder")
    with tempfile.TemporaryDirectory(prefix="headspark-push-") as name:
        on_hub(encoder, preprocessing, card, decoder).save_pretrained(name)
        message = "Push an encoder of headspark" + (f", {tag}" if tag else "")
        done = push_folder(Path(name), repo, message=message, delete=stale, private=private, tag=tag)
    return done.address


def refuse_foreign_repository(repo: str, *, is_ours: Callable[[object], bool], what: str) -> None:
    """Refuse to write over what is on the Hub and is not ours.

    Args:
        repo: ``user/name``; there may be none.
        is_ours: Whether the content of its config.json is that of what is pushed.
        what: That is pushed, for the message: "an encoder".

    Raises:
        UserError: The Hub refused, or could not be reached.
        WrongUse: Nothing was written.
    """
    check_reached()
    try:
        names = set(HfApi().list_repo_files(repo)) - {".gitattributes"}
        if not names:
            return
        if CONFIG_NAME in names and is_ours(read_json(Path(hf_hub_download(repo, CONFIG_NAME)))):
            return  # what else is there stays: only our own names are written
        if names == {CARD} and _ONLY_A_HEADER.fullmatch(Path(hf_hub_download(repo, CARD)).read_text(encoding="utf-8")):
            return  # as the Hub's form leaves a new repository whose licence was chosen
    except RepositoryNotFoundError:
        return
    except UPLOAD_ERRORS as error:
        raise refused(repo, error) from error
    taken = ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    raise WrongUse(
        f"{repo}: the repository holds something else than {what} of headspark ({taken}), which stays as it is; "
        "give --repo a new name"
    )
