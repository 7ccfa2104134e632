r"""How large an optimiser's updates are, and for how long they remember one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlcompanion._arguments import (
    check_size,
    described,
    fraction,
    function,
    integer,
    number_from,
    numbers,
    positive_number,
    seed_number,
)

__all__ = ["UpdateMemory", "update_memory", "white_updates"]

LARGEST_SIDE = 64  # of a matrix that is simulated; larger ones are scaled down in their proportions
LONGEST_MEMORY = 600  # lags that white gradients are searched for
ENTRIES = 512  # that are transformed at a time


@dataclass(frozen=True)
class UpdateMemory:
    r"""Size and memory of updates :math:`u_n`; made by :func:`update_memory` and :func:`white_updates`.

    Attributes:
        rms: :math:`U`, root mean square of an entry of :math:`u`, in units of a parameter per unit of the rate.
        autocorrelation: :math:`\rho_l` for :math:`l = 0, 1, \dots`, shape ``(lags + 1,)``; the first is 1.
        source: where it comes from: "recorded", "white gradients" or "closed form".
    """

    rms: float
    autocorrelation: Tensor
    source: str

    def memory(self, fading: float = 0.0) -> float:
        r""":math:`S = 1 + 2\sum_{l\ge1}(1 - \eta\lambda)^l\rho_l`, of updates that decay forgets at a rate.

        Args:
            fading: :math:`\eta\lambda` in [0, 1), what decay takes from a weight in a step.

        Raises:
            ValueError: a fading out of range.
        """
        left = 1 - fraction("fading", fading, "decay of 1 or more leaves nothing of the weight")
        powers = left ** torch.arange(1, len(self.autocorrelation), dtype=torch.float64)
        return 1 + 2 * float(powers @ self.autocorrelation[1:])


def update_memory(updates, *, lags: int | None = None) -> UpdateMemory:
    r"""Size and memory of the updates of a run, :math:`W_{n+1} = (1 - \eta\lambda)W_n - \eta u_n`.

    .. math:: U^2 = \langle u^2\rangle, \qquad \rho_l = \frac{\langle u_n\cdot u_{n-l}\rangle}{\langle|u_n|^2\rangle}

    Args:
        updates: :math:`u_n` of successive steps, shape ``(T, ...)``, decay taken out.
        lags: the longest distance in steps; a quarter of the run when None. The memory of a weight is
            :math:`1/(\eta\lambda)` steps: updates that stay aligned for as long need lags as long.

    Returns:
        An :class:`UpdateMemory`.

    Raises:
        ValueError: fewer than 8 steps, lags that the run does not reach, updates that all vanish, non-finite values.

    Source: Kosson et al. (arXiv 2305.17212) for the balance; measured memory as here is this book's.

    Example:
        >>> import torch
        >>> noise = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = update_memory(noise, lags=5)
        >>> round(found.rms, 1), round(found.memory(), 1)
        (1.0, 1.0)
    """
    u = numbers("updates", updates)
    if u.ndim == 0 or len(u) < 8:
        raise ValueError(f"updates has shape {tuple(u.shape)}; give one for each of at least 8 steps, shape (T, ...)")
    lags = len(u) // 4 if lags is None else integer("lags", lags, 0)
    if not lags < len(u) - 1:
        raise ValueError(f"{len(u)} updates do not reach back {lags} steps; record more steps, or take fewer lags")
    return _memory_of(u.reshape(len(u), -1), lags, "recorded")


def _memory_of(u: Tensor, lags: int, source: str) -> UpdateMemory:
    """Mean products over all pairs of steps at each distance, by Fourier transforms of some entries at a time."""
    length = 2 ** math.ceil(math.log2(len(u) + lags))
    sums = torch.zeros(lags + 1, dtype=torch.float64)
    for entries in u.split(ENTRIES, dim=1):
        spectrum = torch.fft.rfft(entries.double(), n=length, dim=0).abs().square().sum(1)
        sums += torch.fft.irfft(spectrum, n=length)[: lags + 1]
    products = sums / torch.arange(len(u), len(u) - lags - 1, -1)
    if not products[0] > 0:
        raise ValueError("the updates vanish in every step; there is nothing to correlate")
    return UpdateMemory(float((products[0] / u.shape[1]).sqrt()), products / products[0], source)


def white_updates(
    factory: Callable,
    shape: tuple[int, ...] = (32, 32),
    *,
    grad_rms: float = 1.0,
    steps: int = 800,
    lags: int | None = None,
    seed: int = 0,
) -> UpdateMemory:
    r"""Size and memory of an optimiser's updates under gradients that are independent in every step and entry.

    The optimiser is run, without its decay, on one parameter and normal gradients. A matrix larger than 64 on a side is
    simulated at a smaller size in the same proportions, and :math:`U` scaled by the first steps at both sizes.

    Args:
        factory: ``factory(parameters) -> optimizer``, as for :func:`check_optimizer`.
        shape: of the parameter; Muon's updates depend on it.
        grad_rms: root mean square of an entry of the gradient; normalised optimisers do not care.
        steps: how many are averaged over, after a fifth as many in which the averages fill.
        lags: the longest distance in steps; when None, where the autocorrelation is lost in chance, 600 at most.
        seed: of the gradients.

    Returns:
        An :class:`UpdateMemory`, ``source`` "white gradients".

    Raises:
        TypeError: the factory does not make a ``torch.optim.Optimizer`` of one group.
        ValueError: numbers out of range, updates that vanish or are not finite.

    Source: this book, as far as we know. Training is not white: early in a run updates follow the weights.

    Example:
        >>> import torch
        >>> found = white_updates(lambda p: torch.optim.AdamW(p, lr=0.01), (20, 20))
        >>> round(found.rms / (0.1 / 1.9) ** 0.5, 1), round(found.memory() / 19, 1)    # Adam: U^2 = 1/S, S = 19
        (1.0, 1.0)
    """
    optimizer_factory("factory", factory)
    size = _shape(shape)
    scale = positive_number("grad_rms", grad_rms)
    steps = integer("steps", steps, 50, 10**6)
    most = LONGEST_MEMORY if lags is None else integer("lags", lags, 1, 10**5)
    generator = torch.Generator().manual_seed(seed_number("seed", seed))
    small = _smaller(size)
    check_size((steps + most) * math.prod(small), "the updates of all steps")
    fill = max(steps // 5, most // 2)
    updates = _updates(factory, small, scale, fill + steps, generator)
    found = _memory_of(updates[fill:], min(most, steps - 2), "white gradients")
    if lags is None:
        found = _until_chance(found, steps * math.prod(small))
    if small == size:
        return found
    ratio = _updates(factory, size, scale, 1, generator).square().mean() / updates[0].square().mean()
    return UpdateMemory(found.rms * float(ratio.sqrt()), found.autocorrelation, found.source)


def _until_chance(found: UpdateMemory, products: int) -> UpdateMemory:
    """The memory up to the first distance at which a mean of so many products is no more than chance."""
    lost = (found.autocorrelation < 2 / products**0.5).nonzero()
    last = int(lost[0, 0]) if len(lost) else len(found.autocorrelation)
    return UpdateMemory(found.rms, found.autocorrelation[:last], found.source)


def _shape(shape) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list | torch.Size) or not len(shape):
        raise TypeError(f"shape must be the sizes of a parameter, such as (32, 32), got {described(shape)}")
    sizes = tuple(integer("shape", size, 1, 10**6) for size in shape)
    check_size(math.prod(sizes), "a parameter of this shape")
    return sizes


def _smaller(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in its proportions, so that no side is longer than the largest; vectors are cut."""
    factor = max(1.0, max(shape) / LARGEST_SIDE) if len(shape) > 1 else max(1.0, shape[0] / LARGEST_SIDE**2)
    return tuple(max(1, round(side / factor)) for side in shape)


