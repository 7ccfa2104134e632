"""Settings for every test: one thread, a quiet matplotlib. (Denormals stay on: hypothesis draws them.)"""

import os

os.environ.setdefault("MPLBACKEND", "agg")

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)
