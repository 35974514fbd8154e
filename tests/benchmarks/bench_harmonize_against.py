"""Time of harmonize beside another checkout of it, discovery included, each on one thread.

    git worktree add ../before COMMIT
    python tests/benchmarks/bench_harmonize_against.py --against ../before --json against.json
    python tests/benchmarks/bench_harmonize_against.py --against ../before --json against.json --cases tcia-small

Both checkouts run the whole command `harmonize SOURCE RAW --out CORPUS` on the same raw trees, in processes that stay
and have done it once before anything counts; then they take turns, in one order and the reverse. Of each source there
is a tree of full-size slices and one of the phantom's many small files. "Again" is the same command on the corpus that
is there: discovery, and no scan. Reported are medians and their ratios; look at processor time where others share the
machine, and at its lowest, which they disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_harmonize import THREADS, describe_machine, write_ct_dicom, write_ct_nifti, write_deeplesion

HERE = Path(__file__).resolve().parents[2]
OURS, THEIRS = "this", "other"
WANTED = 1.1
LOWEST = "lowest first cpu_s"
MEDIANS = ("first cpu_s", "first wall_s", "again cpu_s", "again wall_s")
MEASURES = (LOWEST, *MEDIANS)

SERVER = """
import json, os, resource, shutil, sys, time
import harmonize
from harmonize.cli import main

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

def cpu_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)

def measured(words):
    wall, cpu = time.perf_counter(), cpu_seconds()
    code = main(words)
    return {"code": code, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}

print(json.dumps(harmonize.__file__), file=answers, flush=True)
for line in sys.stdin:
    words, out = json.loads(line)
    shutil.rmtree(out, ignore_errors=True)
    words = [*words, "--out", out, "--workers", "0"]
    first, again = measured(words), measured(words)
    import pandas
    scans = len(pandas.read_parquet(out + "/metadata.parquet"))
    print(json.dumps({"first": first, "again": again, "scans": scans}), file=answers, flush=True)
