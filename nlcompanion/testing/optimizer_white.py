r"""Root mean square of a family's step n (counted from 1) under white gradients of size 1, in units of a parameter.

A rule that adds up gradients with weights :math:`w_k` has :math:`\sqrt{\sum_k w_k^2}`. One that divides by a mean of
squares divides by nearly 1: where that mean is over few squares (``beta2`` below 0.9) nothing is promised.

Of three rules no formula is known, since what they divide by has a memory that is no mean of squares: AMSGrad's largest
mean, Adamax's largest gradient, Adadelta's mean of its own squared steps. Their figures are **measured**, on 4,096
numbers that follow the rule as its paper writes it. Rprop promises nothing here: its step sizes gain a fifth or lose a
half at random, and the fourth power of such a product has no mean (half of 1.2**4 is above 1), so that a mean square
over samples settles nowhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

Group = dict[str, Any]
White = Callable[[Group, int], float]

WHITE_SIDE = 64  # of the matrix: a momentum near 1 leaves its entries as the only samples
_LEAST_BETA2 = 0.9  # v is then a mean of 19 squares, (1 + beta) / (1 - beta), and 1/v by a tenth above 1 at most
_SAMPLES = 4096


def _length(n: int) -> int:
    """Of a path that reaches step n: computed once for many n."""
    return max(256, 1 << (n - 1).bit_length())


def _geometric(ratio: float, count: int) -> float:
    """``1 + ratio + ... + ratio**(count - 1)``."""
    return (1 - ratio**count) / (1 - ratio) if ratio != 1 else float(count)


def many_squares(white: White, beta2: float) -> White | None:
    """None where the mean of squares is over so few that it is not near 1."""
    return None if beta2 < _LEAST_BETA2 else white


def lr_rms(group: Group, n: int) -> float:
    """Lion's: every number moves by the learning rate."""
    return float(group["lr"])


def sgd_rms(group: Group, n: int) -> float:
    """Of what the buffer has gathered in n steps; the first gradient enters it whole, whatever the dampening."""
    beta, share = group.get("momentum", 0.0), 1 - group.get("dampening", 0.0)
    if group.get("nesterov"):
        return group["lr"] * math.sqrt((1 + beta) ** 2 + beta**4 * _geometric(beta**2, n - 1))
    if not beta:
        return group["lr"]
    first = beta ** (2 * (n - 1))
    return group["lr"] * math.sqrt(first + share**2 * _geometric(beta**2, n - 1))


def _mean_rms(beta: float, n: int) -> float:
    r"""Of :math:`(1 - \beta) \sum_k \beta^{n - k} g_k / (1 - \beta^n)`."""
    return math.sqrt((1 - beta) / (1 + beta) * (1 + beta**n) / (1 - beta**n))


def adam_rms(group: Group, n: int) -> float:
    """The mean of n gradients, where v is 1."""
    return group["lr"] / (1 + group["eps"]) * _mean_rms(group["betas"][0], n)


def adam_white(group: Group) -> White | None:
    """Measured for AMSGrad."""
    return many_squares(_amsgrad_rms if group.get("amsgrad") else adam_rms, group["betas"][1])


def _amsgrad_rms(group: Group, n: int) -> float:
    return group["lr"] / (1 + group["eps"]) * _amsgrad_path(*group["betas"], _length(n))[n - 1]


