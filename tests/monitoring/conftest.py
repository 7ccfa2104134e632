"""What tests of the monitor ask for by name."""

import logging

import pytest
import torch


@pytest.fixture
def quiet():
    """The monitor's warnings stay away, since the tests read its alerts; and one seed for what is drawn."""
    torch.manual_seed(0)
    logger = logging.getLogger("nlcompanion.monitor")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
