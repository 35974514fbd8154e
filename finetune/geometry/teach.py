"""Teach the geometry network: minutes on a CPU, from any harmonized corpus, without labels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.brief_training import Plan, train_briefly
from finetune.geometry.lessons import Lesson, Stack, draw_stack
from finetune.geometry.network import WAYS, GeometryNetwork, Read
from finetune.geometry.reader import TURNED, GeometryReader
from harmonize.errors import UserError

STEPS, BATCH = 1200, 16
RATE, WARMUP = 2e-3, 20
HELD_OUT = 5
"""One subject of so many is kept to measure with."""
FEWEST = 10
"""Subjects, at least."""
DRAWS = 4
"""Stacks out of each scan that is measured with."""
OF_WAY, OF_TURN = 1.0, 0.5
"""What a wrong way and a wrong direction count, against the likelihood of an extent."""


def teach(
    lessons: Sequence[Lesson], *, steps: int = STEPS, seed: int = 0, asked: Callable[[], bool] = lambda: False
) -> GeometryReader | None:
    """Train the network; the same scans and seed give the same one on the same machine.

    Args:
        lessons: Scans to learn from.
        steps: Of the optimizer, of `BATCH` stacks.
        seed: Of all that is drawn.
        asked: Whether to stop.

    Returns:
        The network; None when it was asked to stop.

    Raises:
        UserError: Too few subjects.
    """
    subjects = sorted({one.subject for one in lessons}, key=lambda name: (zlib.crc32(name.encode()), name))
    if len(subjects) < FEWEST:
        raise UserError(
            f"{len(subjects)} subjects are too few to learn from and to measure with; give {FEWEST} or more"
        )
    kept = set(subjects[::HELD_OUT])
    training = [one for one in lessons if one.subject not in kept]
    torch.manual_seed(seed)
    network = GeometryNetwork()

    def loss_of(step: int) -> tuple[Tensor, dict[str, str]]:
        generator = np.random.default_rng([seed, step])
        stacks = [draw_stack(training[generator.integers(len(training))], generator) for _ in range(BATCH)]
        return _loss(_read(network, stacks), stacks), {}

    plan = Plan(steps=steps, rate=RATE, warmup=WARMUP, weight_decay=1e-2)
    if not train_briefly(network, plan, loss_of, name="geometry", asked=asked):
        return None
    held = [one for one in lessons if one.subject in kept]
    return _measured(network.eval().requires_grad_(False), held, len(training), seed)


def _read(network: GeometryNetwork, stacks: Sequence[Stack]) -> Read:
    read: Read = network(torch.stack([one.x_1ZYX for one in stacks]), torch.stack([one.told_T for one in stacks]))
    return read


def _off(read: Read, stacks: Sequence[Stack]) -> Tensor:
    """How far off each extent is, (B, 2), relative to it."""
    return read.log_extents_B2 - torch.stack([one.log_extents_2 for one in stacks])


def _loss(read: Read, stacks: Sequence[Stack]) -> Tensor:
    """Negative log-likelihood of extents, way and direction."""
    ways_B, turned_B = torch.tensor([one.way for one in stacks]), torch.tensor([one.turned for one in stacks])
    told_apart_B = (ways_B != WAYS.index("sagittal")).float()  # both sides of a head look the same
    sigmas_B2 = read.log_sigmas_B2.exp()
    # Weighted by the spread itself (Seitzer et al. 2022, arXiv 2203.09168): what is unsure is learned from as well.
    likelihood_B2 = (0.5 * (_off(read, stacks) / sigmas_B2).square() + read.log_sigmas_B2) * sigmas_B2.detach()
    turn_B = F.binary_cross_entropy_with_logits(read.turned_logit_B, turned_B, reduction="none") * told_apart_B
    return 10 * likelihood_B2.mean() + OF_WAY * F.cross_entropy(read.way_logits_B3, ways_B) + OF_TURN * turn_B.mean()


@torch.inference_mode()
def _measured(network: GeometryNetwork, held: Sequence[Lesson], learned_from: int, seed: int) -> GeometryReader:
    """The network with what it is worth on scans that it did not learn from."""
    generator = np.random.default_rng([seed, 2**31])
    stacks = [draw_stack(one, generator) for one in held for _ in range(DRAWS)]
    # Hundreds of scans are held out of a large corpus: a few stacks at a time.
    parts = [_read(network, stacks[first : first + BATCH]) for first in range(0, len(stacks), BATCH)]
    read = Read(*(torch.cat(values) for values in zip(*parts, strict=True)))
    off_B2 = _off(read, stacks)
    # Two thirds of what is off shall lie within one standard deviation.
    spread_2 = torch.quantile((off_B2 / read.log_sigmas_B2.exp()).abs(), 0.68, dim=0).clamp(min=0.5)
    ways_B = torch.tensor([one.way for one in stacks])
    turned_B = torch.tensor([one.turned for one in stacks]) > 0
    sided_B = ways_B != WAYS.index("sagittal")
    median_2 = off_B2.abs().median(0).values
    return GeometryReader(
        network=network,
        spread_2=(float(spread_2[0]), float(spread_2[1])),
        facts={
            "series": learned_from,
            "held_out": {
                "series": len(held),
                "stacks": len(stacks),
                "edge_off_percent": round(100 * float(median_2[0]), 1),
                "height_off_percent": round(100 * float(median_2[1]), 1),
                "wrong_way": int((read.way_logits_B3.argmax(1) != ways_B).sum()),
                "wrong_direction": int((((read.turned_logit_B > TURNED) != turned_B) & sided_B).sum()),
            },
        },
    )
