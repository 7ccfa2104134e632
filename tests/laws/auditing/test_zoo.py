"""Every model of the zoo: the laws it has are found, and no others."""

import importlib

import pytest
import torch
from zoo import ZOO, lines_expected, lines_found

from nlcompanion import audit, count_laws

QUICK = [name for name, entry in ZOO.items() if not entry.slow]
SLOW = [name for name, entry in ZOO.items() if entry.slow]


def examine(name):
    entry = ZOO[name]
    if entry.needs:
        try:
            importlib.import_module(entry.needs)
        except Exception as error:
            pytest.skip(f"{entry.needs} cannot be imported beside this torch: {error}")
    torch.manual_seed(0)
    found = audit(*entry.make())
    assert lines_found(found) == lines_expected(entry), entry.why
    assert found.complete
    assert found.gap > 1e8
    assert all(line.moved < 1e-12 for line in found.lines)
    return found


@pytest.mark.parametrize("name", QUICK)
def test_the_laws_are_found_and_no_others(name):
    examine(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_laws_of_larger_models_are_found_and_no_others(name):
    examine(name)


def test_the_zoo_is_large():
    assert len(ZOO) >= 60


@pytest.mark.parametrize("wrong", ["rescaling: 0.weight - 2.weight x5", "rescaling: 0.weight + 0.bias - 2.weight x4"])
def test_a_law_without_the_bias_or_of_fewer_neurons_would_fail(wrong):
    """The control: what one might have believed of a ReLU network is told from what is there."""
    entry = ZOO["relu"]
    torch.manual_seed(0)
    found = lines_found(audit(*entry.make()))
    assert found == lines_expected(entry)
    assert found != lines_expected(type(entry)(entry.make, (wrong, *entry.laws[1:]), ""))


@pytest.mark.parametrize("name", ["linear_three", "relu_regression", "gelu", "layer_scale"])
def test_the_count_is_at_least_that_of_all_losses(name):
    """What the outputs conserve a loss conserves too; a loss may conserve more (logit shifts)."""
    torch.manual_seed(0)
    model, inputs, targets, loss = ZOO[name].make()
    found = audit(model, inputs, targets, loss)
    of_loss_alone = sum(line.count for line in found.lines if line.kind == "logit shift")
    assert found.count - of_loss_alone == count_laws(model, inputs[:3])
