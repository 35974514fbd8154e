"""Teach a finder of the arteries' box: minutes on a CPU, from masks, points and the outlines of whole heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.augment import AugmentConfig, draw_pose, draw_variation, vary_intensity
from finetune.brief_training import Plan, train_briefly
from finetune.finder import Finder
from finetune.finder.find import fit
from finetune.finder.landmarks import places_of_mask, places_of_points, shows_outline
from finetune.finder.network import FinderNetwork, heat_targets, places_mm
from finetune.finder.survey import CHANNELS, Survey, look, survey_of
from finetune.samples import DataConfig
from finetune.series import Case
from finetune.tasks import Task
from finetune.views import View
from finetune.views.roi import RoiView
from harmonize.errors import UserError
from headspark.data.decoders import read_corpus_file

STEPS, BATCH = 400, 8
RATE, WARMUP = 3e-3, 20
WIDTH_MM = 9.0
"""Of the heat map that a known place is taught by."""
OUTLINE_WEIGHT = 0.1
"""What it counts where a head's outline says a box lies, against a place that people marked."""
PER_MM = 0.05
"""Of the distance from a place, beside the cross-entropy of its heat map."""

VARIED = AugmentConfig(
    mirror=0.5, rotate=18.0, scale=0.15, shift=24.0, contrast=0.3, brightness=0.3, noise=0.15, gamma=0.5, invert=0.25
)
CUT_SHARE = 0.3
"""Of the samples, for each side: the field of view is made to end earlier."""
CUT_MM = (25.0, 110.0)
"""So far from the middle of what is known."""

DRAWS = 4
"""Varied looks at each series by which it is judged what is unsure."""
UNSURE = 1.5
"""So many times the doubt that one of a hundred such looks leaves."""
HELD = 99.0
"""Percent of the points that lie about the middle of the box by the same on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A series to learn from.

    Attributes:
        survey: A coarse look at it.
        places_P3: Where its places lie, in mm from the middle of the scan's first voxel; NaN for those not known.
        points_K3: All its points, likewise.
        outlined: Whether its outline says where the box lies.
    """

    survey: Survey
    places_P3: NDArray[np.float64]
    points_K3: NDArray[np.float64]
    outlined: bool

    @property
    def known_P(self) -> NDArray[np.bool_]:
        """Which places are."""
        return np.asarray(np.isfinite(self.places_P3).all(axis=1))


def read_lesson(case: Case, task: Task) -> Lesson:
    """Read a series of the corpus.

    Args:
        case: The series.
        task: Whose places are looked for.

    Raises:
        UserError: A file is gone or damaged; names the series.
    """
    volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
    if volume.stored_XYZ.ndim != 3:
        raise UserError("this corpus stores baked CT windows; harmonize without --bake-windows")
    origin_mm = volume.affine[:3, 3]
    places_P3 = places_of_points(case, origin_mm, task.places)
    if case.mask is not None:
        mask = read_corpus_file(case.mask, scan_id=case.scan_id, shape=volume.stored_XYZ.shape)
        masked_P3 = places_of_mask(mask.stored_XYZ, volume.spacing, case, task.mask_values[: task.places])
        places_P3 = masked_P3 if np.isfinite(masked_P3).any() else places_P3
    return Lesson(
        survey=survey_of(volume, unit=case.unit, foreground_box=case.foreground_box),
        places_P3=places_P3,
        points_K3=np.array([spot.xyz_mm for spot in case.spots], dtype=np.float64).reshape(-1, 3) - origin_mm,
        outlined=shows_outline(case),
    )


def teach(
    lessons: Sequence[Lesson],
    task: Task,
    *,
    steps: int = STEPS,
    seed: int = 0,
    asked: Callable[[], bool] = lambda: False,
) -> Finder | None:
    """Train a finder; the same series and seed give the same one on the same machine.

    Args:
        lessons: Series to learn from.
        task: Whose places are looked for.
        steps: Of the optimizer, of `BATCH` samples.
        seed: Of all that is drawn.
        asked: Whether to stop.

    Returns:
        The finder; None when it was asked to stop.

    Raises:
        UserError: No series has a mask or a point.
    """
    weights_N = np.array([1.0 if one.known_P.any() else 0.25 * one.outlined for one in lessons])
    if not any(one.known_P.any() for one in lessons):
        raise UserError("none of the training series has a mask or a point: there is nothing to find a box by")
    torch.manual_seed(seed)
    network = FinderNetwork(task.places).to(memory_format=torch.channels_last_3d)

    def loss_of(step: int) -> tuple[Tensor, dict[str, str]]:
        loss, error_mm = _loss(network, _batch(lessons, weights_N, task, [seed, step]))
        return loss, {"mm": f"{error_mm:.1f}"}

    plan = Plan(steps=steps, rate=RATE, warmup=WARMUP, weight_decay=1e-4)
    if not train_briefly(network, plan, loss_of, name="roi", asked=asked):
        return None
    return _measured(network.eval().requires_grad_(False), lessons, task, seed)


