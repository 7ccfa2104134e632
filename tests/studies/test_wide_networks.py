"""Wide networks under Newtonian dynamics, behind the chapter on time symmetry."""

import pytest
import torch

import nlcompanion as nl
from studies import wide_networks

G = torch.Generator().manual_seed(0)
X = torch.randn(5, 4, generator=G, dtype=torch.float64)
Y = torch.randn(5, 1, generator=G, dtype=torch.float64)


def network(activation):
    return nl.flat_loss(nl.mlp((4, 16, 1), activation, init="ntk", seed=1), X, Y, wide_networks.half_sum)


def test_the_forecast_is_better_in_wide_networks_and_with_the_right_sign():
    narrow, wide = (wide_networks.forecast(width, X, Y) for width in (16, 1024))
    assert wide.outputs.shape == (81, 5)
    assert torch.allclose(wide.outputs[0], wide.foreseen[0])
    assert wide.error < 0.3 * narrow.error
    assert wide.error < 0.1 < 1 < wide.printed_error


def test_push_bend_and_kicks_add_up():
    walk = wide_networks.rate_of_outputs(network("relu"), X, dt=0.002, steps=500)
    assert walk.crossed.any()
    assert walk.unexplained < 3e-3
    without_kicks = walk._replace(kick=0 * walk.kick)
    assert without_kicks.unexplained > 5 * walk.unexplained
    assert torch.allclose(walk.gained["kicks"][-1], walk.kick.sum(0))


def test_the_bend_belongs_to_the_rate():
    push_alone, both = wide_networks.rate_left_over(network("swish"), 1.0)
    assert both < 1e-8 < 1e-3 < push_alone


def test_extremes_fall_more_slowly_than_the_root():
    near, far = (wide_networks.exponent_of_extremes([n, 4 * n]) for n in (256, 2**20))
    assert near == pytest.approx(-0.41, abs=0.01)
    assert -0.5 < far < near
