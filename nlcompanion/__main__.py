"""The command line: ``python -m nlcompanion --help``."""

import os
import sys
from io import TextIOWrapper

from nlcompanion.command_line import main


def _fill_missing_streams() -> None:
    """Open what a daemon is started without, 0 to 2: else the next file takes that number, and a library's words."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


if __name__ == "__main__":
    _fill_missing_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name that the terminal cannot show ends nothing
    raise SystemExit(main())
