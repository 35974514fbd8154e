"""All that is to be known of a GPU, in one command and under eight minutes: is headspark right there, and how fast?

    python tests/benchmarks/bench_gpu.py --json gpu.json --peer PATH_TO_NNSSL_CHECKOUT
    python tests/benchmarks/bench_gpu.py --json gpu.json --reduced     # toy sizes on a CPU: do all parts run?

Numbers against the CPU and the dense emulation; time and memory of whole steps beside nnssl's and a dense masked
autoencoder's; kernels and the gaps between them; waits of the host; geometry; fine-tuning and prediction; the batch
that fits. Parts run one after the other in a process of their own, which is stopped where one takes longer than it may,
and begun again behind it. Each says ``measured``, or ``not measured`` and why; the JSON is written whenever one says
something, so that it tells of a run that was killed too.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(one) for one in (ROOT, ROOT / "ssl", ROOT / "tests", HERE.parent)]

from gpu.setting import NotMeasured, Setting  # noqa: E402 - found by the path above
from gpu.wanted import table, wanted  # noqa: E402

from harmonize.files import write_json  # noqa: E402

SECONDS = 450.0
NOT_REACHED = "not measured: not reached"
START = 120.0
"""A worker may take to begin: imports from a cold disk."""

TOY_PATIENCE = 5
"""How much longer parts may take at toy size: whoever tests may share the CPU with others."""


def main() -> None:
    """Measure, or do the parts that the process above asks for."""
    arguments = parse()
    if arguments.worker:
        work(arguments)
        return
    run = Run(arguments)
    try:
        run.all()
    finally:
        run.write()
    print(table(run.result))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--peer", type=Path, help="checkout of MIC-DKFZ/nnssl; needs dynamic-network-architectures")
    parser.add_argument("--reduced", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="these alone, by name")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# The process that watches --------------------------------------------------------------------------------------------


class Run:
    """What is measured so far, and the process that measures.

    Attributes:
        result: As it is written.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        from gpu.parts import PARTS

        self._arguments = arguments
        names = [part.name for part in PARTS]
        unknown = set(arguments.parts or []) - set(names)
        if unknown:
            sys.exit(f"--parts {' '.join(sorted(unknown))}: there are {' '.join(names)}")
        self._parts = {part.name: part for part in PARTS if part.name in (arguments.parts or names)}
        self._began = time.monotonic()
        toy = is_toy(arguments)
        patience = TOY_PATIENCE if toy else 1
        self.result: dict[str, Any] = {
            "toy": toy,
            "settings": {"seconds": arguments.seconds, "peer": arguments.peer is not None},
            "parts": {
                name: {"said": NOT_REACHED, "seconds": 0.0, "may_take": patience * part.seconds, "figures": {}}
                for name, part in self._parts.items()
            },
        }

    def all(self) -> None:
        """Do all parts, in as many processes as it takes."""
        self.write()
        left = list(self._parts)
        while left:
            if self._time_left() <= 0:
                for name in left:
                    self.result["parts"][name]["said"] = "not measured: no time left"
                return
            left = self._in_a_process(left)

    def write(self) -> None:
        """Write what there is, at once or not at all."""
        self.result["seconds"] = round(time.monotonic() - self._began, 1)
        self.result["wanted"] = wanted(self.result)
        write_json(self._arguments.json, self.result)

    def _time_left(self) -> float:
        return self._arguments.seconds - (time.monotonic() - self._began)

    def _in_a_process(self, names: list[str]) -> list[str]:
        """Do parts until one takes too long or kills its process; give those that are left."""
        command = [sys.executable, str(HERE), *sys.argv[1:]]
        if self._arguments.parts:
            at = command.index("--parts")
            command = [*command[:at], *command[at + 1 + len(self._arguments.parts) :]]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.result["toy"] else {}
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [*command, "--worker", "--parts", *names], stdout=subprocess.PIPE, stderr=said, text=True,
                env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | hidden,
                start_new_session=True,
            )  # fmt: skip
            try:
                return self._follow(process, list(names), said)
            finally:
                stop(process)

    def _follow(self, process: subprocess.Popen[str], left: list[str], said: IO[str]) -> list[str]:
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=read, args=(process.stdout, lines), daemon=True).start()
        name, began, may_take = left[0], time.monotonic(), START
        while True:
            part = self.result["parts"][name]
            limit = min(may_take - (time.monotonic() - began), self._time_left())
            try:
                line = lines.get(timeout=max(limit, 0))
            except queue.Empty:
                why = f"it took longer than {may_take:g} s" if self._time_left() > 0 else "no time left"
                return self._end(part, began, f"not measured: {why}", left)
            if line is None:
                if not left:
                    return []
                process.wait()
                last = last_line(said)
                return self._end(part, began, f"not measured: its process ended ({process.returncode}): {last}", left)
            message = json.loads(line)
            if "begins" in message:
                name, began = message["begins"], time.monotonic()
                part = self.result["parts"][name]
                may_take = part["may_take"]
            if "figures" in message:
                part["figures"].update(message["figures"])
                part["seconds"] = round(time.monotonic() - began, 1)
                self.write()
            if "said" in message:
                left = self._end(part, began, message["said"], left)
                name = left[0] if left else name
                began, may_take = time.monotonic(), START

    def _end(self, part: dict[str, Any], began: float, said: str, left: list[str]) -> list[str]:
        part |= {"said": said, "seconds": round(time.monotonic() - began, 1)}
        self.write()
        return left[1:]


def read(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    """Pass on what a process says, and that it has ended."""
    for line in stream or ():
        lines.put(line)
    lines.put(None)


def last_line(said: IO[str]) -> str:
    """The last line of what a process wrote to its standard error."""
    said.seek(0)
    return next((line.strip() for line in reversed(said.readlines()) if line.strip()), "it said nothing")[:300]


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and those that it has begun."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def is_toy(arguments: argparse.Namespace) -> bool:
    """Whether sizes are those of a toy: asked for, or there is no GPU."""
    import torch

    return arguments.reduced or not torch.cuda.is_available()


# The process that measures -------------------------------------------------------------------------------------------


def work(arguments: argparse.Namespace) -> None:
    """Do some parts and say on standard output, in lines of JSON, what they give; all else goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        from gpu.parts import PARTS

        setting = Setting(reduced=is_toy(arguments), peer=arguments.peer)
        parts = {part.name: part for part in PARTS}
        for name in arguments.parts:
            say(begins=name)
            try:
                for figures in parts[name].figures(setting):
                    say(figures=figures)
                say(said="measured")
            except NotMeasured as why:
                say(said=f"not measured: {why}")
            except Exception as error:  # whatever a part meets, the others go on
                first = str(error).strip().splitlines() or [""]
                say(said=f"not measured: {type(error).__name__}: {first[0][:300]}")


if __name__ == "__main__":
    main()
