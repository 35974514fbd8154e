"""What a run computes on: precision and threads."""

from __future__ import annotations

import pytest
import torch

from harmonize.errors import UserError
from headspark.run.device import local_ranks, mixed_precision, threads_of_a_rank


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU scales the loss of fp16")
def test_fp16_without_a_gpu_is_refused_because_nothing_would_scale_its_loss() -> None:
    with pytest.raises(UserError, match=r"^train\.precision fp16: needs a GPU") as refused:
        mixed_precision("fp16")
    assert refused.value.exit_code == 2


def test_what_slurm_grants_a_job_is_no_rank_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three quarters of the scans would be left to ranks that are not there, and be read as nothing.
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert local_ranks() == 1


def test_without_a_launchers_word_ranks_count_those_of_their_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(nodes: list[object], own: object) -> None:
        nodes[:] = [own, own, "another", "another"]

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert local_ranks() == 2


def test_the_ranks_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4}, raising=False)
    assert (local_ranks(), threads_of_a_rank()) == (2, 2)
    monkeypatch.delattr("os.sched_getaffinity")  # macOS has none
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert threads_of_a_rank() == 1