@functools.cache
def _amsgrad_path(beta1: float, beta2: float, steps: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(0)
    m, v, largest = torch.zeros(3, _SAMPLES, dtype=torch.float64)
    found = []
    for n in range(1, steps + 1):
        g = torch.randn(_SAMPLES, generator=generator, dtype=torch.float64)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        largest = torch.maximum(largest, v)
        step = m / (1 - beta1**n) / (largest / (1 - beta2**n)).sqrt()
        found.append(float(step.square().mean().sqrt()))
    return tuple(found)


def nadam_rms(group: Group, n: int) -> float:
    r"""Of :math:`a_n g_n + b_n (1 - \beta) \sum_k \beta^{n - k} g_k`, with the warm-up of the momentum in both."""
    beta, psi = group["betas"][0], group["momentum_decay"]
    mu = [beta * (1 - 0.5 * 0.96 ** (k * psi)) for k in range(1, n + 2)]
    before, after = math.prod(mu[:n]), math.prod(mu)
    a, b = (1 - mu[n - 1]) / (1 - before), mu[n] / (1 - after)
    newest = a + b * (1 - beta)
    older = b * b * (1 - beta) ** 2 * beta**2 * _geometric(beta**2, n - 1)
    return group["lr"] / (1 + group["eps"]) * math.sqrt(newest**2 + older)


def radam_rms(group: Group, n: int) -> float:
    """SGD with the mean of n gradients until there is a variance, then Adam times the rectification."""
    beta1, beta2 = group["betas"]
    mean = group["lr"] * _mean_rms(beta1, n)
    limit = 2 / (1 - beta2) - 1
    length = limit - 2 * n * beta2**n / (1 - beta2**n)
    if length <= 5:
        return mean
    rectified = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    return mean * math.sqrt(rectified) / (1 + group["eps"] / math.sqrt(1 - beta2**n))


def adamax_rms(group: Group, n: int) -> float:
    return group["lr"] * _adamax_path(*group["betas"], _length(n))[n - 1]


@functools.cache
def _adamax_path(beta1: float, beta2: float, steps: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(0)
    m, largest = torch.zeros(2, _SAMPLES, dtype=torch.float64)
    found = []
    for n in range(1, steps + 1):
        g = torch.randn(_SAMPLES, generator=generator, dtype=torch.float64)
        m, largest = beta1 * m + (1 - beta1) * g, torch.maximum(beta2 * largest, g.abs())
        step = m / (1 - beta1**n) / largest
        found.append(float(step.square().mean().sqrt()))
    return tuple(found)


def rmsprop_rms(group: Group, n: int) -> float:
    """Without bias correction; ``centered`` takes the square of the mean away."""
    alpha, beta = group["alpha"], group.get("momentum", 0.0)
    total = 0.0
    for k in range(max(1, n - 500), n + 1):
        spread = 1 - alpha**k
        if group.get("centered"):
            spread -= (1 - alpha) / (1 + alpha) * (1 - alpha ** (2 * k))
        total += beta ** (2 * (n - k)) / (math.sqrt(spread) + group["eps"]) ** 2
    return group["lr"] * math.sqrt(total)


def adagrad_rms(group: Group, n: int) -> float:
    lr = group["lr"] / (1 + (n - 1) * group.get("lr_decay", 0.0))
    return lr / (math.sqrt(group.get("initial_accumulator_value", 0.0) + n) + group["eps"])


def adadelta_rms(group: Group, n: int) -> float:
    return group["lr"] * _adadelta_path(group["rho"], group["eps"], _length(n))[n - 1]


@functools.cache
def _adadelta_path(rho: float, eps: float, steps: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(0)
    squares, steps_squared = torch.zeros(2, _SAMPLES, dtype=torch.float64)
    found = []
    for _ in range(steps):
        g = torch.randn(_SAMPLES, generator=generator, dtype=torch.float64)
        squares = rho * squares + (1 - rho) * g * g
        step = ((steps_squared + eps) / (squares + eps)).sqrt() * g
        steps_squared = rho * steps_squared + (1 - rho) * step * step
        found.append(float(step.square().mean().sqrt()))
    return tuple(found)


def asgd_rate(group: Group, n: int) -> float:
    """The learning rate of step n."""
    lr, decay = group["lr"], group["lambd"]
    return lr / (1 + decay * lr * (n - 1)) ** group["alpha"]


def asgd_rms(group: Group, n: int) -> float:
    """Gradients, and what the averaging's own decay takes of the weights that they have made."""
    decay, weights = group["lambd"], 0.0
    for k in range(1, n):
        rate = asgd_rate(group, k)
        weights = (1 - decay * rate) ** 2 * weights + rate**2
    return asgd_rate(group, n) * math.sqrt(1 + decay**2 * weights)


def adafactor_rms(group: Group, n: int) -> float:
    """In proportion to the weights, which are the random walk of the steps before, and to ``eps2`` at least."""
    least, weights, size = group["eps"][1], 0.0, 0.0
    for k in range(1, n + 1):
        size = max(least, math.sqrt(weights)) * min(group["lr"], k**-0.5) * min(1.0, group["d"])
        weights += size**2
    return size


def muon_rms(group: Group, n: int) -> float:
    """Singular values of a white square matrix follow the quarter-circle law; a polynomial is iterated on each."""
    angles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * (math.pi / 2)
    weights, values = angles.cos() ** 2, 2 * angles.sin()  # density sqrt(4 - s^2), d s = 2 cos
    values = values / math.sqrt(WHITE_SIDE)  # over the matrix's Frobenius norm
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        values = a * values + b * values**3 + c * values**5
    square = float((weights * values**2).sum() / weights.sum())
    scale = 0.2 * math.sqrt(WHITE_SIDE) if group.get("adjust_lr_fn") == "match_rms_adamw" else 1.0
    return group["lr"] * scale * math.sqrt(square / WHITE_SIDE)
