"""``python -m tasks FOLDER``."""

import sys

from .demo.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
