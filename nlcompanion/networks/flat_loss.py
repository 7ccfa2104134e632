"""A loss as a function of one flat vector of all parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nlcompanion._arguments import counted, described, function
from nlcompanion.networks.copies import (
    copied,
    loose_tensors,
    other_names,
    refuse_complex_parameters,
    refuse_random_draws,
    unwrapped,
)
from nlcompanion.networks.function_of_parameters import check_function_of_parameters, explained
from nlcompanion.networks.nested_data import Precision, arguments, cast, cast_criterion, tensors_in
from nlcompanion.networks.recomputation import plain_checkpoints

__all__ = ["FlatLoss", "flat_loss"]

_CPU_DOUBLE = Precision(torch.float64, torch.device("cpu"))
_SMALL = 2**22  # parameters times samples; above, the arithmetic is what a gradient costs, not the calls of it


class FlatLoss:
    r"""A network's loss as ``f(q)`` of one flat vector; made by :func:`flat_loss`.

    Attributes:
        q0: the model's parameters at construction, shape ``(n,)``, float64.
        names: parameter names in the order of ``q``.
        slices: where each parameter sits in ``q``, ``{name: slice}``.
        model: the loss's own copy of the model; its weights are never used, its structure and modes are.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Any, loss: Callable[..., Any]):
        model = unwrapped(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("the model has no trainable parameter; flat_loss needs one with requires_grad=True")
        refuse_complex_parameters(model)
        self.model = copied(model).double()  # what reads its own weights all the same is then found by their values
        self._whole = _WithLoss(self.model)
        self._data = (inputs, targets)
        self._loss = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
        self._aliases = other_names(self.model)
        self._shapes = {name: p.shape for name, p in trained.items()}
        self._sizes = [p.numel() for p in trained.values()]
        self.names = tuple(trained)
        ends = torch.tensor([0, *self._sizes]).cumsum(0).tolist()
        self.slices = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.names)}
        self.q0 = torch.cat([p.detach().reshape(-1).double().cpu() for p in trained.values()])
        self._loose = tuple(loose_tensors(self.model))
        self._loose_in: Precision | None = None
        # made here, once: a tensor first cast inside a torch.func.jvp is bound to that differentiation for ever
        own_device = Precision(torch.float64, next(iter(trained.values())).device)
        self._casts = {precision: self._cast_to(precision) for precision in {_CPU_DOUBLE, own_device}}
        self._chain: Any = None  # of layers, False once it is known that there is none
        self._by_hand: Callable[[Tensor], tuple[float, Tensor]] | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_chain": None, "_by_hand": None}  # made again where they are wanted

    def __repr__(self) -> str:
        return f"FlatLoss({counted(len(self.q0), 'parameter')} in {counted(len(self.names), 'tensor')})"

    def __len__(self) -> int:
        return len(self.q0)

    def unflatten(self, q: Tensor) -> dict[str, Tensor]:
        """``{name: tensor}``, views into ``q``; differentiable."""
        if not isinstance(q, Tensor):
            raise TypeError(f"q must be a flat tensor, got {type(q).__name__}; start from .q0")
        if q.shape != self.q0.shape:
            raise ValueError(
                f"q has shape {tuple(q.shape)}, this model's parameters make {tuple(self.q0.shape)}; start from .q0"
            )
        _check_real("q", q)
        pieces = q.split(self._sizes)  # one node in the graph, whose backward is a single concatenation
        return {name: x.view(shape) for (name, shape), x in zip(self._shapes.items(), pieces, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`."""
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors must be a dict {{name: tensor}}, got {described(tensors)}; unflatten makes one")
        missing = set(self.names) - set(tensors)
        if missing:
            raise ValueError(f"no tensor for {', '.join(sorted(missing))}; flatten needs every trained parameter")
        for name in self.names:
            if not isinstance(tensors[name], Tensor) or tensors[name].numel() != self._shapes[name].numel():
                got = tuple(tensors[name].shape) if isinstance(tensors[name], Tensor) else type(tensors[name]).__name__
                raise ValueError(f"{name} has shape {tuple(self._shapes[name])} in the model, got {got}; see unflatten")
            _check_real(name, tensors[name])
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def outputs(self, q: Tensor, inputs: Any = None) -> Tensor:
        """The network's outputs at parameters ``q``, on the loss's own inputs unless others are given.

        Raises:
            TypeError, ValueError: a ``q`` or inputs that the model does not take; the message names the module.
        """
        if inputs is None and self._casts[_CPU_DOUBLE][0].is_batch:
            raise TypeError(
                "this loss was made of a batch and loss(model, batch), which alone knows what the model takes; "
                "name the inputs: f.outputs(q, inputs)"
            )
        if inputs is not None and next(tensors_in(inputs), None) is None:
            raise TypeError(f"inputs must be a tensor, or a dict or tuple of tensors, got {described(inputs)}")
        _check_values(inputs)
        self.unflatten(q)  # says what is wrong with q
        given = None if inputs is None else cast(inputs, Precision.of(q))
        compute = lambda: outputs_of(self, q, given)  # noqa: E731
        try:
            return compute()
        except _FOREIGN as error:
            raise explained(error, self.model, compute) from error

    def __call__(self, q: Tensor) -> Tensor:
        data, tensors = self._at(q)
        compute = lambda: self._value(data, tensors)  # noqa: E731
        try:
            with plain_checkpoints:
                value = compute()
        except _FOREIGN as error:
            raise explained(error, self.model, compute) from error
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            form = "loss(model, batch)" if data.is_batch else "loss(outputs, targets)"
            fix = "use reduction='mean' or 'sum'"
            if not data.is_batch and not isinstance(value, Tensor):
                fix = (
                    "where forward returns the loss itself, give flat_loss(model, (inputs, targets), "
                    "loss=lambda model, batch: model(*batch)[1])"
                )
            raise TypeError(f"{form} must be a scalar tensor, got {got}; {fix}")
        return value

    @property
    def value_and_gradient(self) -> Callable[[Tensor], tuple[float, Tensor]] | None:
        """``q -> (value, gradient)`` in float64 without autograd, several times as fast; None where it would not be.

        There is one for small networks of :func:`~nlcompanion.mlp` and their ensembles, on any loss. What integrates
        or descends asks for it.
        """
        from nlcompanion.networks.backward import chain_of

        if self._chain is None or (self._chain and not self._chain.is_of(self.model)):
            self._chain, self._by_hand = chain_of(self.model, self.slices) or False, None
        if self._chain and self._by_hand is None:
            self._by_hand = self._written_out()
        return self._by_hand if self._chain else None

    def _written_out(self) -> Callable[[Tensor], tuple[float, Tensor]] | None:
        from nlcompanion.networks.backward import criterion

        chain, (data, _) = self._chain, self._casts[_CPU_DOUBLE]
        inputs, targets = data.inputs, data.targets
        if data.is_batch or not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            return None
        if not inputs.is_floating_point() or len(self.q0) * len(inputs) > _SMALL * (chain.members or 1):
            return None
        if inputs.requires_grad or targets.requires_grad or (inputs.ndim != 2 and not chain.flattens):
            return None
        columns = np.ascontiguousarray(inputs.flatten(1).T.numpy())
        loss = criterion(data.loss, targets, chain.members)

        def value_and_gradient(q: Tensor) -> tuple[float, Tensor]:
            if q.shape != self.q0.shape:
                self.unflatten(q)  # says what is wrong
            with np.errstate(all="ignore"):  # the caller looks at what is not finite
                value, gradient = chain.value_and_gradient(q.detach().numpy(), columns, loss)
            return value, torch.from_numpy(gradient)

        return value_and_gradient

    def _value(self, data: _Data, tensors: dict[str, Tensor]) -> Any:
        if data.is_batch:
            lent = {f"model.{name}": x for name, x in tensors.items()}
            return functional_call(self._whole, lent, (data,), tie_weights=False)
        outputs = functional_call(self.model, tensors, data.args, data.kwargs, tie_weights=False)
        return data.loss(outputs, data.targets)

    def on(self, inputs: Any, targets: Any = None) -> FlatLoss:
        """The same model and criterion on other data: a mini-batch's loss.

        Args:
            inputs, targets: as in :func:`flat_loss`; of a loss made with ``loss(model, batch)`` the batch alone.
        """
        of_batch = self._data[1] is None
        if (targets is None) != of_batch:
            form = "a batch and loss(model, batch): give on(batch)" if of_batch else "inputs and targets"
            raise TypeError(f"this loss was made of {form}, and another mini-batch is of the same kind")
        _check_data(inputs, targets)
        other = copy.copy(self)
        other._data = (inputs, targets)
        other._casts = {precision: other._cast_to(precision) for precision in self._casts}
        other._by_hand = None
        return other

    def _at(self, q: Tensor) -> tuple[_Data, dict[str, Tensor]]:
        """Data, and every tensor of the model by name: pieces of ``q``, and the frozen state in its precision."""
        pieces = self.unflatten(q)
        precision = Precision(q.dtype, q.device)
        if self._loose and self._loose_in != precision:
            for module, name, x in self._loose:
                vars(module)[name] = cast(x, precision)
            self._loose_in = precision
        data, state = self._casts.get(precision) or self._cast_to(precision)
        # in train mode a layer may write to its buffers: give it copies, so that f stays a function of q alone
        tensors = {name: x.clone() for name, x in state.items()}
        tensors.update(pieces)
        for alias, name in self._aliases:
            tensors[alias] = tensors[name]
        return data, tensors

    def _cast_to(self, precision: Precision) -> tuple[_Data, dict[str, Tensor]]:
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        state = {**frozen, **dict(self.model.named_buffers())}
        loss = cast_criterion(self._loss, precision)
        inputs, targets = (cast(given, precision) for given in self._data)
        args, kwargs = arguments(inputs)
        data = _Data(inputs, targets, loss, args, kwargs)
        return data, {name: cast(x.detach(), precision) for name, x in state.items()}


def outputs_of(f: FlatLoss, q: Tensor, inputs: Any = None) -> Any:
    """:meth:`FlatLoss.outputs` with the errors of model and torch as they are: some say that there is another way."""
    data, tensors = f._at(q)
    args, kwargs = (data.args, data.kwargs) if inputs is None else arguments(inputs)
    with plain_checkpoints:
        return functional_call(f.model, tensors, args, kwargs, tie_weights=False)


def _check_real(name: str, x: Tensor) -> None:
    if not x.is_floating_point() or x.is_meta or x.layout != torch.strided:
        raise TypeError(f"{name} is {described(x)}; parameters are real floating-point numbers: pass {name}.double()")


class _Data(NamedTuple):
    """Inputs and targets with ``loss(outputs, targets)``; a batch with ``loss(model, batch)`` has no targets."""

    inputs: Any
    targets: Any
    loss: Callable[..., Any]
    args: tuple[Any, ...]  # the inputs as the model is called with them
    kwargs: dict[str, Any]

    @property
    def is_batch(self) -> bool:
        return self.targets is None


class _WithLoss(nn.Module):
    """Model and criterion as one module, so that a loss that calls the model itself is one functional call too."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, data: _Data) -> Any:
        if data.is_batch:
            return data.loss(self.model, data.inputs)
        return data.loss(self.model(*data.args, **data.kwargs), data.targets)


# what a model, a criterion or torch may raise while a loss is computed
_FOREIGN = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


def flat_loss(model: nn.Module, inputs: Any, targets: Any = None, loss: Callable[..., Any] | None = None) -> FlatLoss:
    r"""Turn model, data and criterion into a loss :math:`f(q)` of one flat vector.

    There are two forms. ``flat_loss(model, inputs, targets, loss)`` computes ``loss(model(inputs), targets)``; a dict
    of inputs is given to the model by name, a tuple by place. ``flat_loss(model, batch, loss=...)`` computes
    ``loss(model, batch)``, whatever the batch is: for models that return their own loss, masks, sequences.

    What is returned has been tried once: away from ``q0`` the value and the gradient are those of the model with these
    weights, a repeated call gives the same number, and the gradient is the slope of the value. Activation checkpoints
    of ``torch.utils.checkpoint`` keep their activations here, so that nothing is computed anew under other weights.

    Args:
        model: any ``torch.nn.Module``; it is copied and never changed. Parameters with ``requires_grad=False`` and
            buffers are frozen at their present values. Of a model in ``torch.compile``, ``DataParallel`` or
            ``DistributedDataParallel`` the one inside is taken.
        inputs: what the model takes, first dimension the samples; or the batch, without ``targets``.
        targets: what ``loss`` takes beside the outputs, same first dimension.
        loss: ``loss(outputs, targets) -> scalar``, such as ``torch.nn.functional.cross_entropy``, or
            ``loss(model, batch) -> scalar``. Sum or mean over samples is the caller's choice and changes every rate
            that names the loss.

    Returns:
        A :class:`FlatLoss` ``f``: call ``f(q)``; ``f.q0`` is the model's own start, ``f.unflatten(q)`` the parameters
        by name, ``f.on(x, y)`` the same loss on other samples.

    Raises:
        ValueError: nothing to train; inputs and targets of different lengths; a loss that is no function of the
            parameters: dropout in train mode, a layer that remembers its last call, weights that are read in another
            way than by name, activations recomputed by another library than torch, values passed around the gradient.
        TypeError: inputs or targets that are no tensors of samples, complex parameters, scripted modules, a loss that
            does not reduce to a scalar, tensors of another precision made inside the model (the message names it).

    Source: GU Eq. 18.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import mlp
        >>> f = flat_loss(mlp((4, 3, 2)), torch.ones(5, 4), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> f(f.q0).ndim, len(f), f.unflatten(f.q0)["1.weight"].shape
        (0, 18, torch.Size([3, 4]))
        >>> batch = {"x": torch.ones(5, 4), "label": torch.zeros(5).long()}
        >>> own = lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["label"])
        >>> bool(flat_loss(mlp((4, 3, 2)), batch, loss=own)(f.q0) == f(f.q0))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    if not callable(loss):
        raise TypeError(
            f"loss must be a function, got {type(loss).__name__}; give loss(outputs, targets), or without targets "
            "flat_loss(model, batch, loss=lambda model, batch: ...)"
        )
    function("loss", loss, "loss(outputs, targets) -> scalar, or loss(model, batch) -> scalar", 2)
    _check_data(inputs, targets)
    refuse_random_draws(unwrapped(model))
    with torch.inference_mode(False):  # its tensors cannot be differentiated later
        f = FlatLoss(model, inputs, targets, loss)
        check_function_of_parameters(f, f._whole, lambda: f._at(f.q0)[0])
    return f


def _check_values(*data: Any) -> None:
    if any(x.is_meta for x in tensors_in(data)):
        raise TypeError("the data hold a tensor without values (device meta), and a network needs numbers")


def _check_data(inputs: Any, targets: Any) -> None:
    _check_values(inputs, targets)
    if targets is None:
        found = list(tensors_in(inputs))
        if any(x.ndim and not len(x) for x in found):
            raise ValueError("the batch has a tensor without samples; a loss needs at least one")
        return
    for name, given in (("inputs", inputs), ("targets", targets)):
        single = isinstance(given, Tensor) and given.ndim == 0
        if single or next(tensors_in(given), None) is None:
            got = "a single number" if single else type(given).__name__
            raise TypeError(
                f"{name} must be a tensor with the samples first, or a dict or tuple of tensors, got {got}; use "
                "torch.as_tensor, or flat_loss(model, batch, loss=lambda model, batch: ...) for any batch"
            )
    lengths = [len(x) if isinstance(x, Tensor) else None for x in (inputs, targets)]
    unequal = None not in lengths and lengths[0] != lengths[1]
    if unequal or any(x.ndim and not len(x) for x in (*tensors_in(inputs), *tensors_in(targets))):
        given = [len(next(tensors_in(x))) if next(tensors_in(x)).ndim else 1 for x in (inputs, targets)]
        raise ValueError(
            f"{given[0]} inputs and {given[1]} targets; a loss needs as many of each, at least one, samples first "
            "(another order: flat_loss(model, batch, loss=lambda model, batch: ...))"
        )
