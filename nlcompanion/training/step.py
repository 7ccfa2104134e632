"""One step of training, the same function eagerly on a CPU and captured in a CUDA graph.

Nothing in the step waits for the device or depends on the host: its batch, its step size and the places where it
records are tensors that keep their addresses, so that a replay needs nothing but its launch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nlcompanion.training.batches import Batches
from nlcompanion.training.config import TrainConfig

_WARM_UP = 3  # steps of each kind before a capture: cuDNN chooses its algorithms, autograd allocates


class BeforeStep(NamedTuple):
    """What ``train(watch=...)`` is called with: gradients are there, weights have not moved yet.

    Attributes:
        step: number of the step, from 0.
        model: the network; ``parameter.grad`` is the mini-batch's gradient, without decay.
        optimizer: the ``torch.optim.SGD`` that is about to step.
        loss: of this mini-batch, a tensor ().
    """

    step: int
    model: nn.Module
    optimizer: torch.optim.SGD
    loss: Tensor


class Stepper:
    """Model, optimiser and records of a run, on one device."""

    def __init__(self, model: nn.Module, feed: Batches, config: TrainConfig, device: torch.device, stride: int):
        self.model, self.feed, self.config, self.device = model, feed, config, device
        convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        self.layers = tuple(name for name, _ in convolutions)
        self.filters = [module.weight for _, module in convolutions]
        self.norms = [_filter_norms(q) for q in self.filters]  # what the projection goes back to
        self.optimizer = _sgd(model, self.filters, config, device)
        zero = lambda: torch.zeros(1, dtype=torch.int64, device=device)  # noqa: E731
        self.position, self.row = zero(), zero()
        self.losses = torch.zeros(feed.steps, dtype=feed.dtype, device=device)
        rows = -(-feed.steps // stride)
        self.rows = torch.zeros(rows, 3 * len(self.filters), dtype=feed.dtype, device=device)
        self.watch: Callable[[BeforeStep], object] | None = None
        self.loss: Callable[[], Tensor] = self._loss
        self.taken = 0  # steps since the run began; only `watch` hears of it
        self._plain: Callable[[], object] = lambda: self._step(record=False)
        self._recording: Callable[[], object] = lambda: self._step(record=True)

    def __call__(self, record: bool) -> None:
        (self._recording if record else self._plain)()
        self.taken += 1

    def start_epoch(self, epoch: int) -> None:
        """Draw the epoch's batches, set its step sizes, and record from the first place on."""
        self.feed.draw(epoch)
        rates = (self.config.lr_at(epoch), self.config.filter_lr_at(epoch))
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):  # one group where the two are equal
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.rewind()

    def rewind(self) -> None:
        """Back to the epoch's first batch and its first place for records."""
        self.position.zero_()
        self.row.zero_()

    def _step(self, record: bool) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        loss = loss.detach()
        if self.watch is not None:
            self.watch(BeforeStep(self.taken, self.model, self.optimizer, loss))
        with torch.no_grad():
            before = [q.clone() for q in self.filters] if record else []
            self.optimizer.step()
            if self.config.constrain_norm:
                self.project()
            if record:
                self.rows.index_copy_(0, self.row, self._observe(before)[None])
                self.row += 1
            self.losses.index_copy_(0, self.position, loss[None])
            self.position += 1

    def _loss(self) -> Tensor:
        """Of the batch at the present position: all that is not a gradient, a step or a record."""
        inputs, targets = self.feed.batch(self.position)
        with self.autocast():
            logits = self.model(inputs)
        return cross_entropy(logits.to(self.losses.dtype), targets)

    def compile(self) -> None:
        """Have torch.compile fuse what lies between two products: augmentation, BatchNorm, ReLU, pool and casts.

        They then pass through memory once, where each for itself would read and write it. Convolutions stay cuDNN's.
        The network of the next run in the same process is compiled already, if it has the same shapes.
        """
        self.loss = torch.compile(self._loss, dynamic=False)

    def autocast(self) -> AbstractContextManager:
        if self.config.precision != "bf16":
            return nullcontext()
        # a cache of casted weights would outlive a capture
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def project(self) -> None:
        """Give every filter its initial norm back: q <- q |q(0)| / |q|."""
        for q, norms in zip(self.filters, self.norms, strict=True):
            q.mul_(norms / _filter_norms(q))

    def finite(self) -> bool:
        """Whether all weights are numbers; waits for the device."""
        return bool(torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all())

    def _observe(self, before: list[Tensor]) -> Tensor:
        r"""Each layer's |q|, |g| and angular update, shape (3 * layers,).

        The turn is the chord of the unit sphere. From differences of unit vectors it would lose its digits and a pass
        through memory; |q'/r' - q/r|^2 = (|q' - q|^2 - (r' - r)^2) / (r r') keeps them.
        """
        norm = torch.linalg.vector_norm
        r = torch.stack([norm(q) for q in before])
        after = torch.stack([norm(q) for q in self.filters])
        moved = torch.stack([norm(q - old) for q, old in zip(self.filters, before, strict=True)])
        g = torch.stack([norm(q.grad) for q in self.filters])
        turn = ((moved.square() - (after - r).square()).clamp_(min=0) / (r * after)).sqrt()
        return torch.cat([r, g, turn])

    @property
    def capturable(self) -> bool:
        """Whether a replay would notice a new step size."""
        return all(isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups)

    # --- what a checkpoint holds, and what a capture must leave as it was ---

    def buffers(self) -> list[Tensor]:
        """The momentum buffers, in the order of the model's parameters; none without momentum."""
        state = self.optimizer.state
        return [state[p]["momentum_buffer"] for p in self.model.parameters()] if self.config.momentum else []

    def capture(self) -> None:
        """Replace the step by CUDA graphs of it, one that records and one that does not; the state stays as it was."""
        state = [*self.model.state_dict().values(), *self.buffers()]
        saved = [x.clone() for x in state]
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for record in (True, False) * _WARM_UP:
                self.rewind()
                self._step(record)
        torch.cuda.current_stream(self.device).wait_stream(side)
        pool = torch.cuda.graph_pool_handle()  # the two never run at once, so they share their memory
        replays = []
        for record in (False, True):
            self.rewind()
            graph = torch.cuda.CUDAGraph()
            # on the warm-up's stream: torch's default one lives on the device of the process's first capture
            with torch.cuda.graph(graph, pool=pool, stream=side):
                self._step(record)
            replays.append(graph.replay)
        self._plain, self._recording = replays
        with torch.no_grad():
            for x, value in zip(state, saved, strict=True):
                x.copy_(value)
        self.rewind()


