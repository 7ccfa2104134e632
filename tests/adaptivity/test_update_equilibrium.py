"""Equilibrium from the updates' size and memory: closed forms, white gradients, and what people put in their place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nlcompanion as nl
from nlcompanion.adaptivity.closed_forms import closed_form, lion, of_filter, sgd_response
from studies.small_trainings import Lion
from studies.white_gradients import settled_run

F64 = torch.float64
LR, DECAY = 0.02, 0.25
LEFT = 1 - LR * DECAY


def weight(*shape):
    return torch.nn.Parameter(torch.zeros(shape or (32, 32)))


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY),
    "Lion": lambda p: Lion(p, lr=LR, weight_decay=DECAY),
    "Muon": lambda p: torch.optim.Muon(p, lr=LR, weight_decay=DECAY, nesterov=False),
    "Muon with Nesterov": lambda p: torch.optim.Muon(p, lr=LR, weight_decay=DECAY),
}
ADAMS_WITH_MUONS_BETA = math.sqrt((1 - LEFT**2) * (1 - LEFT * 0.95) / (1 + LEFT * 0.95) - (LR * DECAY) ** 2)


FAST = ("AdamW", "Muon")
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]


@pytest.mark.parametrize("name", EACH)
def test_the_equilibrium_of_a_run_is_the_one_of_its_updates(name):
    said = nl.equilibrium_of(OPTIMIZERS[name]([weight()]))
    rms, turn = settled_run(OPTIMIZERS[name])
    assert said.rms == pytest.approx(rms, rel=0.015)
    assert said.angular_update == pytest.approx(turn, rel=0.015)
    assert said.source == ("white gradients" if "Muon" in name else "closed form")


@pytest.mark.parametrize(("name", "least", "most"), [("Muon", 0.12, 0.16), ("Muon with Nesterov", 0.20, 0.25)])
def test_adams_formula_with_muons_beta_is_wrong(name, least, most):
    """The polar factor shortens the memory: the weight turns faster than Adam's formula says."""
    said = nl.equilibrium_of(OPTIMIZERS[name]([weight()])).angular_update
    assert least < 1 - ADAMS_WITH_MUONS_BETA / said < most


def test_adams_closed_form_is_kossons_where_decay_is_slow():
    optimizer = torch.optim.AdamW([weight()], lr=1e-4, weight_decay=0.1)
    settled = nl.equilibrium_of(optimizer)
    assert settled.rms == pytest.approx(math.sqrt(1e-4 / 0.2), rel=1e-3)
    assert settled.angular_update == pytest.approx(nl.angular_update(1e-4, 0.1, 0.9, decoupled=True), rel=1e-3)
    assert settled.memory == pytest.approx((1 + 0.9 * (1 - 1e-5)) / (1 - 0.9 * (1 - 1e-5)), rel=1e-9)
    assert settled.update_rms**2 == pytest.approx(1 / 19, rel=1e-9)


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.999)),
        lambda p: Lion(p, lr=0.1, betas=(0.95, 0.98)),
    ],
)
def test_closed_forms_are_what_white_gradients_make(factory):
    optimizer = factory([weight()])
    closed = closed_form(optimizer, optimizer.param_groups[0], 3.0)
    simulated = nl.white_updates(factory, (30, 30), grad_rms=3.0)
    assert closed.rms == pytest.approx(simulated.rms, rel=0.02)
    assert closed.memory(0.01) == pytest.approx(simulated.memory(0.01), rel=0.03)


def test_controls_of_the_closed_forms():
    """Lion is no filter: signs remember less than what they are signs of."""
    response = torch.cat([torch.tensor([0.1], dtype=F64), 0.9 * 0.01 * 0.99 ** torch.arange(3000, dtype=F64)])
    signs, filtered = lion(0.9, 0.99), of_filter(response)
    assert signs.memory() < 0.8 * filtered.memory()
    plain, nesterov = of_filter(sgd_response(0.9, 0, False)), of_filter(sgd_response(0.9, 0, True))
    assert nesterov.memory() < plain.memory() == pytest.approx(19)


@given(st.floats(0, 0.97), st.floats(1e-4, 0.3))
@settings(max_examples=30, deadline=None)
def test_the_sum_over_lags_of_a_momentum_is_its_geometric_series(beta, fading):
    found = of_filter(sgd_response(beta, 0.0, False)).memory(fading)
    assert found == pytest.approx((1 + (1 - fading) * beta) / (1 - (1 - fading) * beta), rel=1e-6)


# --- scale-invariant weights under SGD: P is a case ---------------------------------------------------------------


