"""Settings for every test: one thread, a quiet matplotlib. (Denormals stay on: hypothesis draws them.)"""

import os

import matplotlib
import pytest

# not through the environment: the notebooks' kernels would inherit it and show no figures
matplotlib.use("agg")


@pytest.fixture(autouse=True, scope="session")
def _threads():
    """One thread, or as many as `tools.elsewhere` asks for; they must really be in force."""
    import torch

    threads = int(os.environ.get("NLCOMPANION_TEST_THREADS", "1"))
    torch.set_num_threads(threads)
    assert torch.get_num_threads() == threads, f"{torch.get_num_threads()} threads are in force, not {threads}"