def _draw(
    lesson: Lesson, task: Task, generator: np.random.Generator
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """A varied look at a series, where its places and the middle of its outline lie in it: (P, 3) and (3,)."""
    survey, more = lesson.survey, np.random.default_rng(generator.integers(2**62))
    pose = draw_pose(VARIED, generator)
    places_P3, anchor_3 = lesson.places_P3, np.asarray(survey.anchor_mm)
    known_P = lesson.known_P
    middle_3 = places_P3[known_P].mean(0) if known_P.any() else anchor_3
    cut_mm = []
    for axis in range(3):
        ends = [
            middle_3[axis] + sign * generator.uniform(*CUT_MM) if generator.random() < CUT_SHARE else sign * np.inf
            for sign in (-1, 1)
        ]
        cut_mm.append(ends)
    linear = pose.linear
    if task.mirror is None and pose.mirrored:
        linear = linear @ np.diag([-1.0, 1.0, 1.0])
    x = look(survey, linear, pose.shift, cut_mm)
    x[: CHANNELS - 1] = vary_intensity(x[: CHANNELS - 1], draw_variation(VARIED, generator, more))
    back = np.linalg.inv(linear).T
    moved_P3 = (places_P3 - anchor_3 - pose.shift) @ back
    if task.mirror is not None and np.linalg.det(linear) < 0:
        moved_P3 = moved_P3[list(task.mirror[: task.places])]
    return x, moved_P3, -np.asarray(pose.shift) @ back


def _batch(
    lessons: Sequence[Lesson], weights_N: NDArray[np.float64], task: Task, seeds: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Looks, places with NaN where they are not known, middles of outlines, and which of these count."""
    generator = np.random.default_rng(list(seeds))
    drawn = generator.choice(len(lessons), size=BATCH, p=weights_N / weights_N.sum())
    looks, places, outlines = zip(*(_draw(lessons[n], task, generator) for n in drawn), strict=True)
    return (
        torch.stack(looks).to(memory_format=torch.channels_last_3d),
        torch.from_numpy(np.stack(places)).float(),
        torch.from_numpy(np.stack(outlines)).float(),
        torch.tensor([lessons[n].outlined and not lessons[n].known_P.any() for n in drawn]),
    )


def _loss(network: FinderNetwork, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, float]:
    """The loss, and the mean distance of the places that are known."""
    x_BCXYZ, places_BP3, outlines_B3, outlined_B = batch
    logits = network(x_BCXYZ)
    means_BP3, _ = places_mm(logits)
    known_BP = torch.isfinite(places_BP3).all(-1)
    wanted_BP3 = torch.nan_to_num(places_BP3)
    entropy_BP = -(heat_targets(wanted_BP3, WIDTH_MM) * F.log_softmax(logits.flatten(2).float(), -1)).sum(-1)
    off_mm_BP = (means_BP3 - wanted_BP3).norm(dim=-1)
    # Each series counts once, whether a mask tells all its places or a point one of them.
    share_BP = known_BP / known_BP.sum(1, keepdim=True).clamp(min=1)
    of_places_B = ((entropy_BP + PER_MM * off_mm_BP) * share_BP).sum(1)
    of_outline_B = PER_MM * (means_BP3.mean(1) - outlines_B3).norm(dim=-1)
    loss = (of_places_B + OUTLINE_WEIGHT * outlined_B * of_outline_B).sum() / len(x_BCXYZ)
    count = int(known_BP.sum())
    return loss, float((off_mm_BP * known_BP).detach().sum()) / max(count, 1)


@torch.inference_mode()
def _measured(network: FinderNetwork, lessons: Sequence[Lesson], task: Task, seed: int) -> Finder:
    """The finder with a limit of doubt, and a template laid so that a box about its middle holds the points best."""
    found_N = [places_mm(network(look(one.survey)[None])) for one in lessons]
    means_NP3 = np.stack([means[0].double().numpy() for means, _ in found_N])
    spreads_NP = np.stack([spreads[0].double().numpy() for _, spreads in found_N])
    surest_N = spreads_NP.mean(1) <= np.quantile(spreads_NP.mean(1), 0.75)
    template_P3 = np.median((means_NP3 - means_NP3.mean(1, keepdims=True))[surest_N], axis=0)
    if task.mirror is not None:  # on average a head is as its mirror image
        mirrored_P3 = template_P3[list(task.mirror[: task.places])] * (-1, 1, 1)
        template_P3 = (template_P3 + mirrored_P3) / 2
    offsets, points = [], 0
    for number, lesson in enumerate(lessons):
        centre_3, _, _ = fit(means_NP3[number], spreads_NP[number], template_P3)
        own = lesson.points_K3 if len(lesson.points_K3) else lesson.places_P3[lesson.known_P]
        points += len(lesson.points_K3)
        offsets.append(own - centre_3 - lesson.survey.anchor_mm)
    offsets_M3 = np.concatenate(offsets)
    tail = (100 - HELD) / 2
    low_3, high_3 = np.percentile(offsets_M3, [tail, 100 - tail], axis=0)
    middle_3 = (low_3 + high_3) / 2
    if task.mirror is not None:
        middle_3[0] = 0.0
    template_P3 = template_P3 - middle_3
    doubts = []
    generator = np.random.default_rng([seed, 1])
    for lesson in lessons:
        looks = torch.stack([_draw(lesson, task, generator)[0] for _ in range(DRAWS)])
        means_BP3, spreads_BP = places_mm(network(looks.to(memory_format=torch.channels_last_3d)))
        doubts += [
            fit(means.double().numpy(), spreads.double().numpy(), template_P3)[2]
            for means, spreads in zip(means_BP3, spreads_BP, strict=True)
        ]
    return Finder(
        network=network,
        template_P3=template_P3,
        most_doubt_mm=UNSURE * float(np.percentile(doubts, HELD)),
        facts={
            "series": len(lessons),
            "with_places": sum(bool(one.known_P.any()) for one in lessons),
            "points": points,
            "holds_mm": [round(float(edge), 1) for edge in 2 * np.percentile(abs(offsets_M3 - middle_3), HELD, axis=0)],
        },
    )


def held(finder: Finder, lessons: Sequence[Lesson], edges_mm: Sequence[float]) -> dict[str, object]:
    """How many points of series a box of some size loses, as it is found and as the head's outline lays it.

    Args:
        finder: The finder.
        lessons: The series.
        edges_mm: Of the box along R, A and S.
    """
    half_3 = np.asarray(edges_mm) / 2
    lost = {"found": 0, "fixed": 0}
    unsure = 0
    for lesson in lessons:
        found = finder.find_in(lesson.survey)
        unsure += found.laid != "found"
        for name, centre_mm in (("found", found.centre_mm), ("fixed", lesson.survey.anchor_mm)):
            lost[name] += int((abs(lesson.points_K3 - centre_mm) > half_3).any(1).sum())
    return {
        "series": len(lessons),
        "points": sum(len(lesson.points_K3) for lesson in lessons),
        "edges_mm": [round(float(edge), 1) for edge in edges_mm],
        "found_lost": lost["found"],
        "fixed_lost": lost["fixed"],
        "unsure": unsure,
    }


def finder_notes(view: View, data: DataConfig) -> list[str]:
    """Whether the finder that a view looks through has seen series that a run holds out; lines for people."""
    finder = view.finder if isinstance(view, RoiView) else None
    keys = ("fold", "folds", "fold_seed")
    if finder is None or all(finder.facts.get(key) == getattr(data, key) for key in keys):
        return []
    fold, folds = finder.facts.get("fold"), finder.facts.get("folds")
    return [
        f"view.model: its finder learned from series that this run holds out (it left out fold {fold} of {folds}); "
        f"`finetune roi` makes one of fold {data.fold}, or of --every-fold"
    ]
