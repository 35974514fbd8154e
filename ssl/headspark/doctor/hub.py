"""Whether the Hugging Face Hub answers, and whether there is a token; it is never shown."""

from __future__ import annotations

import threading
import time

from harmonize.terminal import without_secrets
from headspark.doctor.section import Section

ANSWERS_WITHIN_S = 3.0


def examine_hub() -> Section:
    """One short question, unless the client was told to stay offline."""
    from huggingface_hub import constants, get_token

    found = Section(name="hub")
    address, offline = without_secrets(constants.ENDPOINT), constants.HF_HUB_OFFLINE
    token = get_token() is not None
    found.facts = {"address": address, "offline": offline, "token": token, "answers": None, "seconds": None}
    has = "a token" if token else "no token"
    if offline:
        found.text = [f"{address}: not asked, HF_HUB_OFFLINE is set; {has}"]
        return found
    began = time.monotonic()
    fault = _fault(constants.ENDPOINT)
    seconds = round(time.monotonic() - began, 2)
    found.facts |= {"answers": fault is None, "seconds": seconds}
    if fault is None:
        found.text = [f"{address}: answers in {seconds} s; {has}"]
    else:
        found.text = [f"{address}: no answer; {has}"]
        found.findings.append(
            f"{address} does not answer ({fault}); what is in the cache is used if HF_HUB_OFFLINE=1 is set, and a "
            "proxy is taken from HTTPS_PROXY"
        )
    return found


def _fault(address: str) -> str | None:
    """Why there is no answer in time; None for any answer. A name that nobody resolves would be waited for longer."""
    from huggingface_hub.utils import get_session

    said: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=ANSWERS_WITHIN_S, follow_redirects=False)
        except Exception as error:  # whatever the client's transport raises; it may quote an address
            said.append(type(error).__name__)
        else:
            said.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWERS_WITHIN_S + 0.5)
    return said[0] if said else f"nothing within {ANSWERS_WITHIN_S:g} s"
