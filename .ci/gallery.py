"""Write docs/recipes.md: each recipe of recipes/ with what it is for and what it costs.

What it is for is the first sentence of its file. Costs that were measured come from docs/benchmarks/, and say where
from; all others are estimates of tests/benchmarks/estimate_recipes.py, and are named so.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks"
CONTEXT_GIB = 1.0
"""What CUDA and its libraries take before anything is computed."""

HEAD = """\
# Recipes, and what each costs

Written by `make reference`; a test says whether it is current.
A recipe is a YAML file to copy and edit; [keys.md](keys.md) explains every key, and each key is an option too.

Numbers with a link were measured on two threads of a CPU core. All else is an **estimate**, marked with ~, for nothing
was timed on a GPU: operations and memory of a step are counted on empty tensors
(`tests/benchmarks/estimate_recipes.py`), and {tflops:.0f} TFLOP/s are assumed, a tenth of what an A100 names. So hours
are arithmetic alone, on one GPU: the least that a run takes. Samples have to be made as fast, and validation and slow
disks come on top; where a network is small (pictures instead of volumes) the making of samples decides. A batch that
does not fit is halved by itself, at the same result.
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Recipes of one table.

    Attributes:
        title: Its heading.
        names: Which recipes, as a pattern of their names.
        cpu: Whether they are for two CPU cores.
        text: What to know of all of them.
    """

    title: str
    names: str
    cpu: bool
    text: str


GROUPS = (
    Group(
        "A first look, on phantoms and two CPU cores", r"\w*demo\w*|rsna_phantom\w*", True,
        "No GPU and no data are needed. Minutes are those of the training of one fold, the mean of five.",
    ),
    Group(
        "Pretrain an encoder", r"resenc_[sml]|single_gpu_24gb|multi_node|openmind_\w+", False,
        "[pretraining.md](pretraining.md) has what holds for all of them, [method.md](method.md) why they need so "
        "little memory. Any corpus will do.",
    ),
    Group(
        "Find aneurysms", r"rsna_(?!phantom)\w+", False,
        "Hours are those of one fold of five; [finetuning.md](finetuning.md) explains the stages, "
        "[rsna.md](rsna.md) goes on to a submission.",
    ),
    Group(
        "Ask whether pretraining helps", r"transfer_\w+", True,
        "`finetune study` runs the study; the other two are what its runs share. [transfer.md](transfer.md) has what "
        "it is.",
    ),
    Group(
        "Labels and masks of your own, and published masks", r"table_(?!demo)\w+|masks_seg\w+|topcow|amos_\w+", False,
        "[your-task.md](your-task.md) has what tables and masks look like.",
    ),
)  # fmt: skip

CIRCLE = "RSNA 2025: 4,348 series; a corpus of boxes at 0.5 mm, 96 GB"
HEADS = "RSNA 2025: 4,348 series; a corpus of heads at 0.5 mm, 260 GB"
DATA: tuple[tuple[str, str], ...] = (
    (r"demo|demo_vessels|demo_hybrid", "8 phantom scans of each source"),
    (r"demo_rsna", "96 phantom series"),
    (r"rsna_phantom_roi", "240 phantom series of every field of view"),
    (r"rsna_phantom\w*", "240 phantom series"),
    (r"\w+_demo", "24 phantom scans"),
    (r"transfer_\w+", "phantoms, which the study writes itself"),
    (r"rsna_(roi|resized)", HEADS),
    (r"rsna_\w+", CIRCLE),
    (r"openmind_resencl", "OpenMind: 114,000 MRI, 1 TB"),
    (r"openmind_ct_mri", "OpenMind, TCIA, RSNA and DeepLesion, more than 1 TB"),
    (r"resenc_\w+|single_gpu_24gb|multi_node", "any corpus of heads at 1 mm, 2 to 14 MB a scan"),
    (r"masks_segmentation", "a corpus with masks; of RSNA 178 series have one"),
    (r"topcow", "TopCoW: 125 people, CTA and MRA"),
    (r"amos_organs", "AMOS: 360 CT and MRI with masks"),
    (r"amos_to_brain", "brains with masks of the hemispheres"),
    (r"table_\w+", "a corpus with a table; 1,000 training series are assumed"),
)
"""By the first pattern that a name matches."""


def gallery() -> str:
    """The page."""
    costs = json.loads((BENCHMARKS / "recipe_costs.json").read_text(encoding="utf-8"))
    paths = sorted(ROOT.glob("recipes/*.yaml"))
    left = {path.stem for path in paths}
    lines = [HEAD.format(tflops=costs["tflops"])]
    for group in GROUPS:
        mine = [path for path in paths if re.fullmatch(group.names, path.stem)]
        left -= {path.stem for path in mine}
        names = ("minutes",) if group.cpu else ("GPU memory, GiB", "GPU hours, at least")
        lines += [
            f"## {group.title}",
            "",
            *textwrap.wrap(group.text, 120),
            "",
            "| recipe | for | data | " + " | ".join(names) + " |",
        ]
        lines.append("|---|---|---|" + "---:|" * len(names))
        for path in mine:
            cost = costs["recipes"].get(path.stem)
            if cost is None and not is_study(path):
                raise SystemExit(f"recipes/{path.name}: not in recipe_costs.json; run estimate_recipes.py")
            cells = [minutes(path.stem)] if group.cpu else [memory(cost), hours(cost)]
            link = f"[`{path.name}`](../recipes/{path.name})"
            lines.append("| " + " | ".join([link, purpose(path), data(path.stem), *cells]) + " |")
        lines.append("")
    if left:
        raise SystemExit(f"recipes of no group in .ci/gallery.py: {', '.join(sorted(left))}")
    return "\n".join(lines).rstrip() + "\n"


def is_study(path: Path) -> bool:
    """Whether a recipe is that of a study, which costs what its runs do."""
    return re.search(r"^arms:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def purpose(path: Path) -> str:
    """The first sentence of a recipe's file."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    sentence = re.match(r"(.*?\.)(?= [A-Z]|$)", " ".join(comment))
    if sentence is None:
        raise SystemExit(f"{path}: its first comment is no sentence that says what it is for")
    return sentence[1].replace("|", "\\|")


def data(name: str) -> str:
    """What a recipe learns from."""
    for pattern, text in DATA:
        if re.fullmatch(pattern, name):
            return text
    raise SystemExit(f"{name}: .ci/gallery.py does not say what data it wants")


def memory(cost: dict[str, Any]) -> str:
    """Estimated memory of a GPU."""
    return f"~{math.ceil(cost['gpu_gib'] + CONTEXT_GIB)}"


def hours(cost: dict[str, Any]) -> str:
    """Estimated hours on a GPU."""
    found = float(cost["gpu_hours"])
    return f"~{found:.0f}" if found >= 1 else "less than 1"


STUDY_MINUTES = {"transfer_finetune": 3, "transfer_pretrain": 14, "transfer_study": 130}
"""Of the study that docs/transfer.md has, and of its runs."""


def minutes(name: str) -> str:
    """Minutes on a CPU, of a fold of five or of a study, with where they stand."""
    if name in STUDY_MINUTES:
        return f"[{STUDY_MINUTES[name]}](transfer.md#what-it-takes)"
    found = json.loads((BENCHMARKS / "baselines.json").read_text(encoding="utf-8"))["contenders"]
    for one in found:
        if one["name"] == name:
            return f"[{max(1.0, one['minutes'] / one['folds']):.0f}](baselines.md#all-of-them-side-by-side)"
    return "not measured"


def main() -> int:
    """Write the page."""
    (ROOT / "docs" / "recipes.md").write_text(gallery(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
