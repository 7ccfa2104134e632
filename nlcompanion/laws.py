r"""What a network conserves: the quadratic charges of its symmetries, in flowing and in discrete time.

A linear symmetry of the loss, :math:`f(e^{sA}q) = f(q)`, makes the gradient orthogonal to the generator
:math:`Aq`. For a symmetric matrix :math:`A` that turns into a law for the charge

.. math:: C(q) = q^T A\,q, \qquad \langle\nabla f, Aq\rangle = 0:

- gradient flow conserves :math:`C`;
- a step :math:`d` of any optimiser changes it by :math:`2\,q^T A d + d^T A d`;
- a step :math:`d = -\eta g` of plain (stochastic) gradient descent by exactly :math:`\eta^2 g^T A g`;
- heavy ball remembers: :math:`\Delta C_n - \beta\,\Delta C_{n-1} = d_n^T A d_n + \beta\, d_{n-1}^T A d_{n-1}`.

A :class:`Law` is one such charge, or one per neuron of a layer; :func:`homogeneous` makes those that a rescaling of
neurons gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nlcompanion.networks import FlatLoss, RePU

__all__ = ["Law", "homogeneous", "homogeneous_laws"]


@dataclass(frozen=True)
class _Term:
    """One tensor's share of a charge: ``coefficient * |x|^2``, for each index of ``axis`` where laws are stacked."""

    name: str
    place: slice  # in the flat vector
    shape: tuple[int, ...]
    axis: int
    coefficient: float


