"""Kill programs with -9 at random moments, give the same command again, and see that nothing is lost or different.

Each program runs once undisturbed. Then it is started again and again in another folder, each time killed at a random
moment: it alone, as the kernel does for memory, or with all its processes, as a machine that goes down does. What was
done may never become less, and what stands in the end is what the undisturbed run wrote, byte for byte but for times.

    python tests/kills.py --kills 100 --seed 0 --json kills.json
    python tests/kills.py --kills 3 --programs pretrain
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import toy_runs

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:0] = [str(ROOT), str(ROOT / "ssl")]

CORPUS = ROOT / "tests" / "fixtures" / "v0_1_0" / "corpus"
HANGS_S = 600.0
REFUSED, FINISHED = 2, "this run is finished"
"""How a run answers that has nothing left to do."""

TRAIN = {"log_every": 1, "validate_every": 4, "checkpoint_every": 2}
PRETRAINING = toy_runs.PRETRAINING | {
    "train": {**toy_runs.PRETRAINING["train"], **TRAIN, "steps": 24, "picture_every": 8},
}
FINE_TUNING = toy_runs.FINE_TUNING | {
    "stages": [stage | {"steps": 8} for stage in toy_runs.FINE_TUNING["stages"]],
    "train": toy_runs.TRAIN | TRAIN,
}
"""Long enough to be killed again and again, and with a checkpoint every other step."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One of those that are killed.

    Attributes:
        name: On the command line.
        load: Imports it, and gives what runs its command line.
        words: Its command line without ``--out``, given a folder for what it reads.
        done: What a folder of its holds that a kill may not take away again, whole or not at all.
        content: What its folder holds in the end, without what depends on time.
    """

    name: str
    load: Callable[[], Callable[[list[str]], int]]
    words: Callable[[Path], list[str]]
    done: Callable[[Path], dict[str, str]]
    content: Callable[[Path], dict[str, str]]


@dataclass(kw_only=True)
class Outcome:
    """What became of a program.

    Attributes:
        kills: How many.
        with_all_processes: How many of them took its other processes too.
        before: How many came before anything was done that is kept.
        after: How many came when all steps were taken or scans written, and their end was not.
        runs: How many came to their end, each compared with the undisturbed one.
        starts: Of the program, whatever came of them.
        seconds: Of the undisturbed run, without its start.
        faults: One line each.
    """

    kills: int = 0
    with_all_processes: int = 0
    before: int = 0
    after: int = 0
    runs: int = 0
    starts: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------------- the programs


def _load_harmonize() -> Callable[[list[str]], int]:
    import harmonize.engine  # noqa: F401
    from harmonize.cli import main

    return main


def _load_pretrain() -> Callable[[list[str]], int]:
    import headspark.train  # noqa: F401
    from headspark.cli import main

    return main


def _load_finetune() -> Callable[[list[str]], int]:
    import matplotlib.pyplot  # noqa: F401  # the report's, which takes longer to load than the steps to be taken

    import finetune.train  # noqa: F401
    from finetune.cli import main

    return main


def _raw_scans(inputs: Path) -> list[str]:
    from harmonize import phantom

    raw = inputs / "raw"
    if not raw.exists():
        phantom.write("openmind", raw, scans=10, size=40, seed=0, workers=0)
    return ["openmind", str(raw / "openmind"), "--spacing", "4", "--mri-norm", "nyul", "--workers", "1"]


def _recipe(command: list[str], recipe: dict[str, Any], inputs: Path) -> list[str]:
    path = inputs / f"{command[0]}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    if not (inputs / "corpus").exists():
        shutil.copytree(CORPUS, inputs / "corpus")  # fine-tuning keeps its folds there
    return [*command, "--config", str(path), "--corpus", str(inputs / "corpus")]


def _images(out: Path) -> dict[str, str]:
    """Hash of each scan that is in its place."""
    found = [path for path in (out / "images").rglob("*.nii.gz") if not path.name.startswith(".")]
    return {path.relative_to(out).as_posix(): _hash(path.read_bytes()) for path in found}


def _steps(out: Path) -> dict[str, str]:
    """The steps that the newest checkpoint holds."""
    newest = max((int(path.name[5:]) for path in (out / "checkpoints").glob("step_*")), default=0)
    return {str(step): "" for step in range(1, newest + 1)}


def _corpus_content(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): _hash(path.read_bytes()) for path in out.rglob("*") if path.is_file()}


def _run_content(out: Path) -> dict[str, str]:
    """Every file by name, without times; of checkpoints the values, for pickles of the same may differ in bytes."""
    found: dict[str, str] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == ".lock":
            continue  # says which process held the folder last
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for number, line in enumerate(lines, start=1):
                found[f"{name}:{number}"] = json.dumps({key: line[key] for key in line if key not in toy_runs.TIMES})
        elif path.name == "training.pt":
            found |= {f"{name} {key}": value for key, value in _values(_unpickled(path))}
        elif path.name == "checkpoint.json":
            seal = json.loads(path.read_text())
            found |= {f"{name} {key}": value for key, value in _values(seal) if "training.pt" not in key}
        else:
            found[name] = _hash(path.read_bytes())
    return found


def _unpickled(path: Path) -> Any:
    import torch

    return torch.load(path, weights_only=True)


def _values(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested values, by their place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _values(item, f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _values(item, f"{at}.{number}")
    else:
        yield at, _hash(value.numpy().tobytes()) if hasattr(value, "numpy") else repr(value)


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            name="harmonize", load=_load_harmonize, words=_raw_scans, done=_images, content=_corpus_content
        ),
        Program(
            name="pretrain",
            load=_load_pretrain,
            words=lambda inputs: _recipe(["pretrain"], PRETRAINING, inputs),
            done=_steps,
            content=_run_content,
        ),
        Program(
            name="finetune",
            load=_load_finetune,
            words=lambda inputs: _recipe(["train"], FINE_TUNING, inputs),
            done=_steps,
            content=_run_content,
        ),
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the kills


def kill_at_random(program: Program, *, kills: int, seed: int, folder: Path) -> Outcome:
    """Kill a program so many times, and see what becomes of its work.

    Args:
        program: Which.
        kills: How often.
        seed: Of the moments.
        folder: For all that is written; what its last run wrote stays there.
    """
    rng, outcome = random.Random(f"{program.name} {seed}"), Outcome()
    main = program.load()
    words = program.words(folder)
    reference, log = folder / "undisturbed", folder / "log.txt"
    began = time.monotonic()
    code = _ended(_start(main, [*words, "--out", str(reference)], log))
    outcome.seconds = round(time.monotonic() - began, 2)
    if code != 0:
        outcome.faults.append(f"the undisturbed run ended with {code}: {_last_line(log)}")
        return outcome
    wanted, whole = program.content(reference), program.done(reference)

    out, done = folder / "killed", {}
    while outcome.kills < kills or outcome.runs == 0 or out.exists():
        process = _start(main, [*words, "--out", str(out)], log)
        outcome.starts += 1
        # Half of the moments fall anywhere in time, half anywhere in the work; after the last it comes to its end.
        within = None if outcome.kills >= kills else rng.uniform(0.0, outcome.seconds)
        if done.keys() == whole.keys() and rng.random() < 0.5:
            within = None  # only its end is left, which would get too large a share of the kills
        if within is not None and rng.random() < 0.5:
            goal, within = rng.randint(len(done), len(whole)), within / 20
            code = _ended(process, within=HANGS_S, unless=lambda goal=goal: len(program.done(out)) >= goal)
            code = _ended(process, within=within) if code is None else code
        else:
            code = _ended(process, within=within)
        if code is None:
            everything = rng.random() < 0.5
            (os.killpg if everything else os.kill)(process, signal.SIGKILL)
            _ended(process)
            outcome.kills += 1
            outcome.with_all_processes += everything
        now = program.done(out)
        lost = [name for name, value in done.items() if now.get(name) != value]
        lost += [name for name in now if now[name] != whole.get(name)]
        if lost:
            outcome.faults.append(f"after kill {outcome.kills}: lost or damaged: {', '.join(sorted(set(lost))[:5])}")
        done = now
        if code is None:
            outcome.before += not done
            outcome.after += done.keys() == whole.keys()
            continue
        outcome.runs += 1
        if code == REFUSED and FINISHED in _last_line(log):
            code = 0  # the kill came between the end of its work and the end of its process
        if code != 0:
            outcome.faults.append(f"after kill {outcome.kills}: ended with {code}: {_last_line(log)}")
        _compare(outcome, wanted, program.content(out))
        if outcome.faults:
            break  # what is wrong stays there to be looked at
        shutil.rmtree(out)
        done = {}
    return outcome


def _compare(outcome: Outcome, wanted: dict[str, str], found: dict[str, str]) -> None:
    for what, names in (
        ("missing", wanted.keys() - found.keys()),
        ("left over", found.keys() - wanted.keys()),
        ("different", {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]}),
    ):
        if names:
            outcome.faults.append(f"run {outcome.runs}: {what}: {', '.join(sorted(names)[:5])}")


def _start(main: Callable[[list[str]], int], words: list[str], log: Path) -> int:
    """Run a command in a process and a group of its own, which has loaded everything already; gives its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        with log.open("w") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(process: int, within: float | None = None, unless: Callable[[], bool] = lambda: False) -> int | None:
    """Wait for a process; gives its exit code, or None if it still runs after so many seconds, or once `unless`."""
    until = time.monotonic() + (HANGS_S if within is None else within)
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        left = until - time.monotonic()
        if unless():
            return None
        if left <= 0:
            if within is not None:
                return None
            os.killpg(process, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])  # it hung: no kill of ours, a fault
        time.sleep(min(0.01, left))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def main() -> int:
    """Run the command line; gives the exit code: 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of all programs together, or with --each")
    parser.add_argument("--each", action="store_true", help="so many of each program")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--programs", nargs="+", choices=tuple(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep what was written here; default: a temporary one")
    options = parser.parse_args()
    results: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(options.programs):
            # 100 kills of three programs are 34, 33 and 33.
            share = options.kills if options.each else len(range(number, options.kills, len(options.programs)))
            folder = (options.out or Path(temporary)) / name
            folder.mkdir(parents=True)
            found = results[name] = kill_at_random(PROGRAMS[name], kills=share, seed=options.seed, folder=folder)
            print(
                f"{name}: {found.kills} kills in {found.starts} starts, {found.with_all_processes} of them with all "
                f"its processes, {found.before} before anything was done, {found.after} when all was but its end; "
                f"{found.runs} runs came to their end; {len(found.faults)} faults",
                *(f"  {fault}" for fault in found.faults),
                sep="\n",
                flush=True,
            )
    if options.json is not None:
        facts = {"seed": options.seed, "programs": {name: asdict(found) for name, found in results.items()}}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return int(any(found.faults for found in results.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
