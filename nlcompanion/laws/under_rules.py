"""A law under a learning rule: what it says, and by how much a motion violates it; public through ``Law.under``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from nlcompanion._arguments import described
from nlcompanion.dynamics.flows import integrate
from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.laws.sources import refuse_sources
from nlcompanion.laws.under_optimizers import decay_text, form_text, heavy_ball_statement, sum_text

if TYPE_CHECKING:
    from nlcompanion.laws.law import Law


@dataclass(frozen=True)
class LawUnderRule:
    r"""A law as one learning rule has it; made by :meth:`Law.under`.

    With :math:`M = \mathrm{form}(v, q)` and a rule :math:`a = -c_1 v - c_2(\nabla f + kq)`, that
    :math:`\mathrm{form}(\nabla f, q) = 0` gives

    .. math:: \dot M = \mathrm{form}(v, v) - c_1 M - c_2 k\, \mathrm{form}(q, q),

    and for gradient flow :math:`\mathrm{form}(v, q) = -k\,\mathrm{form}(q, q)` itself: every row of GU's Tables 2 to
    5. In the statements :math:`C = \mathrm{form}(q, q)` is the charge, :math:`Q(x) = \mathrm{form}(x, x)` the same of
    another vector, ``d(n)`` step ``n``, ``g`` its gradient. The charge of a translation is linear, is twice
    :math:`\mathrm{form}(q, q)`, and decays at half the rate; that of a translation with a stretch has both parts, and
    decay takes ``F = form(q, q)`` from it.

    A law with a source has none of these forms and is refused.

    Attributes:
        law, rule: what was put together.
        statement: the law of the continuous motion, and of the steps where the rule has steps; one line.

    Source: GU Tables 2 to 5; the statements in steps are this book's.

    Example:
        >>> import torch
        >>> from nlcompanion import RePU, flat_loss, general, homogeneous_law, mlp, sgd
        >>> x = torch.linspace(-1, 1, 20).double().view(5, 4)
        >>> f = flat_loss(mlp((4, 3, 2), RePU(2)), x, torch.arange(5) % 2, torch.nn.functional.cross_entropy)
        >>> law = homogeneous_law(f, layer=1)
        >>> form = law.under(general(lambda t: 1 + t, lambda t: 0.5))
        >>> form.statement
        "kappa2 C'' + kappa1 C' = 2 kappa2 Q(v) with C = |1.weight[i, :]|² - 2 |3.weight[:, i]|²"
        >>> bool(form.residual(f, t_span=(0.0, 1.0), rtol=1e-11).abs().max() < 1e-10)
        True
        >>> law.total.under(sgd(lr=0.1, momentum=0.9)).steps
        'ΔC(n) - 0.9 ΔC(n-1) = Q(d(n)) + 0.9 Q(d(n-1))'
    """

    law: Law
    rule: LearningRule

    def __post_init__(self):
        if not callable(getattr(self.law, "under", None)):  # Law's own module imports this one
            raise TypeError(f"law must be a Law such as homogeneous_law(f, layer=1), got {described(self.law)}")
        if not isinstance(self.rule, LearningRule):
            raise TypeError(f"rule must be a LearningRule such as nesterov(), got {type(self.rule).__name__}")
        if not self.rule.is_euclidean:
            raise ValueError(
                f"{self.rule.name} has a metric of its own, so its momentum is not linear in the velocity and this "
                "law has another form there; noether_learning_dynamics(rule, symmetry, ...) has it"
            )
        refuse_sources(self.law, f"the law under {self.rule.name}")

    # --- in words -------------------------------------------------------------------------------------------------

    @property
    def statement(self) -> str:
        meaning = f"with {'M' if self.law.kind == 'data' else 'C'} = {self.law.expression}"
        if self.law.is_matrix and self.law.kind != "data":
            meaning += ", M = form(v, q)"
        if self.rule.weight_decay and self.law.is_mixed:
            meaning += f", F = form(q, q) = {form_text(self.law)}"
        steps = f"; in steps of {self.rule.lr:g}: {self.steps}" if self.steps else ""
        return f"{self.flow} {meaning}{steps}"

    @property
    def flow(self) -> str:
        """The law of the continuous motion, in the letters of this class."""
        rule, skew, decay = self.rule, "", decay_text(self.law, self.rule.weight_decay)
        if self.law.kind == "data":
            return _without_charge(rule, "M")
        if self.law.is_matrix:
            skew = f", {_without_charge(rule, 'M - Mᵀ')}"
        if rule.massless:
            return (f"C' = {sum_text(decay)}" if decay else "C = const") + skew
        mass, twice, friction = _coefficients(rule)
        left = " ".join(filter(None, (mass, "C''", friction and f"+ {friction} C'")))
        squares = "" if self.law.is_linear else f" + {twice} Q(v)"
        return f"{left} = {sum_text(squares + decay)}{skew}"

    @property
    def steps(self) -> str | None:
        """The law of the discrete steps, exact on every mini-batch; None where the rule has none."""
        steps, k = self.rule.steps, self.rule.weight_decay
        if steps is None:
            return None
        if steps.looks_ahead:  # the gradient is at y, between the points w
            if self.law.kind == "data":
                return "form(w(n+1) - y(n), y(n)) = 0"
            squares = " + Q(w(n+1) - y(n))" if k else f" + {steps.lr**2:g} Q(g)"
            moves = ("" if self.law.is_linear else squares) + decay_text(self.law, steps.lr * k, "(y(n))")
            return f"C(w(n+1)) - C(y(n)) = {sum_text(moves)}"
        return heavy_ball_statement(self.law, steps.lr, steps.memory, steps.lr * k)

    # --- in numbers -----------------------------------------------------------------------------------------------

    def residual(self, f: Callable[[Tensor], Tensor], q0=None, v0=None, *, t_span, **solver) -> Tensor:
        r"""By how much a motion violates the law, relative to what its terms sum up to; shape ``law.shape``.

        The motion is integrated with the law's right-hand side beside it (``integrate(..., integrand=)``), and the
        change of the momentum (of the charge, for gradient flow) compared with that integral. Accelerations are never
        used: taken from the equation of motion they would make the law a tautology.

        Args:
            f: loss ``f(q) -> scalar``.
            q0, v0: start as for :func:`integrate`; ``q0=None`` takes ``f.q0``.
            t_span: ``(t0, t1)``.
            solver: further arguments of :func:`integrate`, such as ``rtol``.

        Returns:
            A dimensionless tensor; rounding and the solver's error if the law holds.

        Raises:
            ValueError: if nothing moves, so that nothing would be tested; arguments that :func:`integrate` refuses.
            FlowError: as :func:`integrate`.

        Source: GU Tables 2 to 5.
        """
        for name in ("record", "integrand", "t_eval"):
            if name in solver:
                raise TypeError(f"residual uses {name} of integrate itself; call integrate(..., {name}=...) yourself")
        law, rule = self.law, self.rule
        q0 = _start_of(f) if q0 is None else q0
        start: dict[str, Tensor] = {}
        ends: dict[str, Tensor] = {}

        def record(t, q, v):
            state = start if not start else ends
            state.update(q=q.clone(), v=v.clone())
            return {"size": self._size(t, q, v)}

        run = integrate(rule, f, q0, v0, t_span=t_span, record=record, integrand=self._balance, **solver)
        size = torch.trapezoid(run.record["size"], run.t)
        integral = cast(Tensor, run.integral)[-1]
        if not size > 0:
            raise ValueError(
                f"neither side of {law.statement!r} moves from this start under {rule.name}, so nothing is tested; "
                "start elsewhere or give it a velocity v0"
            )
        if rule.massless:  # the charge's own change where there is one; of the rest only the integral
            rate, decayed = integral
            excess = law.change(start["q"], ends["q"]) / 2 + rate - law._symmetric(rate) + decayed
        else:
            excess = law.momentum(**ends) - law.momentum(**start) - integral
        return excess / size

    def _balance(self, t: float, q: Tensor, v: Tensor) -> Tensor:
        """What the law says of the momentum's rate; for gradient flow the momentum and what decay makes of it."""
        law, k = self.law, self.rule.weight_decay
        if self.rule.massless:
            return torch.stack([law.form(v, q), k * law.form(q, q)])
        c1, c2 = self.rule.equation(t)
        rate = law.square(v)
        if c1:
            rate = rate - c1 * law.form(v, q)
        return rate - c2 * k * law.form(q, q) if k else rate

    def _size(self, t: float, q: Tensor, v: Tensor) -> float:
        """How large the terms are that must cancel, the largest of a stack."""
        k, pairs = self.rule.weight_decay, []
        if self.rule.massless:
            pairs = [(1.0, v, q), (k, q, q)]
        else:
            c1, c2 = self.rule.equation(t)
            pairs = [(1.0, v, v), (abs(c1), v, q), (c2 * k, q, q)]
        return sum(c * float(self._largest(a, b)) for c, a, b in pairs if c)

    def _largest(self, a: Tensor, b: Tensor) -> Tensor:
        """Of the law's terms for two vectors, before they cancel: lengths, so that no cancellation hides one."""
        shares = [term.lengths(self.law.tensor_of(a, term), self.law.tensor_of(b, term)) for term in self.law.terms]
        return reduce(torch.add, [(x * y).sqrt() for x, y in shares]).max()


