"""Noether's learning dynamics, executable.

Gradient descent is mechanics: the loss is potential energy, the learning rule kinetic energy, and every
symmetry of the loss is a law of training. Each module is a noun, each function a verb:

=================  =======================================================================
``mechanics``      calculus on a Lagrangian ``L(t, q, v)``
``learning_rules`` learning rules as Lagrangians and as differential equations
``flows``          their continuous trajectories (SciPy)
``descent``        the discrete algorithms
``networks``       the papers' models; a loss as a function of one flat vector
``symmetries``     one-parameter actions on parameters and their generators
``noether``        charges, what moves them, and what a group conserves
``laws``           what a network conserves, exactly, step by step
``kernels``        the tangent kernel and linearised training
``adaptivity``     normalisation as an adaptive optimiser
``training``       the training loop, for one GPU too, and sweeps that survive
``datasets``       digits (embedded), KMNIST, Tiny ImageNet
``checks``         a claim of the book and its verdict
``results``        measured results of long runs (import it by name)
``plotting``       figures (import it by name)
``explorers``      sliders that work live and in the static page (import it by name)
=================  =======================================================================

Importing this package loads neither torch nor SciPy; the first name that needs them does.

Docstrings cite two papers: TK is H. Tanaka and D. Kunin, *Noether's Learning Dynamics: Role of Symmetry Breaking in
Neural Networks*, 2021 (arXiv:2105.02716), with its supplement SI; GU is G. Gluch and R. Urbanke, *Noether: The More
Things Change, the More Stay the Same*, 2021 (arXiv:2104.05508). "This book" is the one that the package belongs to.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "mechanics": (
        "acceleration",
        "action",
        "along",
        "discrete_action",
        "energy",
        "euler_lagrange",
        "first_variation",
        "generalized_momentum",
        "lift",
        "stationary_path",
        "variational_derivative",
    ),
    "learning_rules": (
        "LearningRule",
        "Steps",
        "bregman",
        "bregman_momentum",
        "damped",
        "general",
        "gradient_flow",
        "kinetic_energy",
        "lagrangian",
        "modified_loss",
        "natural_gradient",
        "nesterov",
        "newtonian",
        "sgd",
    ),
    "flows": ("FlowError", "Trajectory", "integrate"),
    "descent": ("DescentError", "convergence_order", "descend"),
    "networks": (
        "Ensemble",
        "FlatLoss",
        "Power",
        "RePU",
        "Swish",
        "ensemble",
        "flat_loss",
        "mlp",
        "over_members",
        "conv_bn",
        "vgg11",
    ),
    "datasets": ("DataError", "Dataset", "digits", "kmnist", "tiny_imagenet"),
    "symmetries": (
        "LieAlgebra",
        "Symmetry",
        "generator",
        "gl",
        "input_rotation",
        "invariance_defect",
        "kinetic_symmetry_breaking",
        "linear_action",
        "linear_pair",
        "rescale",
        "rotation",
        "scale",
        "so",
        "translation",
    ),
    "noether": (
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
    ),
    "laws": (
        "Account",
        "Law",
        "Ledger",
        "LedgerError",
        "RuleForm",
        "data_rotation",
        "homogeneous",
        "homogeneous_laws",
        "linear",
    ),
    "kernels": ("OutputMotion", "linearized_dynamics", "ntk", "output_motion"),
    "adaptivity": (
        "Equilibrium",
        "Persistence",
        "Polar",
        "RMSPropTwin",
        "RadiusTracker",
        "angular_update",
        "equilibrium",
        "gradient_persistence",
        "momentum_average",
        "polar",
        "radial_acceleration",
        "radius_gain",
        "radius_squared",
        "radius_squared_acceleration",
        "radius_squared_of_steps",
        "rmsprop_accumulator",
        "rmsprop_twin",
    ),
    "training": ("Moment", "Run", "Sweep", "SweepError", "TrainConfig", "load_sweep", "sweep", "train"),
    "checks": ("ClaimError", "claim"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_OF_THE_BOOK = ("explorers", "plotting")  # what they import comes with the extra "book"
_SUBMODULES = (*_EXPORTS, *_OF_THE_BOOK, "results")

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # the next access skips this function
        return value
    if name in _SUBMODULES:
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if name not in _OF_THE_BOOK:
                raise
            raise ImportError(
                f"nlcompanion.{name} draws the book's figures with {error.name}, which the package alone does not "
                "install: pip install '.[book]' in its folder brings it"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES} - {*_OF_THE_BOOK})  # help() looks at all of these
