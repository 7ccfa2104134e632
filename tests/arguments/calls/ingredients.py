"""What the calls are made with."""

import tempfile
from functools import cache

import torch
from torch import nn

import nlcompanion as nl


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def bowl(q):
    return 0.5 * q @ q


def entropy(q):
    return (q * q.log() - q).sum()


def oscillator(t, q, v):
    return 0.5 * v @ v - 0.5 * q @ q


def path(t):
    return torch.stack([torch.cos(t), torch.sin(t)])


def bump(t):
    return torch.stack([t * (1 - t), t])


Q, V, A = double(1.0, 2.0), double(0.5, -0.5), double(0.1, 0.2)
T = torch.linspace(0, 1, 5, dtype=torch.float64)
NODES = torch.stack([T, T.square()], dim=1)


@cache
def network():
    return nl.mlp((4, 3, 2))


@cache
def linear_network():
    return nl.mlp((4, 3, 2), "linear")


def samples():
    random = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=random, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])


@cache
def loss():
    return nl.flat_loss(network(), *samples(), nn.functional.cross_entropy)


@cache
def linear_loss():
    return nl.flat_loss(linear_network(), *samples(), nn.functional.cross_entropy)


@cache
def law():
    return nl.homogeneous_law(loss(), 1)


def of_state(make):
    """A function that makes a function of (t, q, v), called at once: the second step has arguments too."""

    def called(t, q, v, **arguments):
        return make(**arguments)(t, q, v)

    return called


def acting(make):
    """A function that makes an action, at work on a point."""

    def called(q, s, **arguments):
        return make(**arguments)(q, s)

    return called


STATE = {"t": 0.5, "q": Q, "v": V}
MOTION = {"rule": nl.damped(1.0, 0.5), "symmetry": nl.scale(), **STATE}


@cache
def empty_folder():
    return tempfile.mkdtemp()


@cache
def loss_of_two():
    """Of two parameters, so that wrong vectors of two numbers have the right shape."""
    return nl.flat_loss(nl.mlp((1, 1, 1)), double(1.0, 2.0)[:, None], double(0.0, 1.0)[:, None], nn.functional.mse_loss)


@cache
def law_of_two():
    return nl.homogeneous_law(loss_of_two(), 1)