def _filter_norms(q: Tensor) -> Tensor:
    """The norm of each filter, shape (out, 1, 1, 1)."""
    return torch.linalg.vector_norm(q.detach(), dim=(1, 2, 3), keepdim=True)


def _sgd(model: nn.Module, filters: list[Tensor], config: TrainConfig, device: torch.device) -> torch.optim.SGD:
    """torch's own SGD; the filters are a group of their own where their settings are."""
    # A step size in a tensor changes under a captured graph; CUDA's fused kernel reads it, always as float32: too
    # coarse for weights in float64, which take numbers and no capture. On a CPU the fused kernel contracts a product
    # and a sum in the last few elements: not torch's plain SGD to the last bit.
    fused = device.type == "cuda" and config.precision != "float64"
    rate = lambda: torch.zeros((), dtype=torch.float32, device=device) if fused else 0.0  # noqa: E731
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "lr": rate()}]
    if config.filter_lr is not None or config.filter_weight_decay is not None:
        chosen = {id(q) for q in filters}
        decay = config.weight_decay if config.filter_weight_decay is None else config.filter_weight_decay
        groups[0]["params"] = [p for p in model.parameters() if id(p) not in chosen]
        groups.append({"params": filters, "lr": rate(), "weight_decay": decay})
    kind = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, **kind)
    if config.momentum:
        # zeros lead to the same first step as torch's missing buffers, and have a fixed place from the beginning
        for p in model.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer
