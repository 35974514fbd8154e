"""The Hugging Face Hub: whether it answers, files that go on where they broke off, and its faults in one line."""

from harmonize.hub.download import fetch_file
from harmonize.hub.faults import HUB_ERRORS, UPLOAD_ERRORS, first_line, no_cache, not_had, refused
from harmonize.hub.large import send_large
from harmonize.hub.names import check_repo, check_tag, repo_of
from harmonize.hub.owner import refuse_foreign_repository
from harmonize.hub.reach import bounded_silence, check_reached, reached
from harmonize.hub.upload import push_folder

__all__ = [
    "HUB_ERRORS",
    "UPLOAD_ERRORS",
    "bounded_silence",
    "check_reached",
    "check_repo",
    "check_tag",
    "fetch_file",
    "first_line",
    "no_cache",
    "not_had",
    "push_folder",
    "reached",
    "refuse_foreign_repository",
    "refused",
    "repo_of",
    "send_large",
]