def sphere_run(kept, *, beta=0.9, lr=0.01, decay=0.2, steps=6000, weights=40, size=40, seed=0):
    """SGD with decoupled decay on scale-invariant weights, whose gradients keep a share of the last one."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(weights, size, generator=generator, dtype=F64)
    noise, v, updates, gradients, radii = torch.randn_like(w), torch.zeros_like(w), [], [], []
    for n in range(steps):
        fresh = torch.randn(w.shape, generator=generator, dtype=F64)
        noise = kept * noise + math.sqrt(1 - kept**2) * fresh
        r2 = w.square().sum(1, keepdim=True)
        unit = noise - (noise * w).sum(1, keepdim=True) / r2 * w
        v = beta * v + unit / r2.sqrt()
        if n >= steps // 3:
            updates.append(v.clone())
            gradients.append(unit.clone())
            radii.append(r2[:, 0].clone())
        w = (1 - lr * decay) * w - lr * v
    return torch.stack(updates), torch.stack(gradients), torch.stack(radii)


@pytest.mark.parametrize("kept", [pytest.param(0.0, marks=pytest.mark.slow), 0.8])
def test_persistence_is_in_the_size_of_the_updates_and_not_in_their_memory(kept):
    """S is (1 + a beta)/(1 - a beta) however long gradients persist; U^2 = P g^2/(1 - beta)^2; r is the book's."""
    lr, decay, beta = 0.01, 0.2, 0.9
    updates, gradients, r2 = sphere_run(kept)
    left = 1 - lr * decay
    said = nl.update_memory(updates, lags=1500)
    of_momentum = (1 + left * beta) / (1 - left * beta)
    assert said.memory(lr * decay) == pytest.approx(of_momentum, rel=0.06)
    P = nl.gradient_persistence(gradients, beta).factor
    g_unit = gradients.square().sum(2).mean().sqrt().item()
    radius = r2.square().mean().item() ** 0.25
    from_size = g_unit / radius * math.sqrt(P) / (1 - beta)
    assert said.rms * math.sqrt(40) == pytest.approx(from_size, rel=0.03)
    settled = nl.equilibrium_of_updates((from_size, of_momentum), lr=lr, weight_decay=decay)
    old = nl.equilibrium(lr, decay, beta, grad_norm=g_unit, persistence=P, decoupled=True)
    # g = g_unit / r on one side makes the equation for r itself: r^2 = rms^2 with U(r)
    self_consistent = math.sqrt(settled.rms * radius)
    assert self_consistent == pytest.approx(old.radius, rel=0.02)
    assert radius == pytest.approx(old.radius, rel=0.02)
    assert settled.angular_update == pytest.approx(old.angular_update, rel=0.02)


def test_without_scale_invariance_persistence_is_in_the_memory():
    """The control: gradients that may point along the weight lengthen S, and the angle falls."""
    generator = torch.Generator().manual_seed(0)
    noise, v, found = torch.zeros(400, dtype=F64), torch.zeros(400, dtype=F64), []
    for _ in range(4000):
        noise = 0.8 * noise + 0.6 * torch.randn(400, generator=generator, dtype=F64)
        v = 0.9 * v + noise
        found.append(v)
    said = nl.update_memory(torch.stack(found), lags=300).memory(0.002)
    assert said > 1.3 * (1 + 0.998 * 0.9) / (1 - 0.998 * 0.9)


# --- recorded updates ---------------------------------------------------------------------------------------------


def test_recorded_updates_have_the_memory_of_their_filter():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, 60, generator=generator, dtype=F64)
    updates = 3 * (noise[1:] + 0.5 * noise[:-1])
    found = nl.update_memory(updates, lags=10)
    assert found.rms == pytest.approx(3 * math.sqrt(1.25), rel=0.01)
    assert found.autocorrelation[1] == pytest.approx(0.4, abs=0.01)
    assert found.memory() == pytest.approx(1.8, abs=0.05)


def test_a_large_matrix_is_simulated_at_a_smaller_size():
    factory = OPTIMIZERS["Muon"]
    large, small = nl.white_updates(factory, (256, 128), steps=200), nl.white_updates(factory, (64, 32), steps=200)
    assert large.memory() == pytest.approx(small.memory(), rel=1e-9)
    assert large.rms == pytest.approx(math.sqrt(2) / 16, rel=0.15)  # scale sqrt(rows/columns) and size 1/sqrt(rows)


def test_equilibrium_errors_name_the_cause():
    held = weight()
    with pytest.raises(ValueError, match="weight_decay is 0"):
        nl.equilibrium_of(torch.optim.AdamW([held], weight_decay=0))
    with pytest.raises(ValueError, match="joins the gradient"):
        nl.equilibrium_of(torch.optim.Adam([held], weight_decay=0.1))
    with pytest.raises(ValueError, match="does not hold this parameter"):
        nl.equilibrium_of(torch.optim.AdamW([held]), weight())
    with pytest.raises(ValueError, match="undo one another"):
        nl.equilibrium_of_updates(
            nl.UpdateMemory(1.0, torch.tensor([1.0, -0.9], dtype=F64), "given"), lr=0.1, weight_decay=0.1
        )
    assert math.isnan(nl.equilibrium_of(torch.optim.SGD([held], lr=0.1, weight_decay=0.1)).rms)
