"""Pack fine-tuned models, the code and wheels into a folder that answers the competition's gateway without internet."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune
import harmonize
import headspark
from finetune.finder.beside import BESIDE_FILES
from finetune.geometry import GEOMETRY_FILES, read_geometry, save_geometry
from finetune.kaggle.packed import CODE, GEOMETRY, MODELS, PACK, SCHEMA_VERSION, SUBMISSION, WHEELS
from finetune.kaggle.server import default_row
from finetune.model_folder import CONFIG, WEIGHTS, load_model, read_bundle, save_bundle
from finetune.predict.ensemble import read_panel
from finetune.predict.folds import refuse_unfinished
from harmonize import phantom
from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json, write_text
from harmonize.labels import LABELS
from harmonize.terminal import warn
from headspark.folder_kind import is_model_config, read_json
from headspark.folders import replaced

PACKAGES = (harmonize, headspark, finetune)
README = "README.md"
DEEPEST = 5
"""Folders in a package, at most."""

_CODE_FILES = tuple(f"{CODE}/{'*/' * depth}{name}" for depth in range(1, DEEPEST + 1) for name in ("*.py", "report.*"))
PACK_FILES = (
    *_CODE_FILES, PACK, SUBMISSION, README, f"{WHEELS}/*.whl", *(f"{GEOMETRY}/{name}" for name in GEOMETRY_FILES),
    *(f"{MODELS}/*/{name}" for name in (CONFIG, WEIGHTS, "nyul/*.npy", "synthstrip.pt", *BESIDE_FILES)),
)  # fmt: skip
"""All that a pack holds, as patterns; a folder with other files is not replaced."""

DECODERS = {
    "pylibjpeg": "pylibjpeg",
    "pylibjpeg-openjpeg": "openjpeg",
    "pyjpegls": "jpeg_ls",
    "python-gdcm": "gdcm",
}
"""Distributions that only compressed pictures need, and what each is imported by."""

TRIAL: dict[str, Any] = {"scans": 4, "size": 24, "seed": 0, "difficulty": "easy"}
"""Phantom series that a pack is tried on: two CT, two MR."""

_SUBMISSION = '''"""Answer the competition's gateway. In the notebook, as its one cell: %run -i {path}"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True  # this folder stays what was packed: it is uploaded, and may be packed again
HERE = Path(__file__).resolve().parent
PACK = json.loads((HERE / "pack.json").read_text())


def is_installed(wheel):
    try:
        return bool(importlib.metadata.version(wheel.name.split("-")[0]))
    except importlib.metadata.PackageNotFoundError:
        return False


def lacking(modules):
    return [name for name, module in modules.items() if importlib.util.find_spec(module) is None]


# Of the wheels, those of what this machine lacks go into a temporary folder; what it has stays as it is.
names = {{wheel.name.split("-")[0] for wheel in (HERE / "wheels").glob("*.whl") if not is_installed(wheel)}}
for name in sorted(names):
    target = tempfile.mkdtemp(prefix="wheel-")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    if subprocess.run([*command, "--find-links", str(HERE / "wheels"), "--target", target, name]).returncode == 0:
        sys.path.append(target)
missing = lacking(PACK["modules"])
if missing:
    sys.exit(
        f"error: {{', '.join(missing)}}: not installed here, and no wheel that fits in {{HERE / 'wheels'}}; "
        "pip download them where there is internet, and pack again with finetune kaggle --wheels FOLDER"
    )
for name in lacking(PACK["decoders"]):
    print(f"note: {{name}} is not installed here: some compressed series get the fallback", file=sys.stderr)
sys.path.insert(0, str(HERE / "code"))

from finetune.kaggle.packed import main

if __name__ == "__main__":
    code = main(HERE)
    if code:
        sys.exit(code)
