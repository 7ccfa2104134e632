r"""Noether charges, and what moves them.

For a motion of the Bregman Lagrangian and any one-parameter action :math:`Q(q, s)`, the charge
:math:`C = \langle\Delta_h, \partial_s Q\rangle` obeys *Noether's learning dynamics* (TK Eq. 11), here with the term of
a loss that does not share the symmetry, weight decay included:

.. math:: \dot C + \dot\gamma\, C = \langle\Delta_h, \partial_s\dot Q\rangle
          + e^{\alpha}\langle\Delta_h - e^{-\alpha}\nabla^2 h\,\dot q,\, \partial_s Q\rangle
          - e^{\alpha+\beta}\langle\nabla f + kq,\, \partial_s Q\rangle .

The first two terms on the right are the kinetic symmetry breaking :math:`\partial_s T_h`. :math:`e^\gamma` is divided
out before anything is computed. :func:`rund_trautmann` is Noether's theorem with generators of time;
:func:`find_conserved_quantities` is GU's Algorithm 1.

Functions of ``(t, q, v)`` take one point or a whole trajectory, as in :mod:`nlcompanion.symmetries`.
"""

from nlcompanion.noether.charges import NLDTerms, noether_charge, noether_learning_dynamics
from nlcompanion.noether.search import ConservedQuantities, ConservedQuantity, find_conserved_quantities
from nlcompanion.noether.spacetime import RundTrautmann, rund_trautmann, spacetime_generators, transformed

__all__ = [
    "ConservedQuantities",
    "ConservedQuantity",
    "NLDTerms",
    "RundTrautmann",
    "find_conserved_quantities",
    "noether_charge",
    "noether_learning_dynamics",
    "rund_trautmann",
    "spacetime_generators",
    "transformed",
]
