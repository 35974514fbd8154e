"""What of a multi-frame file's geometry is found again after a gateway has stripped it, and how far answers change.

    python tests/benchmarks/bench_stripped.py --geometry GEOMETRY --model CV --series 16 --seed 101 --json stripped.json

Phantom series of every modality are written as one file each, stripped to the elements that the competition's gateway
leaves in, and read again: by the head's outline alone, and by the network of `finetune geometry` (which must have
learned from other seeds). With ``--model``, the answers about each are compared with those about the whole file; also
where the geometry is the true one but for the tilt of the pictures, and but for a hundredth of the pixels' size: what
changes then is what a trained model makes of a difference that no estimate can be free of.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from bench_harmonize import describe_machine
from numpy.typing import NDArray
from standin_gateway import strip_series

from finetune.geometry import read_geometry
from finetune.predict import Answer, Predictor
from harmonize.dicom.estimate import WAYS, Estimate, Estimator, estimate_stack
from harmonize.files import write_json
from harmonize.phantom import rsna
from harmonize.phantom.rsna.plan import plan_series
from harmonize.sources.dicom_series import load_series
from harmonize.terminal import say

NORMAL_AXIS = {0: "sagittal", 1: "coronal", 2: "axial"}


def true_geometry(series: Path) -> Estimate:
    """What a whole multi-frame file says, but for the tilt of its pictures."""
    (path,) = series.iterdir()
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    shared, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence

    def group(name: str, frame: int = 0) -> Any:
        return getattr(shared if name in shared else frames[frame], name)[0]

    orientation = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, dtype=float)
    first, second = (np.array(group("PlanePositionSequence", k).ImagePositionPatient, dtype=float) for k in range(2))
    normal = np.cross(orientation[:3], orientation[3:])
    way = NORMAL_AXIS[int(np.argmax(abs(normal)))]
    upright = np.cross(WAYS[way][:3], WAYS[way][3:])
    return Estimate(
        pixel_mm=float(group("PixelMeasuresSequence").PixelSpacing[0]),
        pixel_error=0.0,
        step_mm=float(np.linalg.norm(second - first)),
        step_error=0.0,
        way=way,
        direction=1 if (second - first) @ upright > 0 else -1,
    )


def change(one: Answer, other: Answer) -> float:
    """Of the probability that changes most."""
    return max(abs(one.probabilities[label] - other.probabilities[label]) for label in one.probabilities)


class Remembering:
    """An estimator that keeps what it said last."""

    def __init__(self, estimate: Estimator) -> None:
        self.estimate, self.said = estimate, None

    def __call__(self, voxels_ZYX: NDArray[Any], unit: str) -> Estimate | None:
        """What the estimator says."""
        self.said = self.estimate(voxels_ZYX, unit)
        return self.said


def compared(said: Estimate | None, true: Estimate) -> dict[str, Any]:
    """How far off an estimate is."""
    if said is None:
        return {"none": True}
    return {
        "none": False,
        "pixel_off": abs(said.pixel_mm / true.pixel_mm - 1),
        "step_off": abs(said.step_mm / true.step_mm - 1),
        "pixel_in_two_sigma": bool(abs(np.log(said.pixel_mm / true.pixel_mm)) < 2 * said.pixel_error),
        "step_in_two_sigma": bool(abs(np.log(said.step_mm / true.step_mm)) < 2 * said.step_error),
        "wrong_way": said.way != true.way,
        # Both sides of a head look the same: sagittal slices have no direction that could be seen.
        "wrong_direction": said.way == true.way != "sagittal" and said.direction != true.direction,
    }


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all series."""
    told = [row for row in rows if not row["none"]]
    return {
        "series": len(rows),
        "no_estimate": len(rows) - len(told),
        **{
            f"{name}_percent": {
                "median": round(100 * float(np.median([row[name] for row in told])), 1),
                "most": round(100 * max(row[name] for row in told), 1),
            }
            for name in ("pixel_off", "step_off")
        },
        **{
            name: sum(bool(row[name]) for row in told)
            for name in ("pixel_in_two_sigma", "step_in_two_sigma", "wrong_way", "wrong_direction")
        },
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is written."""
    ways: dict[str, Estimator] = {"outline": estimate_stack}
    if options.geometry is not None:
        ways["network"] = read_geometry(options.geometry)
    predictor = None if options.model is None else Predictor(options.model)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    changes: dict[str, list[float]] = {}
    series = []
    with tempfile.TemporaryDirectory() as name:
        for index in range(options.series):
            plan = replace(plan_series(index, seed=options.seed), multiframe=True, segmented=False)
            root = Path(name) / str(index)
            rsna.write_series(root, plan, options.size, "protocol")
            whole = root / "series" / plan.uid
            stripped, true = strip_series(whole, Path(name) / f"{index}-stripped"), true_geometry(whole)
            said: dict[str, Estimator] = {}
            for way, estimate in ways.items():
                remembering = Remembering(estimate)
                load_series(stripped, remembering)
                found[way].append(compared(remembering.said, true))
                said[way] = lambda *_, answer=remembering.said: answer
            row: dict[str, Any] = {"modality": plan.modality, "way": true.way}
            if predictor is not None:
                near = replace(true, pixel_mm=1.01 * true.pixel_mm)
                others = {"true but for the tilt": true, "true but for 1 % of a pixel": near}
                said |= {way: (lambda *_, answer=one: answer) for way, one in others.items()}
                row["changes"] = _changes(predictor, whole, stripped, said)
                for way, value in row["changes"].items():
                    changes.setdefault(way, []).append(value)
            series.append(row | {way: found[way][-1] for way in ways})
            say(f"{index + 1}/{options.series} {row}")
    return {
        "command": "python tests/benchmarks/bench_stripped.py --geometry GEOMETRY --model CV "
        f"--series {options.series} --seed {options.seed} --size {options.size} --json FILE",
        "machine": describe_machine(),
        "learned_from": read_geometry(options.geometry).facts if options.geometry is not None else None,
        "estimates": {way: summed(rows) for way, rows in found.items()},
        "changes": {
            way: {"median": round(float(np.median(values)), 3), "most": round(max(values), 3)}
            for way, values in changes.items()
        },
        "each": series,
    }


def _changes(
    predictor: Predictor, whole: Path, stripped: Path, estimators: Mapping[str, Estimator]
) -> dict[str, float]:
    before = predictor.answer(whole)
    found = {}
    for way, estimate in estimators.items():
        predictor.estimate = estimate
        found[way] = round(change(before, predictor.answer(stripped)), 4)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", type=Path, help="of `finetune geometry`")
    parser.add_argument("--model", type=Path, help="a finished run or cross-validation")
    parser.add_argument("--series", type=int, default=16)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = measure(options)
    say(str(facts["estimates"]))
    say(str(facts["changes"]))
    if options.json is not None:
        write_json(options.json, facts)


if __name__ == "__main__":
    main()
