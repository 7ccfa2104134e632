r"""What a network conserves: the laws of its symmetries, in flowing and in discrete time.

A linear symmetry of the loss, :math:`f(e^{sA}q) = f(q)`, makes the gradient orthogonal to the generator
:math:`Aq`. For a symmetric matrix :math:`A` that turns into a law for the charge

.. math:: C(q) = q^T A\,q, \qquad \langle\nabla f, Aq\rangle = 0:

- gradient flow conserves :math:`C`;
- a motion :math:`\kappa_2\ddot q + \kappa_1\dot q = -\nabla f` has
  :math:`\kappa_2\ddot C + \kappa_1\dot C = 2\kappa_2\,\dot q^T A\dot q`;
- a step :math:`d` of any optimiser changes it by :math:`2\,q^T A d + d^T A d`;
- a step :math:`d = -\eta g` of plain (stochastic) gradient descent by exactly :math:`\eta^2 g^T A g`;
- heavy ball remembers: :math:`\Delta C_n - \beta\,\Delta C_{n-1} = d_n^T A d_n + \beta\, d_{n-1}^T A d_{n-1}`.

An antisymmetric :math:`A` (rotations) has no charge of the position; its law is that of the momentum
:math:`\dot q^T A q`.

A :class:`Law` is one such law or a stack of them: one per neuron (:func:`homogeneous_law`), a matrix of a linear layer
(:func:`linear_law`) or of the data (:func:`data_rotation_law`). :func:`audit` finds those of any module,
:func:`count_laws` says how many there are.
:meth:`Law.under` gives its form for a learning rule, a :class:`Ledger` books it along a training run.
"""

from nlcompanion.laws.auditing import Audit, AuditError, audit
from nlcompanion.laws.count import count_laws
from nlcompanion.laws.law import Law
from nlcompanion.laws.of_layers import data_rotation_law, homogeneous_law, homogeneous_laws, linear_law
from nlcompanion.laws.of_symmetries import law_of
from nlcompanion.laws.under_rules import LawUnderRule

__all__ = [
    "Audit",
    "AuditError",
    "Law",
    "LawUnderRule",
    "audit",
    "count_laws",
    "data_rotation_law",
    "homogeneous_law",
    "homogeneous_laws",
    "law_of",
    "linear_law",
]
