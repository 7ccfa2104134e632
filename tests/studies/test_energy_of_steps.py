"""The books of energy of single steps, behind the chapter on time symmetry."""

import pytest
import torch
from torch.func import grad

import nlcompanion as nl
from studies.energy_of_steps import heavy_ball_books, largest_change, nesterov_books, shadow_of

Q0 = torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64)


def bumpy(q):
    return 0.5 * (q @ q) + 0.3 * q.sin().prod() + 0.1 * (q**4).sum()


def tilted(n):
    """A mini-batch: another slope at every step."""
    noise = torch.randn(3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return lambda q: bumpy(q) + noise @ q


RULES = {0.0: nl.sgd(lr=0.02), 0.9: nl.sgd(lr=0.01, momentum=0.9), 1.0: nl.newtonian(lr=0.01)}


@pytest.mark.parametrize("momentum", RULES)
@pytest.mark.parametrize("batches", [None, tilted])
def test_the_books_close(momentum, batches):
    rule = RULES[momentum]
    books = heavy_ball_books(rule, momentum, bumpy, Q0, 40 * rule.time_step, batches)
    assert books.energy.shape == (40,)
    assert books.left_over.abs().max() < 1e-13 * books.energy.max()
    assert (books.rest.abs().max() > 1e-4) == (batches is not None)
    if momentum < 1:
        wrong = heavy_ball_books(rule, momentum + 0.05, bumpy, Q0, 40 * rule.time_step, batches)
        assert wrong.left_over.abs().max() > 1e-6


def test_nesterovs_books_close_with_the_brake():
    books = nesterov_books(nl.nesterov(lr=0.01), bumpy, Q0, 3.0)
    assert books.left_over.abs().max() < 1e-13 * books.energy.max()
    assert books.rest.sum() < -1e-3  # it takes energy where the loss curves upwards
    assert books.unexplained_by_friction_and_rest < 0.2 * books.unexplained_by_friction


def test_one_step_by_hand():
    rule = nl.sgd(lr=0.1)
    books = heavy_ball_books(rule, 0.0, bumpy, Q0, 0.2)
    q1 = Q0 - 0.1 * grad(bumpy)(Q0)
    q2 = q1 - 0.1 * grad(bumpy)(q1)
    kinetic = (q1 - Q0).square().sum() / 0.4
    assert torch.allclose(books.energy[0], kinetic + (bumpy(Q0) + bumpy(q1)) / 2)
    assert torch.allclose(books.friction[0], -(q2 - Q0).square().sum() / 0.4)


def test_newtonian_steps_follow_their_shadow():
    ripples, shadows = [], []
    for dt in (0.2, 0.1):
        books = heavy_ball_books(nl.newtonian(lr=dt**2), 1.0, bumpy, Q0, 10)
        ripples.append(largest_change(books.energy))
        shadows.append(largest_change(shadow_of(books, bumpy, dt**2)))
    assert 3.3 < ripples[0] / ripples[1] < 5  # order 1 in the rate
    assert shadows[0] / shadows[1] > 12  # order 2