@dataclass(frozen=True)
class Law:
    r"""A charge :math:`C = q^T Aq` with a diagonal :math:`A`, or a stack of them, one per neuron.

    Make one with :func:`homogeneous`. ``law[i]`` is the law of neuron ``i``, ``law.total`` the sum over the layer.
    ``q`` is the flat vector of the :class:`FlatLoss` it was made from, shape ``(n,)``; results have ``law.shape``:
    ``()`` for one law, ``(d,)`` for a stack over ``d`` neurons.

    Attributes:
        kind: the symmetry behind it, ``"homogeneous"``.
        parameters: names of the tensors it speaks of.
        statement: what gradient flow conserves, in one line.
        shape: of the charge.

    Source: GU Eqs. 28 to 31; the discrete laws are this book's.

    Example:
        >>> import torch
        >>> from nlcompanion import flat_loss, mlp
        >>> model, x, y = mlp((4, 3, 2)), torch.ones(5, 4).double(), torch.zeros(5).long()
        >>> law = homogeneous(flat_loss(model, x, y, nn.functional.cross_entropy), layer=1)
        >>> law.statement
        '|1.weight[i, :]|² - |3.weight[:, i]|² = const for each of 3 neurons'
        >>> law.shape, law.total.shape, law[2].statement
        ((3,), (), '|1.weight[2, :]|² - |3.weight[:, 2]|² = const')
        >>> bool(abs(law.charge(model).sum() - law.total.charge(model)) < 1e-15)
        True
    """

    kind: str
    parameters: tuple[str, ...]
    statement: str
    shape: tuple[int, ...]
    _terms: tuple[_Term, ...] = field(repr=False)
    _size: int = field(repr=False)
    _neuron: int | None = field(default=None, repr=False)

    # --- one law out of a stack -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("this is a single law, it has no length; a stack comes from homogeneous(f, layer)")
        return self.shape[0]

    def __getitem__(self, neuron: int) -> Law:
        """The law of one neuron of a stack.

        Raises:
            IndexError: if there is no such neuron.
            TypeError: if this is a single law already, or ``neuron`` is no integer.
        """
        width = len(self)
        if isinstance(neuron, bool) or not isinstance(neuron, int):
            raise TypeError(f"a neuron is named by an integer, got {neuron!r}; index the charges for several at once")
        if not -width <= neuron < width:
            raise IndexError(f"neuron {neuron} of a layer of {width}; they are numbered from 0 to {width - 1}")
        neuron %= width
        return replace(self, shape=(), statement=_statement(self._terms, str(neuron)), _neuron=neuron)

    @property
    def total(self) -> Law:
        """The sum of a stack: the law of the whole layer."""
        if not self.shape:
            return self
        return replace(self, shape=(), statement=_statement(self._terms, None))

    # --- the charge and its symmetry ------------------------------------------------------------------------------

    def charge(self, q: Tensor | nn.Module) -> Tensor:
        r""":math:`C = q^T Aq`, in units of a squared parameter; shape ``law.shape``.

        Args:
            q: the flat vector, or a model with the same parameter names.

        Raises:
            ValueError, TypeError: if ``q`` does not have the parameters that the law speaks of.

        Source: GU Eq. 31.
        """
        return self.form(q)

    def sides(self, a: Tensor | nn.Module, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The two sides of the balance: ``(what reads, what writes)``, with ``form = reads - writes``.

        Of a point, ``sides(q)`` are the squared norms :math:`|W^{(h)}_{i:}|^2 + (b^{(h)}_i)^2` and
        :math:`p\,|W^{(h+1)}_{:i}|^2`; of a point and a velocity, ``sides(q, v)`` half their rates.
        """
        b = a if b is None else b
        return self._sum(a, b, lambda c: max(c, 0.0)), self._sum(a, b, lambda c: max(-c, 0.0))

    def form(self, a: Tensor | nn.Module, b: Tensor | None = None) -> Tensor:
        r"""The bilinear form :math:`a^T A b`, or the quadratic one :math:`Q(a) = a^T A a` if ``b`` is left out.

        All laws are made of it: the charge is ``form(q)``, the slope of the loss along the symmetry
        ``form(gradient, q)``, which vanishes.
        """
        return self._sum(a, a if b is None else b, lambda c: c)

    def generator(self, q: Tensor) -> Tensor:
        r"""The direction :math:`Aq` in which the symmetry moves ``q``, shape ``(n,)``; a stack moves all at once.

        Source: GU Eq. 28.
        """
        return self._exponents(q, 1.0) * q

    def act(self, q: Tensor, s: float | Tensor) -> Tensor:
        r"""The symmetry at a finite distance, :math:`e^{sA}q`, shape ``(n,)``; the loss is the same there.

        Args:
            q: the flat vector.
            s: how far (dimensionless); incoming weights grow by :math:`e^s`, outgoing ones shrink by :math:`e^{ps}`.
                A number, or one for each law of a stack.

        Source: GU Section 4.1, with :math:`1 + \epsilon = e^s`.
        """
        return torch.exp(self._exponents(q, s)) * q

    def cosine(self, gradient: Tensor, q: Tensor) -> Tensor:
        r"""Cosine between the gradient and the generator, over the law's own parameters (dimensionless).

        .. math:: \frac{\langle\nabla f, Aq\rangle}{|\nabla f|\,|Aq|}

        Zero up to rounding where the law holds, on every mini-batch; 0 for a neuron whose gradient vanishes.
        """
        lengths = self._sum(gradient, gradient, lambda c: 1.0) * self._sum(q, q, lambda c: c * c)
        cosine = self.form(gradient, q) / lengths.sqrt()
        return torch.where(lengths > 0, cosine, torch.zeros_like(cosine))

    # --- discrete time --------------------------------------------------------------------------------------------

    def change(self, q: Tensor, q_next: Tensor) -> Tensor:
        r"""What a step changes: :math:`C(q') - C(q) = (q' - q)^T A\,(q' + q)`, whatever the optimiser.

        So written, the two large charges are never subtracted, and small changes keep their digits.
        """
        return self.form(q_next - q, q_next + q)

    def gd_change(self, gradient: Tensor, *, lr: float) -> Tensor:
        r"""What the law predicts for a step of plain gradient descent: :math:`\eta^2 g^T A g`, exactly.

        Args:
            gradient: of the loss that made the step, a mini-batch's too; shape ``(n,)``.
            lr: the step size :math:`\eta`.
        """
        return lr**2 * self.form(gradient)

    def heavy_ball_change(
        self, step: Tensor, previous: tuple[Tensor, Tensor] | None = None, *, momentum: float
    ) -> Tensor:
        r"""What the law predicts for a step of heavy ball.

        .. math:: \Delta C_n = \beta\,\Delta C_{n-1} + Q(d_n) + \beta\, Q(d_{n-1}), \qquad Q(d) = d^T A d

        Holds for gradients of any batches, from a buffer that starts empty.

        Args:
            step: :math:`d_n = q_{n+1} - q_n`, shape ``(n,)``.
            previous: ``(d_(n-1), change of C in it)``; None for the first step.
            momentum: :math:`\beta`, PyTorch's convention.
        """
        if previous is None:
            return self.form(step)
        previous_step, previous_change = previous
        return momentum * previous_change + self.form(step) + momentum * self.form(previous_step)

    # --- how it is computed ---------------------------------------------------------------------------------------

    def _sum(self, a, b, weigh: Callable[[float], float]) -> Tensor:
        """Sum over the law's parameters of ``weigh(coefficient) * a * b``, neuron by neuron for a stack."""
        shares = []
        for term in self._terms:
            weight = weigh(term.coefficient)
            if weight == 0:
                continue
            x, y = self._of(a, term), self._of(b, term)
            if self.shape:
                others = [k for k in range(len(term.shape)) if k != term.axis]
                share = (x * y).sum(others) if others else x * y
            else:
                share = (x * y).sum()
            shares.append(weight * share)
        return torch.stack(shares).sum(0)

    def _of(self, source: Tensor | nn.Module, term: _Term) -> Tensor:
        """The tensor of one term; of a single neuron its slice of it."""
        if isinstance(source, nn.Module):
            tensor = dict(source.named_parameters()).get(term.name)
            if tensor is None or tuple(tensor.shape) != term.shape:
                got = "none" if tensor is None else f"one of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"the law needs a parameter {term.name} of shape {term.shape}, the model has {got}; "
                    "make the law from this model's own flat_loss"
                )
        else:
            tensor = self._checked(source)[term.place].view(term.shape)
        return tensor if self._neuron is None else tensor.select(term.axis, self._neuron)

    def _checked(self, q: Tensor) -> Tensor:
        if not isinstance(q, Tensor):
            raise TypeError(f"a law acts on a flat tensor or a model, got {type(q).__name__}; start from f.q0")
        if q.shape != (self._size,):
            raise ValueError(
                f"the law acts on q of shape ({self._size},), got {tuple(q.shape)}; flatten the parameters with "
                "flat_loss, and take one state of a trajectory at a time"
            )
        return q

    def _exponents(self, q: Tensor, s: float | Tensor) -> Tensor:
        """The diagonal of ``s A`` (of the sum of ``s_i A_i`` for a stack), shape ``(n,)``."""
        s = torch.as_tensor(s, dtype=self._checked(q).dtype)
        if s.ndim and s.shape != self.shape:
            raise ValueError(f"s is a number or of the law's shape {self.shape}, got shape {tuple(s.shape)}")
        diagonal = torch.zeros_like(q)
        for term in self._terms:
            block = diagonal[term.place].view(term.shape)
            if self._neuron is not None:
                block.select(term.axis, self._neuron).fill_(term.coefficient * s)
            else:
                along = [-1 if k == term.axis else 1 for k in range(len(term.shape))]
                block.copy_((term.coefficient * s).expand(term.shape[term.axis]).view(along).expand(term.shape))
        return diagonal