def _start_of(f) -> Tensor:
    try:
        return f.q0
    except AttributeError:
        raise ValueError(f"no start: f is {type(f).__name__}, which has no q0 as a flat_loss does; pass q0=") from None


def _coefficients(rule: LearningRule) -> tuple[str, str, str]:
    """Mass, twice the mass, and friction in writing; empty for a mass of 1 and a friction of 0."""
    if rule.friction_over_t is not None:
        return "", "2", f"({rule.friction_over_t:g}/t)"
    if rule.fixed_rates is not None:
        c1, c2 = rule.equation(0.0)
        return (f"{1 / c2:g}" if c2 != 1 else ""), f"{2 / c2:g}", (f"{c1 / c2:g}" if c1 else "")
    mass, friction = rule.letters or ("", "c1(t)")
    return mass, f"2 {mass}".rstrip(), friction


def _without_charge(rule: LearningRule, M: str) -> str:
    """The law of an antisymmetric form, which no kinetic energy feeds."""
    if rule.massless:
        return f"{M} = 0"
    mass, _, friction = _coefficients(rule)
    if not friction:
        return f"{M} = const"
    name = f"({M})" if " " in M else M
    if rule.friction_over_t is not None:
        power = "³" if rule.friction_over_t == 3 else f"^{rule.friction_over_t:g}"
        return f"t{power} {name} = const"
    if rule.fixed_rates is not None:
        return f"exp({rule.equation(0.0)[0]:g} t) {name} = const"
    ratio = f"{friction}/{mass}" if mass else "c1"
    return f"exp(∫ {ratio} dt) {name} = const"
