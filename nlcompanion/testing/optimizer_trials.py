r"""Runs of an optimiser, and pairs of them that a law makes equal, step by step.

The floor of a pair after n steps is 60 n unit roundoffs of the weight: six times one rounding of the weight and some
ten of the update in each step, as if all had one sign. A setting that is a tensor, as a learning rate may be, rounds in
its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlcompanion.testing.report import BROKEN, CANNOT_TELL, LAWFUL, LawCheck

ROUNDINGS = 60.0

_ONE_GROUP = "the factory must hand on the parameters it is given, as one group; check the settings of each group apart"

Path = list[list[Tensor]]


class Trial:
    """Runs of one optimiser from chosen weights on chosen gradients."""

    def __init__(self, factory: Callable, start: list[Tensor], steps: int, seed: int):
        self.factory, self.start, self.steps = factory, start, steps
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.gradients = [[self._bounded(p) for p in start] for _ in range(steps)]
        group = self.settings()
        tensors = [t for t in group.values() if isinstance(t, Tensor) and t.is_floating_point()]
        self.unit = max(torch.finfo(t.dtype).eps / 2 for t in [*start, *tensors])
        self.eps = group["eps"] if isinstance(group.get("eps"), float | int) else 0.0

    def _bounded(self, like: Tensor) -> Tensor:
        """Sizes between 1 and 2, random signs: far from every eps."""
        size = 1 + torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        sign = torch.randint(0, 2, like.shape, generator=self.generator) * 2 - 1
        return (size * sign).to(like)

    def fresh(
        self, start: Sequence[Tensor] | None = None, groups: Callable | None = None, **settings
    ) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        """A new optimiser and the parameters it moves; ``settings`` overwrite those of its groups."""
        parameters = [nn.Parameter(p.detach().clone()) for p in (start or self.start)]
        optimizer = self._made(groups(parameters)) if groups else self.factory(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"the factory returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
        if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
            needs = "a closure" if isinstance(optimizer, torch.optim.LBFGS) else "sparse gradients"
            raise TypeError(f"{type(optimizer).__name__} needs {needs}, so fixed gradients do not make its steps")
        if not groups and len(optimizer.param_groups) > 1:
            raise TypeError(_ONE_GROUP)
        for group in optimizer.param_groups:
            group.update(settings)
        return optimizer, parameters

    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Of groups, where the factory hands on what it is given."""
        try:
            return self.factory(groups)
        except (AttributeError, TypeError) as error:
            raise TypeError(f"{_ONE_GROUP}; given two groups, it fails: {error}") from error

    def settings(self) -> dict[str, Any]:
        """Those of a new optimiser's first group."""
        return self.fresh()[0].param_groups[0]

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.start]

    def run(
        self,
        start: Sequence[Tensor] | None = None,
        gradients: Sequence[Sequence[Tensor | None]] | None = None,
        *,
        fresh: tuple[torch.optim.Optimizer, list[nn.Parameter]] | None = None,
        around: Callable | None = None,
        **settings,
    ) -> Path:
        """Weights after every step, the start first: ``path[n][parameter]`` in float64."""
        optimizer, parameters = fresh or self.fresh(start, **settings)
        path = [[p.detach().double().clone() for p in parameters]]
        for n, row in enumerate(gradients or self.gradients):
            for p, g in zip(parameters, row, strict=True):
                p.grad = None if g is None else g.to(p.dtype).clone()
            try:
                optimizer.step()
            except TypeError as error:
                if "closure" in str(error):
                    raise TypeError(
                        f"{type(optimizer).__name__} needs a closure, so fixed gradients do not make its steps"
                    ) from error
                raise
            path.append([p.detach().double().clone() for p in parameters])
            if not all(torch.isfinite(p).all() for p in path[-1]):
                raise ValueError(
                    f"step {n + 1} gave weights that are not finite, and no law is told from them; lower lr, or raise "
                    f"an eps that {parameters[0].dtype} rounds to 0"
                )
            if around is not None:
                optimizer, parameters = around(n, optimizer, parameters)
        return path

    def compare(self, law: str, path: Path, expected: Path, *, extra: float = 0.0) -> LawCheck:
        """Two paths that a law makes equal; ``extra`` is a relative tolerance of the updates."""
        worst = (0.0, 0.0, 0.0, 0.0, "")
        for step in range(1, len(path)):
            for k, (a, b) in enumerate(zip(path[step], expected[step], strict=True)):
                moved = max(float((b - expected[0][k]).abs().max()), float((a - path[0][k]).abs().max()))
                size = max(float(a.abs().max()), float(b.abs().max()), moved)
                floor = ROUNDINGS * self.unit * step * size + extra * moved
                defect = float((a - b).abs().max())
                excess = defect / max(floor, 1e-300) if defect else 0.0
                if excess >= worst[0]:
                    worst = (excess, defect, floor, max(moved, 1e-300), f"parameter {k}, step {step}")
        excess, defect, floor, moved, where = worst
        hidden = defect > 0 and floor > 0.5 * moved  # runs that agree bit for bit hide nothing
        verdict = BROKEN if excess > 1 else CANNOT_TELL if hidden else LAWFUL
        return LawCheck(law, where or "all", "", defect / moved, floor / moved, floor / moved, verdict)


def polar_factor(gradient: Tensor) -> Tensor:
    """Of a matrix: the same singular vectors, all singular values 1."""
    u, _, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    return (u @ v).to(gradient.dtype)
