"""A loss as a function of one flat vector of all parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["FlatLoss", "flat_loss"]

_SMALL = 2**22  # parameters times samples; above, the arithmetic is what a gradient costs, not the calls of it


class FlatLoss:
    r"""A network's loss as ``f(q)`` of one flat vector; made by :func:`flat_loss`.

    Attributes:
        q0: the model's parameters at construction, shape ``(n,)``, float64.
        names: parameter names in the order of ``q``.
        slices: where each parameter sits in ``q``, ``{name: slice}``.
        model: the loss's own copy of the model; its weights are never used, its structure and modes are.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("the model has no trainable parameter; flat_loss needs one with requires_grad=True")
        self.model = copy.deepcopy(model)
        self._loss, self._data = loss, (inputs, targets)
        held = [x for named in (model.named_parameters, model.named_buffers) for _, x in named(remove_duplicate=False)]
        self._shared = len({id(x) for x in held}) < len(held)
        self._shapes = {name: p.shape for name, p in trained.items()}
        self._sizes = [p.numel() for p in trained.values()]
        self.names = tuple(trained)
        ends = torch.tensor([0, *self._sizes]).cumsum(0).tolist()
        self.slices = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.names)}
        self.q0 = torch.cat([p.detach().reshape(-1).double().cpu() for p in trained.values()])
        # made here, once: a tensor first cast inside a torch.func.jvp is bound to that differentiation for ever
        self._double = self._cast_to(torch.float64)
        self._chain: Any = None  # of layers, False once it is known that there is none
        self._by_hand: Callable[[Tensor], tuple[float, Tensor]] | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_chain": None, "_by_hand": None}  # made again where they are wanted

    def __repr__(self) -> str:
        return f"FlatLoss({len(self.q0)} parameters in {len(self.names)} tensors)"

    def __len__(self) -> int:
        return len(self.q0)

    def unflatten(self, q: Tensor) -> dict[str, Tensor]:
        """``{name: tensor}``, views into ``q``; differentiable."""
        if q.shape != self.q0.shape:
            raise ValueError(
                f"q has shape {tuple(q.shape)}, this model's parameters make {tuple(self.q0.shape)}; start from .q0"
            )
        pieces = q.split(self._sizes)  # one node in the graph, whose backward is a single concatenation
        return {name: x.view(shape) for (name, shape), x in zip(self._shapes.items(), pieces, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`."""
        missing = set(self.names) - set(tensors)
        if missing:
            raise ValueError(f"no tensor for {', '.join(sorted(missing))}; flatten needs every trained parameter")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def outputs(self, q: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The network's outputs at parameters ``q``, on the loss's own inputs unless others are given."""
        own, _, state = self._as(q.dtype)
        # in train mode a layer may write to its buffers: give it copies, so that f stays a function of q alone
        state = {name: x.clone() for name, x in state.items()}
        tensors = {**state, **self.unflatten(q)}
        # the search for shared weights costs a seventh of a tiny gradient, so it is made only where there are any
        return functional_call(self.model, tensors, (own if inputs is None else inputs,), tie_weights=self._shared)

    def __call__(self, q: Tensor) -> Tensor:
        value = self._loss(self.outputs(q), self._as(q.dtype)[1])
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss(outputs, targets) must be a scalar tensor, got {got}; use reduction='mean' or 'sum'")
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

        chain, (inputs, targets, _) = self._chain, self._double
        if not inputs.is_floating_point() or len(self.q0) * len(inputs) > _SMALL * (chain.members or 1):
            return None
        if inputs.requires_grad or targets.requires_grad or (inputs.ndim != 2 and not chain.flattens):
            return None
        columns = np.ascontiguousarray(inputs.flatten(1).T.numpy())
        loss = criterion(self._loss, targets, chain.members)

        def value_and_gradient(q: Tensor) -> tuple[float, Tensor]:
            if q.shape != self.q0.shape:
                self.unflatten(q)  # says what is wrong
            with np.errstate(all="ignore"):  # the caller looks at what is not finite
                value, gradient = chain.value_and_gradient(q.detach().numpy(), columns, loss)
            return value, torch.from_numpy(gradient)

        return value_and_gradient

    def on(self, inputs: Tensor, targets: Tensor) -> FlatLoss:
        """The same model and criterion on other data: a mini-batch's loss."""
        other = copy.copy(self)
        other._data = (inputs, targets)
        other._double = other._cast_to(torch.float64)
        other._by_hand = None
        return other

    def _as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, targets and frozen state in the precision of ``q``."""
        return self._double if dtype == torch.float64 else self._cast_to(dtype)

    def _cast_to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        to = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731  (integers stay integers)
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        state = {**frozen, **dict(self.model.named_buffers())}
        return (*map(to, self._data), {name: to(x.detach()) for name, x in state.items()})


def flat_loss(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> FlatLoss:
    r"""Turn model, data and criterion into a loss :math:`f(q)` of one flat vector.

    Args:
        model: any ``torch.nn.Module``; it is copied and never changed. Parameters with ``requires_grad=False`` and
            buffers are frozen at their present values.
        inputs: what the model takes, first dimension the samples.
        targets: what ``loss`` takes beside the outputs, same first dimension.
        loss: ``loss(outputs, targets) -> scalar``, such as ``torch.nn.functional.cross_entropy``. Sum or mean over
            samples is the caller's choice and changes every rate that names the loss.

    Returns:
        A :class:`FlatLoss` ``f``: call ``f(q)``; ``f.q0`` is the model's own start, ``f.unflatten(q)`` the parameters
        by name, ``f.on(x, y)`` the same loss on other samples.

    Raises:
        ValueError: nothing to train, or inputs and targets of different lengths.
        TypeError: inputs or targets that are no tensors of samples; when called, if ``loss`` does not reduce to a
            scalar.

    Source: GU Eq. 18.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import mlp
        >>> f = flat_loss(mlp((4, 3, 2)), torch.ones(5, 4), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> f(f.q0).ndim, len(f), f.unflatten(f.q0)["1.weight"].shape
        (0, 18, torch.Size([3, 4]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    for name, given in (("inputs", inputs), ("targets", targets)):
        if not isinstance(given, Tensor) or given.ndim == 0:
            got = "a single number" if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{name} must be a tensor with the samples first, got {got}; use torch.as_tensor")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets; a loss needs as many of each, at least one")
    return FlatLoss(model, inputs, targets, loss)
