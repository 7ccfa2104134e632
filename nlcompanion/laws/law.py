"""A law as a stack of bilinear forms; the public names are in ``laws``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlcompanion._arguments import as_tensor, described, finite_number, known, positive_number
from nlcompanion.laws.sources import Source, refuse_sources
from nlcompanion.laws.terms import (
    Shift,
    Term,
    Torque,
    expression,
    generated,
    moved,
    of_neuron,
    squared_lengths,
    summed,
)
from nlcompanion.symmetries.actions import Symmetry

if TYPE_CHECKING:
    from nlcompanion.dynamics.learning_rules import LearningRule
    from nlcompanion.laws.under_rules import LawUnderRule


@dataclass(frozen=True)
class Law:
    r"""What one symmetry of a network conserves: a bilinear form, or a stack of them.

    The symmetry says ``form(g, q) == 0`` for every gradient ``g`` at ``q``, of any mini-batch. All else follows from
    that: gradient flow conserves the charge ``form(q, q)``, dynamics with inertia moves the momentum ``form(v, q)``
    by ``form(v, v)`` and friction alone (:meth:`under`), and a discrete step can be booked exactly (:class:`Ledger`).

    Make one with :func:`homogeneous_law`, :func:`linear_law` or :func:`data_rotation_law`. ``q`` is the flat vector
    of the :class:`FlatLoss` it was made from, shape ``(n,)``; results have ``law.shape``: ``()`` for one law, ``(d,)``
    for a stack over ``d`` neurons, ``(d, d)`` for the matrix of a linear layer. Of a stack over neurons ``law[i]`` is
    the law of one, ``law.total`` the sum (of a matrix the trace).

    Attributes:
        kind: the symmetry behind it: ``"homogeneous"``, ``"swish"``, ``"linear"`` or ``"data"``.
        parameters: names of the tensors it speaks of.
        statement: what gradient flow conserves, in one line.
        shape: of the charge.
        terms: the pairings that the form is a sum of, one for each tensor.
        size: of the flat vector, its number of entries.
        sources: of a balance through activations without a symmetry: then ``form(g, q)`` is their sum and not 0.

    Source: GU Eqs. 28 to 31 and 38 to 48; the discrete laws are this book's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, homogeneous_law, mlp
        >>> model, x, y = mlp((4, 3, 2)), torch.ones(5, 4).double(), torch.zeros(5).long()
        >>> law = homogeneous_law(flat_loss(model, x, y, nn.functional.cross_entropy), layer=1)
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
    terms: tuple[Term, ...] = field(repr=False)
    size: int = field(repr=False)
    sources: tuple[Source, ...] = field(default=(), repr=False)

    # --- one law out of a stack -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("this is a single law, it has no length; a stack comes from homogeneous_law(f, layer)")
        return self.shape[0]

    def __getitem__(self, neuron: int) -> Law:
        """The law of one neuron of a stack.

        Raises:
            IndexError: if there is no such neuron.
            TypeError: if this is a single law already or a matrix, or ``neuron`` is no integer.
        """
        width = len(self)
        if len(self.shape) > 1:
            raise TypeError(
                f"this law is a matrix of shape {self.shape} over pairs of neurons; index what charge(q) returns, or "
                "take homogeneous_law(f, layer)[i] for the law of one neuron of a linear layer"
            )
        if isinstance(neuron, bool) or not isinstance(neuron, int):
            raise TypeError(f"a neuron is named by an integer, got {neuron!r}; index the charges for several at once")
        if not -width <= neuron < width:
            raise IndexError(f"neuron {neuron} of a layer of {width}; they are numbered from 0 to {width - 1}")
        sources = tuple(replace(source, index=(source.index[neuron % width],)) for source in self.sources)
        return self._with(tuple(of_neuron(term, neuron % width) for term in self.terms), sources)

    @property
    def total(self) -> Law:
        """The sum of a stack, or the trace of a matrix: the law of the whole layer."""
        if any(isinstance(term, Torque) for term in self.terms):
            raise TypeError("the law of rotated data is an antisymmetric matrix, whose trace is 0 whatever q is")
        sources = tuple(replace(source, index=(sum(source.index, ()),)) for source in self.sources)
        return self._with(tuple(map(summed, self.terms)), sources) if self.shape else self

    def _with(self, terms: tuple[Term, ...], sources: tuple[Source, ...]) -> Law:
        end = "= const"
        if sources:
            end = f"moves by the source of {', '.join(dict.fromkeys(source.text for source in sources))}"
        return replace(self, shape=(), statement=f"{expression(terms)} {end}", terms=terms, sources=sources)

    # --- the charge and its symmetry ------------------------------------------------------------------------------

    def charge(self, q: Tensor | nn.Module) -> Tensor:
        r"""The charge ``form(q, q)``, in units of a squared parameter; shape ``law.shape``.

        Args:
            q: the flat vector, or a model with the same parameter names.

        Raises:
            ValueError, TypeError: if ``q`` does not have the parameters that the law speaks of.

        Source: GU Eqs. 31 and 42.
        """
        charge = self.form(q)
        return charge + self.linear(q) / 2 if self.is_affine else charge

    @property
    def is_affine(self) -> bool:
        """Whether a translation takes part: then a part of the charge is linear in the parameters."""
        return any(isinstance(term, Shift) for term in self.terms)

    @property
    def is_linear(self) -> bool:
        """Whether the charge is linear in the parameters altogether: that of a translation alone."""
        return all(isinstance(term, Shift) for term in self.terms)

    @property
    def is_mixed(self) -> bool:
        """Whether the charge has a linear part beside its squares."""
        return self.is_affine and not self.is_linear

    def linear(self, x: Tensor | nn.Module) -> Tensor:
        """The linear part of the charge, of a point or a step; 0 unless the law is one of a translation."""
        shifts = [term for term in self.terms if isinstance(term, Shift)]
        if not shifts:
            return torch.zeros(self.shape, dtype=self.tensor_of(x, self.terms[0]).dtype)
        return torch.stack([2 * term.coefficient * term.half_sum(self.tensor_of(x, term)) for term in shifts]).sum(0)

    def square(self, step: Tensor) -> Tensor:
        r"""The quadratic form :math:`Q(d)` of a step, a velocity or a gradient; shape ``law.shape``.

        It is ``form(d, d)``, without the linear part that the charge of a translation has.
        """
        form = self.form(step)
        return form - self.linear(step) / 2 if self.is_affine else form

    def momentum(self, q: Tensor, v: Tensor) -> Tensor:
        r"""The momentum ``form(v, q)`` of a motion, which Noether's theorem conserves or moves; shape ``law.shape``.

        Of a symmetric law it is half the rate of the charge. Of rotated data it is the angular momentum
        :math:`\dot W^T W - W^T\dot W`, and a linear pair's antisymmetric part is of that kind too: no rate of
        anything, and conserved by motion without friction.

        Args:
            q, v: flat vectors, shape ``(n,)``.

        Source: GU Eqs. 45 and 48.
        """
        return self.form(v, self._checked(q))

    def sides(self, a: Tensor | nn.Module, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The two sides of the balance: ``(what reads, what writes)``, with ``form = reads - writes``.

        Of a point, ``sides(q)`` are the squared norms :math:`|W^{(h)}_{i:}|^2 + (b^{(h)}_i)^2` and
        :math:`p\,|W^{(h+1)}_{:i}|^2`; of a point and a velocity, ``sides(q, v)`` half their rates.
        """
        other = a if b is None else b
        return self._sum(a, other, lambda c: max(c, 0.0)), self._sum(a, other, lambda c: max(-c, 0.0))

    def form(self, a: Tensor | nn.Module, b: Tensor | None = None) -> Tensor:
        r"""The bilinear form of two flat vectors, or of one with itself if ``b`` is left out; shape ``law.shape``.

        - homogeneous: :math:`\langle a_{W_{i:}}, b_{W_{i:}}\rangle - p\,\langle a_{W'_{:i}}, b_{W'_{:i}}\rangle`
        - linear: :math:`a_W b_W^T - b_{W'}^T a_{W'}`, so that ``form(b, a) == form(a, b).T``
        - rotated data: :math:`a_W^T b_W - b_W^T a_W`
        - a translation by :math:`c`: half of :math:`\langle c, a\rangle`, whatever the point ``b``

        ``form(gradient, q)`` is the slope of the loss along the symmetry, which vanishes.
        """
        return self._sum(a, a if b is None else b, lambda c: c)

    def generator(self, q: Tensor, s: float | Tensor = 1.0) -> Tensor:
        r"""The direction :math:`\xi` in which the symmetry moves ``q``, shape ``(n,)``; a stack moves all at once.

        It belongs to the form: :math:`\langle g, \xi\rangle = \sum s \cdot` ``form(g, q)`` for every vector ``g``.

        Args:
            q: the flat vector.
            s: a number, or one for each entry of ``law.shape``: for a matrix law the matrix.

        Source: GU Eqs. 28, 38 and 44.
        """
        q = self._checked(q)
        return self._transform(q, self._amount("s", s), generated, torch.zeros_like(q))

    def act(self, q: Tensor, s: float | Tensor) -> Tensor:
        r"""The symmetry at a finite distance, shape ``(n,)``; the loss is the same there.

        Incoming weights grow by :math:`e^s` and outgoing ones shrink by :math:`e^{ps}`; a matrix :math:`A` makes
        :math:`(e^A W,\, W' e^{-A})` of a linear pair, and :math:`W e^{A^T - A}`, a rotation, of the first weight.

        Args:
            q: the flat vector.
            s: how far (dimensionless): a number, or one for each entry of ``law.shape``.

        Raises:
            ValueError: an ``s`` that does not fit; a law with a source, which comes from no symmetry.

        Source: GU Section 4.1, with :math:`1 + \epsilon = e^s`; Appendix B.
        """
        refuse_sources(self, "a motion that leaves the loss alone")
        return self._transform(self._checked(q), self._amount("s", s), moved, q)

    def symmetry(self, direction: float | Tensor = 1.0) -> Symmetry:
        r"""The symmetry that the law comes from, as the functions of :mod:`nlcompanion.symmetries` take it.

        Args:
            direction: a number, or one for each entry of ``law.shape``; rotated data need an antisymmetric matrix.

        Returns:
            The action :math:`Q(q, s)` = ``law.act(q, s * direction)``, differentiable by both.

        Raises:
            ValueError: a direction that does not fit; a law with a source, which comes from no symmetry.

        Example:
            >>> import torch
            >>> from nlcompanion import flat_loss, homogeneous_law, invariance_defect, mlp
            >>> x, y = torch.eye(4).double(), torch.arange(4) % 2
            >>> f = flat_loss(mlp((4, 3, 2), "relu"), x, y, torch.nn.functional.cross_entropy)
            >>> symmetry = homogeneous_law(f, layer=1).symmetry()
            >>> bool(invariance_defect(f, symmetry, f.q0) < 1e-12)
            True
        """
        refuse_sources(self, "a symmetry of the loss")
        along = self._amount("direction", direction)
        return Symmetry(
            lambda q, s: self._transform(self._checked(q), s * along.to(q.dtype), moved, q),
            f"the symmetry behind {self.statement!r}",
        )

    def cosine(self, gradient: Tensor, q: Tensor) -> Tensor:
        r"""Cosine between the gradient and the generator, over the law's own parameters (dimensionless).

        .. math:: \frac{\langle\nabla f, \xi\rangle}{|\nabla f|\,|\xi|}

        Zero up to rounding where the law holds, on every mini-batch; 0 for a neuron whose gradient vanishes.
        """
        shares = [
            squared_lengths(terms, self.tensor_of(gradient, terms[0]), self.tensor_of(q, terms[0]))
            for terms in self._terms_by_tensor()
        ]
        lengths = reduce(torch.add, [g for g, _ in shares]) * reduce(torch.add, [x for _, x in shares])
        cosine = self.form(gradient, q) / lengths.sqrt()
        return torch.where(lengths > 0, cosine, torch.zeros_like(cosine))

    def under(self, rule: LearningRule) -> LawUnderRule:
        r"""This law as a learning rule has it: written out, and measured along its motion.

        Args:
            rule: gradient flow or any rule with a Euclidean metric, ``sgd(...)`` with its discrete steps included.

        Raises:
            ValueError: for a mirror-type rule, whose momentum is not linear in the velocity; for a law with a source.

        Source: GU Tables 2 to 5; the discrete laws are this book's.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from nlcompanion import flat_loss, homogeneous_law, mlp, nesterov
            >>> x, y = torch.ones(5, 4).double(), torch.zeros(5).long()
            >>> f = flat_loss(mlp((4, 3, 2), "leaky_relu"), x, y, nn.functional.cross_entropy)
            >>> homogeneous_law(f, layer=1).total.under(nesterov()).statement
            "C'' + (3/t) C' = 2 Q(v) with C = |1.weight|² - |3.weight|²"
        """
        from nlcompanion.laws.under_rules import LawUnderRule

        return LawUnderRule(self, rule)

    # --- discrete time --------------------------------------------------------------------------------------------

    def change(self, q: Tensor, q_next: Tensor) -> Tensor:
        r"""What a step changes: :math:`C(q') - C(q)`, whatever the optimiser.

        Computed as the form of :math:`q' - q` and :math:`q' + q`, made symmetric: the two large charges are never
        subtracted, and small changes keep their digits.
        """
        step = self._checked(q_next) - self._checked(q)
        change = self._symmetric(self.form(step, q_next + q))
        return change + self.linear(step) / 2 if self.is_affine else change

    def gd_change(self, gradient: Tensor, *, lr: float) -> Tensor:
        r"""What the law predicts for a step of plain gradient descent: :math:`\eta^2` ``form(g, g)``, exactly.

        Args:
            gradient: of the loss that made the step, a mini-batch's too; shape ``(n,)``.
            lr: the step size :math:`\eta`.

        Raises:
            ValueError: for a law with a source.
        """
        refuse_sources(self, "the change of a step of gradient descent")
        return positive_number("lr", lr) ** 2 * self.square(gradient)

    def heavy_ball_change(
        self, step: Tensor, previous: tuple[Tensor, Tensor] | None = None, *, momentum: float
    ) -> Tensor:
        r"""What the law predicts for a step of heavy ball.

        .. math:: \Delta C_n = \beta\,\Delta C_{n-1} + Q(d_n) + \beta\, Q(d_{n-1}), \qquad Q(d) = \mathrm{form}(d, d)

        Holds for gradients of any batches, from a buffer that starts empty.

        Args:
            step: :math:`d_n = q_{n+1} - q_n`, shape ``(n,)``.
            previous: ``(d_(n-1), change of C in it)``; None for the first step.
            momentum: :math:`\beta`, PyTorch's convention.

        Raises:
            ValueError: for a law with a source.
        """
        refuse_sources(self, "the change of a step of heavy ball")
        momentum = finite_number("momentum", momentum)
        if previous is None:
            return self.square(step)
        if not isinstance(previous, tuple | list) or len(previous) != 2:
            raise TypeError(f"previous must be (the step before, the change in it) or None, got {described(previous)}")
        previous_step, previous_change = previous
        previous_change = as_tensor("the change in the step before", previous_change)
        if previous_change.shape != self.shape:
            raise ValueError(
                f"the change in the step before has shape {tuple(previous_change.shape)}, the law {self.shape}; it is "
                "what heavy_ball_change or change returned there"
            )
        return momentum * previous_change + self.square(step) + momentum * self.square(previous_step)

    # --- how it is computed ---------------------------------------------------------------------------------------

    @property
    def expression(self) -> str:
        """The charge, written out."""
        return expression(self.terms)

    @property
    def is_matrix(self) -> bool:
        """Whether the charge is a matrix over pairs of neurons."""
        return len(self.shape) == 2

    def _symmetric(self, x: Tensor) -> Tensor:
        """The part of a form's value that is the same when its arguments change places."""
        if any(isinstance(term, Torque) for term in self.terms):
            return torch.zeros_like(x)
        return (x + x.T) / 2 if x.ndim == 2 else x

    def _sum(self, a, b, weigh: Callable[[float], float]) -> Tensor:
        """Sum over the law's parameters of ``weigh(coefficient)`` times their pairing."""
        weighted = [(weight, term) for term in self.terms if (weight := weigh(term.coefficient))]
        if not weighted:
            return torch.zeros(self.shape, dtype=self.tensor_of(a, self.terms[0]).dtype)
        pairs = [weight * term.pair(self.tensor_of(a, term), self.tensor_of(b, term)) for weight, term in weighted]
        total = torch.stack(pairs).sum(0)
        return self._symmetric(total) if a is b else total  # a product x x^T is so up to its last bits only

    def tensor_of(self, source: Tensor | nn.Module, term: Term) -> Tensor:
        """The tensor that one of the terms speaks of, in a flat vector or a model."""
        if not isinstance(term, Term):
            raise TypeError(f"term must be one of law.terms, got {described(term)}")
        if isinstance(source, nn.Module):
            try:
                tensor = source.get_parameter(term.name)
            except AttributeError:
                tensor = None
            if tensor is None or tuple(tensor.shape) != term.shape:
                got = "none" if tensor is None else f"one of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"the law needs a parameter {term.name} of shape {term.shape}, the model has {got}; "
                    "make the law from this model's own flat_loss"
                )
            return tensor
        return self._checked(source)[term.place].view(term.shape)

    def _checked(self, q: Tensor) -> Tensor:
        if not isinstance(q, Tensor):
            raise TypeError(f"a law acts on a flat tensor or a model, got {described(q)}; start from f.q0")
        if q.shape != (self.size,):
            raise ValueError(
                f"the law acts on q of shape ({self.size},), got {tuple(q.shape)}; flatten the parameters with "
                "flat_loss, and take one state of a trajectory at a time"
            )
        if not q.is_floating_point() or q.is_meta:
            raise TypeError(f"a law acts on real floating-point numbers, got {described(q)}; pass q.double()")
        return q

    def _amount(self, name: str, s: float | Tensor) -> Tensor:
        """How far the symmetry acts, checked: a finite number, or one for each entry of the law."""
        s = as_tensor(name, s)
        if known(~torch.isfinite(s).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        if s.ndim and s.shape != self.shape:
            raise ValueError(f"{name} is a number or of the law's shape {self.shape}, got shape {tuple(s.shape)}")
        if not s.ndim and self.is_matrix and isinstance(self.terms[0], Torque):
            raise ValueError(f"a rotation of the data needs a matrix {name} of shape {self.shape}, got a number")
        return s

    def _transform(
        self, q: Tensor, s: Tensor, of_tensor: Callable[[list[Term], Tensor, Tensor], Tensor], rest: Tensor
    ) -> Tensor:
        """What the terms make of each tensor, between the pieces of ``rest`` that the law does not speak of.

        ``of_tensor(terms, tensor, s)`` has all terms of one tensor at once: a packed weight has several.
        """
        s = s.to(q.dtype)
        if s.ndim == 0 and self.is_matrix:
            s = s * torch.eye(len(self), dtype=q.dtype)
        pieces, end = [], 0
        for terms in self._terms_by_tensor():
            place = terms[0].place
            pieces += [rest[end : place.start], of_tensor(terms, self.tensor_of(q, terms[0]), s).reshape(-1)]
            end = place.stop
        return torch.cat([*pieces, rest[end:]])

    def _terms_by_tensor(self) -> list[list[Term]]:
        """The terms of each tensor together, in the order of the flat vector."""
        of: dict[int, list[Term]] = {}
        for term in self.terms:
            of.setdefault(term.place.start, []).append(term)
        return [of[start] for start in sorted(of)]
