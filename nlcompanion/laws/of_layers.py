"""Which laws a network has: from an ``nn.Sequential`` to a :class:`Law`; the public names are in ``laws``."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from nlcompanion._arguments import described, flag, instance, real_number
from nlcompanion.laws.confirmation import confirmed
from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Gram, Squares, Term, Torque, expression
from nlcompanion.networks.activations import Power, RePU, ScaledLinear, Swish
from nlcompanion.networks.flat_loss import FlatLoss

_Named = tuple[str, nn.Module]
_Chain = list[tuple[tuple[str, nn.Linear], list[_Named]]]  # each linear layer with what follows it

_DEGREES: dict[type, Callable[[Any], float]] = {
    nn.ReLU: lambda module: 1.0,
    nn.LeakyReLU: lambda module: 1.0,
    nn.PReLU: lambda module: 1.0,  # whatever its trained slopes are
    nn.Identity: lambda module: 1.0,
    nn.Dropout: lambda module: 1.0,  # a mask of each neuron, whatever it is
    RePU: lambda module: float(module.p),
    Power: lambda module: float(module.p),
    Swish: lambda module: 1.0,  # if beta moves along
}


def homogeneous_law(f: FlatLoss, layer: int, *, p: float | None = None, across: int = 1, verify: bool = True) -> Law:
    r"""The balance of every neuron of a hidden layer with an activation of degree :math:`p`.

    .. math:: C_i = |W^{(h)}_{i:}|^2 + (b^{(h)}_i)^2 - p\,|W^{(h+1)}_{:i}|^2 \quad [\,- (\beta^{(h)}_i)^2\,]

    Where :math:`\sigma(\lambda x) = \lambda^p\sigma(x)` for :math:`\lambda > 0`, scaling what enters neuron :math:`i`
    by :math:`\lambda` and what leaves it by :math:`\lambda^{-p}` does not change the network. :class:`Swish` has
    :math:`p = 1` and takes its :math:`\beta_i` along (the term in brackets). Across :math:`k` layers only whole layers
    balance,

    .. math:: C = \lVert W^{(h)}\rVert^2 - p^k\,\lVert W^{(h+k)}\rVert^2,

    where biases in between join with the degree reached so far, :math:`+\,p^j\,|b^{(h+j)}|^2`.

    Args:
        f: a loss from :func:`flat_loss` whose model is an ``nn.Sequential`` of ``Linear`` layers and activations.
        layer: :math:`h`, the hidden layer, counted from 1 as in GU.
        p: degree of homogeneity (dimensionless) from layer ``layer`` to layer ``layer + across``; None takes the
            activations' own. Known are ``ReLU``, ``LeakyReLU``, ``PReLU``, ``Identity``, ``Dropout`` and
            :class:`Swish` (1), :class:`RePU` and :class:`Power` (their power).
        across: :math:`k`; more than 1 gives one law, shape ``()``.
        verify: False builds the charge of the two weights without asking what the activation is: for controls that
            must fail, or for a homogeneous activation of yours, whose ``p`` you then give.

    Returns:
        A stack of laws, one per neuron; ``.total`` is the layer's, ``[i]`` one neuron's. Its kind is ``"swish"`` where
        a trained :math:`\beta` takes part, ``"homogeneous"`` otherwise.

    Raises:
        ValueError: no such layer; layers that do not chain; an activation that is not homogeneous, or of another
            degree; a weight that is frozen or used twice; a law that follows from the layers' types and does not hold,
            because a hook, a replaced ``forward`` or a penalty in the loss changes the function.
        TypeError: if the model is not an ``nn.Sequential``, or a layer has a ``forward`` of its own.

    Source: GU Section 4.1 (Eqs. 28 to 31), Section 4.2, Section 4.3 and, with biases, Section 4.4 (Eqs. 36 and 37).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import RePU, flat_loss, mlp
        >>> model = mlp((4, 3, 3, 2), RePU(2), bias=True)
        >>> f = flat_loss(model, torch.ones(5, 4).double(), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> law = homogeneous_law(f, layer=1)
        >>> law.total.statement
        '|1.weight|² + |1.bias|² - 2 |3.weight|² = const'
        >>> bool(abs(f(law.act(f.q0, 0.5)) - f(f.q0)) < 1e-12)
        True
        >>> homogeneous_law(f, layer=1, across=2).statement
        '|1.weight|² + |1.bias|² + 2 |3.bias|² - 4 |5.weight|² = const'
    """
    chain = _chain(f)
    _check_layer(chain, layer, across)
    p = None if p is None else real_number("p", p)
    flag("verify", verify)
    if not verify and p is None:
        raise ValueError("with verify=False nothing tells the degree; give it as p=1.0 or what you want to try")
    for (name, module), _ in chain[layer - 1 : layer + across]:
        _check_forward(name, module, nn.Linear, ScaledLinear)
    degree, parts = 1.0, []
    for k in range(layer - 1, layer - 1 + across):
        (name, module), between = chain[k]
        _check_widths(name, module, *chain[k + 1][0])
        if k == layer - 1:
            parts.append((f"{name}.weight", 0, 1.0))
        if module.bias is not None:
            parts.append((f"{name}.bias", 0, degree))
        if verify:
            degree, betas = _walk(between, degree, k + 1)
            parts += [(f"{beta}.beta", 0, -reached) for beta, reached in betas]
    if verify:
        _compare(p, degree, chain[layer - 1 : layer - 1 + across], layer)
    elif p is not None:
        degree = p
    if not (math.isfinite(degree) and degree > 0):
        raise ValueError(f"the degree of homogeneity must be > 0, got p={degree}; ReLU has 1, RePU(p) has p")
    parts.append((f"{chain[layer - 1 + across][0][0]}.weight", 1, -float(degree)))
    terms = tuple(
        Squares(*_parameter(f, name), coefficient, axis if across == 1 else None) for name, axis, coefficient in parts
    )
    kind = "swish" if any(name.endswith(".beta") for name, *_ in parts) else "homogeneous"
    width = chain[layer - 1][0][1].out_features
    if across > 1:
        law = _law(f, kind, terms, f"{expression(terms)} = const", ())
    else:
        law = _law(f, kind, terms, f"{expression(terms)} = const for each of {width} neurons", (width,))
    return confirmed(law, f) if verify else law


def homogeneous_laws(f: FlatLoss) -> tuple[Law, ...]:
    """The laws of all hidden layers with a homogeneous activation, one stack per layer, input side first.

    Layers with another activation (tanh, GELU) have none and are left out. So are, with a warning that names each,
    layers with a frozen, normalised or shared weight, and layers that a hook changes: the laws of the others hold all
    the same. Only pairs of ``nn.Linear`` are read: the channels of convolutions balance too, but of a convolutional
    network you get the laws of its head alone, and of one without two linear layers none.
    ``find_conserved_quantities`` tests any symmetry that you write down.

    Args:
        f: a loss from :func:`flat_loss` whose model is an ``nn.Sequential``.

    Raises:
        ValueError, TypeError: as :func:`homogeneous_law`, if every layer with a homogeneous activation is refused.

    Source: GU Section 4.1, "no assumptions on any other layer".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, mlp
        >>> model = mlp((4, 3, 5, 4, 2), ["relu", "tanh", "swish"])
        >>> f = flat_loss(model, torch.ones(5, 4).double(), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> [(law.kind, law.shape) for law in homogeneous_laws(f)]
        [('homogeneous', (3,)), ('swish', (4,))]
    """
    laws: list[Law] = []
    refused: dict[int, Exception] = {}
    for h, (_, between) in enumerate(_chain(f)[:-1], start=1):
        if not all(type(module) in _DEGREES for _, module in between):
            continue
        try:
            laws.append(homogeneous_law(f, h))
        except (ValueError, TypeError) as error:
            refused[h] = error
    if refused and not laws:
        raise next(iter(refused.values()))
    for h, reason in refused.items():
        warnings.warn(f"no law of hidden layer {h}, the others hold: {reason}", stacklevel=2)
    return tuple(laws)


def linear_law(f: FlatLoss, layer: int) -> Law:
    r"""The matrix that two neighbouring linear layers conserve.

    .. math:: C = W^{(h)} W^{(h)T} + b^{(h)} b^{(h)T} - W^{(h+1)T} W^{(h+1)}

    With nothing between them, :math:`(e^A W^{(h)},\, W^{(h+1)} e^{-A})` is the same network for every matrix
    :math:`A`: :math:`d^2` symmetries, where a homogeneous activation has :math:`d`. The first layer's bias is one more
    column of its weight; the second's moves freely and stands in no law. Being symmetric, the charge holds
    :math:`d(d+1)/2` laws; the antisymmetric rest is in the momentum (:meth:`Law.momentum`), and dynamics without
    friction conserve it.

    Args:
        f: a loss from :func:`flat_loss` whose model is an ``nn.Sequential``.
        layer: :math:`h`, counted from 1; nothing but ``Identity`` stands between it and the next.

    Returns:
        A law of shape ``(d, d)``, ``d`` the numbers that pass between the layers; ``.total`` is its trace.

    Raises:
        ValueError: no such layer; an activation in between; layers that do not chain; a weight that is frozen or used
            twice.
        TypeError: if the model is not an ``nn.Sequential``.

    Source: GU Section 5 (Eqs. 38 to 43); the bias and the antisymmetric part are this book's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, mlp
        >>> f = flat_loss(mlp((4, 3, 2), "linear"), torch.ones(5, 4).double(), torch.zeros(5).long(),
        ...               nn.functional.cross_entropy)
        >>> law = linear_law(f, layer=1)
        >>> law.statement, law.shape
        ('1.weight 1.weightᵀ - 3.weightᵀ 3.weight = const', (3, 3))
        >>> A = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.5, 0.0, 0.0]]).double()
        >>> bool(abs(f(law.act(f.q0, A)) - f(f.q0)) < 1e-12)
        True
    """
    chain = _chain(f)
    _check_layer(chain, layer, 1)
    ((name, module), between), ((next_name, next_module), _) = chain[layer - 1 : layer + 1]
    for where, linear in ((name, module), (next_name, next_module)):
        _check_forward(where, linear, nn.Linear, ScaledLinear)
    for where, activation in between:
        _check_block(where, activation)
        if type(activation) is not nn.Identity:
            raise ValueError(
                f"{type(activation).__name__} ({where}) stands between linear layers {layer} and {layer + 1}: mixing "
                "their neurons changes the network, so no matrix is conserved; "
                + (
                    f"homogeneous_law(f, {layer}) has the law of each neuron"
                    if type(activation) in _DEGREES
                    else "linear_law() is for layers with nothing or Identity between them"
                )
            )
    _check_widths(name, module, next_name, next_module)
    parts = [(f"{name}.weight", 1.0, True), (f"{next_name}.weight", -1.0, False)]
    if module.bias is not None:
        parts.insert(1, (f"{name}.bias", 1.0, True))
    terms = tuple(Gram(*_parameter(f, part), coefficient, rows) for part, coefficient, rows in parts)
    return confirmed(_law(f, "linear", terms, f"{expression(terms)} = const", (module.out_features,) * 2), f)


def data_rotation_law(f: FlatLoss, layer: int = 1, *, weight: str | None = None) -> Law:
    r"""What rotation-invariant data conserve: the angular momentum of the first layer.

    .. math:: M = \dot W^{(1)T} W^{(1)} - W^{(1)T}\dot W^{(1)}

    If the distribution of the inputs is the same after every rotation, the population loss does not see whether the
    first weight is turned, :math:`W^{(1)} \to W^{(1)} R`. The generators are antisymmetric, so there is no charge of
    the position alone (``charge`` is identically 0): gradient flow has :math:`M = 0` at all times, motion without
    friction keeps :math:`M`. A finite data set is not invariant: the form then measures its torque.

    Args:
        f: a loss from :func:`flat_loss`.
        layer: 1; later layers do not see the data.
        weight: name of the parameter that meets the inputs, of shape ``(d_1, d_0)`` or ``(d_0,)``; None takes the
            first ``Linear`` of an ``nn.Sequential``. Its bias may be there, it is not turned.

    Returns:
        A law of shape ``(d_0, d_0)``, antisymmetric.

    Raises:
        ValueError: another layer than the first, or a first that does not meet the inputs; no such parameter, or one
            that is frozen, used twice or of more than two dimensions.
        TypeError: if the model is not an ``nn.Sequential`` and no ``weight`` is named.

    Source: GU Section 6 (Eqs. 44 to 48).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss
        >>> class Ring(nn.Module):   # a population loss of w alone
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.tensor([0.5, 0.5, 0.5]).double())
        ...     def forward(self, x):
        ...         return (self.w @ self.w - 1) ** 2
        >>> f = flat_loss(Ring(), torch.zeros(1), torch.zeros(1), lambda value, _: value)
        >>> law, v = data_rotation_law(f, weight="w"), torch.tensor([-2.0, 1.0, 1.0]).double()
        >>> law.momentum(f.q0, v)[0].tolist()
        [0.0, -1.5, -1.5]
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or layer != 1:
        raise ValueError(
            f"layer {described(layer)} does not see the data, only what the layers before make of them; rotations of "
            "the data act on layer 1"
        )
    if weight is not None:
        instance("weight", weight, str, '"1.weight"')
    if weight is None:
        weight = f"{_first(f)}.weight"
    elif not isinstance(f, FlatLoss):
        raise TypeError(f"laws are made from flat_loss(model, ...), got {type(f).__name__}; wrap the model in it")
    name, place, shape = _parameter(f, weight)
    if len(shape) not in (1, 2):
        raise ValueError(
            f"{name} has shape {shape}; rotations of the inputs act on a weight of shape (d_1, d_0), such as a Linear's"
        )
    return _law(
        f, "data", (Torque(name, place, shape),), f"vᵀ {name} - {name}ᵀ v = 0 with v the velocity", (shape[-1],) * 2
    )


