"""GU's Algorithm 1: what a group conserves under a learning rule; the public names are in ``noether``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp

from nlcompanion._arguments import (
    as_time,
    finite_number,
    function,
    integer,
    ordered,
    positive_number,
    seed_number,
    vector,
)
from nlcompanion.dynamics.bregman import bregman_momentum, kinetic_energy
from nlcompanion.dynamics.gradient import gradient_of
from nlcompanion.dynamics.learning_rules import LearningRule, as_rule, at_time
from nlcompanion.noether.charges import checked_acceleration, metric_force, noether_charge, schedule_at
from nlcompanion.symmetries.actions import Symmetry
from nlcompanion.symmetries.breaking import generator, variation
from nlcompanion.symmetries.lie_algebras import LieAlgebra
from nlcompanion.symmetries.states import at_each, state

_MOST_POINTS = 100_000


@dataclass(frozen=True, eq=False)
class ConservedQuantity:
    r"""What one symmetry says about the motion of a rule: GU Eq. 17, and its integral where there is one.

    Attributes:
        symmetry: the action.
        defect: the largest :func:`nlcompanion.invariance_defect` of the loss among the points tried, in [0, 1].
        is_symmetry: whether that is rounding.
        is_total_derivative: whether, besides, the quantity (17) is a total derivative up to a factor of time, so that
            :meth:`integrated` is a conserved quantity.
        statement: the verdict in one line.
        coefficients: of a combination of elements, in the order of the group; None for an element.
    """

    symmetry: Symmetry
    defect: float
    is_symmetry: bool
    is_total_derivative: bool
    statement: str
    coefficients: Tensor | None = None
    _rule: LearningRule = field(repr=False, kw_only=True)
    _degree: float | None = field(repr=False, kw_only=True)  # of homogeneity of the generator, for gradient flow
    _origin: Tensor = field(repr=False, kw_only=True)

    def __repr__(self) -> str:  # without the defect, whose digits are rounding
        return f"ConservedQuantity({self.symmetry.name}: {self.statement})"

    def quantity(self, t, q, v, a=None) -> Tensor:
        r"""GU's quantity (17), :math:`\langle E(t, q, v, a), \xi(q)\rangle`: zero along motions.

        The rule's equation is :math:`E = -\nabla f`, with the weight decay in ``E``:
        :math:`E = \kappa_2 a + \kappa_1 v + k q` for Euclidean rules, :math:`v + kq` for gradient flow, and
        :math:`e^{-\alpha-\beta}(\dot\Delta_h + \dot\gamma\Delta_h - \partial_q T_h) + kq` in general.

        Args:
            t, q, v: a point or a trajectory.
            a: acceleration, the shape of ``v``; gradient flow needs none. Measured along the motion, it tests the
                law; taken from the rule's equation, it tests nothing.

        Returns:
            A scalar or shape ``(T,)``, in units of the loss over those of ``s``.
        """
        rule, xi = self._rule, generator(self.symmetry)
        t, q, v = state(rule, self.symmetry, t, q, v)
        if a is not None:
            a = checked_acceleration(a, v)
        if rule.massless:
            return at_each(lambda t, q, v: (v + rule.weight_decay * q) @ xi(q), t, q, v)
        if a is None:
            raise ValueError(f"{rule.name} has mass: its quantity (17) contains the acceleration, pass a")
        return at_each(lambda t, q, v, a: _euler_lagrange_force(rule, t, q, v, a) @ xi(q), t, q, v, a)

    def charge(self, t, q, v=None) -> Tensor:
        r"""The integral without its factor of time.

        With mass the Noether charge :math:`\langle\Delta_h, \xi\rangle`; for gradient flow the function of ``q`` whose
        gradient is :math:`\xi`, for a symmetric generator :math:`\xi = Aq` the quadratic form
        :math:`\tfrac12 q^T A q`.
        """
        if not self._rule.massless:
            return noether_charge(self._rule, self.symmetry, t, q, v)
        t, q, _ = state(None, self.symmetry, t, q, q if v is None else v)
        return at_each(lambda t, q: self._primitive(q), t, q)

    def log_weight(self, t) -> Tensor:
        r"""The logarithm of the factor of time: :math:`\gamma_t` with mass, :math:`(d + 1)\,k\,t` without.

        ``d`` is the degree of the generator, 1 if linear; ``k`` the weight decay.
        """
        t = vector("t", t).double() if isinstance(t, Tensor) and t.ndim else as_time(t)
        if self._rule.massless:
            # without decay there is no factor, whatever the degree
            if not self._rule.weight_decay:
                return 0.0 * t
            if self._degree is None:
                raise ValueError(
                    f"the generator of {self.symmetry.name} mixes degrees, which decay at rates of their own"
                )
            return (self._degree + 1) * self._rule.weight_decay * t
        return at_each(lambda t: at_time(self._rule.gamma, "gamma", t), t)

    def integrated(self, t, q, v=None, *, t_ref: float | None = None) -> Tensor:
        r"""The conserved quantity: constant along every motion.

        .. math:: e^{\gamma_t}\langle\Delta_h, \xi(q)\rangle, \qquad\text{or, without mass,}\qquad
                  e^{(d+1)kt}\,\varphi(q) \text{ with } \nabla\varphi = \xi

        Args:
            t, q, v: a point or a trajectory; ``v`` may be left out for gradient flow.
            t_ref: time at which the factor is 1. :math:`e^\gamma` overflows on long runs: take the last time there.

        Returns:
            A scalar or shape ``(T,)``.

        Raises:
            ValueError: if the quantity is no total derivative, or not of a symmetry.
        """
        if not self.is_total_derivative:
            raise ValueError(
                f"{self.symmetry.name} has no conserved quantity: {self.statement}; follow its charge with "
                "noether_learning_dynamics instead"
            )
        shift = 0.0 if t_ref is None else self.log_weight(as_time(t_ref))
        return torch.exp(self.log_weight(t) - shift) * self.charge(t, q, v)

    def _primitive(self, q: Tensor) -> Tensor:
        xi = generator(self.symmetry)
        if self._degree is not None and self._degree != -1:
            return q @ xi(q) / (self._degree + 1)  # Euler's theorem
        nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(24))
        step = q - self._origin  # Poincare's lemma along the straight line from the point tried first
        return sum(w / 2 * (step @ xi(self._origin + (1 + x) / 2 * step)) for x, w in zip(nodes, weights, strict=True))


@dataclass(frozen=True, eq=False)
class ConservedQuantities(Sequence):
    r"""What :func:`find_conserved_quantities` found: one :class:`ConservedQuantity` per element of the group, in order.

    Printing it shows the verdicts.

    Attributes:
        quantities: of every element, symmetries of the loss and others.
        group: the Lie algebra, or None if the group was given as symmetries.
    """

    quantities: tuple[ConservedQuantity, ...]
    group: LieAlgebra | None
    _search: _Search = field(repr=False)

    def __len__(self) -> int:
        return len(self.quantities)

    def __getitem__(self, index):
        return self.quantities[index]

    def __iter__(self) -> Iterator[ConservedQuantity]:
        return iter(self.quantities)

    def __repr__(self) -> str:
        return "\n".join(f"{found.symmetry.name}: {found.statement}" for found in self.quantities)

    @property
    def conserved(self) -> tuple[ConservedQuantity, ...]:
        """Those elements whose quantity (17) integrates to a conserved one."""
        return tuple(found for found in self.quantities if found.is_total_derivative)

    def combinations(self) -> tuple[ConservedQuantity, ...]:
        r"""A basis of all linear combinations :math:`\sum_i c_i \xi_i` that give a conserved quantity.

        The elements themselves may have none while their combinations do: in GL(d), gradient flow conserves the
        quantities of the symmetric matrices, a rule with mass those of the skew-symmetric ones. Each result has its
        ``coefficients``, in reduced echelon form.
        """
        return self._search.combinations(self.group)

    def charges(self, t, q, v=None) -> Tensor:
        """The charges of all elements, shape ``(m,)`` at a point or ``(T, m)`` along a trajectory."""
        return torch.stack([found.charge(t, q, v) for found in self.quantities], dim=-1)

    def matrix(self, t, q, v=None) -> Tensor:
        r"""All charges as one matrix, by :meth:`LieAlgebra.pack`; shape ``(d, d)`` or ``(T, d, d)``.

        For so(d) acting on a point with mass 1: the angular momenta :math:`q_i v_j - q_j v_i`. For gl(d) between two
        linear layers under gradient flow: :math:`\tfrac12 (W W^T - W'^T W')`, with mass
        :math:`m\,(W\dot W^T - \dot W'^T W')`.

        Raises:
            ValueError: if the group was given as a list of symmetries, which have no matrices.

        Source: GU Lemmas 3 and 4, Eqs. 41, 42, 47 and 48.
        """
        if self.group is None:
            raise ValueError("these symmetries came without matrices; give the group as a LieAlgebra, so(d) or gl(d)")
        return self.group.pack(self.charges(t, q, v))


def find_conserved_quantities(
    rule: LearningRule,
    f: Callable[[Tensor], Tensor],
    group: LieAlgebra | Sequence | Tensor,
    q,
    *,
    t: float = 1.0,
    points: int = 8,
    spread: float = 0.3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> ConservedQuantities:
    r"""GU's Algorithm 1: what a group of transformations conserves when a rule trains a loss.

    For each element of the Lie algebra: is it a symmetry of ``f``? Then the motion obeys (17),
    :math:`\langle E, \xi\rangle = 0`. And is that, up to a factor of time, a total derivative? For a rule with mass
    and Euclidean metric

    .. math:: \frac{d}{dt}\big(e^{\int\kappa_1/\kappa_2}\langle v, \xi\rangle\big)
              = e^{\int\kappa_1/\kappa_2}\Big[\tfrac1{\kappa_2}\langle\kappa_2 a + \kappa_1 v, \xi\rangle
              + \langle v, \tfrac{\partial\xi}{\partial q} v\rangle\Big],

    so it is one exactly where the last term vanishes for all ``v``: where :math:`\partial\xi/\partial q` is
    skew-symmetric, for a rotation or translation. In TK's words and for any ``h``: where the kinetic energy is not
    broken, :math:`\partial_s T_h = 0` (and the weight decay does not pull along :math:`\xi`). Gradient flow has it
    the other way round: :math:`\langle v, \xi(q)\rangle` is a total derivative exactly where :math:`\xi` is a
    gradient, :math:`\partial\xi/\partial q` symmetric. Both are decided at random points.

    Args:
        rule: any rule, gradient flow included.
        f: loss ``f(q) -> scalar``, without the weight decay, which belongs to the rule.
        group: a :class:`LieAlgebra` such as ``so(3)`` or ``gl(4, lambda A: linear_pair(first, second, A))``; a
            sequence of matrices of shape ``(n, n)``, acting on ``q`` by :func:`nlcompanion.linear_action`; or a
            sequence of :class:`Symmetry`.
        q: a point to look around, shape ``(n,)``; random points are drawn near it.
        t: a time at which the rule's schedules are finite.
        points: number of random points (and velocities).
        spread: how far they lie from ``q``, relative to each component (below 0.5 signs are kept, for an entropy).
        tolerance: below this a relative defect counts as rounding.
        seed: of the random points.

    Returns:
        :class:`ConservedQuantities`, with one entry per element; those that are no symmetries say so.

    Raises:
        ValueError: an empty group, a loss or ``h`` that is not finite near ``q``, a gradient that vanishes there.

    Source: GU Algorithm 1, Eqs. 15 to 17, Appendix A.

    Example:
        >>> import torch
        >>> from nlcompanion import newtonian
        >>> from nlcompanion.symmetries.actions import rotation, scale
        >>> bowl, q = (lambda q: (q @ q - 1) ** 2), torch.tensor([0.3, 0.4]).double()
        >>> print(find_conserved_quantities(newtonian(), bowl, [rotation(plane=(0, 1)), scale()], q))
        rotation in plane (0, 1): conserved: exp(gamma) <Delta_h, xi>
        scale: not a symmetry of the loss (defect 1)
    """
    as_rule(rule)
    function("f", f, "f(q) -> scalar", 1)
    integer("points", points, 1, _MOST_POINTS)
    if not 0 < finite_number("spread", spread) < 0.5:
        raise ValueError(f"spread must be in (0, 0.5), got {spread}; beyond, components change their sign")
    tolerance, seed = positive_number("tolerance", tolerance), seed_number("seed", seed)
    algebra, elements = _elements(group)
    q = vector("q", q).detach().double()
    search = _Search(rule, f, elements, q, as_time(t).detach(), points, float(spread), tolerance, seed)
    return ConservedQuantities(search.elements_found(algebra), algebra, search)


def _elements(group) -> tuple[LieAlgebra | None, list[Symmetry]]:
    if isinstance(group, Symmetry):
        group = [group]
    if not isinstance(group, LieAlgebra):
        group = ordered("group", group, "a LieAlgebra, or matrices or symmetries in a list")
        if isinstance(group, Tensor | np.ndarray) and not group.ndim:
            raise TypeError("group is a single number; give a LieAlgebra, or matrices or symmetries in a list")
        group = list(group)
        if not group:
            raise ValueError("the group is empty; give at least one symmetry or matrix")
        if all(isinstance(element, Symmetry) for element in group):
            return None, group
        group = LieAlgebra(group, name="matrices")
    return group, list(group)


def _euler_lagrange_force(rule: LearningRule, t: Tensor, q: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """E of GU Eq. 15, in the units of grad f."""
    alpha, beta, gamma_rate = schedule_at(rule, t)
    delta, delta_dot, *_ = jvp(bregman_momentum(rule), (t, q, v), (torch.ones_like(t), v, a))
    inertia = delta_dot + gamma_rate * delta - metric_force(rule, alpha, delta, q, v)
    return torch.exp(-alpha - beta) * inertia + rule.weight_decay * q


class _Samples(NamedTuple):
    """Random points, two directions at each, and the unit gradient of the loss there: shape (K, n)."""

    q: Tensor
    v: Tensor
    w: Tensor
    slope: Tensor


class _Search:
    """The random points of Algorithm 1, and the two questions asked there.

    Both are linear in the generator: answers of elements add up to those of their combinations.
    """

    def __init__(self, rule, f, elements, q, t, points, spread, tolerance, seed):
        self.rule, self.f, self.elements, self.origin = rule, f, elements, q
        self.t, self.spread, self.tolerance, self.seed = t, spread, tolerance, seed
        for symmetry in elements:
            symmetry.check(q)
        self.samples = self._draw(points)

    def _draw(self, count: int) -> _Samples:
        random = torch.Generator().manual_seed(self.seed)
        size = self.origin.abs()
        size = torch.where(size > 0, size, size.square().mean().sqrt().clamp(min=1e-3))
        speed = 1.0 if self.rule.massless else torch.exp(at_time(self.rule.alpha, "alpha", self.t))
        a, b, c = (2 * torch.rand(3, count, len(size), generator=random, dtype=torch.float64) - 1) * self.spread * size
        q, v = self.origin + a, speed * b
        slope = torch.stack([gradient_of(self.f, x) for x in q])
        length = slope.norm(dim=1, keepdim=True)
        if not length.all():
            raise ValueError(
                "the gradient of the loss vanishes near q, where everything looks like a symmetry; start from another q"
            )
        state(None if self.rule.massless else self.rule, None, self.t.expand(count), q, v)
        return _Samples(q, v, c, slope / length)

    def invariance(self, symmetry: Symmetry, samples: _Samples) -> tuple[Tensor, Tensor]:
        """Slopes of the loss along the generator, and what they would be at most: shape (K,) each."""
        xi = at_each(generator(symmetry), samples.q)
        return (samples.slope * xi).sum(dim=1), xi.norm(dim=1)

    def obstruction(self, symmetry: Symmetry, samples: _Samples) -> tuple[Tensor, Tensor]:
        """What keeps (17) from being a total derivative, and its natural size: shape (K, 2) each."""
        test = self._curl if self.rule.massless else self._breaking
        return at_each(lambda q, v, w: test(symmetry, q, v, w), *samples[:3])

    def _breaking(self, symmetry, q, v, w):
        k, t = self.rule.weight_decay, self.t
        xi, xi_dot = variation(symmetry, t, q, v)
        force, momentum = grad(kinetic_energy(self.rule), argnums=(1, 2))(t, q, v)
        values = [force @ xi + momentum @ xi_dot, k * (q @ xi)]
        sizes = [force.norm() * xi.norm() + momentum.norm() * xi_dot.norm(), k * q.norm() * xi.norm()]
        return torch.stack(values), torch.stack(sizes)

    def _curl(self, symmetry, q, v, w):
        k, xi = self.rule.weight_decay, generator(symmetry)
        here, along_q = jvp(xi, (q,), (q,))
        along_v, along_w = (jvp(xi, (q,), (x,))[1] for x in (v, w))
        values = [w @ along_v - v @ along_w, k * (v @ (along_q - here))]
        sizes = [w.norm() * along_v.norm() + v.norm() * along_w.norm(), k * v.norm() * (along_q.norm() + here.norm())]
        return torch.stack(values), torch.stack(sizes)

    def degree(self, symmetry: Symmetry) -> float | None:
        """The generator's degree of homogeneity by Euler's theorem, or None."""
        xi, along_q = at_each(lambda q: jvp(generator(symmetry), (q,), (q,)), self.samples.q)
        degrees = (xi * along_q).sum(dim=1) / (xi * xi).sum(dim=1)
        excess = (along_q - degrees[:, None] * xi).norm(dim=1)
        same = (degrees.max() - degrees.min() <= self.tolerance) & (excess <= self.tolerance * xi.norm(dim=1)).all()
        if not same:
            return None
        degree = degrees[0].item()
        return float(round(degree)) if abs(degree - round(degree)) <= self.tolerance else degree

    def verdict(self, symmetry: Symmetry, coefficients: Tensor | None = None) -> ConservedQuantity:
        values, sizes = self.invariance(symmetry, self.samples)
        if not sizes.all():
            raise ValueError(
                f"the generator of {symmetry.name} vanishes near q; start from a q that it moves, or write the action "
                "in torch operations of s"
            )
        defect = (values.abs() / sizes).max().item()
        degree = self.degree(symmetry) if self.rule.massless else None
        blocked = _relative(*self.obstruction(symmetry, self.samples)) > self.tolerance
        if self.rule.massless and degree not in (None, -1.0):
            blocked[1] = False  # the decay then only adds a factor of time
        found = defect <= self.tolerance
        statement = self._statement(defect, found, blocked, degree)
        return ConservedQuantity(
            symmetry,
            defect,
            found,
            bool(found and not blocked.any()),
            statement,
            coefficients,
            _rule=self.rule,
            _degree=degree,
            _origin=self.origin,
        )

    def _statement(self, defect: float, found: bool, blocked: Tensor, degree: float | None) -> str:
        k = self.rule.weight_decay
        if not found:
            return f"not a symmetry of the loss (defect {defect:.2g})"
        if self.rule.massless:
            if blocked[0]:
                return "a balance of rates only: the generator is not a gradient"
            if blocked[1]:
                return "a balance of rates only: weight decay mixes parts of different degree"
            form = "<q, xi>" if degree == 0 else f"<q, xi> / {degree + 1:g}" if degree not in (None, -1.0) else "phi(q)"
            return (
                f"conserved: exp({(degree + 1) * k:g} t) {form}" if k and degree is not None else f"conserved: {form}"
            )
        if blocked[0]:
            return "a balance of rates only: the kinetic energy breaks it"
        if blocked[1]:
            return "a balance of rates only: weight decay pulls along it"
        return "conserved: exp(gamma) <Delta_h, xi>"

    def elements_found(self, algebra: LieAlgebra | None) -> tuple[ConservedQuantity, ...]:
        found = [self.verdict(symmetry) for symmetry in self.elements]
        if algebra is None:
            return tuple(found)
        return tuple(replace(x, symmetry=replace(x.symmetry, name=f"{algebra.name}[{i}]")) for i, x in enumerate(found))

    def combinations(self, algebra: LieAlgebra | None) -> tuple[ConservedQuantity, ...]:
        samples = self._draw(len(self.elements) + 4)  # more equations than unknowns
        answers = [self.invariance(symmetry, samples) for symmetry in self.elements]
        # each element in units of its own size, so that a null vector means the same for large and small ones
        size = torch.stack([sizes.max() for _, sizes in answers])
        slopes = torch.stack([values for values, _ in answers], dim=1) / size
        basis = self._null_space(slopes, torch.eye(len(size), dtype=torch.float64))
        if basis.shape[1]:
            values, sizes = zip(*(self.obstruction(symmetry, samples) for symmetry in self.elements), strict=True)
            obstacles = torch.stack(values, dim=-1) / size
            scale = (torch.stack(sizes, dim=-1) / size).amax(dim=(0, 2)).clamp(min=1e-300)
            basis = self._null_space((obstacles / scale[:, None]).flatten(0, 1), basis)
        found = []
        for c in _echelon((basis / size[:, None]).T):
            symmetry = algebra.element(c) if algebra is not None else _combined(self.elements, c)
            found.append(self.verdict(replace(symmetry, name=_combination_name(algebra, c)), c))
        return tuple(found)

    def _null_space(self, equations: Tensor, basis: Tensor) -> Tensor:
        """The part of the span of ``basis`` (columns) that solves the equations, orthonormal in the basis."""
        _, singular, right = torch.linalg.svd(equations @ basis, full_matrices=True)
        rank = int((singular > self.tolerance * math.sqrt(equations.shape[0])).sum())
        return basis @ right[rank:].T


def _relative(values: Tensor, sizes: Tensor) -> Tensor:
    """The largest relative answer of each row; 0 where nothing could be there."""
    return torch.where(sizes > 0, values.abs() / sizes, torch.zeros_like(sizes)).amax(dim=0)


def _echelon(rows: Tensor) -> Tensor:
    """Reduced row echelon form of independent rows: the readable basis of their span."""
    rows, pivot = rows.clone(), 0
    for column in range(rows.shape[1]):
        if pivot == len(rows):
            break
        best = pivot + int(rows[pivot:, column].abs().argmax())
        if rows[best, column].abs() <= 1e-9 * rows[pivot:].abs().max():
            rows[pivot:, column] = 0.0
            continue
        rows[[pivot, best]] = rows[[best, pivot]]
        rows[pivot] /= rows[pivot, column].clone()
        others = torch.arange(len(rows)) != pivot
        rows[others] -= rows[others][:, column : column + 1] * rows[pivot]
        pivot += 1
    return torch.where(rows.abs() < 1e-9, torch.zeros_like(rows), rows)


def _combined(elements: list[Symmetry], coefficients: Tensor) -> Symmetry:
    """One action after the other: at first order in s, their generators add up."""
    parts = [(symmetry, c) for symmetry, c in zip(elements, coefficients.tolist(), strict=True) if c]

    def action(q, s):
        for symmetry, c in parts:
            q = symmetry(q, c * s)
        return q

    return Symmetry(action)


def _combination_name(algebra: LieAlgebra | None, coefficients: Tensor) -> str:
    name, terms = "element" if algebra is None else algebra.name, []
    for i, c in enumerate(coefficients.tolist()):
        if c:
            factor = "" if abs(abs(c) - 1) < 1e-9 else f"{abs(c):.4g} "
            terms.append(f"{'-' if c < 0 else '+'} {factor}{name}[{i}]")
    return " ".join(terms).removeprefix("+ ")
