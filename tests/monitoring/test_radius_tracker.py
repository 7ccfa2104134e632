"""The radius that a tracker foresees while a run goes on, against the same law after it."""

import math

import pytest
import torch

from nlcompanion.adaptivity import momentum_average, radius_squared
from nlcompanion.monitoring import RadiusTracker

F64 = torch.float64
LR, BETA, DECAY = 0.1, 0.9, 5e-3


def test_it_rests_where_a_schedule_does():
    w = torch.ones(3, dtype=F64)
    tracker = RadiusTracker(w, lr=LR, momentum=0.5, weight_decay=DECAY)
    tracker.update(w, w, lr=0.0)
    assert tracker.averaged.item() == tracker.persistent.item() == pytest.approx(3.0)
    tracker.update(w, w, lr=LR)
    assert tracker.persistent > tracker.averaged > 3.0  # the average had begun in the meantime
    fresh = RadiusTracker(w, lr=LR, momentum=0.5, weight_decay=DECAY)
    fresh.update(w, w)
    assert tracker.averaged > fresh.averaged
    with pytest.raises(ValueError, match="lr must be"):
        tracker.update(w, w, lr=-0.1)
    with pytest.raises(TypeError, match="gradient is None"):
        tracker.update(w, None)
    for start in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="no direction"):
            RadiusTracker(start * w, lr=LR)


def test_it_is_the_offline_law_step_by_step():
    rng = torch.Generator().manual_seed(1)
    weights = 1 + torch.rand(30, 4, 6, generator=rng, dtype=F64)
    g = torch.randn(30, 4, 6, generator=rng, dtype=F64)
    tracker = RadiusTracker(weights[0], lr=LR, momentum=BETA, weight_decay=DECAY, keep=1, window=30)
    for w, slope in zip(weights, g, strict=True):
        tracker.update(w, slope)
    unit = g * weights.norm(dim=2, keepdim=True)
    average = momentum_average(unit, BETA)
    # the tracker's gradient is constant during a step, the function's linear between times: double every time
    t = LR * torch.arange(31, dtype=F64)
    doubled = torch.stack([t[:-1], t[1:] - 1e-13], 1).reshape(-1)
    start = weights[0].square().sum(1)
    for name, norms in (("persistent", unit), ("averaged", average)):
        G = norms.square().sum(2).repeat_interleave(2, 0)
        law = radius_squared(doubled, G, start, lr=LR, momentum=BETA, weight_decay=DECAY)
        assert torch.allclose(getattr(tracker, name), law[-1], rtol=1e-10)
    G, independent = unit.square().sum(2), (1 - BETA) / (1 + BETA)
    law = radius_squared(
        doubled,
        G.repeat_interleave(2, 0),
        start,
        lr=LR,
        momentum=BETA,
        weight_decay=DECAY,
        persistence=independent,
    )
    assert torch.allclose(tracker.white, law[-1], rtol=1e-10)
    lasting_step = LR * G.sqrt() / ((1 - BETA) * weights.square().sum(2))  # in radians, once the momentum has grown
    assert torch.allclose(tracker.reach, lasting_step.square().mean(0).sqrt(), rtol=1e-12)
    assert torch.allclose(tracker.persistence, average.square().sum((0, 2)) / unit.square().sum((0, 2)), rtol=1e-12)
    assert (tracker.white < tracker.persistent).all()
    assert tracker.steps == 30


def test_it_follows_a_schedule_and_keeps_no_history():
    q, how = torch.tensor([1.0, 0.0], dtype=F64), {"momentum": 0.5, "weight_decay": 0.1}
    tracker = RadiusTracker(q, lr=0.1, **how)
    for n in range(400):
        tracker.update(q, torch.tensor([0.0, 1.0]), lr=0.1 if n < 200 else 0.01)
    sizes = [x.numel() for x in (tracker._average, *tracker._fourth.values(), *tracker._norms.values())]
    assert sum(sizes) == 2 + 3 + 3
    first = radius_squared([0.0, 20.0], [1.0, 1.0], 1.0, lr=0.1, **how)[-1]
    then = radius_squared([0.0, 2.0], [1.0, 1.0], first, lr=0.01, **how)[-1]
    assert tracker.persistent.item() == pytest.approx(then.item(), rel=1e-12)


def test_it_says_what_is_wrong():
    q = torch.ones(3, 2)
    with pytest.raises(ValueError, match="length 0"):
        RadiusTracker(torch.zeros(2), lr=0.1)
    with pytest.raises(ValueError, match="keep"):
        RadiusTracker(q, lr=0.1, keep=3)
    with pytest.raises(ValueError, match="window"):
        RadiusTracker(q, lr=0.1, window=0)
    with pytest.raises(ValueError, match="made for"):
        RadiusTracker(q, lr=0.1).update(q, torch.ones(2, 3))
