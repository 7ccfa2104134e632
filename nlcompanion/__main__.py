"""The command line: ``python -m nlcompanion --help``."""

import sys
from io import TextIOWrapper

from nlcompanion.command_line import main

if __name__ == "__main__":
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name that the terminal cannot show ends nothing
    raise SystemExit(main())
