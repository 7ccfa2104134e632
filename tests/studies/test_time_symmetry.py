"""The studies behind the chapter on time symmetry, at sizes of a test, and their stored results."""

import math
from itertools import combinations

import pytest
import torch
from torch.func import grad

from nlcompanion.book.results import read
from nlcompanion.dynamics import newtonian, sgd
from nlcompanion.networks import ensemble, flat_loss, mlp
from studies.time_symmetry import (
    Ride,
    bound_weights,
    epoch_lots,
    fresh_lots,
    half_sum,
    heat_of_epochs,
    heat_of_step,
    heat_study,
    kicks,
    noise_trace,
    width_study,
    zeros_and_ones,
)


def test_the_data():
    x, y = zeros_and_ones()
    assert x.shape == (16, 16)
    assert torch.allclose(x.norm(dim=1), torch.full((16,), 4.0, dtype=torch.float64))
    assert sorted(set(y[:, 0].tolist())) == [-1.0, 1.0]


@pytest.mark.parametrize("family", ["gaussian", pytest.param("bounded", marks=pytest.mark.slow)])
def test_push_bend_and_kicks_are_the_whole_motion(family):
    """The rate of the outputs is a directional derivative; the terms of Eq. 52 are integrated beside it."""
    coarse, fine = (Ride(family, 32, 4, step).go(1.0).measures for step in (0.02, 0.005))
    assert fine["unexplained"].max() < 1e-3
    assert fine["unexplained"].mean() < 0.5 * coarse["unexplained"].mean()
    for name in ("bend", "kick"):  # and none of the two can be spared
        assert fine[name].min() > 10 * fine["unexplained"].max()
    assert fine["bound"].max() <= 1
    assert (fine["max_speed"] > fine["mean_speed"]).all()
    assert torch.equal(torch.maximum(fine["max_incoming_speed"], fine["max_outgoing_speed"]), fine["max_speed"])


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
    assert not {"kick", "max_outgoing_speed"} & set(ride.measures)
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
    assert 0 <= float(got["numbers"]["bounded_outgoing_is_fastest"]) <= 1
    assert not {"deep_kick_exponent", "deep_outgoing_is_fastest"} & set(got["numbers"])


def test_the_stored_study():
    stored = read("gu_time_width")
    numbers = stored["numbers"]
    assert all(numbers[f"{family}_bound"] < 1 for family in ("gaussian", "bounded", "deep"))
    assert numbers["gaussian_mean_speed_exponent"] < numbers["gaussian_max_speed_exponent"] - 0.03
    error = numbers["bounded_max_incoming_speed_exponent_error"]
    assert abs(numbers["bounded_max_incoming_speed_exponent"] + 0.5) < 3 * error  # what is driven by a bounded weight,
    assert numbers["bounded_max_speed_exponent"] > -0.5 + 3 * error  # and what is driven by a sum of them
    curve = stored["curves"]["gaussian"]
    assert len(curve["width"]) >= 5
    live = Ride("gaussian", 64, 4, stored["settings"]["time_step"]).go(stored["settings"]["time"]).measures
    for name in ("mean_speed", "bound", "prediction"):  # four of its seeds, made again
        at = curve["width"].index(64)
        assert abs(live[name].log().mean() - math.log(curve[name][at])) < 5 * curve[f"{name}_error"][at] * math.sqrt(16)


def test_the_noise_of_every_batch():
    """All 1820 batches of 4 out of 16."""
    x, y = zeros_and_ones()
    f = flat_loss(ensemble((16, 64, 1), "tanh", seeds=[1], init="ntk"), x, y, half_sum)
    singles = torch.stack([grad(f.on(x[i : i + 1], y[i : i + 1]))(f.q0) for i in range(16)])
    batches = torch.stack([4 * singles[list(chosen)].sum(0) for chosen in combinations(range(16), 4)])
    assert torch.allclose(batches.mean(0), grad(f)(f.q0))
    want = (batches - batches.mean(0)).square().sum(1).mean()
    got = noise_trace(f.unflatten(f.q0), x, y, grad(f)(f.q0)[None])
    assert got.item() == pytest.approx(want.item(), rel=1e-12)


def test_a_small_study_of_heat():
    rules = {"newtonian": newtonian(lr=0.05**2), "descent": sgd(lr=0.02), "momentum": sgd(lr=0.01, momentum=0.5)}
    got = heat_study(rules, groups=32, time=0.5)
    for name in rules:
        curve = got["curves"][name]
        apart = abs(curve["work"][-1] - curve["foreseen"][-1])
        assert apart < 4 * curve["work_error"][-1] < curve["foreseen"][-1]  # and the work is not nothing


def test_batches_of_an_epoch_share_out_the_images():
    steps = torch.stack([epoch_lots(n, 3, 0) for n in range(8)])  # (steps, copies, images)
    assert (steps.sum(2) == 4).all()
    assert (steps[:4].sum(0) == 1).all()
    assert (steps[4:].sum(0) == 1).all()
    assert not torch.equal(steps[:4], steps[4:])
    fresh = torch.stack([fresh_lots(n, 3, 0) for n in range(4)])
    assert (fresh.view(4, 3, 4, 16).sum(2) == 1).all()  # the four copies of a group share them out
    assert (fresh.sum(0) != 1).any()  # the control: no copy sees every image once


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("lots", [2, 4, 10])
def test_the_heat_of_epochs_by_all_their_products(momentum, lots):
    """The mean over positions of -<xi_n, (1 + b) d_(n-1) - lr xi_n> / 2 for noises that add up to zero."""
    product = torch.full((lots, lots), -1 / (lots - 1), dtype=torch.float64)
    product.fill_diagonal_(1.0)
    shares = []
    for n in range(lots):
        carried = sum(momentum ** (n - 1 - past) * product[n, past] for past in range(n))
        shares.append(1 + (1 + momentum) * carried)
        assert heat_of_step(n, momentum, lots) == pytest.approx(float(shares[-1]))
    assert heat_of_epochs(momentum, lots) == pytest.approx(float(sum(shares)) / lots)
    if momentum == 0.0:
        assert heat_of_epochs(momentum, lots) == pytest.approx(1 - 1 / lots)
    if momentum == 1.0:
        assert heat_of_epochs(momentum, lots) == pytest.approx(0, abs=1e-12)


def test_a_small_study_of_epochs():
    got = heat_study({"descent": sgd(lr=0.0025)}, groups=64, time=0.15, draws="epochs")["numbers"]
    ratio, error = got["descent, epochs ratio"], got["descent, epochs ratio_error"]
    assert abs(ratio - got["descent, epochs foreseen"]) < 4 * error < 0.2
    assert 1 - ratio > 4 * error  # the control: as if batches did not remember


def test_the_stored_heat():
    numbers = read("gu_time_heat")["numbers"]
    ratios = {name: value for name, value in numbers.items() if name.endswith(" ratio")}
    assert len(ratios) == 9
    for name, ratio in ratios.items():
        error = numbers[f"{name}_error"]
        if "epochs" in name:
            momentum = {"newtonian": 1.0, "momentum": 0.5, "descent": 0.0}[name.split()[0]]
            assert abs(ratio - heat_of_epochs(momentum)) < 0.15
            assert 1 - ratio > 10 * error
        else:
            assert abs(ratio - 1) < 3 * error < 0.3  # half as much, without the noise in the coming step, is far off
    fine, coarse = (numbers[f"newtonian {dt}, epochs ratio"] for dt in ("0.025", "0.05"))
    assert fine < coarse / 2  # on the way to nothing
