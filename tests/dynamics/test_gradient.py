"""Gradients of a loss: by autograd, or as the loss offers them."""

import math

import torch

from nlcompanion.dynamics.gradient import LossGradient


class Offering:
    """A loss with a gradient of its own, whose value is chosen."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, q):
        return q @ q

    def value_and_gradient(self, q):
        return self.value, 3 * q


def test_what_a_loss_offers_is_taken_where_the_loss_is_finite():
    q = torch.ones(2, dtype=torch.float64)
    assert torch.equal(LossGradient(Offering(1.0))(q), 3 * q)
    assert LossGradient(Offering(math.inf))(q).isnan().all()
    assert torch.equal(LossGradient(lambda q: q @ q)(q), 2 * q)