# --- the chain of layers --------------------------------------------------------------------------------------------


def _law(f: FlatLoss, kind: str, terms: tuple[Term, ...], statement: str, shape: tuple[int, ...]) -> Law:
    return Law(kind, tuple(term.name for term in terms), statement, shape, terms, len(f))


def _chain(f: FlatLoss) -> _Chain:
    """The linear layers, each with what follows it, input first."""
    if not isinstance(f, FlatLoss):
        raise TypeError(f"laws are made from flat_loss(model, ...), got {type(f).__name__}; wrap the model in it")
    if not isinstance(f.model, nn.Sequential):
        raise TypeError(
            f"{type(f.model).__name__} does not say in which order its layers act; laws of layers need an "
            "nn.Sequential of Linear layers and activations, such as mlp(...), of a wrapped model (torch.compile, "
            "DataParallel) the one inside"
        )
    _check_forward("", f.model, nn.Sequential)
    chain: _Chain = []
    for name, module in _leaves(f.model):
        if isinstance(module, nn.Linear):
            chain.append(((name, module), []))
        elif chain:
            chain[-1][1].append((name, module))
    if not chain:
        raise ValueError("the model has no Linear layer, and laws of layers are made of their weights")
    return chain


def _first(f: FlatLoss) -> str:
    """The linear layer that meets the inputs themselves."""
    first, layer = _chain(f)[0][0]
    _check_forward(first, layer, nn.Linear, ScaledLinear)
    for name, module in _leaves(f.model):
        if name == first:
            break
        if type(module) not in (nn.Flatten, nn.Unflatten, nn.Identity):
            raise ValueError(
                f"{type(module).__name__} ({name}) stands before {first}, which then does not meet the inputs, and "
                "turning its weight does not turn them; name the parameter that does with weight="
            )
    return first


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[_Named]:
    """The layers in the order in which they act; a block with a forward of its own counts as one of them."""
    for name, module in model._modules.items():  # named_children() skips a module that is used twice
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _leaves(module, f"{prefix}{name}.")
        elif module is not None:
            yield f"{prefix}{name}", module


