"""Laws with several terms on one tensor: packed attention weights, and a weight that is scaled and shifted at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit, flat_loss
from nlcompanion.laws.terms import Shift, affine_flow
from nlcompanion.symmetries import generator, invariance_defect


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Gain(nn.Module):
    """A gain that is stored as its distance from 1, as Gemma's RMS norm has it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.6, 0.3, 4))

    def forward(self, x):
        return x * (1 + self.weight)


def found(kind):
    torch.manual_seed(0)
    if kind == "query-key":
        model, x, y = Attention(), torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    else:
        model, x, y = nn.Sequential(Gain(), nn.Linear(4, 3)), torch.randn(6, 4), torch.randn(6, 3)
    model, x, y = model.double(), x.double(), y.double()
    with torch.no_grad():
        for p in model.parameters():  # biases of attention start at 0, where nothing scales them
            p.add_(0.1 * torch.randn_like(p))
    laws = [law for law in audit(model, x, y, F.mse_loss).laws if law.kind == kind]
    return flat_loss(model, x, y, F.mse_loss), laws[0]


def direction(law):
    return torch.randn(law.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["query-key", "affine"])
def test_the_loss_is_the_same_at_a_finite_distance(kind):
    f, law = found(kind)
    far = law.act(f.q0, 0.5 * direction(law))
    assert far.shape == f.q0.shape
    assert (far - f.q0).abs().max() > 0.1
    assert abs(f(far) - f(f.q0)) < 1e-12 * f(f.q0)
    assert invariance_defect(f, law.symmetry(direction(law)), f.q0) < 1e-12
    part, half = law.terms[0], f.q0.clone()  # control: one of the terms on the shared tensor alone is no symmetry
    half[part.place] = part.move(law.tensor_of(f.q0, part), 0.5 * direction(law)).reshape(-1)
    assert abs(f(half) - f(f.q0)) > 1e-5 * f(f.q0)


@pytest.mark.parametrize("kind", ["query-key", "affine"])
def test_the_generator_belongs_to_the_form_and_to_the_motion(kind):
    f, law = found(kind)
    s, g = direction(law), torch.randn(len(f), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    xi = law.generator(f.q0, s)
    assert xi.shape == f.q0.shape
    torch.testing.assert_close(g @ xi, (s * law.form(g, f.q0)).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(xi, generator(law.symmetry(s))(f.q0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["query-key", "affine"])
def test_the_motion_is_a_group(kind):
    f, law = found(kind)
    s = direction(law)
    torch.testing.assert_close(law.act(law.act(f.q0, s), 0.5 * s), law.act(f.q0, 1.5 * s), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(law.act(law.act(f.q0, s), -s), f.q0, rtol=1e-12, atol=1e-13)


def test_a_scale_and_a_shift_flow_together():
    f, law = found("affine")
    gain, s = f.slices["0.weight"], direction(law)
    expected = s.exp() * (1 + f.q0[gain])
    torch.testing.assert_close(1 + law.act(f.q0, s)[gain], expected, rtol=1e-12, atol=1e-14)
    in_turn = f.q0[gain]  # control: one after the other is another motion
    parts = [term for term in law.terms if term.name == "0.weight"]
    for term in parts:
        in_turn = term.move(in_turn, s)
    assert len(parts) == 2
    assert isinstance(parts[1], Shift)
    assert (1 + in_turn - expected).abs().max() > 1e-2


@pytest.mark.parametrize("c", [0.0, 1e-9, 9.9e-3, 1.01e-2, -0.7, 3.0])
def test_an_affine_flow_solves_its_equation(c):
    """Three derivatives along the flow, at all growths and at none: ``x' = c x + tau``."""
    c, tau, x = (torch.tensor(v, dtype=torch.float64) for v in (c, 0.4, 1.3))
    at = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    flow = affine_flow(x, c * at, tau * at)
    for k in range(3):
        (slope,) = torch.autograd.grad(flow, at, create_graph=True)
        expected = c * flow + tau if k == 0 else c * flow
        torch.testing.assert_close(slope, expected, rtol=1e-11, atol=1e-11)
        flow = slope
    torch.testing.assert_close(affine_flow(x, 0 * c, tau), x + tau, rtol=0, atol=0)