def _updates(factory: Callable, shape: tuple[int, ...], scale: float, steps: int, generator) -> Tensor:
    """Of one parameter under normal gradients, shape ``(steps, n)``."""
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = without_decay(made_by(factory, [weight]))
    rate = number_from("the optimizer's lr", optimizer.param_groups[0]["lr"], 1e-30, "at 0 it takes no steps")
    found = []
    for _ in range(steps):
        weight.grad = scale * torch.randn(shape, generator=generator)
        before = weight.detach().clone()
        optimizer.step()
        found.append((before - weight.detach()).flatten() / rate)
        weight.data.zero_()  # so that rounding does not grow with the weight
    updates = torch.stack(found)
    if not torch.isfinite(updates).all():
        raise ValueError("the optimizer's updates are not finite under normal gradients; lower its lr")
    return updates


def optimizer_factory(name: str, factory: object) -> None:
    """Refuse what is neither a class of optimisers nor a function of the parameters."""
    if not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)):
        function(name, factory, f"{name}(parameters) -> optimizer, or a class of torch.optim", 1)


def made_by(factory: Callable, parameters: list) -> torch.optim.Optimizer:
    """The optimiser of some parameters.

    Raises:
        TypeError: the factory makes something else.
    """
    try:
        optimizer = factory(parameters)
    except TypeError as error:
        raise TypeError(f"the factory makes no optimizer of parameters: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"the factory returned {described(optimizer)}, not a torch.optim.Optimizer")
    return optimizer


def without_decay(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimiser of one group, its decay set to 0."""
    if len(optimizer.param_groups) != 1:
        raise TypeError(f"the factory made {len(optimizer.param_groups)} groups; hand on the parameters as one group")
    group = optimizer.param_groups[0]
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    return optimizer
