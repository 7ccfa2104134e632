r"""Many networks of one shape at once (private; ``networks`` offers it).

A tiny network keeps a processor busy with overhead. Batched matrix products run ``E`` of them in hardly more time than
a few, and since the gradient of a sum of losses is each member's own gradient, one training run of the ensemble is
``E`` independent ones. Between layers activations lie as ``(E, d, N)``, samples last, so that no product has to
transpose anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from nlcompanion._arguments import described, function, instance, integer, layer_input, scalar_of, seed_number

if TYPE_CHECKING:
    from nlcompanion.networks.mlp import Activation

__all__ = ["Ensemble", "ensemble", "over_members"]

_MOST_MEMBERS = 100_000

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Softplus, nn.Identity, nn.Sigmoid, nn.SiLU)


class Ensemble(nn.Module):
    r"""Networks of one shape side by side, :math:`f_{w_e}(x)` for :math:`e = 1 \ldots E`; made by :func:`ensemble`.

    A parameter of shape ``s`` in a single network has shape ``(E, *s)`` here, under the same name. Inputs ``(N, ...)``
    go to every member; outputs are ``(E, N, d_out)``.

    Args:
        members: networks as :func:`~nlcompanion.mlp` makes them, all of one shape.

    Raises:
        ValueError: no members, members of different shapes, frozen weights, layers that are no elementwise activation.
        TypeError: members that are not ``nn.Sequential``.

    Source: none; what GU Section 7 asks for is an average over initial weights.

    Example:
        >>> import torch
        >>> from nlcompanion import mlp
        >>> team = Ensemble([mlp((4, 8, 2), seed=seed) for seed in range(3)])
        >>> team(torch.ones(5, 4, dtype=torch.float64)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, members: Sequence[nn.Sequential]):
        super().__init__()
        members = list(instance("members", members, (list, tuple), "[mlp((4, 3, 2))]"))
        if not members:
            raise ValueError("an ensemble needs members; pass seeds=32, or a list of networks")
        for e, member in enumerate(members):
            if not isinstance(member, nn.Sequential) or not len(member):
                raise TypeError(
                    f"member {e} is a {type(member).__name__}, and the order of its layers is not known; give "
                    "nn.Sequential networks such as mlp(...)"
                )
            frozen = [name for name, p in member.named_parameters() if not p.requires_grad]
            if frozen:
                raise ValueError(
                    f"{frozen[0]} of member {e} is frozen (requires_grad=False), and the ensemble would train it; "
                    "train all weights, or such networks one after the other"
                )
        first = members[0]
        odd = next((e for e, member in enumerate(members) if repr(member) != repr(first)), None)
        if odd is not None:
            raise ValueError(
                f"members 0 and {odd} differ in their layers, and an ensemble is of one shape: make one for each shape"
            )
        for name, _ in first.named_children():
            stacked = [member.get_submodule(name) for member in members]
            self.add_module(name, _layers_of_members(stacked, name))
        self.size = len(members)
        self._template = [copy.deepcopy(first)]  # in a list: its weights are not the ensemble's parameters
        # where member e's flat vector sits in the ensemble's
        ends = torch.tensor([0, *(p.numel() for p in self.parameters())]).cumsum(0).tolist()
        self._places = torch.cat([torch.arange(a, b).view(self.size, -1) for a, b in pairwise(ends)], dim=1)

    def __len__(self) -> int:
        return self.size

    def extra_repr(self) -> str:
        return f"members={self.size}"

    def forward(self, x: Tensor) -> Tensor:
        x = layer_input(x, "(N, ...)")
        x = x.flatten(1).T if x.ndim > 1 else x[None].T
        first = next((layer for layer in self.children() if isinstance(layer, MemberLinears)), None)
        if first is not None and (x.shape[0] != first.weight.shape[-1] or x.dtype != first.weight.dtype):
            raise ValueError(
                f"x gives {x.shape[0]} numbers of {x.dtype} for a sample, these members take "
                f"{first.weight.shape[-1]} of {first.weight.dtype}"
            )
        for layer in self.children():
            x = layer(x)
        return x.transpose(1, 2)

    def split(self, q: Tensor) -> Tensor:
        """The members' flat vectors: ``(..., E * n)`` of the ensemble's ``flat_loss`` becomes ``(..., E, n)``.

        Row ``e`` is ordered as the flat vector of the single network.
        """
        q = layer_input(q, "(..., E * n)", "q")
        if not q.ndim or q.shape[-1] != self._places.numel():
            raise ValueError(
                f"q has shape {tuple(q.shape)}, {self.size} members of {self._places.shape[1]} parameters have "
                f"{self._places.numel()}; pass a flat vector of this ensemble's flat_loss"
            )
        return q[..., self._places]

    def join(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`split`: ``(..., E, n)`` becomes ``(..., E * n)``."""
        rows = layer_input(rows, "(..., E, n)", "rows")
        if rows.shape[-2:] != self._places.shape:
            raise ValueError(f"rows have shape {tuple(rows.shape)}, expected (..., {self.size}, n) as split() gives")
        flat = rows.new_empty((*rows.shape[:-2], self._places.numel()))
        flat[..., self._places] = rows
        return flat

    def member(self, e: int, q: Tensor | None = None) -> nn.Sequential:
        """One of the networks on its own, with the ensemble's weights or with those of a flat vector ``q``."""
        integer("e", e, 0, self.size - 1)
        if q is None:
            q = torch.cat([p.reshape(-1) for p in self.parameters()])
        elif layer_input(q, "(E * n,)", "q").ndim != 1:
            raise ValueError(f"q has shape {tuple(q.shape)}; a member is made of one flat vector of all members")
        rows = self.split(q.detach())
        single = copy.deepcopy(self._template[0])
        nn.utils.vector_to_parameters(rows[e].clone(), single.parameters())
        return single


def ensemble(
    widths: Sequence[int],
    activation: Activation | Sequence[Activation] = "relu",
    *,
    seeds: int | Sequence[int] = 32,
    bias: bool = False,
    init: str = "default",
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    r"""An ensemble of the networks ``mlp(widths, activation, seed=seed, ...)``, one for each seed.

    With :func:`over_members` as its loss the ensemble trains as independent networks: gradient flow, Newtonian
    dynamics, heavy ball and plain steps do not mix members. (An adaptive solver chooses its steps for all of them.)

    Args:
        widths, activation, bias, init, dtype: as in :func:`~nlcompanion.mlp`.
        seeds: of the initialisations; a number ``E`` stands for ``0, ..., E - 1``.

    Returns:
        An :class:`Ensemble`.

    Raises:
        ValueError: no seeds, or what ``mlp`` refuses.

    Source: GU Section 7, whose statements are about typical initial weights.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, over_members
        >>> team = ensemble((64, 100, 10), seeds=32)
        >>> x, y = torch.randn(20, 64), torch.arange(20) % 10
        >>> f = flat_loss(team, x, y, over_members(nn.functional.cross_entropy))
        >>> team.split(f.q0).shape
        torch.Size([32, 7400])
    """
    from nlcompanion.networks.mlp import mlp

    if isinstance(seeds, list | tuple | range):
        seeds = [seed_number("seeds", seed) for seed in seeds]
    else:
        seeds = range(integer("seeds", seeds, 1, _MOST_MEMBERS))
    return Ensemble([mlp(widths, activation, bias=bias, init=init, seed=seed, dtype=dtype) for seed in seeds])


def over_members(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    r"""The sum of a loss over the members of an ensemble, :math:`\sum_e \ell(f_{w_e}(x), y)`.

    Args:
        loss: ``loss(outputs, targets) -> scalar`` of a single network, such as ``torch.nn.functional.mse_loss``.

    Returns:
        ``loss(outputs, targets) -> scalar`` for outputs of shape ``(E, N, ...)``; its attribute ``each`` gives the
        members' own, shape ``(E,)``, and ``single`` is the loss that was given.

    Source: none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> loss = over_members(nn.functional.mse_loss)
        >>> u = torch.tensor([[[1.0]], [[3.0]]])
        >>> loss(u, torch.zeros(1, 1)).item(), loss.each(u, torch.zeros(1, 1)).tolist()
        (10.0, [1.0, 9.0])
    """
    function("loss", loss, "loss(outputs, targets) -> scalar", 2)

    def single(outputs: Tensor, targets: Tensor) -> Tensor:
        return scalar_of("loss(outputs, targets)", loss(outputs, targets))

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        for name, given in (("outputs", outputs), ("targets", targets)):
            if not isinstance(given, Tensor) or not given.ndim:
                raise TypeError(
                    f"{name} must be a tensor, of all members the outputs (E, N, ...), got {described(given)}"
                )
        try:
            return vmap(single, in_dims=(0, None))(outputs, targets)
        except (RuntimeError, LookupError, ValueError, AssertionError) as error:
            raise ValueError(
                f"the loss of a single network fails on outputs of shape {tuple(outputs.shape[1:])} and "
                f"{outputs.dtype}, targets of shape {tuple(targets.shape)} and {targets.dtype}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        return each(outputs, targets).sum()

    total.each, total.single = each, loss  # type: ignore[attr-defined]
    return total


class MemberLinears(nn.Module):
    """``W_e x + b_e`` for all members by one batched product."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else nn.Parameter(torch.stack([b.detach() for b in biases]))
        self.scale = getattr(layers[0], "scale", None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale is None else self.scale * self.weight
        shared = x.ndim == 2  # the inputs: one tall product
        out = (weight.flatten(0, 1) @ x).view(*weight.shape[:2], -1) if shared else torch.bmm(weight, x)
        return out if self.bias is None else out + self.bias[:, :, None]


class MemberActivations(nn.Module):
    """An activation with trained parameters, each member with its own."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self._template = [copy.deepcopy(layers[0])]
        for name, p in stack_module_state(layers)[0].items():
            self.register_parameter(name, nn.Parameter(p.detach()))

    @property
    def template(self) -> nn.Module:
        """One member's layer; its weights are not the ensemble's."""
        return self._template[0]

    def forward(self, x: Tensor) -> Tensor:
        each = lambda parameters, x: functional_call(self.template, parameters, (x.T,)).T  # noqa: E731
        return vmap(each)(dict(self.named_parameters()), x)


def _layers_of_members(layers: list[nn.Module], name: str) -> nn.Module:
    from nlcompanion.networks.activations import Power, RePU, Swish

    kind = layers[0]
    if isinstance(kind, nn.Linear):
        return MemberLinears(cast(list[nn.Linear], layers))
    if isinstance(kind, nn.Flatten):
        return nn.Identity()
    if isinstance(kind, (*_ELEMENTWISE, RePU, Power)):
        return copy.deepcopy(kind)
    if isinstance(kind, Swish | nn.PReLU):
        return MemberActivations(layers)
    raise ValueError(
        f"layer {name} of the members is a {type(kind).__name__}, which an ensemble cannot batch: it takes nn.Linear "
        "and elementwise activations (ReLU, RePU, Swish, tanh, ...); train such networks one after the other"
    )
