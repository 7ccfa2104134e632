"""For every test, the notebooks among them: a claim that its measurement contradicts is an error."""

import os

os.environ["NLCOMPANION_CLAIMS"] = "raise"  # the kernels of notebooks inherit it
