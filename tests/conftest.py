"""Settings for every test: one thread, a quiet matplotlib. (Denormals stay on: hypothesis draws them.)"""

import matplotlib
import pytest

# not through the environment: the notebooks' kernels would inherit it and show no figures
matplotlib.use("agg")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)
