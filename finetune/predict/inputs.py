"""From a harmonized scan to what networks see of it, as in their training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.drawing import kind_of
from finetune.finder import finder_sha256
from finetune.finder.beside import finder_of, without_finder
from finetune.model_folder import Bundle
from finetune.raw.look import CT, MR, Harmonized, Wish
from finetune.samples import DataConfig
from finetune.series import BY_OUTLINE, Region
from finetune.tasks import TaskConfig, make_task
from finetune.views import ViewConfig, make_view
from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.files import sha256_of
from harmonize.scan import HU
from harmonize.settings import Settings
from headspark.channels import MRI_UNITS
from headspark.config import to_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One way in which a series becomes what networks see; models that differ in nothing else share it.

    Attributes:
        task: What is asked.
        view: What is seen.
        data: How it is cut.
        wish: The number of the way in which it is harmonized.
    """

    task: TaskConfig
    view: ViewConfig
    data: DataConfig
    wish: int


def kinds_of(data: DataConfig) -> frozenset[str]:
    """The series that a model is for, by `data.modalities` of its recipe: `CT`, `MR` or both."""
    return frozenset(map(kind_of, data.modalities)) or frozenset({CT, MR})


def inputs_of(bundles: Sequence[Bundle]) -> tuple[tuple[Wish, ...], tuple[Input, ...], tuple[int, ...]]:
    """The different ways to harmonize for some models, their different inputs, and the number of each model's input."""
    of_wish: dict[str, int] = {}
    of_input: dict[str, int] = {}
    wishes: list[Wish] = []
    inputs: list[Input] = []
    numbers = []
    for bundle in bundles:
        kinds = kinds_of(bundle.data)
        wish = of_wish.setdefault(_settings_key(bundle.settings), len(wishes))
        if wish == len(wishes):
            wishes.append(Wish(settings=bundle.settings, kinds=kinds))
        wishes[wish] = dataclasses.replace(wishes[wish], kinds=wishes[wish].kinds | kinds)
        number = of_input.setdefault(_key(bundle, wish), len(inputs))
        if number == len(inputs):
            inputs.append(Input(task=bundle.task, view=bundle.view, data=bundle.data, wish=wish))
        numbers.append(number)
    return tuple(wishes), tuple(inputs), tuple(numbers)


def regions_of(series: Harmonized, inputs: Sequence[Input]) -> list[Region | None]:
    """What is kept of a series for each input; None where it was not harmonized for that.

    Raises:
        Rejection: The task is not about such a scan.
    """
    regions: list[Region | None] = []
    for each in inputs:
        task = make_task(each.task)
        task.check_scan(series.scan)
        found = series.volumes[each.wish]
        if found is None:
            regions.append(None)
            continue
        if found.unit not in (HU, *MRI_UNITS):
            raise Rejection(Reason.BAD_INTENSITY, f"the model knows no intensities in {found.unit!r}")
        view = make_view(each.view, each.data, task)
        whole = each.data.inference == "bag"
        regions.append(view.cut(found.volume, unit=found.unit, foreground_box=found.foreground_box, whole=whole))
    return regions


def decisions_of(series: Harmonized, regions: Sequence[Region | None] = ()) -> tuple[str, ...]:
    """What was found and done, in order.

    Args:
        series: As it was harmonized.
        regions: What the models saw of it.
    """
    decisions = next(tuple(map(str, volume.decisions)) for volume in series.volumes if volume is not None)
    laid = dict.fromkeys(BY_OUTLINE[one.laid] for one in regions if one is not None and one.laid in BY_OUTLINE)
    return (*decisions, *(str(DecisionKind.BOX_BY_OUTLINE(why=why)) for why in laid))


def _key(bundle: Bundle, wish: int) -> str:
    """Two models with the same have the same input; the fold that one was held out from changes nothing of it."""
    data = {name: value for name, value in to_plain(bundle.data).items() if name != "fold"}
    task = make_task(bundle.task)
    asked = bundle.task.kind, task.mirror, task.mask_values
    finder = finder_of(bundle.view)
    view = without_finder(to_plain(bundle.view)), "" if finder is None else finder_sha256(finder)
    return repr((asked, view, sorted(data.items()), wish))


def _settings_key(settings: Settings) -> str:
    """Settings by what they do: files that each model has a copy of count by their content."""
    plain = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    histograms, brain = plain.pop("nyul_folder"), plain.pop("brain_model")
    files: list[Path] = sorted(histograms.glob("*.npy")) if histograms is not None else []
    files += [brain] if brain is not None and settings.apply_brain else []
    return repr((sorted(plain.items()), [(path.name, sha256_of(path)) for path in files]))
