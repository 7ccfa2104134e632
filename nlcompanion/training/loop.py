"""The training loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from nlcompanion._arguments import a_path, flag, function
from nlcompanion._extras import progress_bar
from nlcompanion._provenance import environment
from nlcompanion.datasets.dataset import Dataset, describe
from nlcompanion.networks.convnets import conv_bn, vgg11
from nlcompanion.training import checkpoint as checkpoints
from nlcompanion.training.arithmetic import apart, find_device, in_precision, on_device
from nlcompanion.training.batches import Batches, Pictures, load
from nlcompanion.training.checkpoint import Checkpoint
from nlcompanion.training.config import TrainConfig
from nlcompanion.training.run import EPOCHS, LAYERWISE, RECORDS, Run
from nlcompanion.training.step import BeforeStep, Stepper

_CHUNK = 1024  # images at once in an evaluation
_RECALIBRATION = 10_000  # training images that BatchNorm's statistics are measured on
_CHANNELS = (8, 16, 16)
_RECORDS, _EVALUATIONS = 1000, 200  # at most, when a call says nothing


def train(
    config: TrainConfig,
    *,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = True,
    data: tuple[Dataset, Dataset] | None = None,
    progress: bool | None = None,
    stride: int | None = None,
    evaluate_every: int | None = None,
    watch: Callable[[BeforeStep], object] | None = None,
    capture: bool = True,
    compiled: bool = False,
) -> Run:
    r"""Train a network by heavy ball, and record what its filters do.

    .. math:: b_{n+1} = \beta b_n + g_n + k q_n, \qquad q_{n+1} = q_n - \eta b_{n+1},

    with all of :class:`TrainConfig`'s settings. On a CPU a run is a function of its settings to the last bit, at one
    number of threads, also when it was interrupted and resumed. On a GPU the data set lies there as bytes, is augmented
    there, and the whole step, records included, is replayed as a CUDA graph (not in float64, where the kernel that
    reads its step size on the device would round it to float32). Losses and lengths of the first five steps on a GPU
    are a CPU's to a relative 1e-3 in float32, and to 1e-12 in float64, as gradients and angles are there. In float32
    these depend on the network: to 1e-3 in ``conv_bn``, but 10% in the first layer of VGG-11, which amplifies every
    rounding (on a CPU alone, float32 and float64 differ by 2% there after two steps). Later, rounding grows everywhere,
    as it does between any two machines.

    Args:
        config: the settings.
        checkpoint: a file that holds the state of the run, written in one move after each evaluation. If it is there,
            the run goes on from it; one that is finished comes back at once. Loading it cannot run code.
        resume: False begins anew and overwrites the checkpoint.
        data: training and test set, instead of those that ``config.dataset`` names.
        progress: show a bar; None does so in a terminal.
        stride: steps between two records; as many as make at most a thousand records when None.
        evaluate_every: epochs between two evaluations on the test set; the end is always one. When None, every epoch,
            or as many as make at most two hundred evaluations.
        watch: called in every step with a :class:`BeforeStep`, when the gradient is there and the weights are still:
            for an online estimate, or to attach a ``Ledger`` to the optimiser at the first call. If it has
            ``state_dict`` and ``load_state_dict``, the checkpoint carries its state: tensors, numbers, texts, and lists
            and dictionaries of them. A watched run is not captured.
        capture: False runs step by step on a GPU too.
        compiled: let ``torch.compile`` fuse the network's small operations. On a GPU a large network is then faster,
            after half a minute in which it is compiled; sums are rounded in another order.

    Returns:
        The :class:`Run`; one that diverged too, with ``status`` saying so.

    Raises:
        ValueError: settings that do not fit the data, or a checkpoint of another run.
        TypeError: the state of ``watch`` holds what a checkpoint that cannot run code does not.
        RuntimeError: a GPU is asked for and there is none.
        DataError: the data set cannot be had.

    Warns:
        UserWarning: a damaged checkpoint was renamed to ``*.corrupt``, and the run began anew.

    Source: TK Section 4 and SI E.

    Example:
        >>> from nlcompanion import TrainConfig
        >>> run = train(TrainConfig(lr=0.1, momentum=0.9, subset=256, batch_size=64, epochs=8))
        >>> run.status, run.records["filter_norm"].shape
        ('finished', torch.Size([32, 3]))
        >>> bool(run.epochs["train_loss"][-1] < run.epochs["train_loss"][0])
        True
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(f"train takes a TrainConfig, got {type(config).__name__}; TrainConfig.from_dict makes one")
    for name, value in (("resume", resume), ("capture", capture), ("compiled", compiled)):
        flag(name, value)
    if progress is not None:
        flag("progress", progress)
    if watch is not None:
        function("watch", watch, "watch(before_step)", 1)
    device = find_device(config.device)
    path = None if checkpoint is None else a_path("checkpoint", checkpoint)
    with in_precision(config.precision), on_device(device), apart(device):
        job = _Training(config, load(config, data), device, stride, evaluate_every, watch)
        if path is not None and resume:
            with checkpoints.damage_set_aside(path):
                if (stored := checkpoints.read(path)) is not None:
                    job.restore(stored, path)
        if compiled and not job.done:
            job.stepper.compile()
        if capture and device.type == "cuda" and job.stepper.capturable and watch is None and not job.done:
            job.stepper.capture()
        with progress_bar(shown=progress, total=job.total, initial=job.stepper.taken, unit="step") as bar:
            while not job.done:
                evaluated = job.epoch(bar)
                if evaluated and path is not None:
                    checkpoints.write(path, job.state())
        return job.run()


