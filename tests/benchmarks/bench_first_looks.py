"""What the commands of a page of docs/ take that anybody can try on phantoms, as they stand there, one after the other.

    python tests/benchmarks/bench_first_looks.py getting-started.md --out FOLDER --json first_looks.json

Installing is left out. Wall clock and processor time of each; where others share the machine, read the latter. A JSON
file that is there keeps what it says of other pages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_harmonize import describe_machine

HERE = Path(__file__).resolve().parents[2]
INSTALLING = ("git ", "python3 ", ". ", "pip ", "make ", ".venv/")


def main() -> int:
    """Run the commands in a folder and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="of docs/")
    parser.add_argument("--blocks", type=int, nargs="+", help="numbers of the blocks of commands to run, from 0; all")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder to run them in")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "recipes").symlink_to(HERE / "recipes")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"pages": {}, "recipes": {}}
    found["machine"] = describe_machine()
    steps: list[dict[str, Any]] = []
    for command in commands((HERE / "docs" / arguments.page).read_text(encoding="utf-8"), arguments.blocks):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(shlex.split(command), cwd=arguments.out, check=True, env={**os.environ, "PATH": path})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        took = {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(spent, 1)}
        steps.append({"command": command, **took})
        if recipe := re.search(r"--config recipes/(\w+)\.yaml", command):
            found["recipes"][recipe[1]] = {"page": arguments.page, **took}
        total = {clock: round(sum(one[clock] for one in steps), 1) for clock in took}
        found["pages"][" ".join([arguments.page, *map(str, arguments.blocks or [])])] = {
            "load_at_end": os.getloadavg(),
            **total,
            "commands": steps,
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def commands(page: str, blocks: list[int] | None) -> list[str]:
    """The commands of a page, without those that install."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = [code for language, code in fenced if not language]
    chosen = [block for number, block in enumerate(found) if blocks is None or number in blocks]
    lines = [line.split(" #")[0].strip() for block in chosen for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith(INSTALLING)]


if __name__ == "__main__":
    sys.exit(main())