def _statement(terms: tuple[_Term, ...], neuron: str | None) -> str:
    parts = []
    for term in terms:
        size = f"{abs(term.coefficient):g} " if abs(term.coefficient) != 1 else ""
        inside = f"{term.name}"
        if neuron is not None:
            axes = [neuron if k == term.axis else ":" for k in range(len(term.shape))]
            inside += f"[{', '.join(axes)}]"
        parts.append(f"{'-' if term.coefficient < 0 else '+'} {size}|{inside}|²")
    text = " ".join(parts).removeprefix("+ ") + " = const"
    return f"{text} for each of {terms[0].shape[terms[0].axis]} neurons" if neuron == "i" else text


# --- homogeneous activations --------------------------------------------------------------------------------------


def homogeneous(f: FlatLoss, layer: int, *, p: float | None = None, verify: bool = True) -> Law:
    r"""The balance of every neuron of a hidden layer with an activation of degree :math:`p`.

    .. math:: C_i = |W^{(h)}_{i:}|^2 + (b^{(h)}_i)^2 - p\,|W^{(h+1)}_{:i}|^2

    Where :math:`\sigma(\lambda x) = \lambda^p\sigma(x)` for :math:`\lambda > 0`, scaling what enters neuron :math:`i`
    by :math:`\lambda` and what leaves it by :math:`\lambda^{-p}` does not change the network.

    Args:
        f: a loss from :func:`flat_loss` whose model is an ``nn.Sequential`` of ``Linear`` layers and activations.
        layer: :math:`h`, the hidden layer, counted from 1 as in GU.
        p: degree of homogeneity (dimensionless); None takes the activation's own. Known are ``ReLU``, ``LeakyReLU``,
            ``PReLU``, ``Identity`` (1) and :class:`RePU` (its power).
        verify: False builds the charge without asking what the activation is: for controls that must fail, or for a
            homogeneous activation of yours, whose ``p`` you then give.

    Returns:
        A stack of laws, one per neuron; ``.total`` is the layer's, ``[i]`` one neuron's.

    Raises:
        ValueError: no such layer; layers that do not chain; an activation that is not homogeneous, or of another
            degree; a weight that is frozen or used twice.
        TypeError: if the model is not an ``nn.Sequential``.

    Source: GU Section 4.1 (Eqs. 28 to 31), Section 4.2 and, with biases, Section 4.4 (Eq. 36).

    Example:
        >>> import torch
        >>> from nlcompanion import flat_loss, mlp
        >>> model = mlp((4, 3, 2), RePU(2), bias=True)
        >>> f = flat_loss(model, torch.ones(5, 4).double(), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> law = homogeneous(f, layer=1)
        >>> law.total.statement
        '|1.weight|² + |1.bias|² - 2 |3.weight|² = const'
        >>> bool(abs(f(law.act(f.q0, 0.5)) - f(f.q0)) < 1e-12)
        True
    """
    pairs = _pairs(f)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer <= len(pairs):
        raise ValueError(
            f"layer {layer!r} of a network with {len(pairs)} hidden layers; they are numbered from 1, and the last "
            "linear layer belongs to no hidden one"
        )
    (reader_name, reader), between, (writer_name, writer) = pairs[layer - 1]
    if verify:
        p = _degree(between, p, layer)
    elif p is None:
        raise ValueError("with verify=False nothing tells the degree; give it as p=1.0 or what you want to try")
    if not (math.isfinite(p) and p > 0):
        raise ValueError(f"the degree of homogeneity must be > 0, got p={p}; ReLU has 1, RePU(p) has p")
    if reader.out_features != writer.in_features:
        raise ValueError(
            f"{reader_name} gives {reader.out_features} numbers and {writer_name} takes {writer.in_features}: the "
            "layers do not chain, so no column belongs to a neuron; give them the same width, with nothing in "
            "between that reshapes"
        )
    bias = [(f"{reader_name}.bias", 0, 1.0)] if reader.bias is not None else []
    parts = [(f"{reader_name}.weight", 0, 1.0), *bias, (f"{writer_name}.weight", 1, -float(p))]
    terms = tuple(_term(f, *part) for part in parts)
    return Law(
        kind="homogeneous",
        parameters=tuple(term.name for term in terms),
        statement=_statement(terms, "i"),
        shape=(reader.out_features,),
        _terms=terms,
        _size=len(f),
    )


