"""A monitor inside Lightning and Hugging Face: callbacks of theirs, made where these are installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from nlcompanion.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from lightning.pytorch.callbacks.callback import Callback
    from transformers.trainer_callback import TrainerCallback


def lightning_callback(**settings: Any) -> Callback:
    """A Lightning callback that watches the training, and lies in its checkpoints.

    Its ``monitor`` is there from the start of the training. Figures go to the trainer's loggers by
    ``log_metrics``.

    Args:
        settings: as for :class:`Monitor`, without model and optimizer.

    Returns:
        A ``lightning.Callback``, for ``Trainer(callbacks=[...])``.

    Raises:
        ModuleNotFoundError: where neither ``lightning`` nor ``pytorch_lightning`` is installed.

    Example:
        >>> callback = lightning_callback(every=50)             # Trainer(callbacks=[callback])
        >>> callback.monitor is None                            # until the training starts
        True
    """
    return _lightning_class()(settings)


def hugging_face_callback(**settings: Any) -> TrainerCallback:
    """A callback for ``transformers.Trainer`` that watches the training; its logs get the number of alerts.

    Its ``monitor`` is there from the start of the training.

    Args:
        settings: as for :class:`Monitor`, without model and optimizer.

    Returns:
        A ``transformers.TrainerCallback``, for ``Trainer(callbacks=[...])``.

    Raises:
        ModuleNotFoundError: where ``transformers`` is not installed.

    Example:
        >>> callback = hugging_face_callback(every=50)          # Trainer(model, arguments, callbacks=[callback])
        >>> callback.monitor is None                            # until the training begins
        True
    """
    return _hugging_face_class()(settings)


def _lightning_class() -> type:
    is_whole = importlib.util.find_spec("lightning") is not None
    Callback: Any = importlib.import_module("lightning.pytorch" if is_whole else "pytorch_lightning").Callback

    class LightningMonitor(Callback):
        """Makes the monitor when training starts and ends it when training ends."""

        def __init__(self, settings: dict[str, Any]):
            self._settings = settings
            self._state: dict[str, Any] | None = None
            self.monitor: Monitor | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.monitor = Monitor(pl_module, list(trainer.optimizers), **self._settings)
            if self._state is not None:
                self.monitor.load_state_dict(self._state)
            for logger in trainer.loggers:
                self.monitor.log_to(lambda values, step, logger=logger: logger.log_metrics(values, step=step))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

        def state_dict(self) -> dict[str, Any]:
            return {} if self.monitor is None else self.monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self._state = state_dict or None

    return LightningMonitor


def _hugging_face_class() -> type:
    from transformers import TrainerCallback

    class HuggingFaceMonitor(TrainerCallback):
        """Makes the monitor when training begins and ends it when training ends."""

        def __init__(self, settings: dict[str, Any]):
            self._settings = settings
            self.monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.monitor = Monitor(kwargs["model"], kwargs["optimizer"], **self._settings)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.monitor is not None and logs is not None:
                logs["monitor/alerts"] = len(self.monitor.alerts)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

    return HuggingFaceMonitor
