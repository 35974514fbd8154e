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


def test_the_ranks_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4}, raising=False)
    assert (local_ranks(), threads_of_a_rank()) == (2, 2)
    monkeypatch.delattr("os.sched_getaffinity")  # macOS has none
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert threads_of_a_rank() == 1