def _check_forward(name: str, module: nn.Module, *known: type[nn.Module]) -> None:
    """A subclass may do anything in a forward of its own: skip connections, normalised weights."""
    if type(module).forward not in [kind.forward for kind in known]:
        raise TypeError(
            f"{type(module).__name__} ({name or 'the model'}) has a forward of its own, so it need not act as "
            f"{known[0].__name__} does and no law follows from its weights; take it apart into nn.Linear, activations "
            "and plain nn.Sequential"
        )


def _check_block(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Sequential):
        _check_forward(name, module, nn.Sequential)


def _check_layer(chain: _Chain, layer, across) -> None:
    hidden = len(chain) - 1
    if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer <= hidden:
        raise ValueError(
            f"layer {layer!r} of a network with {hidden} hidden layers; they are numbered from 1, and the last "
            "linear layer belongs to no hidden one"
        )
    if isinstance(across, bool) or not isinstance(across, int) or not 1 <= across <= hidden + 1 - layer:
        raise ValueError(
            f"across={across!r} from layer {layer} of {hidden + 1} linear layers; the law relates layer {layer} to "
            f"layer {layer} + across, so across is between 1 and {hidden + 1 - layer}"
        )


def _check_widths(name: str, module: nn.Linear, next_name: str, next_module: nn.Linear) -> None:
    if module.out_features != next_module.in_features:
        raise ValueError(
            f"{name} gives {module.out_features} numbers and {next_name} takes {next_module.in_features}: the "
            "layers do not chain, so no column belongs to a neuron; give them the same width, with nothing in "
            "between that reshapes"
        )


