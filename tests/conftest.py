"""Settings for every test: one thread, a quiet matplotlib. (Denormals stay on: hypothesis draws them.)"""

import matplotlib
import pytest
from threads import THREADS

# not through the environment: the notebooks' kernels would inherit it and show no figures
matplotlib.use("agg")


@pytest.fixture(autouse=True, scope="session")
def _threads():
    """One thread, or as many as `tools.elsewhere` asks for; they must really be in force."""
    import torch

    torch.set_num_threads(THREADS)
    assert torch.get_num_threads() == THREADS, f"{torch.get_num_threads()} threads are in force, not {THREADS}"
