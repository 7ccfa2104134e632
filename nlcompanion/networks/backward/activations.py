"""Activations and their slopes in NumPy, with torch's conventions at kinks.

Activations lie as ``(..., neurons, samples)``. Each is a function ``z -> (y, back)`` of what goes in, which it may
overwrite; ``back(d)`` turns slopes by ``y`` into slopes by ``z``, in place where it can, and may use up ``y``: the
layer above, whose input it was, has had its turn by then.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray
from torch import nn

from nlcompanion.networks.activations import Power, RePU

Back = Callable[[ndarray], ndarray]
Activation = Callable[[ndarray], tuple[ndarray, Back]]


def activation_of(layer: nn.Module) -> Activation | None:
    """By the exact type: a subclass may do anything."""
    make = _KINDS.get(type(layer))
    return None if make is None else make(layer)


def swish(z: ndarray, beta: ndarray) -> tuple[ndarray, Callable[[ndarray], tuple[ndarray, ndarray]]]:
    """``z sigmoid(beta z)``; its ``back(d)`` gives the slopes by ``z`` and, summed over samples, by ``beta``."""
    beta = beta[..., None]
    gate = _sigmoid(beta * z)
    bend = z * gate * (1 - gate)

    def back(d: ndarray) -> tuple[ndarray, ndarray]:
        return d * (gate + beta * bend), (d * z * bend).sum(-1)

    return z * gate, back


def _sigmoid(z: ndarray) -> ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))  # finite everywhere


def _relu(_: nn.Module) -> Activation:
    def run(z: ndarray) -> tuple[ndarray, Back]:
        y = np.maximum(z, 0, out=z)
        return y, lambda d: np.multiply(d, np.sign(y, out=y), out=d)

    return run


def _leaky_relu(layer: nn.LeakyReLU) -> Activation:
    def run(z: ndarray) -> tuple[ndarray, Back]:
        slope = np.where(z > 0, 1.0, layer.negative_slope)
        return z * slope, lambda d: np.multiply(d, slope, out=d)

    return run


def _tanh(_: nn.Module) -> Activation:
    def run(z: ndarray) -> tuple[ndarray, Back]:
        y = np.tanh(z, out=z)

        def back(d: ndarray) -> ndarray:
            np.multiply(y, y, out=y)
            np.subtract(1, y, out=y)
            return np.multiply(d, y, out=d)

        return y, back

    return run


def _logistic(_: nn.Module) -> Activation:
    def run(z: ndarray) -> tuple[ndarray, Back]:
        y = _sigmoid(z)
        return y, lambda d: np.multiply(d, y * (1 - y), out=d)

    return run


def _silu(_: nn.Module) -> Activation:
    def run(z: ndarray) -> tuple[ndarray, Back]:
        gate = _sigmoid(z)
        return z * gate, lambda d: np.multiply(d, gate * (1 + z * (1 - gate)), out=d)

    return run


def _softplus(layer: nn.Softplus) -> Activation:
    """Linear beyond torch's threshold, as there."""

    def run(z: ndarray) -> tuple[ndarray, Back]:
        scaled = layer.beta * z
        linear = scaled > layer.threshold
        y = np.where(linear, z, np.logaddexp(0, scaled) / layer.beta)
        return y, lambda d: np.multiply(d, np.where(linear, 1.0, _sigmoid(scaled)), out=d)

    return run


def _gelu(layer: nn.GELU) -> Activation | None:
    if layer.approximate != "none":
        return None
    from scipy.special import ndtr  # loaded where it is used: SciPy takes its time

    def run(z: ndarray) -> tuple[ndarray, Back]:
        below = ndtr(z)
        slope = below + z * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        return z * below, lambda d: np.multiply(d, slope, out=d)

    return run


def _repu(layer: RePU) -> Activation:
    if layer.p == 1:
        return _relu(layer)

    def run(z: ndarray) -> tuple[ndarray, Back]:
        lively = z > 0
        safe = np.where(lively, z, 1.0)  # a broken power is singular at 0
        slope = np.where(lively, layer.p * safe ** (layer.p - 1), 0.0)
        return np.where(lively, safe**layer.p, 0.0), lambda d: np.multiply(d, slope, out=d)

    return run


def _power(layer: Power) -> Activation:
    p = layer.p
    return lambda z: (z**p, lambda d: np.multiply(d, p * z ** (p - 1), out=d))


_KINDS: dict[type[nn.Module], Callable] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _logistic,
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
    RePU: _repu,
    Power: _power,
}
