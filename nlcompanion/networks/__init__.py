"""The papers' models, and a loss as a function of one flat vector."""

from nlcompanion.networks.activations import Power, RePU, Swish
from nlcompanion.networks.convnets import conv_bn, vgg11
from nlcompanion.networks.ensembles import Ensemble, ensemble, over_members
from nlcompanion.networks.flat_loss import FlatLoss, flat_loss
from nlcompanion.networks.mlp import mlp
from nlcompanion.networks.tangent_kernel import KernelProduct, OutputMotion, ntk, ntk_product, output_motion

__all__ = [
    "Ensemble",
    "FlatLoss",
    "KernelProduct",
    "OutputMotion",
    "Power",
    "RePU",
    "Swish",
    "conv_bn",
    "ensemble",
    "flat_loss",
    "mlp",
    "ntk",
    "ntk_product",
    "output_motion",
    "over_members",
    "vgg11",
]
