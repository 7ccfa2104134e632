"""Watching a radius: TK Eq. 17 beside a running training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlcompanion._arguments import described, integer, layer_input, number_from
from nlcompanion.dynamics.learning_rules import sgd
from nlcompanion.monitoring.radius_settings import RadiusSettings, settings_of, sgd_that_holds

_LAWFUL = 0.5  # radians a step; beyond, the length has changed before the momentum has done its work


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

    With :math:`R_l = \langle\hat g_n, \hat g_{n-l}\rangle` all three are cases of one law,

    .. math:: \Delta r^4 = \frac{2\eta^2}{(1-\beta)^2}\Big(R_0 + 2c\sum_{l\ge1}\beta^l R_l\Big)
              - \frac{4\eta k}{1-\beta}\,r^4,

    with :math:`c = 1` for heavy ball and :math:`c = \beta` for ``nesterov=True``; dampening :math:`\tau` makes
    :math:`(1-\tau)\eta` of :math:`\eta`, and decay that is decoupled acts as one of :math:`(1-\beta)k`.

    Args:
        weight: the weight at the start, any shape.
        optimizer: the ``torch.optim.SGD`` that moves it, or a wrapper around one. Its settings are read at every
            update, so schedules and parameter groups need no word, and so is the buffer that it starts with.
        lr, momentum, weight_decay: in place of an optimizer, as in ``torch.optim.SGD``.
        keep: how many leading dimensions tell weights apart: 0 takes the tensor as one weight, 1 a convolution's
            filters each for itself.
        window: number of steps (roughly) over which :attr:`persistence` averages, with exponential weights.

    Attributes:
        steps: how many updates there were.

    Raises:
        ValueError: settings out of range, a weight of length 0, shapes that change, an optimizer that does not hold the
            weight.
        TypeError: an optimizer whose steps are not SGD's, since the law is known for these only.

    Source: TK Eq. 17; the averaged prediction, Nesterov and dampening are new as far as we know.

    Example:
        >>> import torch
        >>> q = torch.nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
        >>> optimizer = torch.optim.SGD([q], lr=0.01)
        >>> tracker = RadiusTracker(q, optimizer)
        >>> for _ in range(10):
        ...     q.grad = torch.stack([-q[1], q[0]]).detach() / (q.detach() @ q.detach())    # at right angles to q
        ...     tracker.update(q, q.grad)
        ...     optimizer.step()
        >>> round(q.norm().item() ** 2, 6), round(tracker.persistent.item(), 6)
        (1.001, 1.001)
    """

    def __init__(
        self,
        weight: Tensor,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        keep: int = 0,
        window: int = 200,
    ):
        layer_input(weight)
        if isinstance(keep, bool) or not (isinstance(keep, int) and 0 <= keep <= weight.ndim):
            raise ValueError(
                f"keep = {described(keep)} of a weight with {weight.ndim} dimensions; 0 is the whole, 1 its filters"
            )
        integer("window", window, 1, 10**9)  # steps
        self._settings, self._optimizer = _start_settings(weight, optimizer, lr, momentum, weight_decay)
        self.steps, self._keep, self._window = 0, keep, window
        self._weight, self._shape = weight, weight.shape
        start = self._squared(weight)
        if not ((start > 0) & start.isfinite()).all():
            raise ValueError(
                "a weight of length 0 or without a finite one has no direction; start from weights that do not vanish"
            )
        self._fourth = {name: start.square() for name in ("persistent", "white", "averaged")}
        self._average: Tensor | None = None  # of the gradients, as the momentum weighs them
        self._norms = {name: torch.zeros_like(start) for name in ("gradient", "average", "reach")}
        self._worst_reach = torch.zeros_like(start)

    @torch.no_grad()
    def update(self, weight: Tensor, gradient: Tensor, *, lr: float | None = None) -> None:
        """Take in one step: the weight before it and the gradient it uses, without the decay's part.

        Args:
            weight, gradient: of the shape at the start; clipped already, and without a scaler's factor.
            lr: the step size from this step on, where a schedule changed it and there is no optimizer to read.
        """
        self._check(weight, gradient)
        self._settings = now = self._settings_now(lr)
        if self._average is None:
            self._average = self._start_average(weight)
        r_squared = self._squared(weight)
        lengths = r_squared.sqrt().reshape(r_squared.shape + (1,) * (weight.ndim - self._keep))
        unit = gradient.double() * lengths
        if self.steps == 0 and self._buffer() is None:
            unit = unit / (1 - now.dampening)  # torch.optim.SGD does not dampen the first gradient
        self._average.mul_(now.momentum).add_(unit, alpha=1 - now.momentum)
        plain, averaged = self._squared(unit), self._squared(self._average)
        self._move(now, {"persistent": (plain, plain), "white": (plain, None), "averaged": (plain, averaged)})
        self.steps += 1
        self._note(now, plain, averaged, r_squared)

    def _move(self, now: RadiusSettings, sources: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        """One step of the law for each of the predictions."""
        fade = now.fading
        push = 2 * (now.step / (1 - now.momentum)) ** 2 * (-math.expm1(-fade) / fade if fade else 1.0)
        for name, (plain, averaged) in sources.items():
            self._fourth[name].mul_(math.exp(-fade)).add_(push * now.source(plain, averaged))

    def _note(self, now: RadiusSettings, plain: Tensor, averaged: Tensor, r_squared: Tensor) -> None:
        """Means over the window: plain ones until it is full."""
        share = 1 / min(self.steps, self._window)
        reach = now.step**2 * plain / (r_squared * (1 - now.momentum)) ** 2
        for name, value in (("gradient", plain), ("average", averaged), ("reach", reach)):
            self._norms[name].lerp_(value, share)
        self._worst_reach = torch.maximum(self._worst_reach, self.reach)

    def _check(self, weight: Tensor, gradient: Tensor) -> None:
        if gradient is None:
            raise TypeError("the gradient is None, as after zero_grad(); update after backward(), before the step")
        for tensor in (weight, gradient):
            layer_input(tensor)
            if tensor.device.type == "cpu" and not torch.isfinite(tensor).all():  # elsewhere a look would wait
                raise ValueError("a weight or gradient is not finite; cut the run where it diverged")
        if weight.shape != self._shape or gradient.shape != self._shape:
            raise ValueError(
                f"weight {tuple(weight.shape)} and gradient {tuple(gradient.shape)}; the tracker was made for "
                f"{tuple(self._shape)}: make one tracker for each parameter"
            )

    def _settings_now(self, lr: float | None) -> RadiusSettings:
        if self._optimizer is not None:
            if lr is not None:
                raise ValueError("the tracker reads its optimizer's lr at every update; leave lr out")
            return settings_of(self._optimizer, self._weight)
        if lr is None:
            return self._settings
        return self._settings.at(number_from("lr", lr, 0, "a step size is positive, or 0 where a schedule rests"))

    def _buffer(self) -> Tensor | None:
        """The optimizer's momentum buffer, which it has if it has taken steps before."""
        if self._optimizer is None:
            return None
        return self._optimizer.state.get(self._weight, {}).get("momentum_buffer")

    def _start_average(self, weight: Tensor) -> Tensor:
        """The average that the buffer holds: of unit gradients, and without decay, which lies along the weight."""
        buffer, now = self._buffer(), self._settings
        if buffer is None:
            return torch.zeros_like(weight, dtype=torch.float64)
        q, b = weight.detach().double(), buffer.double()
        over = tuple(range(self._keep, weight.ndim))
        squared = (q * q).sum(over, keepdim=True) if over else q * q
        along = (b * q).sum(over, keepdim=True) if over else b * q
        return (b - along / squared * q) * squared.sqrt() * (1 - now.momentum) / (1 - now.dampening)

    def _squared(self, x: Tensor) -> Tensor:
        return x.detach().double().square().flatten(self._keep).sum(-1) if x.ndim > self._keep else x.double() ** 2

    def __repr__(self) -> str:
        if not self.steps:
            return "RadiusTracker(no step yet)"
        worst = float(self._worst_reach.max())
        verdict = (
            f"beyond {_LAWFUL:g}, where the law of the length does not hold" if worst > _LAWFUL else "see worst_reach"
        )
        return f"RadiusTracker({self.steps} steps, worst reach {worst:.2g} rad: {verdict})"

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

        How far a lasting gradient would turn the weight within a step once the momentum is up to speed.
        """
        return self._norms["reach"].sqrt()

    @property
    def worst_reach(self) -> Tensor:
        r"""The largest that :attr:`reach` has been, in radians: what the law's error is to be judged by.

        For :attr:`averaged` after 100 and 300 steps, measured on the 8 filters of a small convolution with BatchNorm
        from 100 starts (heavy ball, Nesterov, dampening 0.5 and 0.9, no momentum; rates over two decades): the error
        of :math:`r^2` was never above 1.5% where this was below 0.05, 5% below 0.1, and 8% below 0.2; typically a
        tenth of that without momentum. Between 0.2 and 0.5 it was up to 22%, and beyond there is no law: half of the
        filters were off by a fifth or more.

        The cause: the law books the whole of what a gradient will do, momentum and all, at once and at the length of
        now. Where a step turns the weight by half a radian the length has grown before the momentum has done its
        work: the prediction is too long in the first steps and too short in the end. With a rate of 0.3, momentum 0.9
        and dampening 0.9, where most filters reach 0.6 and more, it was 22 to 32% off in the mean after 8 steps, 12
        to 26% after 148 (four starts), and at a tenth of that rate below 0.1% wherever the reach stayed below 0.1.
        """
        return self._worst_reach


def _start_settings(
    weight: Tensor, optimizer: torch.optim.Optimizer | None, lr: float | None, momentum: float, weight_decay: float
) -> tuple[RadiusSettings, torch.optim.SGD | None]:
    if optimizer is not None:
        if lr is not None or momentum or weight_decay:
            raise ValueError("give the optimizer, or lr, momentum and weight_decay, not both")
        inner = sgd_that_holds(weight, optimizer)
        return settings_of(inner, weight), inner
    if lr is None:
        raise TypeError("a tracker needs the optimizer that moves the weight: RadiusTracker(weight, optimizer); or lr=")
    sgd(lr, momentum, weight_decay)
    return RadiusSettings(float(lr), float(momentum), float(weight_decay)), None
