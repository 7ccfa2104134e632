"""The command line: ``python -m nlcompanion --help``."""

from nlcompanion._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