'''

_README = """# Submission to RSNA 2025 intracranial aneurysm detection

Written by `finetune kaggle`: {models} fine-tuned model(s) of headspark {version}, and the code that asks them.

1. Try it here: `python submission.py --try SERIES_FOLDER`
2. Upload this folder as a Kaggle dataset: `kaggle datasets create -p THIS_FOLDER --dir-mode zip`
3. In a notebook of the competition, with internet off and that dataset added, one cell:
   `%run -i /kaggle/input/DATASET/submission.py`

What it imports, with the versions that it was tried with:

{modules}

Wheels in `wheels/` of what Kaggle lacks are installed at the start, and no others. `pip download` what is missing, for
Kaggle's Python, on a machine with internet, and give that folder as `finetune kaggle --wheels FOLDER`.

A series that cannot be used, or that anything fails on, is answered with the fallback in `pack.json`: {fallback}.
"""


def pack(
    folders: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] | None,
    wheels: Path | None,
    geometry: Path | None = None,
) -> None:
    """Write the folder, and try it in a process of its own that knows nothing of this installation's code.

    Args:
        folders: Of finished runs, or of cross-validations, whose folds are all packed.
        out: Where; a pack that was there is replaced as a whole.
        weights: What the logits of each folder's models count; None: all models the same.
        wheels: A folder of wheels to take along.
        geometry: What `finetune geometry` wrote, to take along.

    Raises:
        UserError: A model is damaged, folds are lacking, it answers something else, or the pack does not answer.
        WrongUse: `out` holds something else; it stays as it is.
    """
    for folder in folders:
        refuse_unfinished(folder)
    panel = read_panel(folders, weights)
    reader = None if geometry is None else read_geometry(geometry)
    if tuple(panel.labels) != tuple(LABELS):
        raise WrongUse(
            f"{folders[0]}: answers other labels than the competition asks for; give models of task.aneurysm"
        )
    found = sorted(wheels.glob("*.whl")) if wheels is not None else []
    if wheels is not None and not found:
        raise WrongUse(f"--wheels {wheels}: no wheels (*.whl) there; `pip download -d FOLDER NAME` writes them")
    with replaced(out, names=PACK_FILES, is_ours=_is_ours, what="packed submission") as temporary:
        models = []
        for number, member in enumerate(panel.members):
            place = temporary / MODELS / str(number)
            place.mkdir(parents=True)
            bundle = read_bundle(member.folder)
            bundle = replace(bundle, data=replace(bundle.data, cache_dir=None))
            save_bundle(place, bundle, load_model(member.folder, bundle).state_dict())
            models.append({"folder": str(number), "weight": float(member.weight)})
        _copy_code(temporary / CODE)
        (temporary / WHEELS).mkdir()
        for wheel in found:
            shutil.copyfile(wheel, temporary / WHEELS / wheel.name)
        if reader is not None:
            (temporary / GEOMETRY).mkdir()
            save_geometry(temporary / GEOMETRY, reader)
        fallback, whence = _fallback(folders)
        facts: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "headspark": harmonize.__version__,
            "models": models,
            "fallback": fallback,
            GEOMETRY: reader is not None,
            "modules": {},
            "decoders": DECODERS,
        }
        write_json(temporary / PACK, facts)
        write_text(temporary / SUBMISSION, _SUBMISSION.format(path=f"/kaggle/input/DATASET/{SUBMISSION}"))
        facts["modules"] = needed = _distributions(_try(temporary))
        write_json(temporary / PACK, facts)
        table = "\n".join(f"- {name} {importlib.metadata.version(name)}" for name in needed)
        write_text(
            temporary / README,
            _README.format(models=len(models), version=harmonize.__version__, modules=table, fallback=whence),
        )


def _fallback(folders: Sequence[Path]) -> tuple[dict[str, float], str]:
    """What is said of a series that cannot be used, and where that comes from."""
    rows = [default_row(folder) for folder in folders]
    mean = {label: sum(row[label] for row in rows) / len(rows) for label in LABELS}
    if not any(len(set(row.values())) > 1 for row in rows):
        warn("note: no held-out predictions beside the models: the fallback says 0.5 of every label")
        return mean, "0.5 of every label, for there were no held-out predictions beside the models"
    return mean, "the median of what the models said of held-out series"


def _copy_code(target: Path) -> None:
    for package in PACKAGES:
        source = Path(str(package.__file__)).parent
        for path in sorted(source.rglob("*")):
            if path.suffix in (".py", ".css", ".js") and path.is_file():
                place = target / source.name / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def _try(folder: Path) -> list[str]:
    """Let a fresh process answer phantom series; gives the packages that our code had imported there.

    Raises:
        UserError: It did not run, or answered none.
    """
    with tempfile.TemporaryDirectory(prefix="headspark-kaggle-") as name:
        (root,) = phantom.write("rsna", Path(name), **TRIAL)
        series = sorted(map(str, (root / "series").iterdir()))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(folder.resolve() / SUBMISSION), "--modules", "--try", *series],
            cwd=name, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    if done.returncode:
        raise UserError(f"the packed models do not run ({said.removeprefix('error: ')}); nothing was written")
    loaded = set(json.loads(done.stdout)["modules"])
    return [module for module in _imported(folder / CODE) if module in loaded]


def _imported(code: Path) -> list[str]:
    """The packages that code imports, ours left out."""
    ours = {package.__name__ for package in PACKAGES}
    names = {name.partition(".")[0] for path in code.rglob("*.py") for name in _imports(ast.parse(path.read_bytes()))}
    return sorted(names - ours - set(sys.stdlib_module_names))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _distributions(modules: Sequence[str]) -> dict[str, str]:
    """The distribution that each package is of, and the package."""
    of_module = importlib.metadata.packages_distributions()
    optional = set(DECODERS.values())
    return {of_module[module][0]: module for module in modules if module in of_module and module not in optional}


def _is_ours(folder: Path) -> bool:
    """Whether a folder that holds no other files than `PACK_FILES` was written by `pack`."""
    found = read_json(folder / PACK)
    return found is not None and "fallback" in found and is_model_config(read_json(folder / MODELS / "0" / CONFIG))