def _walk(between: list[_Named], degree: float, layer: int) -> tuple[float, list[tuple[str, float]]]:
    """The degree behind these activations, and the degrees at which trained betas were met."""
    betas = []
    for name, module in between:
        _check_block(name, module)
        if type(module) not in _DEGREES:
            raise ValueError(
                f"{type(module).__name__} ({name}) after linear layer {layer} is not known to be homogeneous, so no "
                "rescaling of its neurons is known to leave the network alone; use ReLU, LeakyReLU, PReLU, Identity, "
                "RePU(p), Power(p) or a trainable Swish, or pass verify=False with a p to build the charge all the same"
            )
        if type(module) is Swish:
            betas.append((name, degree))
        degree *= _DEGREES[type(module)](module)
    return degree, betas


def _compare(claimed: float | None, degree: float, layers: _Chain, layer: int) -> None:
    if claimed is None or math.isclose(claimed, degree, rel_tol=1e-12):  # degrees multiply with rounding
        return
    names = " and ".join(type(module).__name__ for _, between in layers for _, module in between) or "nothing"
    raise ValueError(
        f"p={claimed:g} was claimed, but {names} after linear layer {layer} is homogeneous of degree {degree:g}: the "
        "charge would drift; leave p out, or pass verify=False to see it drift"
    )


def _parameter(f: FlatLoss, name: str) -> tuple[str, slice, tuple[int, ...]]:
    """Name, place and shape of a parameter that training moves, and that stands in one place only."""
    named = dict(f.model.named_parameters(remove_duplicate=False))
    if name not in named:
        raise ValueError(
            f"the model has no parameter {name!r}, so no law can speak of it; it has {', '.join(named)}. A weight "
            "computed from others (weight_norm, spectral_norm, pruning) is none: take that away, or name one of these"
        )
    uses = Counter(id(x) for x in named.values())
    if uses[id(named[name])] > 1:
        raise ValueError(
            f"{name} is used in more than one place; scaling it here changes the network there, and the balance of "
            "this layer alone is not conserved; give each layer its own weight"
        )
    if name not in f.slices:
        raise ValueError(
            f"{name} is frozen (requires_grad=False); its side of the balance cannot move, so the other is not held "
            "by it; train both layers"
        )
    return name, f.slices[name], tuple(named[name].shape)
