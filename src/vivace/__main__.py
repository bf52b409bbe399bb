"""`python -m vivace` is `vivace`."""

import sys

from vivace.cli import main

if __name__ == "__main__":
    sys.exit(main())
