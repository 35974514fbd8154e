"""`python -m finetune.demo`."""

import sys

from finetune.demo import main

if __name__ == "__main__":
    sys.exit(main())
