"""`python -m finetune.predict`, and what a launcher starts several times, for several devices or nodes."""

import sys

from finetune.cli import main
from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    sys.exit(main(["predict", *sys.argv[1:]]))