def homogeneous_laws(f: FlatLoss) -> tuple[Law, ...]:
    """The laws of all hidden layers with a homogeneous activation, one stack per layer, input side first.

    Layers with another activation (tanh, GELU) have none and are left out.

    Args:
        f: a loss from :func:`flat_loss` whose model is an ``nn.Sequential``.

    Raises:
        ValueError, TypeError: as :func:`homogeneous`, for layers that do not chain and weights used twice.

    Source: GU Section 4.1, "no assumptions on any other layer".

    Example:
        >>> import torch
        >>> from nlcompanion import flat_loss, mlp
        >>> model = mlp((4, 3, 5, 2), ["relu", "tanh"])
        >>> f = flat_loss(model, torch.ones(5, 4).double(), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> [law.shape for law in homogeneous_laws(f)]
        [(3,)]
    """
    return tuple(
        homogeneous(f, h)
        for h, (_, between, _) in enumerate(_pairs(f), start=1)
        if all(type(module) in _DEGREES for _, module in between)
    )


_DEGREES: dict[type, Callable[[nn.Module], float]] = {
    nn.ReLU: lambda module: 1.0,
    nn.LeakyReLU: lambda module: 1.0,
    nn.PReLU: lambda module: 1.0,  # whatever its trained slopes are
    nn.Identity: lambda module: 1.0,
    RePU: lambda module: float(module.p),
}

