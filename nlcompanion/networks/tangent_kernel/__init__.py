r"""The tangent kernel of a network, and what it says about the motion of its outputs.

To first order in the motion of the weights a network is linear in them, :math:`u(q) \approx u(q_0) + J\,(q - q_0)`,
and on a squared loss its outputs move by themselves: the weights enter through the kernel :math:`H = JJ^T` alone.
"""

from nlcompanion.networks.tangent_kernel.kernel import ntk
from nlcompanion.networks.tangent_kernel.motion import OutputMotion, output_motion
from nlcompanion.networks.tangent_kernel.operator import KernelProduct, ntk_product

__all__ = ["KernelProduct", "OutputMotion", "ntk", "ntk_product", "output_motion"]
