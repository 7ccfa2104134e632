r"""The source of a balance: what an activation without a symmetry adds to it.

For a neuron with weights that write to it and weights that read from it, and any activation :math:`s`,

.. math:: \langle g_{in}, w_{in}\rangle + g_b b - \langle g_{out}, w_{out}\rangle = \sum\delta\,(z s'(z) - s(z))

with the sum over samples and positions and :math:`\delta` the loss's gradient at the activation's output. It is 0 for
every homogeneous activation of degree 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nlcompanion.laws.law import Law

ELEMENTWISE = frozenset(
    {
        *("gelu", "silu", "tanh", "sigmoid", "softplus", "elu", "selu", "celu", "mish", "hardswish", "softsign"),
        *("relu6", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "logsigmoid"),
        *("clamp", "clamp_min", "clamp_max", "clip", "sin", "cos", "sinh", "atan", "arctan", "asinh", "erf"),
    }
)  # functions of PyTorch that are noticed, by name


@dataclass(frozen=True)
class Source:
    """Where a law's source arises: ``form(g, q) = sum of coefficient * source`` of its neurons.

    Attributes:
        module: path of the module in whose forward pass the activation is called.
        function: its name.
        call: which call of it there, in one forward pass.
        axis: of the activation's input that numbers the neurons.
        index: one row of numbers for each neuron.
        coefficient: of the sum over the activation.
    """

    module: str
    function: str
    call: int
    axis: int
    index: tuple[tuple[int, ...], ...]
    coefficient: float

    @property
    def key(self) -> tuple[str, str, int]:
        """Which activation it is."""
        return self.module, self.function, self.call

    @property
    def text(self) -> str:
        return f"{self.module or 'the model'}: {self.function}"


class ElementwiseCall(NamedTuple):
    """One call of an elementwise function."""

    name: str
    function: Callable[[Tensor], Tensor]
    z: Tensor  # what went in, also where the result was written over it
    out: Tensor


def noticed(func: Callable, args: tuple, kwargs: dict) -> tuple[Any, ElementwiseCall | None]:
    """``(func(*args, **kwargs), the call)``; None for what is no elementwise function of one differentiated tensor."""
    name = getattr(func, "__name__", "")
    z = args[0] if args else kwargs.get("input")
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    of_one = not any(isinstance(x, Tensor) for x in (*args[1:], *rest.values()))
    if name not in ELEMENTWISE or not isinstance(z, Tensor) or not z.is_floating_point() or not of_one:
        return func(*args, **kwargs), None
    in_place = bool(rest.get("inplace")) or any(x is True for x in args[1:])
    kept = z.detach().clone() if in_place else z.detach()
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or not out.requires_grad or (out is z and not in_place):
        return out, None

    def again(x: Tensor) -> Tensor:
        return func(x.clone() if in_place else x, *args[1:], **rest)

    return out, ElementwiseCall(name, again, kept, out)


def source_of(function: Callable[[Tensor], Tensor], z: Tensor, delta: Tensor) -> Tensor:
    r""":math:`\delta\,(z s'(z) - s(z))`, elementwise, in the shape of ``z``.

    Args:
        function: :math:`s`, elementwise.
        z: what went in.
        delta: gradient at what came out.

    Example:
        >>> import torch
        >>> z = torch.tensor([-1.0, 2.0])
        >>> source_of(torch.relu, z, torch.ones(2)).abs().tolist()
        [0.0, 0.0]
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        s = function(z)
        (slope,) = torch.autograd.grad(s.sum(), z)
    return (delta * (z * slope - s)).detach()


def refuse_sources(law: Law, what: str) -> None:
    """Raise where ``what`` would need a symmetry and the law's balance has a source instead.

    Raises:
        ValueError: if the law has sources.
    """
    if law.sources:
        places = ", ".join(dict.fromkeys(source.text for source in law.sources))
        raise ValueError(
            f"{law.statement!r} comes from no symmetry: its balance has the source of {places}, which {what} does not "
            "know; a Ledger books the source, and homogeneous_law(f, layer) has laws without one"
        )
