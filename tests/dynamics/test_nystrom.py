"""DOP853 in Nyström's form, against SciPy's on the pair (q, v)."""

from functools import cache

import numpy as np
import pytest
import torch
from grids import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import DOP853

from nlcompanion.dynamics import FlowError, damped, flows, general, integrate, nesterov, newtonian, nystrom, sgd

RULES = {
    "Newtonian": (newtonian(), 0.0),
    "damped": (damped(mass=0.5, friction=0.3), 0.0),
    "decaying": (sgd(lr=0.1, momentum=0.9, weight_decay=0.05), 0.0),
    "Nesterov": (nesterov(), 0.1),
    "in time": (general(lambda t: 1 + 0.1 * t, lambda t: 0.5 + 0.2 * t), 0.0),
}


def quartic(q):
    return 0.25 * q.pow(4).sum() + 0.5 * q[1:] @ q[:-1] + 0.5 * q @ q


def scipys(rule, q0, v0, **span):
    """``integrate`` with SciPy's class in the place of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "NystromDOP853", DOP853)
        return integrate(rule, quartic, q0, v0, **span)


def moving(name, evaluated):
    """A rule, a start and how to integrate it."""
    rule, t0 = RULES[name]
    g = torch.Generator().manual_seed(0)
    q0, v0 = torch.randn(2, 7, generator=g, dtype=torch.float64)
    span = {"t_span": (t0, 6.0), "rtol": 1e-8, "atol": 1e-10}
    if evaluated:
        span["t_eval"] = np.linspace(t0, 6.0, 50)
    return rule, q0, v0, span


@cache
def as_scipy_does(name, evaluated):
    rule, q0, v0, span = moving(name, evaluated)
    return scipys(rule, q0, v0, **span)


@pytest.mark.parametrize(("name", "evaluated", "block"), covering(RULES, [False, True], [2, 8192]))
def test_steps_points_and_interpolation_are_scipys(name, evaluated, block, monkeypatch):
    monkeypatch.setattr(nystrom, "_BLOCK", block)
    rule, q0, v0, span = moving(name, evaluated)
    ours, theirs = integrate(rule, quartic, q0, v0, **span), as_scipy_does(name, evaluated)
    assert ours.nfev == theirs.nfev
    assert torch.allclose(ours.t, theirs.t, rtol=1e-5)  # a step's length follows from its error, a small difference
    there = slice(None) if evaluated else slice(-1, None)  # at the same times
    assert (ours.q[there] - theirs.q[there]).abs().max() < 1e-11
    assert (ours.v[there] - theirs.v[there]).abs().max() < 1e-11


@pytest.mark.parametrize("name", RULES)
def test_other_steps_would_show(name):
    """The control."""
    rule, q0, v0, span = moving(name, evaluated=False)
    looser = integrate(rule, quartic, q0, v0, **{**span, "rtol": 1e-5})
    assert looser.nfev < as_scipy_does(name, False).nfev
    assert (looser.q[-1] - as_scipy_does(name, False).q[-1]).abs().max() > 1e-9


@given(st.floats(0.05, 2.0), st.floats(-12, -4), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_same_errors_over_tolerances(stretch, exponent, n):
    """Where steps are refused as well: the loss is steep."""
    q0 = stretch * torch.arange(1, n + 1, dtype=torch.float64)
    span = {"t_span": (0.0, 1.5), "rtol": 10.0**exponent, "atol": 1e-9}
    ours, theirs = integrate(newtonian(), quartic, q0, **span), scipys(newtonian(), q0, None, **span)
    assert abs(ours.nfev - theirs.nfev) <= 12  # a step on the border may fall on either side
    if ours.nfev == theirs.nfev:
        assert torch.allclose(ours.q[-1], theirs.q[-1], rtol=1e-7, atol=1e-7)


def test_an_end_that_cannot_be_reached():
    with pytest.raises(FlowError, match="could not be followed beyond"):
        integrate(newtonian(), lambda q: -(q**4).sum(), [1.0], [1.0], t_span=(0.0, 5.0))
    with pytest.raises(FlowError, match="used up max_nfev = 30"):
        integrate(newtonian(), quartic, [1.0], t_span=(0.0, 5.0), max_nfev=30)
