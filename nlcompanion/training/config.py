"""The settings of a training run. Loads no torch."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from hashlib import sha256
from numbers import Real
from operator import index as as_integer
from typing import Any, NamedTuple

from nlcompanion._arguments import integer
from nlcompanion._extras import needs

with needs("training"):
    import attrs


class Kind(NamedTuple):
    """What is known of a data set before it is loaded."""

    samples: int
    photographs: bool  # a mirrored photograph is one, a mirrored digit is none


DATASETS = {
    "digits": Kind(1438, photographs=False),
    "kmnist": Kind(60_000, photographs=False),
    "tiny_imagenet": Kind(100_000, photographs=True),
    "custom": Kind(0, photographs=True),  # whatever is given to train(data=...)
}
MODELS = {"conv_bn": 8, "vgg11": 64}  # and the channels of their first, narrowest layer at width 1
PRECISIONS = ("float64", "float32", "tf32", "bf16")
_DROPS = (0.3, 0.6, 0.8)  # TK's 30, 60 and 80 of 100 epochs
_SEEDS = 2**64 - 1  # that torch takes
_WIDEST = 1000.0
_BATCH = ', or "full" for the full batch, got {value}; BatchNorm cannot normalise a batch of one'


# --- kinds of settings: each checks a value and brings it to one form, so that equal settings have equal keys ---------


def _setting(default: Any, convert: Callable[[Any, str], Any]) -> Any:
    """A field of TrainConfig whose values ``convert(value, name)`` checks."""
    converter: Any = attrs.Converter(lambda value, field: convert(value, field.name), takes_field=True)
    return attrs.field(default=default, converter=converter)


def _number(default: float | None, bounds: str) -> Any:
    """A number within bounds such as ``">= 0 and < 1"``; None only where that is the default."""
    limits = [part.split() for part in bounds.split(" and ")]

    def convert(value: Any, name: str) -> float | None:
        if value is None and default is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if not math.isfinite(number) or not all(_COMPARE[sign](number, float(limit)) for sign, limit in limits):
            raise ValueError(f"{name} is a number {bounds}, got {value!r}")
        if 0 < number < sys.float_info.min:  # a sweep takes them for 0
            raise ValueError(
                f"{name} is below {sys.float_info.min:.2g}, where float64 loses its digits, got {value!r}; take 0 "
                "or more than that"
            )
        return number + 0.0  # -0.0 is 0.0 and has its key

    return _setting(default, convert)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": float.__gt__,
    ">=": float.__ge__,
    "<": float.__lt__,
    "<=": float.__le__,
}


def _integer(
    default: int | None, *, least: int, most: float = math.inf, optional: bool = False, note: str = ", got {value}"
) -> Any:
    """An integer within bounds; ``note`` says more of it where it is not."""

    def convert(value: Any, name: str) -> int | None:
        if optional and (value is None or (name == "batch_size" and isinstance(value, str) and value == "full")):
            return None
        try:
            count = None if isinstance(value, bool) else as_integer(value)
        except TypeError:
            count = None
        if count is None or not least <= count <= most:
            limit = f" and <= {most}" if math.isfinite(most) else ""
            raise ValueError(f"{name} is an integer >= {least}{limit}{note.format(value=repr(value))}")
        return count

    return _setting(default, convert)


def _choice(default: str, known: Collection[str]) -> Any:
    def convert(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in known:
            near = get_close_matches(str(value), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, got {value!r}{hint}")
        return value

    return _setting(default, convert)


def _switch(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, got {value!r}")
    return value


def _device(value: Any, name: str) -> str:
    if not (isinstance(value, str) and re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", value)):
        raise ValueError(f'{name} is "cpu", "cuda" or "cuda:<number>", got {value!r}')
    return value


# --- the settings -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TrainConfig:
    r"""Everything that decides what :func:`train` computes; frozen, checked, and named by a hash.

    The learning rule is ``torch.optim.SGD``'s heavy ball on the mean cross entropy of a mini-batch, with decay on
    every parameter: :math:`b \leftarrow \beta b + g + k q`, :math:`q \leftarrow q - \eta b`.
    The defaults are those of TK's experiments (SI E) with the digits in the place of Tiny ImageNet and ``conv_bn`` in
    the place of VGG-11: ``TrainConfig(dataset="tiny_imagenet", model="vgg11")`` is theirs.

    Args:
        dataset: ``"digits"``, ``"kmnist"``, ``"tiny_imagenet"``, or ``"custom"`` for what ``train(data=...)`` is given.
        subset: train on so many samples, the classes balanced; all of them when None. The test set stays whole.
        model: ``"conv_bn"`` or ``"vgg11"``, of :mod:`nlcompanion.networks`.
        eps: BatchNorm's, added to a variance; 0 makes the scale symmetry of the filters exact.
        lr: step size :math:`\eta > 0`.
        momentum: :math:`\beta` in [0, 1), PyTorch's convention.
        weight_decay: :math:`k \ge 0`, in 1 / time with time :math:`t = \eta n`; 0 is none.
        batch_size: 2 or more; None or ``"full"`` is the full batch, one step per epoch. What is left of an epoch after
            the last whole batch is not used in it.
        epochs: passes through the training set.
        lr_drops: the rate is divided by 10 after so many epochs, each below ``epochs``. None is the paper's schedule,
            after 30, 60 and 80 % of them, which in a run of a few epochs is early; ``()`` a constant rate.
        constrain_norm: set every filter's norm back to its initial value after each step (TK Fig. 4, blue).
        init_scale: factor on the initial filters; the loss of a network with ``eps=0`` does not notice.
        width: factor on the numbers of channels.
        precision: ``"float64"``, ``"float32"``, ``"tf32"`` (a GPU's) or ``"bf16"`` (products in bfloat16). Weights are
            float32 in the last two.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        seed: of the initial weights and, epoch by epoch, of everything that is drawn. Two runs of one seed see the same
            batches, whatever their other settings.
        label_noise: probability with which a sample's label is drawn anew, among all classes, each time it is used.
        augment: mirror each image with probability 1/2 and shift it by up to an eighth of its side, edges reflected.
        filter_lr: step size of the filters alone, when it differs from ``lr``; drops divide it too.
        filter_weight_decay: decay of the filters alone, when it differs from ``weight_decay``.

    Raises:
        ValueError: a setting is impossible, by itself or with the others; says what to change.

    Source: TK Section 4, Fig. 4 and SI E.

    Example:
        >>> config = TrainConfig(lr=0.03, epochs=15)
        >>> config.lr_drops, config.batch_size, config.steps_per_epoch(1438)
        ((5, 9, 12), 128, 11)
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
    """

    dataset: str = _choice("digits", DATASETS)
    subset: int | None = _integer(None, least=2, optional=True)
    model: str = _choice("conv_bn", MODELS)
    eps: float = _number(1e-5, ">= 0")
    lr: float = _number(0.1, "> 0")
    momentum: float = _number(0.9, ">= 0 and < 1")
    weight_decay: float = _number(1e-4, ">= 0")
    batch_size: int | str | None = _integer(128, least=2, optional=True, note=_BATCH)
    epochs: int = _integer(100, least=1, most=10**9)
    lr_drops: tuple[int, ...] | None = None
    constrain_norm: bool = _setting(False, _switch)
    init_scale: float = _number(1.0, "> 0")
    width: float = _number(1.0, f"> 0 and <= {_WIDEST:g}")
    precision: str = _choice("float32", PRECISIONS)
    device: str = _setting("cpu", _device)
    seed: int = _integer(0, least=0, most=_SEEDS)
    label_noise: float = _number(0.0, ">= 0 and <= 1")
    augment: bool = _setting(False, _switch)
    filter_lr: float | None = _number(None, "> 0")
    filter_weight_decay: float | None = _number(None, ">= 0")

    def __attrs_post_init__(self) -> None:
        """What no setting shows by itself."""
        object.__setattr__(self, "lr_drops", self._drops())
        self._check_sizes()
        self._check_range()
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError(
                'precision "tf32" is a number format of GPUs and device is "cpu"; take "float32", or device="cuda"'
            )

    def _drops(self) -> tuple[int, ...]:
        drops: Any = self.lr_drops
        if drops is None:
            drops = sorted({math.floor(part * self.epochs + 0.5) for part in _DROPS} - {0, self.epochs})
        try:
            drops = tuple(as_integer(epoch) for epoch in drops)
        except TypeError:
            raise ValueError(f"lr_drops are numbers of epochs, like (30, 60, 80), got {self.lr_drops!r}") from None
        if list(drops) != sorted(set(drops)) or any(not 0 < epoch < self.epochs for epoch in drops):
            raise ValueError(
                f"lr_drops rise and lie between 0 and epochs = {self.epochs}, got {drops}; the rate would never drop "
                "there; pass lr_drops=None for the paper's schedule at this length, () for a constant rate"
            )
        return drops

    def _check_sizes(self) -> None:
        known = DATASETS[self.dataset].samples
        if known and self.subset is not None and self.subset > known:
            raise ValueError(
                f"{self.dataset} has {known} training samples, got subset={self.subset}; leave it out to have all"
            )
        if available := self.subset or known:
            self.steps_per_epoch(available)
        if round(MODELS[self.model] * self.width) < 1:
            raise ValueError(
                f"width {self.width:g} leaves the first layer of {self.model} no channel of its {MODELS[self.model]}; "
                f"take {1 / MODELS[self.model]:g} or more"
            )
        if self.augment and not DATASETS[self.dataset].photographs:
            raise ValueError(
                f"augment mirrors images, and a mirrored character of {self.dataset} is another sign or none; "
                "augment is for photographs (tiny_imagenet); leave it out"
            )

    def _check_range(self) -> None:
        """Refuse what the weights' arithmetic makes infinite."""
        if self.precision == "float64":
            return
        for name in ("lr", "filter_lr", "weight_decay", "filter_weight_decay", "init_scale", "eps"):
            value = getattr(self, name)
            if value is not None and value >= 2.0**128:
                raise ValueError(
                    f"{name} = {value:g} is beyond float32, which ends at 3.4e+38, and the weights are float32; "
                    'take a smaller one, or precision="float64"'
                )

    # --- what follows from the settings ---

    def steps_per_epoch(self, samples: int) -> int:
        """Whole batches in so many training samples.

        Raises:
            ValueError: if there is not one.

        Example:
            >>> TrainConfig(batch_size=64).steps_per_epoch(1438), TrainConfig(batch_size="full").steps_per_epoch(1438)
            (22, 1)
        """
        samples = integer("samples", samples, 0)
        if self.batch_size is None:
            if samples < 2:
                raise ValueError(
                    f"the full batch of {samples} training sample is a batch of one, which BatchNorm cannot normalise; "
                    "train on 2 samples or more"
                )
            return 1
        batch = int(self.batch_size)
        if batch > samples:
            raise ValueError(
                f'{samples} training samples hold no batch of {batch}; take batch_size={samples} or less, or "full"'
            )
        return samples // batch

    def lr_at(self, epoch: int) -> float:
        """The step size in an epoch, counted from 0.

        Example:
            >>> config = TrainConfig(lr=1.0)
            >>> [config.lr_at(epoch) for epoch in (29, 30, 60, 99)]
            [1.0, 0.1, 0.01, 0.001]
        """
        return self.lr / 10 ** self._drops_until(epoch)

    def filter_lr_at(self, epoch: int) -> float:
        """The filters' step size in an epoch, counted from 0."""
        rate = self.lr if self.filter_lr is None else self.filter_lr
        return rate / 10 ** self._drops_until(epoch)

    def _drops_until(self, epoch: int) -> int:
        epoch = integer("epoch", epoch, 0)
        return sum(epoch >= drop for drop in self._epochs_of_drops)

    @property
    def _epochs_of_drops(self) -> tuple[int, ...]:
        return self.lr_drops or ()  # a number of epochs each, since the settings were checked

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name these settings: of the SHA-256 of their canonical JSON.

        Example:
            >>> TrainConfig(lr=1).key == TrainConfig(lr=1.0).key != TrainConfig(lr=2).key
            True
        """
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All settings in JSON's types; :meth:`from_dict` reads them.

        Example:
            >>> TrainConfig(batch_size="full", epochs=3, lr_drops=(2,)).to_dict()["lr_drops"]
            [2]
        """
        values = attrs.asdict(self)
        return {**values, "lr_drops": list(self._epochs_of_drops)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The configuration with these settings, the defaults for all others.

        Raises:
            ValueError: a key is no setting, or a value impossible.

        Example:
            >>> TrainConfig.from_dict({"momentun": 0.5})
            Traceback (most recent call last):
            ValueError: 'momentun' is no setting of a run; did you mean 'momentum'?
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"a configuration is a mapping from settings to values, got {type(settings).__name__}")
        known = [field.name for field in attrs.fields(cls)]
        for key in settings:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"{key!r} is no setting of a run; {hint}")
        return cls(**settings)
