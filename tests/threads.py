"""How many threads the tests compute with: one, or as many as `tools.elsewhere` holds PyTorch at."""

import os

THREADS = int(os.environ.get("NLCOMPANION_TEST_THREADS", "1"))
