"""`python -m finetune.predict`."""

import sys

from finetune.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
