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

from nlcompanion.learning_rules import sgd


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

    Source: a law of this book.

    Example:
        >>> momentum_average([1.0, 1.0, 1.0], 0.5).tolist()
        [0.5, 0.75, 0.875]
    """
    gradients = _gradients(gradients)
    _memory(momentum)
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

    Source: a law of this book ("between the persistent and the white regime").

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
    _memory(momentum)
    steps = len(g)
    for name, value in (("window", window), ("lags", lags)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a number of steps, an integer, got {value!r}")
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


class RadiusTracker:
    r"""The law of the length beside a running training, in constant memory: one average gradient per weight.

    Each :meth:`update` takes the weight and its gradient before a step of SGD. Three predictions of :math:`r^2` run
    along, none of which looks at the weight's length again except to bring the gradient to unit length:

    ============  =======================================================================================
    persistent    TK Eq. 17, :math:`P = 1`
    white         independent gradients, :math:`P = (1-\beta)/(1+\beta)`
    averaged      :math:`|\bar g_n|^2` of the momentum's own average, no assumption
    ============  =======================================================================================

    No past gradients are kept: :math:`\langle|\bar g|^2\rangle/\langle|\hat g|^2\rangle` is :math:`P` with all lags.

    Args:
        weight: the weight at the start, any shape.
        lr, momentum, weight_decay: as in ``torch.optim.SGD``.
        keep: how many leading dimensions tell weights apart: 0 takes the tensor as one weight, 1 a convolution's
            filters each for itself.
        window: number of steps (roughly) over which :attr:`persistence` averages, with exponential weights.

    Attributes:
        steps: how many updates there were.

    Raises:
        ValueError: settings out of range, a weight of length 0, shapes that change.

    Source: TK Eq. 17 and a law of this book.

    Example:
        >>> import torch
        >>> q = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> tracker = RadiusTracker(q, lr=0.01)
        >>> for _ in range(10):
        ...     g = torch.stack([-q[1], q[0]]) / (q @ q)    # at right angles to q
        ...     tracker.update(q, g)
        ...     q = q - 0.01 * g
        >>> round(float(q @ q), 6), round(float(tracker.persistent), 6)
        (1.001, 1.001)
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        keep: int = 0,
        window: int = 200,
    ):
        sgd(lr, momentum, weight_decay)
        if not (isinstance(keep, int) and 0 <= keep <= weight.ndim):
            raise ValueError(f"keep = {keep} of a weight with {weight.ndim} dimensions; 0 is the whole, 1 its filters")
        if not window >= 1:
            raise ValueError(f"window must be at least one step, got {window}")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.steps, self._keep, self._window = 0, keep, window
        self._shape = weight.shape
        start = self._squared(weight)
        if not ((start > 0) & start.isfinite()).all():
            raise ValueError(
                "a weight of length 0 or without a finite one has no direction; start from weights that do not vanish"
            )
        self._fourth = {name: start.square() for name in ("persistent", "white", "averaged")}
        self._average = torch.zeros_like(weight, dtype=torch.float64)
        self._norms = {name: torch.zeros_like(start) for name in ("gradient", "average", "reach")}

    @torch.no_grad()
    def update(self, weight: Tensor, gradient: Tensor, *, lr: float | None = None) -> None:
        """Take in one step: the weight before it and the gradient it uses, without the decay's part.

        Args:
            weight, gradient: of the shape at the start.
            lr: the step size from this step on, where a schedule changed it.
        """
        if gradient is None:
            raise TypeError("the gradient is None, as after zero_grad(); update after backward(), before the step")
        if weight.shape != self._shape or gradient.shape != self._shape:
            raise ValueError(
                f"weight {tuple(weight.shape)} and gradient {tuple(gradient.shape)}; the tracker was made for "
                f"{tuple(self._shape)}: make one tracker for each parameter"
            )
        if lr is not None:
            if lr != 0:  # a schedule may rest at 0, where the momentum goes on averaging
                sgd(lr, self.momentum, self.weight_decay)
            self.lr = lr
        eta, beta = self.lr, self.momentum
        r_squared = self._squared(weight)
        lengths = r_squared.sqrt().reshape(r_squared.shape + (1,) * (weight.ndim - self._keep))
        unit = gradient.double() * lengths
        self._average.mul_(beta).add_(unit, alpha=1 - beta)
        plain, averaged = self._squared(unit), self._squared(self._average)
        z = 4 * self.weight_decay * eta / (1 - beta)
        push = 2 * eta**2 * (1 + beta) / (1 - beta) ** 3 * (-math.expm1(-z) / z if z else 1.0)
        sources = {"persistent": plain, "white": plain * (1 - beta) / (1 + beta), "averaged": averaged}
        for name, source in sources.items():
            self._fourth[name].mul_(math.exp(-z)).add_(push * source)
        self.steps += 1
        share = 1 / min(self.steps, self._window)  # a plain mean until the window is full
        reach = eta**2 * plain / (r_squared * (1 - beta)) ** 2
        for name, value in (("gradient", plain), ("average", averaged), ("reach", reach)):
            self._norms[name].lerp_(value, share)

    def _squared(self, x: Tensor) -> Tensor:
        return x.detach().double().square().flatten(self._keep).sum(-1) if x.ndim > self._keep else x.double() ** 2

    @property
    def persistent(self) -> Tensor:
        r""":math:`r^2` after the last step by TK Eq. 17."""
        return self._fourth["persistent"].sqrt()

    @property
    def white(self) -> Tensor:
        r""":math:`r^2` after the last step if gradients were independent."""
        return self._fourth["white"].sqrt()

    @property
    def averaged(self) -> Tensor:
        r""":math:`r^2` after the last step with the momentum's own average of the gradient."""
        return self._fourth["averaged"].sqrt()

    @property
    def persistence(self) -> Tensor:
        r""":math:`P` over the window. NaN before the first step, and where the gradient vanished all along."""
        return self._norms["average"] / self._norms["gradient"]

    @property
    def reach(self) -> Tensor:
        r"""Root mean square of :math:`\eta|\hat g|/(r^2(1-\beta))` over the window, in radians.

        How far a lasting gradient would turn the weight within a step once the momentum is up to speed. Below about
        0.05 the law is good to a few per cent; above, the run bursts.
        """
        return self._norms["reach"].sqrt()


# --- arguments ----------------------------------------------------------------------------------------------------


def numbers(name: str, value) -> Tensor:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack([item.detach() for item in value])
    value = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds a value that is not finite; cut the run where it diverged")
    return value


def at_least_zero(name: str, value) -> Tensor:
    value = numbers(name, value)
    if (value < 0).any():
        raise ValueError(f"{name} holds {value.min().item():g}; it is a square or a ratio of squares, never below 0")
    return value


def positive(name: str, value) -> Tensor:
    value = numbers(name, value)
    if not (value > 0).all():
        raise ValueError(
            f"{name} must be positive, got {value.min().item():g}; a length or gradient of 0 has no direction"
        )
    return value


def one(name: str, value) -> float:
    value = positive(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, and an equilibrium is one weight's; call it for each")
    return value.item()


def broadcast(name: str, value: Tensor, like: Tensor) -> Tensor:
    try:
        return torch.broadcast_to(value, like.shape).to(torch.float64)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(like.shape)}; give a number or "
            "one value for each weight"
        ) from None


def _memory(momentum: float) -> None:
    sgd(1.0, momentum)


def _gradients(gradients) -> Tensor:
    gradients = numbers("gradients", gradients)
    if gradients.ndim == 0 or len(gradients) == 0:
        raise ValueError("gradients holds no step; give one gradient for each, shape (T, n)")
    return gradients
