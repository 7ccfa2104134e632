"""What moves a network's outputs, against differences along a curve."""

import pytest
import torch

from nlcompanion.networks import RePU, flat_loss, mlp, ntk, output_motion

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=G, dtype=torch.float64)
Y = torch.randn(6, 2, generator=G, dtype=torch.float64)
HALF_SUM = lambda u, y: 0.5 * (u - y).square().sum()  # noqa: E731


def test_rate_push_and_bend_are_derivatives_along_a_curve():
    f = flat_loss(mlp((4, 7, 2), "swish", seed=2), X, Y, HALF_SUM)
    v, a = torch.randn(2, len(f), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    u = lambda t: f.outputs(f.q0 + t * v + t**2 / 2 * a)  # noqa: E731
    motion, h = output_motion(f, f.q0, v, a), 1e-3
    assert torch.allclose(motion.rate, (u(h) - u(-h)) / (2 * h), rtol=1e-4, atol=1e-4)
    second = (u(h) - 2 * u(0.0) + u(-h)) / h**2
    assert torch.allclose(motion.push + motion.bend, second, rtol=1e-4, atol=1e-4)
    assert (motion.push - second).abs().max() > 1e-1  # the control: without the bend
    slope = torch.func.grad(f)(f.q0)
    force = torch.einsum("ijcd,jd->ic", ntk(f, X), Y - f.outputs(f.q0))
    assert torch.allclose(output_motion(f, f.q0, v, -slope).push, force, rtol=1e-10)


@pytest.mark.parametrize("p", [0.5, 1.5, 2, 2.5])
def test_the_bend_of_broken_powers_is_finite(p):
    """Of a dead neuron every derivative is 0, also where that of the power alone is infinite."""
    f = flat_loss(mlp((4, 7, 2), RePU(p), seed=1), X, Y, HALF_SUM)
    v = torch.randn(len(f), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert (f.model[1](X) < 0).any()
    u, h = (lambda t: f.outputs(f.q0 + t * v)), 1e-5
    motion = output_motion(f, f.q0, v, 0 * v)
    assert torch.allclose(motion.rate, (u(h) - u(-h)) / (2 * h), rtol=1e-4, atol=1e-6)
    assert torch.allclose(motion.bend, (u(h) - 2 * u(0.0) + u(-h)) / h**2, rtol=1e-3, atol=1e-3)
