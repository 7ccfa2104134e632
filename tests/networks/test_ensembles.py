"""Many networks at once: each trains as it would alone."""

import pytest
import torch
from grids import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from nlcompanion.dynamics import descend, gradient_flow, integrate, newtonian, sgd
from nlcompanion.networks import Ensemble, Power, RePU, ensemble, flat_loss, mlp, over_members

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(7) % 3
KINDS = ["relu", "leaky_relu", "tanh", "swish", RePU(2), Power(2), "gelu", "softplus", "linear"]


def pair(widths, activation="relu", seeds=3, loss=cross_entropy, **options):
    team = ensemble(widths, activation, seeds=seeds, **options)
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    singles = [mlp(widths, activation, seed=seed, **options) for seed in seeds]
    return team, flat_loss(team, X, Y, over_members(loss)), [flat_loss(net, X, Y, loss) for net in singles]


INITS = ["default", "kaiming", "lecun", "ntk"]


@pytest.mark.parametrize(("activation", "init", "bias"), covering(KINDS, INITS, [False, True]), ids=str)
def test_members_are_the_single_networks(activation, init, bias):
    team, f, singles = pair((4, 6, 5, 3), activation, init=init, bias=bias)
    q = f.q0 + 0.1 * torch.randn(len(f), generator=torch.Generator().manual_seed(1)).double()  # biases off zero
    rows = team.split(q)
    assert torch.equal(team.split(f.q0), torch.stack([g.q0 for g in singles]))
    outputs = torch.stack([g.outputs(row) for g, row in zip(singles, rows, strict=True)])
    assert f.outputs(q).shape == (3, 7, 3)
    assert (f.outputs(q) - outputs).abs().max() < 1e-12
    slope = team.split(torch.func.grad(f)(q))
    alone = torch.stack([torch.func.grad(g)(row) for g, row in zip(singles, rows, strict=True)])
    assert (slope - alone).abs().max() < 1e-12
    assert slope.abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "rule", [sgd(lr=0.1), sgd(lr=0.05, momentum=0.9, weight_decay=0.01), newtonian(lr=0.05)], ids=lambda rule: rule.name
)
def test_a_run_of_the_ensemble_is_a_run_of_each(rule):
    team, f, singles = pair((4, 8, 3), "tanh", seeds=[5, 11, 7])
    run = team.split(descend(rule, f, f.q0, steps=40).q)
    assert run.shape == (41, 3, 56)
    for e, g in enumerate(singles):
        assert (run[:, e] - descend(rule, g, g.q0, steps=40).q).abs().max() < 1e-12


def test_a_loss_that_mixes_members_is_no_longer_independent():
    team, _, singles = pair((4, 8, 3), "tanh")
    mixed = flat_loss(team, X, Y, lambda u, y: over_members(cross_entropy)(u, y) + 0.1 * u.mean(0).square().sum())
    run = team.split(descend(sgd(lr=0.1), mixed, mixed.q0, steps=40).q)
    assert (run[-1, 0] - descend(sgd(lr=0.1), singles[0], singles[0].q0, steps=40).q[-1]).abs().max() > 1e-3


def test_flows_of_the_ensemble():
    team, f, singles = pair((4, 5, 3), "tanh", init="ntk")
    solver = {"t_span": (0, 1), "t_eval": [1.0], "rtol": 1e-11, "atol": 1e-12}
    run = team.split(integrate(gradient_flow(), f, f.q0, **solver).q[-1])
    alone = integrate(gradient_flow(), singles[1], singles[1].q0, **solver).q[-1]
    assert (run[1] - alone).abs().max() < 1e-9


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_split_and_join(members, width, outputs):
    team = ensemble((2, width, outputs), "swish", seeds=members, bias=True)
    q = torch.randn(3, sum(p.numel() for p in team.parameters())).double()
    assert torch.equal(team.join(team.split(q)), q)
    rows = torch.randn(members, team.split(q).shape[-1]).double()
    assert torch.equal(team.split(team.join(rows)), rows)


def test_a_member_alone():
    team, f, singles = pair((4, 6, 3), "swish", init="ntk", seeds=[4, 9])
    assert len(team) == 2
    assert torch.equal(nn.utils.parameters_to_vector(team.member(1).parameters()).detach(), singles[1].q0)
    moved = team.member(0, f.q0 + 1)
    assert torch.equal(nn.utils.parameters_to_vector(moved.parameters()).detach(), singles[0].q0 + 1)
    assert (moved(X) - f.outputs(f.q0 + 1)[0]).abs().max() < 1e-12
    with torch.no_grad():
        next(moved.parameters()).zero_()
    assert next(team.parameters()).abs().min() > 0


def test_losses_by_member():
    _, f, singles = pair((4, 6, 1), loss=lambda u, y: 0.5 * (u[:, 0] - y).square().sum())
    each = f._loss.each(f.outputs(f.q0), Y)
    alone = torch.stack([g(g.q0) for g in singles])
    assert torch.allclose(each, alone, rtol=1e-13)
    assert torch.allclose(f(f.q0), alone.sum(), rtol=1e-13)


def test_ntk_scaling_is_lecun_with_a_kernel_of_one_size():
    """The same functions; the gradient's square, which is the kernel's trace, grows with the width only under lecun."""
    sizes = {}
    for init in ("ntk", "lecun"):
        for width in (64, 1024):
            team = ensemble((4, width, 1), seeds=8, init=init)
            f = flat_loss(team, X, X[:, :1], over_members(mse_loss))
            outputs = f.outputs(f.q0).square().mean()
            g = torch.func.grad(lambda q, f=f: f.outputs(q)[:, 0].sum())(f.q0)
            sizes[init, width] = outputs, team.split(g).square().sum(1).mean()
    for width in (64, 1024):
        assert 0.3 < sizes["ntk", width][0] / sizes["lecun", width][0] < 3
    assert 0.7 < sizes["ntk", 1024][1] / sizes["ntk", 64][1] < 1.4
    assert 8 < sizes["lecun", 1024][1] / sizes["lecun", 64][1] < 32


def test_errors():
    with pytest.raises(ValueError, match="seeds must be an integer from 1"):
        ensemble((4, 2), seeds=0)
    for other in (mlp((4, 6, 2)), mlp((4, 5, 2), "tanh"), mlp((4, 5, 2), bias=True)):
        with pytest.raises(ValueError, match="members 0 and 2 differ in their layers"):
            Ensemble([mlp((4, 5, 2)), mlp((4, 5, 2), seed=1), other])
    with pytest.raises(ValueError, match="layer 2 of the members is a BatchNorm1d"):
        ensemble((4, 5, 2), nn.BatchNorm1d(5), seeds=2)
    for members in (["net"], [nn.Linear(4, 2)], [nn.Sequential()]):
        with pytest.raises(TypeError, match=r"member 0 is a .*nn\.Sequential networks"):
            Ensemble(members)
    frozen = mlp((4, 5, 2))
    frozen[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.weight of member 1 is frozen"):
        Ensemble([mlp((4, 5, 2)), frozen])
    team = ensemble((4, 5, 2), seeds=2)
    with pytest.raises(ValueError, match=r"q has shape \(7,\), 2 members of 30"):
        team.split(torch.ones(7))
    with pytest.raises(ValueError, match=r"rows have shape \(3, 30\)"):
        team.join(torch.ones(3, 30))
