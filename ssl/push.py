"""Export a run: ``python ssl/push.py RUN --out DIR``; the same as ``headspark push``."""

from __future__ import annotations

from harmonize.system import end_where_it_cannot_run

end_where_it_cannot_run()

# isort: split
import sys

from headspark.config import run_command
from headspark.push import main

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
