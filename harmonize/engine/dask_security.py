"""What keeps the other users of a machine or a network away from the dask schedulers and workers that are started here.

Who may speak to one of them runs code as its user. So they answer only over TLS, to those who hold a key that is made
for the one run, and keep their files in folders that nobody else may enter.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.security import Security

ENCRYPTED = "tls://"


def certificates() -> Security:
    """A key and its certificate for one run, held in memory."""
    from distributed.security import Security

    return Security.temporary()


def certificates_in(folder: str) -> Security:
    """The same in files that only this user may read, for jobs on other nodes.

    Args:
        folder: A private one that those nodes see under the same path.
    """
    from distributed.security import Security

    made = certificates().get_tls_config_for_role("worker")
    certificate, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
    for path, text in ((certificate, made["ca_file"]), (key, made["key"])):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=str(certificate),
        **{f"tls_{role}_cert": str(certificate) for role in roles},
        **{f"tls_{role}_key": str(key) for role in roles},
    )


def has_certificates() -> bool:
    """Whether dask's own configuration names certificates for a client."""
    from distributed.security import Security

    return all(Security().get_tls_config_for_role("client")[part] for part in ("ca_file", "cert"))


@contextmanager
def private_folder(beside: Path | None = None) -> Iterator[str]:
    """A folder that only this user may enter, for as long as it is needed.

    Args:
        beside: The folder that it is made in; None: the system's temporary one.
    """
    with tempfile.TemporaryDirectory(prefix=".harmonize-", dir=beside, ignore_cleanup_errors=True) as folder:
        yield os.path.abspath(folder)  # noqa: PTH100 - links stay as they are


@contextmanager
def temporary_files_in(folder: str) -> Iterator[None]:
    """Let this process make its temporary files in `folder`."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
