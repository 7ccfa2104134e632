"""Backpropagation written out in NumPy, for networks so small that a library's own work is what they cost.

A gradient of a few hundred parameters takes autograd a quarter of a millisecond, whatever it computes; the same sums in
NumPy take a tenth of that. What is here covers the networks of :func:`~nlcompanion.mlp` and their ensembles.
"""

from nlcompanion.networks.backward.chain import Chain, chain_of
from nlcompanion.networks.backward.criteria import criterion

__all__ = ["Chain", "chain_of", "criterion"]
