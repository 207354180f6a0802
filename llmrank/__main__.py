"""Run the command line as ``python -m llmrank``."""

import sys

from llmrank.cli import main

if __name__ == "__main__":
    sys.exit(main())