"""
"""Runs commands of the checkout on PYTHONPATH; nothing else of headspark's may be imported beside them."""


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    arguments = parse()
    result: dict[str, Any] = {"machine": describe_machine(), "rounds": arguments.rounds, "quick": arguments.quick}
    with tempfile.TemporaryDirectory(dir=arguments.scratch, ignore_cleanup_errors=True) as scratch:
        servers = {
            OURS: Server(HERE, Path(scratch) / "this.log"),
            THEIRS: Server(arguments.against.resolve(), Path(scratch) / "other.log"),
        }
        result["cases"] = {name: measure(name, Path(scratch) / name, servers, arguments) for name in arguments.cases}
        for server in servers.values():
            server.close()
    result["load_at_end"] = os.getloadavg()
    result["all"] = {
        measure: sum(case[OURS][measure] for case in result["cases"].values())
        / sum(case[THEIRS][measure] for case in result["cases"].values())
        for measure in MEASURES
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout's folder")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; one more warms up")
    parser.add_argument("--quick", action="store_true", help="half the edge lengths, half the scans")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--scratch", type=Path, help="where the scans are written, about 1 GB; default: TMPDIR")
    return parser.parse_args()


class Server:
    """A process that runs harmonize commands of one checkout.

    Args:
        checkout: The checkout's folder.
        log: Gets what the commands say.
    """

    def __init__(self, checkout: Path, log: Path) -> None:
        path = os.pathsep.join(str(folder) for folder in (checkout, checkout / "ssl"))
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=log.parent,
            env=os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        found = Path(self._answer())
        if not found.is_relative_to(checkout):
            sys.exit(f"error: {checkout}: holds no harmonize; python took {found}")

    def run(self, words: list[str], out: Path) -> dict[str, Any]:
        """Give a command twice on a new corpus; seconds of each, and how many scans came of it."""
        assert self._process.stdin is not None
        print(json.dumps([words, str(out)]), file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer["first"]["code"] or answer["again"]["code"]:
            sys.exit(f"error: harmonize {' '.join(words)} failed:\n{self._log.read_text()[-2000:]}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: the process ended:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)


def measure(name: str, folder: Path, servers: dict[str, Server], arguments: argparse.Namespace) -> dict[str, Any]:
    """Let both checkouts take turns on one raw tree."""
    source = name.partition("-")[0]
    folder.mkdir()
    raw = CASES[name](source, folder, 2 if arguments.quick else 1)
    found: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
    for turn in range(arguments.rounds + 1):
        for side in (OURS, THEIRS) if turn % 2 else (THEIRS, OURS):
            found[side].append(servers[side].run([source, str(raw)], folder / side))
    shutil.rmtree(folder)
    result: dict[str, Any] = {side: summarise(rounds[1:]) for side, rounds in found.items()}
    result["ratio"] = {measure: result[OURS][measure] / result[THEIRS][measure] for measure in MEASURES}
    return result


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the medians, the lowest processor time, the number of scans, and all that was measured."""
    medians = {
        f"{run} {clock}": statistics.median(one[run][clock] for one in rounds)
        for run, clock in (measure.split() for measure in MEDIANS)
    }
    lowest = min(one["first"]["cpu_s"] for one in rounds)
    return {LOWEST: lowest, **medians, "scans": rounds[0]["scans"], "all": rounds}


def show(result: dict[str, Any]) -> None:
    """Print the figures as a Markdown table."""
    print(
        f"| case | scans | {' | '.join(f'{measure}, ratio' for measure in MEASURES)} |\n|---|---:|"
        + "---:|" * len(MEASURES)
    )
    for name, case in result["cases"].items():
        counts = [case[side]["scans"] for side in (OURS, THEIRS)]
        scans = str(counts[0]) if counts[0] == counts[1] else f"{counts[0]}, other {counts[1]}"
        ratios = (f"{case[OURS][measure]:.2f}, {case['ratio'][measure]:.2f}" for measure in MEASURES)
        print(f"| {name} | {scans} | {' | '.join(ratios)} |")
    print(f"| all | | {' | '.join(format(result['all'][measure], '.2f') for measure in MEASURES)} |")
    print(f"wanted: at most {WANTED} of the first run's processor time")


# The input -----------------------------------------------------------------------------------------------------------


def phantom_tree(source: str, folder: Path, divisor: int) -> Path:
    """Many small files, all kinds of them."""
    from harmonize import phantom

    (root,) = phantom.write(source, folder / "raw", scans=8 // divisor, size=48, seed=0, difficulty="easy")
    return root


def large_tree(source: str, folder: Path, divisor: int) -> Path:
    """One series of full-size slices."""
    root = folder / "raw"
    root.mkdir()
    if source == "openmind":
        name = "ds000001/sub-01/ct/sub-01_CT.nii.gz"
        (root / "OpenMind" / name).parent.mkdir(parents=True)
        write_ct_nifti(root, divisor)
        (root / "ct.nii.gz").rename(root / "OpenMind" / name)
        (root / "openneuro_metadata.csv").write_text(f"image_path,modality\n{name},CT\n")
    elif source == "deeplesion":
        write_deeplesion(root, divisor)
    elif source == "tcia":
        write_ct_dicom(root, divisor)
    else:
        write_rsna(root, divisor)
    return root


def write_rsna(root: Path, divisor: int) -> None:
    """The competition's layout around one CT."""
    import pydicom

    from harmonize.labels import LABELS

    series = root / "series" / "here"
    series.mkdir(parents=True)
    write_ct_dicom(series, divisor)
    uid = str(pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True).SeriesInstanceUID)
    series.rename(series.with_name(uid))
    header = ",".join(("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS))
    (root / "train.csv").write_text(f"{header}\n{uid},60,Female,CTA{',0' * len(LABELS)}\n")


CASES: dict[str, Callable[[str, Path, int], Path]] = {
    f"{source}-{size}": write
    for source in ("openmind", "tcia", "deeplesion", "rsna")
    for size, write in (("large", large_tree), ("small", phantom_tree))
}
"""By name: the source, and what writes its raw tree into a folder."""

if __name__ == "__main__":
    main()
