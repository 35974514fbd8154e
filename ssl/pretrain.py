"""Pretrain an encoder: ``accelerate launch ssl/pretrain.py --config RECIPE --corpus CORPUS --out RUN``.

The same as ``headspark pretrain``, which starts one process; see `headspark.pretrain`.
"""

from __future__ import annotations

import sys

from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

# isort: split
from headspark.config import run_command
from headspark.pretrain import main

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
