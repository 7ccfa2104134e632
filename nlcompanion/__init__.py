"""Noether's learning dynamics, executable.

Gradient descent is mechanics: the loss is potential energy, the learning rule kinetic energy, and every
symmetry of the loss is a law of training. Each folder is a noun, each function a verb:

==============  =======================================================================
``mechanics``   calculus on a Lagrangian ``L(t, q, v)``
``dynamics``    learning rules as Lagrangians, their flows and their steps
``symmetries``  one-parameter actions on parameters and their generators
``noether``     charges, what moves them, and what a group conserves
``networks``    the papers' models; a loss as a function of one flat vector; its kernel
``laws``        what a network conserves, exactly, step by step
``testing``     gradients and optimisers held against their own laws
``adaptivity``  normalisation as an adaptive optimiser
``monitoring``  the ledger of a training run, the monitor and its alerts, the radius foreseen
``datasets``    digits (embedded), KMNIST, Tiny ImageNet
``training``    the training loop, for one GPU too, and sweeps that survive
``book``        claims and their verdicts, stored results, figures, sliders
==============  =======================================================================

Importing this package loads neither torch nor SciPy; the first name that needs them does.

Docstrings cite two papers: TK is H. Tanaka and D. Kunin, *Noether's Learning Dynamics: Role of Symmetry Breaking in
Neural Networks*, 2021 (arXiv:2105.02716), with its supplement SI; GU is G. Gluch and R. Urbanke, *Noether: The More
Things Change, the More Stay the Same*, 2021 (arXiv:2104.05508). "This book" is the one that the package belongs to.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
