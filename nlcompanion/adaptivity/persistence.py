r"""How long a gradient keeps its direction, and the law of the length beside a running training.

The part of :mod:`nlcompanion.adaptivity` that looks at gradients themselves, with the checks of arguments that it
shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.signal import lfilter
from torch import Tensor

from nlcompanion._arguments import described, numbers
from nlcompanion.adaptivity.settings import settings


def momentum_average(gradients, momentum: float) -> Tensor:
    r"""What the momentum makes of a sequence of gradients, :math:`\bar g_n = (1-\beta)\sum_{l=0}^n\beta^l\hat g_{n-l}`.

    :math:`|\bar g|^2` in place of :math:`|\hat g|^2` turns TK Eq. 17 into a law that needs no assumption on how
    gradients follow one another. The average starts empty, as the optimiser's buffer does.

    Args:
        gradients: :math:`\hat g_n = r_n\nabla f(q_n)`, shape ``(T, ...)``.
        momentum: :math:`\beta` in [0, 1).

    Returns:
        Shape of ``gradients``, float64.

    Raises:
        ValueError: a momentum out of range, no gradients.

    Source: new as far as we know.

    Example:
        >>> momentum_average([1.0, 1.0, 1.0], 0.5).tolist()
        [0.5, 0.75, 0.875]
    """
    gradients, momentum = _gradients(gradients), _memory(momentum)
    return torch.from_numpy(lfilter([1 - momentum], [1, -momentum], gradients.numpy(), axis=0))


@dataclass(frozen=True)
class Persistence:
    r"""How long a weight's gradient keeps its direction; made by :func:`gradient_persistence`.

    Attributes:
        autocorrelation: :math:`\rho_l` for :math:`l = 0, 1, \dots`, shape ``(lags + 1,)``; the first is 1.
        factor: :math:`P`, to be used as ``persistence`` (dimensionless).
        momentum: the :math:`\beta` that :math:`P` belongs to.
        steps: how many steps were averaged over.
    """

    autocorrelation: Tensor
    factor: float
    momentum: float
    steps: int

    @property
    def white(self) -> float:
        r"""What :math:`P` would be for independent gradients, :math:`(1-\beta)/(1+\beta)`."""
        return (1 - self.momentum) / (1 + self.momentum)

    @property
    def regime(self) -> str:
        r""" "persistent" or "white" where :math:`P` is within 25% of 1 or of :attr:`white`, else "between"."""
        if abs(self.factor - 1) <= 0.25:
            return "persistent"
        return "white" if abs(self.factor / self.white - 1) <= 0.25 else "between"


def gradient_persistence(
    gradients, momentum: float, *, window: int | None = None, lags: int | None = None
) -> Persistence:
    r"""The autocorrelation of a scale-invariant weight's gradient, and the factor :math:`P` in the law of its length.

    .. math:: \rho_l = \frac{\langle\hat g_n\cdot\hat g_{n-l}\rangle}{\langle|\hat g_n|^2\rangle}, \qquad
              P = \frac{1-\beta}{1+\beta}\Big(1 + 2\sum_{l\ge1}\beta^l\rho_l\Big)

    The averages run over the last ``window`` steps; a pair may reach back beyond it. :math:`P` is the number by which
    the integral term of TK Eq. 17 and :math:`r^{*4}` of TK Eq. 30 are to be multiplied.

    Args:
        gradients: :math:`\hat g_n = r_n\nabla f(q_n)` of successive steps, shape ``(T, n)``, of the batches that the
            steps use.
        momentum: :math:`\beta` in [0, 1).
        window: how many of the last steps to average over; all that have a past when None.
        lags: the longest distance, in steps; by default where :math:`\beta^l` falls below 0.001, or what a quarter
            of the run allows, if :math:`\beta^l` has fallen below 0.1 there.

    Returns:
        A :class:`Persistence`.

    Raises:
        ValueError: too few steps for the lags, the window or the momentum's memory, gradients that all vanish, shapes,
            non-finite values.

    Source: new as far as we know: TK's Eqs. 17 and 30 between persistent and independent gradients.

    Example:
        >>> import torch
        >>> still = torch.ones(1000, 3, dtype=torch.float64)
        >>> gradient_persistence(still, 0.5).regime
        'persistent'
        >>> noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
        >>> gradient_persistence(noise, 0.9).regime
        'white'
    """
    g = _gradients(gradients)
    g = g.reshape(len(g), -1)
    momentum, steps = _memory(momentum), len(g)
    for name, value in (("window", window), ("lags", lags)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a number of steps, an integer, got {described(value)}")
    if lags is None:
        needed = math.ceil(math.log(1e-3) / math.log(momentum)) if momentum else 0
        lags = min(needed, steps // 4)
        left = momentum ** (lags + 1) if momentum else 0.0
        if left > 0.1:  # of a lasting gradient P would miss 2 left / (1 + momentum)
            raise ValueError(
                f"{steps} gradients reach back {lags} steps, where momentum {momentum:g} still has {left:.2g} of its "
                f"memory, so that P would be far too low for gradients that last; record {4 * needed} steps or more, "
                "or give lags= to cut it there all the same"
            )
    window = steps - lags if window is None else window
    if not (0 <= lags < steps and 1 <= window <= steps - lags):
        raise ValueError(
            f"{steps} gradients do not reach back {lags} steps from each of the last {window}; record more steps, or "
            "take fewer lags or a smaller window"
        )
    g = g.contiguous()
    past = lambda lag: g[steps - window - lag : steps - lag].reshape(-1)  # noqa: E731  a view: no products are stored
    products = [past(0) @ past(lag) for lag in range(lags + 1)]
    if not products[0] > 0:
        raise ValueError(f"the gradient vanishes in all of the last {window} steps; there is nothing to correlate")
    rho = torch.stack(products) / products[0]
    powers = momentum ** torch.arange(1, lags + 1, dtype=g.dtype)
    factor = (1 - momentum) / (1 + momentum) * (1 + 2 * (powers @ rho[1:]).item())
    return Persistence(rho, factor, momentum, window)


def _memory(momentum: float) -> float:
    return settings(1.0, momentum)[1]


def _gradients(gradients) -> Tensor:
    gradients = numbers("gradients", gradients)
    if gradients.ndim == 0 or len(gradients) == 0:
        raise ValueError("gradients holds no step; give one gradient for each, shape (T, n)")
    return gradients