class _Training:
    """A run under way, between two epochs: all that a checkpoint holds."""

    def __init__(
        self,
        config: TrainConfig,
        data: tuple[Dataset, Dataset],
        device: torch.device,
        stride: int | None,
        evaluate_every: int | None,
        watch: Callable[[BeforeStep], object] | None,
    ):
        train_set, test_set = data
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.config, self.device = config, device
        self.data = {"train": describe(train_set), "test": describe(test_set)}
        self.feed = Batches(train_set, config, device, dtype)
        self.test = Pictures(test_set, (self.feed.mean, self.feed.deviation), device, dtype)
        self.total = config.epochs * self.feed.steps
        self.stride = _positive("stride", stride, -(-self.total // _RECORDS))
        self.every = _positive("evaluate_every", evaluate_every, -(-config.epochs // _EVALUATIONS))
        model = _network(config, train_set, dtype).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stepper = Stepper(model, self.feed, config, device, self.stride)
        self.stepper.watch = self.watch = watch
        self.done_epochs, self.duration = 0, 0.0
        self.status: Any = "running"
        self.records: list[dict[str, Tensor]] = []
        self.epochs: list[list[float]] = []

    @property
    def done(self) -> bool:
        return self.status != "running"

    def epoch(self, bar: Any) -> bool:
        """One pass through the training set; True if it ended in an evaluation, or the run."""
        begin = time.perf_counter()
        stepper, steps, first = self.stepper, self.feed.steps, self.stepper.taken
        stepper.model.train()
        stepper.start_epoch(self.done_epochs)
        for n in range(first, first + steps):
            stepper(record=n % self.stride == 0)
            bar.update()
        losses = stepper.losses.to("cpu", torch.float64, copy=True)  # the one place where the host waits for the device
        finite = int(losses.isfinite().logical_not().int().argmax()) if not losses.isfinite().all() else steps
        self._keep(first, losses, finite)
        self.done_epochs += 1
        if finite < steps or not stepper.finite():  # the last step has no loss after it that would show what it did
            self.status, stepper.taken = "diverged", first + finite
        else:
            evaluate = self.done_epochs % self.every == 0 or self.done_epochs == self.config.epochs
            if evaluate:
                self._evaluate(losses.mean().item(), bar)
            if self.done_epochs == self.config.epochs:
                self.status = "finished"
        self.duration += time.perf_counter() - begin
        return self.done or self.done_epochs % self.every == 0

    def _keep(self, first: int, losses: Tensor, finite: int) -> None:
        """The records of the epoch's steps that had a finite loss."""
        at = torch.tensor(range(-first % self.stride, finite, self.stride), dtype=torch.int64)
        if len(at):
            rows = self.stepper.rows[: len(at)].to("cpu", torch.float64, copy=True)
            norms = rows.split(len(self.stepper.layers), dim=1)
            rate = self.config.filter_lr_at(self.done_epochs)
            values = (first + at, losses[at], torch.full((len(at),), rate, dtype=torch.float64), *norms)
            self.records.append({name: x.double() for name, x in zip(RECORDS, values, strict=True)})

    def _evaluate(self, train_loss: float, bar: Any) -> None:
        model, autocast = self.stepper.model, self.stepper.autocast
        with autocast():
            raw = _accuracy(model, self.test)
            with _recalibrated(model, self.feed):
                recalibrated = _accuracy(model, self.test)
        self.epochs.append([self.done_epochs, train_loss, raw, recalibrated])
        bar.set_postfix(loss=f"{train_loss:.3f}", accuracy=f"{raw:.3f}", refresh=False)

    # --- to a checkpoint and back ---

    def state(self) -> Checkpoint:
        return Checkpoint(
            config=self.config.to_dict(),
            data=self.data,
            pace=[self.stride, self.every],
            status=self.status,
            epoch=self.done_epochs,
            steps=self.stepper.taken,
            model=self.stepper.model.state_dict(),
            momentum=self.stepper.buffers(),
            norms=self.stepper.norms,
            records=self._records(),
            epochs=self.epochs,
            duration=self.duration,
            watch=self.watch.state_dict() if _has_state(self.watch) else None,
        )

    def restore(self, stored: Checkpoint, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is another run's.
            Damaged: no run has this state at any time.
        """
        there = {**stored.config, **_checksums(stored.data)}
        for key, here in {**self.config.to_dict(), **_checksums(self.data)}.items():
            if there.get(key) != here:
                raise ValueError(
                    f"the checkpoint {path} is of another run: {key} is {there.get(key)!r} there and {here!r} here; "
                    "give each run a checkpoint of its own, or pass resume=False to overwrite it"
                )
        if stored.pace != [self.stride, self.every]:
            raise ValueError(
                f"the checkpoint {path} has stride and evaluate_every {stored.pace}, this call "
                f"{[self.stride, self.every]}; the records would not fit; pass the same, or resume=False"
            )
        stepper = self.stepper
        stored.check(self.config, self.feed.steps, len(stepper.layers))
        self._restore_watch(stored, path)
        try:
            stepper.model.load_state_dict(stored.model)
            with torch.no_grad():
                pairs = zip([*stepper.buffers(), *stepper.norms], [*stored.momentum, *stored.norms], strict=True)
                for x, value in pairs:
                    x.copy_(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the tensors in the checkpoint {path} are not those of this network ({error}); another version of "
                "nlcompanion may have written it; pass resume=False to overwrite it, or move it out of the way"
            ) from error
        self.done_epochs, self.status, self.duration = stored.epoch, stored.status, stored.duration
        self.records, self.epochs, stepper.taken = [stored.records], stored.epochs, stored.steps

    def _restore_watch(self, stored: Checkpoint, path: Path) -> None:
        has = _has_state(self.watch)
        if stored.watch is not None and _has_state(self.watch):
            self.watch.load_state_dict(stored.watch)
        elif stored.status == "running" and has != (stored.watch is not None):
            with_it, without = ("this call", "the run so far") if has else ("it", "this call")
            raise ValueError(
                f"the checkpoint {path} is of a run under way, after {stored.epoch} epochs; {with_it} has a watch "
                f"with a state and {without} has none, so the watch would miss a part of the run; pass the same watch, "
                "or resume=False to begin anew"
            )

    def _records(self) -> dict[str, Tensor]:
        if not self.records:  # the loss of the first step was no number already
            layers = len(self.stepper.layers)
            return {name: torch.zeros((0, layers) if name in LAYERWISE else 0).double() for name in RECORDS}
        return {name: torch.cat([part[name] for part in self.records]) for name in RECORDS}

    def run(self) -> Run:
        epochs = torch.tensor(self.epochs, dtype=torch.float64).reshape(-1, len(EPOCHS))
        return Run(
            config=self.config,
            status=self.status,
            steps=self.stepper.taken,
            layers=self.stepper.layers,
            records=self._records(),
            epochs=dict(zip(EPOCHS, epochs.unbind(1), strict=True)),
            data=self.data,
            duration=self.duration,
            environment=environment(self.device),
            model=self.stepper.model,
        )


def _network(config: TrainConfig, data: Dataset, dtype: torch.dtype) -> nn.Sequential:
    shape: dict[str, Any] = {"in_channels": data.images.shape[1], "size": data.images.shape[-1]}
    rest: dict[str, Any] = {"eps": config.eps, "seed": config.seed, "dtype": dtype}
    if config.model == "vgg11":
        model = vgg11(len(data.classes), width=config.width, **shape, **rest)
    else:
        model = conv_bn([round(count * config.width) for count in _CHANNELS], len(data.classes), **shape, **rest)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(config.init_scale)
    return model


@torch.no_grad()
def _accuracy(model: nn.Module, pictures: Pictures) -> float:
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=pictures.images.device)
    for inputs, labels in pictures.chunks(_CHUNK):
        right += (model(inputs).argmax(1) == labels).sum()
    return right.item() / len(pictures)


@contextmanager
def _recalibrated(model: nn.Module, pictures: Pictures) -> Iterator[None]:
    """BatchNorm's running statistics, for the while, the mean of those of (up to 10,000) training images now."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    saved = [(module, module.momentum, [x.clone() for x in module.buffers()]) for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # torch's way to say: the plain average of what is to come
    model.train()
    with torch.no_grad():
        for inputs, _ in pictures.chunks(_CHUNK, limit=_RECALIBRATION):
            model(inputs)
    try:
        yield
    finally:
        for module, momentum, buffers in saved:
            module.momentum = momentum
            for x, value in zip(module.buffers(), buffers, strict=True):
                x.copy_(value)


def _checksums(data: dict[str, Any]) -> dict[str, Any]:
    """Of the two data sets, named for a message."""
    return {f"the checksum of the {part} set": about.get("sha256") for part, about in data.items()}


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> object: ...


def _has_state(watch: object) -> TypeGuard[_Stateful]:
    return hasattr(watch, "state_dict") and hasattr(watch, "load_state_dict")


def _positive(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is an integer >= 1, got {value!r}; leave it out for {default}")
    return value
