"""studies.neuron_balance and studies.many_seeds: small runs against the package, each with a control."""

import pytest
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion import descend, sgd
from studies.many_seeds import descend_seeds, draw_rows, mean_and_error, order_over_seeds
from studies.neuron_balance import (
    FAMILIES,
    digits_loss,
    drift_after,
    imbalance,
    layer_drift,
    nesterov_books,
    relative_drift,
    sharpness,
    squares_gained,
    table_entry,
    tilt_of_steps,
    two_forces,
)
from studies.neuron_figures import draw_account

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def f():
    return digits_loss((64, 6, 5, 10), samples=40)


def test_all_seeds_take_the_steps_of_descend(f):
    x, y = nl.digits("train").first(40).tensors(flatten=True)
    ends = descend_seeds(f, x, y, lr=0.05, momentum=0.9, steps=6, size=8, seeds=3)
    generator = torch.Generator().manual_seed(0)
    rows = [draw_rows(3, 40, 8, generator) for _ in range(7)]
    for seed in range(3):

        def batch(n, seed=seed):
            return f.on(x[rows[n][seed]], y[rows[n][seed]])

        alone = descend(sgd(0.05, momentum=0.9), None, f.q0, steps=6, batches=batch).q[-1]
        torch.testing.assert_close(ends[seed], alone, rtol=1e-12, atol=1e-14)
    assert (ends[0] - ends[1]).norm() > 1e-3


def test_rows_are_drawn_without_or_with_replacement():
    generator = torch.Generator().manual_seed(0)
    once = draw_rows(5, 9, 9, generator)
    assert (once.sort(dim=1).values == torch.arange(9)).all()
    again = draw_rows(50, 9, 9, generator, replacement=True)
    assert (again.sort(dim=1).values != torch.arange(9)).any()


def test_the_order_over_seeds_has_the_error_of_its_scatter():
    sizes = torch.tensor([0.4, 0.2, 0.1]).double()
    generator = torch.Generator().manual_seed(1)
    values = 3 * sizes**2 * (1 + 0.05 * torch.randn(200, 3, generator=generator).double())
    order, error = order_over_seeds(sizes.tolist(), values)
    assert order == pytest.approx(2, abs=5 * error)
    # by propagation: 0.05 / sqrt(200) on each log, divided by the spread of log sizes
    assert error == pytest.approx(0.05 / 200**0.5 / (2**0.5 * torch.tensor(2.0).log().item()), rel=0.3)
    mean, error = mean_and_error(values[:, 0])
    assert mean == pytest.approx(0.48, abs=5 * error)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_kicks_balance_where_the_gradient_was_taken(f, looks_ahead):
    n = torch.arange(1.0, 20)[:, None].double()
    memory = (n - 1) / (n + 2) if looks_ahead else torch.ones_like(n)
    rule = nl.nesterov(lr=0.01) if looks_ahead else nl.newtonian(lr=0.01)
    law = nl.homogeneous_law(f, 1).total
    forces = two_forces(rule, memory, f, law, looks_ahead=looks_ahead, steps=20)
    assert imbalance(*forces.kicks) < 1e-10
    assert imbalance(*forces.kicks_elsewhere) > 1e-6
    assert imbalance(*forces.steps) > 1e-6


def test_both_sides_of_nesterovs_identity():
    f = digits_loss((64, 6, 10))
    sides = nesterov_books(f, nl.homogeneous_law(f, 1), steps=12)
    assert (sides["change"] - sides["explained"]).abs().max() < 1e-15
    assert (sides["change"] - sides["gradient_at_weights"]).abs().max() > 1e-10
    assert sides["memory_of_0.9"].abs().max() > 1e-10


def test_an_entry_of_the_table_and_its_control():
    held, failed = table_entry(FAMILIES["$x^2$"], nl.newtonian(), bias=True)
    assert held < 1e-10 < 1e-2 < failed


def test_drift_of_layers_starts_at_zero_and_slope_is_its_rate(f):
    run = layer_drift(f, nl.newtonian())
    assert run.total[0] == 0
    assert (run.total - 4 * run.unit).max() <= 1e-12
    slope = run.slope_of_absolute_values
    difference = run.D.abs().sum(0).diff() / run.t.diff()
    smooth = (run.D.sign().diff(dim=1) == 0).all(0)
    torch.testing.assert_close(difference[smooth], ((slope[1:] + slope[:-1]) / 2)[smooth], rtol=1e-2, atol=1e-2)


def test_gradients_are_orthogonal_and_adams_steps_are_not(f):
    model = nl.mlp((64, 6, 5, 10))
    of_gradient, of_step = tilt_of_steps(model, torch.optim.Adam(model.parameters()), nl.homogeneous_law(f, 1), steps=5)
    assert of_gradient < 1e-13 < 1e-3 < of_step


def test_small_measurements(f):
    law = nl.homogeneous_law(f, 1)
    moved = drift_after(f, law, sgd(0.1), time=1.0)
    end = descend(sgd(0.1), f, f.q0, steps=10).q[-1]
    torch.testing.assert_close(moved, law.charge(end) - law.charge(f.q0), rtol=1e-8, atol=1e-14)
    gains = squares_gained(f, f.q0, end)
    total = gains["1.weight"] - gains["3.weight"]
    torch.testing.assert_close(total, moved.sum(), rtol=1e-8, atol=1e-13)
    assert relative_drift(law, torch.stack([f.q0, end])) == pytest.approx(
        float((moved.abs() / sum(law.sides(end))).max()), rel=1e-9
    )
    matrix = torch.diag(torch.tensor([1.0, 3.0, -2.0]).double())
    assert sharpness(lambda q: q @ matrix @ q / 2, torch.zeros(3).double()) == pytest.approx(3, rel=1e-4)


def test_totals_are_no_curve():
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 2
    model = nl.mlp((4, 3, 2), "relu")
    laws = nl.homogeneous_laws(nl.flat_loss(model, x, y, cross_entropy))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ledger = nl.Ledger(laws, model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    with pytest.raises(ValueError, match="make it with every=1"):
        draw_account(Figure().subplots(), ledger[0])