_Named = tuple[str, nn.Module]


def _degree(between: list[_Named], p: float | None, layer: int) -> float:
    """The degree of what stands between two linear layers, compared with the one claimed."""
    degree = 1.0
    for name, module in between:
        if type(module) not in _DEGREES:
            raise ValueError(
                f"{type(module).__name__} ({name}) after linear layer {layer} is not known to be homogeneous, so no "
                "rescaling of its neurons is known to leave the network alone; use ReLU, LeakyReLU, PReLU, Identity "
                "or RePU(p), or pass verify=False with a p to build the charge all the same"
            )
        degree *= _DEGREES[type(module)](module)
    if p is not None and p != degree:
        names = " and ".join(type(module).__name__ for _, module in between) or "nothing"
        raise ValueError(
            f"p={p:g} was claimed, but {names} after linear layer {layer} is homogeneous of degree {degree:g}: the "
            "charge would drift; leave p out, or pass verify=False to see it drift"
        )
    return degree


def _pairs(f: FlatLoss) -> list[tuple[_Named, list[_Named], _Named]]:
    """Neighbouring linear layers and what stands between them, input first."""
    if not isinstance(f, FlatLoss):
        raise TypeError(f"laws are made from flat_loss(model, ...), got {type(f).__name__}; wrap the model in it")
    model = f.model
    if not isinstance(model, nn.Sequential):
        raise TypeError(
            f"{type(model).__name__} does not say in which order its layers act; homogeneous laws need an "
            "nn.Sequential of Linear layers and activations, such as mlp(...)"
        )
    pairs, last, between = [], None, []
    for name, module in _leaves(model):
        if not isinstance(module, nn.Linear):
            between.append((name, module))
            continue
        if last is not None:
            pairs.append((last, between, (name, module)))
        last, between = (name, module), []
    return pairs


def _leaves(model: nn.Sequential, prefix: str = "") -> Iterator[_Named]:
    for name, module in model._modules.items():  # named_children() skips a module that is used twice
        if isinstance(module, nn.Sequential):
            yield from _leaves(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _term(f: FlatLoss, name: str, axis: int, coefficient: float) -> _Term:
    uses = Counter(id(x) for _, x in f.model.named_parameters(remove_duplicate=False))
    parameter = dict(f.model.named_parameters(remove_duplicate=False))[name]
    if uses[id(parameter)] > 1:
        raise ValueError(
            f"{name} is used in more than one place; scaling it here changes the network there, and the balance of "
            "this layer alone is not conserved; give each layer its own weight"
        )
    if name not in f.slices:
        raise ValueError(
            f"{name} is frozen (requires_grad=False); its side of the balance cannot move, so the other is not held "
            "by it; train both layers"
        )
    return _Term(name, f.slices[name], tuple(parameter.shape), axis, coefficient)
