"""studies.linear_networks and studies.linear_pairs: against direct sums and single runs."""

import math
from itertools import pairwise

import pytest
import torch

import nlcompanion as nl
from nlcompanion import integrate
from studies.linear_figures import time_at
from studies.linear_networks import (
    MeanPush,
    balanced_factors,
    deep_loss,
    end_to_end_velocity,
    flow_of_networks,
    oriented_svd,
    product,
    random_rotation,
    whitened_digits,
    with_a_wrong_sign,
    with_definite_imbalance,
    within_margin,
    worn_by_noise,
)
from studies.linear_pairs import digits_network, nesterov_wander, throw

torch.set_num_threads(1)
DATA = whitened_digits()


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.4 * torch.randn(10, 13, generator=generator).double(), 0.3 * random_rotation(seed)]


def push_by_hand(first, second, rows):
    """Q(g) of one mini-batch, from its gradients."""
    x, y = DATA.inputs[rows], DATA.targets[rows]
    g = (x @ (second @ first).T - y).T @ x / len(rows)
    g_first, g_second = second.T @ g, g @ first.T
    return g_first @ g_first.T - g_second.T @ g_second


def test_another_processors_signs_make_no_difference(monkeypatch):
    matrix, svd = pair()[0], torch.linalg.svd
    ours = oriented_svd(matrix)
    signs = torch.tensor([1.0, -1.0]).repeat(5)

    def of_another_processor(*given, **options):
        left, sizes, right = svd(*given, **options)
        return left * signs, sizes, right * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", of_another_processor)
    for mine, theirs in zip(ours, oriented_svd(matrix), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(torch.linalg.svd(matrix, full_matrices=False)[0], svd(matrix, full_matrices=False)[0])


def test_the_mean_push_is_the_mean_over_all_batches():
    first, second = pair()
    n = len(DATA.inputs)
    push = MeanPush(DATA)
    singles = torch.stack([push_by_hand(first, second, [i]) for i in range(n)]).mean(0)
    whole = push_by_hand(first, second, range(n))
    torch.testing.assert_close(push(first, second, 1), singles, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(push(first, second, math.inf), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(push(first, second, 4), whole + (singles - whole) / 4, rtol=1e-9, atol=1e-12)
    stacked = push(first.expand(2, -1, -1), second.expand(2, -1, -1), 4)
    torch.testing.assert_close(stacked[1], push(first, second, 4), rtol=1e-12, atol=1e-14)


def test_noise_wears_as_forecast_and_not_as_for_another_batch():
    worn = worn_by_noise(DATA, pair(), size=2, seeds=64, steps=60)
    share, error = worn.share_of_means()
    assert error < 0.05
    assert share == pytest.approx(1, abs=5 * error)
    other = worn_by_noise(DATA, pair(), size=8, seeds=64, steps=60)
    assert worn.share_of_means(other)[0] > 2
    still = worn_by_noise(DATA, pair(), size=math.inf, seeds=1, steps=60)
    torch.testing.assert_close(still.charge, still.forecast, rtol=0, atol=1e-12)


def test_many_networks_flow_like_one():
    starts = [pair(1), pair(2)]
    solver = {"t_span": (0, 2), "t_eval": [0, 2], "rtol": 1e-9}
    _, P = flow_of_networks(starts, DATA.optimum, **solver)
    for k, start in enumerate(starts):
        f, q0 = deep_loss(start, DATA.optimum)
        alone = integrate(nl.gradient_flow(), f, q0, **solver)
        torch.testing.assert_close(P[-1, k], product(f, alone.q[-1]), rtol=1e-6, atol=1e-8)


def test_starts_are_what_they_say():
    layers, margin = within_margin(DATA, 0.3, layers=3, seed=0)
    P = layers[2] @ layers[1] @ layers[0]
    assert (P - DATA.optimum).norm() == pytest.approx(float(DATA.strength[-1]) - margin, rel=1e-9)
    for first, second in pairwise(layers):
        torch.testing.assert_close(first @ first.T, second.T @ second, rtol=0, atol=1e-12)
    (first, second), eigenvalues = with_definite_imbalance(0)
    imbalance = second.T @ second - first @ first.T
    torch.testing.assert_close(torch.linalg.eigvalsh(imbalance), eigenvalues.sort().values, rtol=0, atol=1e-12)
    first, second = with_a_wrong_sign(DATA, mode=4, stretch=0.5)
    modes = DATA.modes(second @ first)
    expected = torch.full((10,), 0.01, dtype=torch.float64)
    expected[4] = -0.01
    torch.testing.assert_close(modes, expected, rtol=0, atol=1e-12)


def test_the_velocity_of_a_balanced_product():
    P = 0.1 * torch.randn(10, 13, generator=torch.Generator().manual_seed(3)).double()
    W = balanced_factors(P, 3)
    g = P - DATA.optimum
    by_layers = -(
        W[2] @ W[1] @ (W[2] @ W[1]).T @ g + W[2] @ W[2].T @ g @ W[0].T @ W[0] + g @ (W[1] @ W[0]).T @ (W[1] @ W[0])
    )
    torch.testing.assert_close(end_to_end_velocity(P, 3, DATA.optimum), by_layers, rtol=1e-9, atol=1e-12)


def test_thrown_neurons_keep_their_spin_in_newtonian_steps():
    f = digits_network("linear", "tanh")
    law = nl.linear_law(f, 1)
    step = 0.02 * torch.randn(len(f), generator=torch.Generator().manual_seed(0)).double()
    J = throw(f, law, step, lambda n: 1.0, lr=0.01, steps=10, loss=lambda n: f)
    assert (J[-1] - J[0]).norm() < 1e-12 * J[0].norm()
    fading = throw(f, law, step, lambda n: 0.5, lr=0.01, steps=10, loss=lambda n: f)
    torch.testing.assert_close(fading[-1], fading[0] / 2**10, rtol=1e-6, atol=1e-15)
    coarse, fine = (float(nesterov_wander(f, law, 20 * step, h)) for h in (0.2, 0.1))
    assert coarse / fine == pytest.approx(2, abs=0.5)


def test_time_at_interpolates():
    assert time_at(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0]), 2.0) == pytest.approx(1.5)
