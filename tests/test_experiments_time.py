"""The width study behind the chapter on time symmetry, at sizes of a test, and its stored result."""

import math

import pytest
import torch
from torch.func import grad

from nlcompanion._experiments_time import Ride, bound_weights, half_sum, kicks, width_study, zeros_and_ones
from nlcompanion.networks import ensemble, flat_loss, mlp


def test_the_data():
    x, y = zeros_and_ones()
    assert x.shape == (16, 16)
    assert torch.allclose(x.norm(dim=1), torch.full((16,), 4.0, dtype=torch.float64))
    assert sorted(set(y[:, 0].tolist())) == [-1.0, 1.0]


@pytest.mark.parametrize("family", ["gaussian", "bounded"])
def test_push_bend_and_kicks_are_the_whole_motion(family):
    """The rate of the outputs is a directional derivative; the terms of Eq. 52 are integrated beside it."""
    coarse, fine = (Ride(family, 32, 4, step).go(1.0).measures for step in (0.02, 0.005))
    assert fine["unexplained"].max() < 1e-3
    assert fine["unexplained"].mean() < 0.5 * coarse["unexplained"].mean()
    for name in ("bend", "kick"):  # and none of the two can be spared
        assert fine[name].min() > 10 * fine["unexplained"].max()
    assert fine["bound"].max() <= 1
    assert (fine["max_speed"] > fine["mean_speed"]).all()


def test_speeds_of_a_member_by_a_plain_loop():
    ride = Ride("deep", 8, 3, 0.05).go(0.5)
    x, y = zeros_and_ones()
    f = flat_loss(mlp((16, 8, 8, 1), "relu", init="ntk", seed=2), x, y, half_sum)
    q, half, seen, moved = f.q0, -0.025 * grad(f)(f.q0), [], []
    for _ in range(11):
        seen.append(half.abs())
        moved.append((q - f.q0).abs())
        q = q + 0.05 * half
        half = half - 0.05 * grad(f)(q)
    scale = (2 * f(f.q0)).sqrt()
    for name, values in (("speed", torch.stack(seen)), ("moved", torch.stack(moved))):
        assert ride.measures[f"mean_{name}"][2].item() == pytest.approx(
            (values.mean(1).max() / scale).item(), rel=1e-10
        )
        assert ride.measures[f"max_{name}"][2].item() == pytest.approx((values.amax(1).max() / scale).item(), rel=1e-10)
    assert "kick" not in ride.measures
    assert ride.parameters == len(f)


def test_a_kick():
    before, after = torch.tensor([[[1.0, -2.0, 3.0]]]), torch.tensor([[[-1.0, 1.0, 4.0]]])
    assert kicks(before, after, torch.tensor([[[10.0, 1.0, 5.0]]])).item() == pytest.approx((2 * 10 + 3) / math.sqrt(3))


def test_bounded_weights_have_the_same_variance():
    team = ensemble((16, 500, 1), seeds=4, init="ntk")
    before = [p.detach().clone() for p in team.parameters()]
    bound_weights(team)
    for old, new in zip(before, team.parameters(), strict=True):
        assert new.abs().max() < math.sqrt(3) < old.abs().max()
        assert new.var().item() == pytest.approx(1.0, rel=0.1)
        assert ((new - new.mean()) * old).mean() > 0.9


def test_a_small_study():
    sizes = {"gaussian": ((8, 256, 512), 2), "bounded": ((256, 512), 2), "deep": ((64, 96), 2)}
    got = width_study(sizes, time=0.2, step=0.1)
    assert got["curves"]["gaussian"]["parameters"] == [8 * 17, 256 * 17, 512 * 17]
    assert float(got["numbers"]["gaussian_bound"]) < 1
    assert "deep_kick_exponent" not in got["numbers"]
