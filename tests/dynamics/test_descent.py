"""The discrete algorithms: PyTorch's own, exact recursions, and their distance from the flows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CURVATURES, START, heavy_ball, quadratic, quartic

from nlcompanion.dynamics import (
    DescentError,
    convergence_order,
    damped,
    descend,
    gradient_flow,
    integrate,
    modified_loss,
    nesterov,
    newtonian,
    sgd,
)


@given(st.floats(0.01, 0.3), st.floats(0, 0.95), st.floats(0, 0.5))
@settings(max_examples=20, deadline=None)
def test_sgd_is_pytorchs(lr, momentum, decay):
    q = START[:2].clone().requires_grad_()
    optimizer = torch.optim.SGD([q], lr=lr, momentum=momentum, weight_decay=decay)
    path = [q.detach().clone()]
    for _ in range(12):
        optimizer.zero_grad()
        quartic(q).backward()
        optimizer.step()
        path.append(q.detach().clone())
    ours = descend(sgd(lr, momentum, decay), quartic, START[:2], steps=12).q
    assert torch.allclose(ours, torch.stack(path), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("lr", "beta"), [(0.1, 0.0), (0.1, 0.9), (0.5, 0.5)])
def test_heavy_ball_in_closed_form(lr, beta):
    run = descend(sgd(lr, beta), quadratic, START, steps=30)
    n = np.arange(31)
    exact = np.stack([heavy_ball(n, lr, beta, float(c), float(x)) for c, x in zip(CURVATURES, START, strict=True)], 1)
    assert np.abs(run.q.numpy() - exact).max() < 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_nagd_by_hand(decay):
    """Decay is part of the loss, and its gradient, too, is taken ahead."""
    lr, w, y = 0.1, START.clone(), START.clone()
    path = [w]
    for k in range(1, 9):
        w_next = y - lr * (CURVATURES + decay) * y
        y = w_next + (k - 1) / (k + 2) * (w_next - w)
        w = w_next
        path.append(w)
    rule = replace(nesterov(lr=lr), weight_decay=decay)
    assert torch.allclose(descend(rule, quadratic, START, steps=8).q, torch.stack(path), rtol=1e-14)


COARSE = (40, 80, 160)  # enough where the order shows at once
FINE = (160, 320)


def _order(make, flow, start, steps=COARSE, T=2.4, f=quartic, q0=(0.9, -0.4), modify=None):
    errors = []
    for n in steps:
        dt = T / n
        run = descend(make(dt), f, q0, steps=n)
        times = run.t.numpy().clip(max=T)
        loss = modified_loss(f, modify(dt)) if modify else f
        reference = integrate(flow(dt), loss, q0, start(dt), t_span=(0, T), t_eval=times, rtol=1e-9)
        errors.append((run.q - reference.q).norm(dim=1)[n // 2 :].max().item())
    return convergence_order([T / n for n in steps], errors)


def test_second_order_flow_is_order_two_only_with_its_own_start():
    own = _order(lambda lr: sgd(lr, 0.5), lambda lr: sgd(lr, 0.5), lambda lr: None, FINE)
    rest = _order(lambda lr: sgd(lr, 0.5), lambda lr: sgd(lr, 0.5), lambda lr: [0.0, 0.0], FINE)
    assert own == pytest.approx(2, abs=0.15)
    assert rest == pytest.approx(1, abs=0.15)


def test_gradient_flow_is_order_one():
    order = _order(sgd, lambda lr: gradient_flow(), lambda lr: None, COARSE)
    assert order == pytest.approx(1, abs=0.1)


def test_modified_loss_is_order_two_and_a_wrong_weight_is_not():
    right = _order(sgd, lambda lr: gradient_flow(), lambda lr: None, COARSE, modify=lambda lr: lr)
    assert right == pytest.approx(2, abs=0.1)
    wrong = _order(sgd, lambda lr: gradient_flow(), lambda lr: None, COARSE, modify=lambda lr: 2 * lr)
    assert wrong < 1.5


@pytest.mark.parametrize(("half", "order"), [(True, 2), (False, 1)])
def test_newtonian_steps(half, order):
    make = lambda dt: newtonian(lr=dt**2, half_first_step=half)  # noqa: E731
    assert _order(make, lambda dt: newtonian(), lambda dt: None, COARSE) == pytest.approx(order, abs=0.1)


def test_times_velocities_and_every():
    run = descend(sgd(0.1, 0.9), quadratic, START, steps=7, every=3)
    full = descend(sgd(0.1, 0.9), quadratic, START, steps=8)
    assert run.t.tolist() == pytest.approx([0.0, 0.3, 0.6])
    assert torch.equal(run.q, full.q[[0, 3, 6]])
    assert torch.allclose(run.v, (full.q[[1, 4, 7]] - full.q[[0, 3, 6]]) / 0.1, rtol=1e-14)
    root = descend(newtonian(lr=0.04), quadratic, START, steps=1)
    assert root.t.tolist() == [0.0, 0.2]
    assert torch.allclose(root.v[0], (root.q[1] - root.q[0]) / 0.2, rtol=1e-14)
    assert len(descend(sgd(0.1), quadratic, START, steps=0).t) == 1


def test_record():
    run = descend(sgd(0.1), quadratic, START, steps=5, record=lambda t, q, v: {"f": quadratic(q), "speed": v.norm()})
    full = descend(sgd(0.1), quadratic, START, steps=5)
    assert torch.allclose(run.record["f"], torch.stack([quadratic(q) for q in full.q]))
    assert torch.allclose(run.record["speed"], full.v.norm(dim=1))
    assert torch.equal(run.q, full.q[-1:])


def test_batches_give_each_step_its_own_loss():
    halves = [lambda q: (q[:2] ** 2).sum(), lambda q: (q[2:] ** 2).sum()]
    run = descend(sgd(0.25), None, START, steps=2, batches=lambda n: halves[n % 2])
    assert torch.equal(run.q[1], START * torch.tensor([0.5, 0.5, 1.0]).double())
    assert torch.equal(run.q[2], START * 0.5)


def test_divergence_names_the_step_and_keeps_the_rest():
    with pytest.raises(DescentError, match=r"step \d+ .* of 200") as caught:
        descend(sgd(2.0), lambda q: (q**4).sum(), START, steps=200)
    kept = caught.value.trajectory
    assert 1 < len(kept.t) < 200
    assert torch.isfinite(kept.q).all()


def test_bad_arguments():
    go = lambda rule=None, f=quadratic, **kw: descend(rule or sgd(0.1), f, START, **{"steps": 2, **kw})  # noqa: E731
    with pytest.raises(ValueError, match="no discrete algorithm"):
        go(damped(1.0, 1.0))
    with pytest.raises(ValueError, match="no discrete algorithm"):
        go(nesterov())
    with pytest.raises(TypeError, match="LearningRule"):
        go("sgd")
    with pytest.raises(ValueError, match="either one loss"):
        go(batches=lambda n: quadratic)
    with pytest.raises(ValueError, match="either one loss"):
        go(f=None)
    with pytest.raises(TypeError, match="batches"):
        go(f=None, batches=3)
    for kw in ({"steps": -1}, {"steps": 2.0}, {"steps": True}, {"every": 0}):
        with pytest.raises(ValueError, match="must be an integer"):
            go(**kw)
    with pytest.raises(TypeError, match="scalar"):
        go(f=lambda q: q)


@given(st.floats(-3, 3), st.floats(-5, 5))
@settings(max_examples=30)
def test_convergence_order_is_the_slope(order, scale):
    sizes = [0.1, 0.05, 0.02]
    assert convergence_order(sizes, [math.exp(scale) * h**order for h in sizes]) == pytest.approx(order, abs=1e-9)


def test_convergence_order_refuses_what_has_none():
    for sizes, errors in (([0.1], [1.0]), ([0.1, 0.1], [1.0, 1.0]), ([0.1, 0.2], [1.0])):
        with pytest.raises(ValueError, match="2 or more"):
            convergence_order(sizes, errors)
    for errors in ([0.0, 1.0], [math.nan, 1.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="positive and finite"):
            convergence_order([0.1, 0.2], errors)
