"""The monitor's callbacks in the real Lightning and Hugging Face, each with a control that must be found."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watched import layers, samples

from nlcompanion.monitoring import Monitor, hugging_face_callback, lightning_callback


@pytest.fixture(scope="module")
def data():
    return samples()


@pytest.fixture(autouse=True)
def _quiet():
    for name in ("lightning.pytorch", "nlcompanion.monitor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- Lightning ------------------------------------------------------------------------------------------------------


def task(fault_from=None):
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = layers()

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def on_after_backward(self):
            if fault_from is not None and self.trainer.global_step >= fault_from:
                self.net[3].weight.grad.mul_(1.01)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Task()


def fit(data, callback, module, epochs, folder, **settings):
    lightning = pytest.importorskip("lightning")
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], default_root_dir=folder, **off,
        **{"logger": False, "enable_checkpointing": False, **settings},
    )  # fmt: skip
    path = settings.get("path")
    loader = DataLoader(TensorDataset(*data), batch_size=32)
    trainer.fit(module, loader, ckpt_path=path)
    return trainer


def test_lightning(data, tmp_path):
    callback = lightning_callback(every=4)
    fit(data, callback, task(), 4, tmp_path, gradient_clip_val=1.0)
    assert isinstance(callback.monitor, Monitor)
    assert callback.monitor.steps == 64
    assert len(callback.monitor.laws) == 2
    assert not callback.monitor.alerts
    broken = lightning_callback(every=4)
    fit(data, broken, task(fault_from=25), 5, tmp_path)
    (alert,) = broken.monitor.alerts
    assert (alert.kind, alert.tensors) == ("broken gradient", ("net.3.weight",))


def test_lightning_keeps_it_in_checkpoints_and_logs_it(data, tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    first, logger = lightning_callback(every=4), CSVLogger(tmp_path)
    trainer = fit(data, first, task(), 2, tmp_path, logger=logger)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    logger.save()
    assert "monitor/norm/net.1.weight" in (tmp_path / logger.log_dir / "metrics.csv").read_text().splitlines()[0]
    second = lightning_callback(every=4)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", callbacks=[second], **off)
    trainer.fit(
        task(), DataLoader(TensorDataset(*data), batch_size=32), ckpt_path=tmp_path / "run.ckpt", weights_only=True
    )
    assert second.monitor.steps == 64
    steps = {row["step"] for row in second.monitor.records()}
    assert steps >= {1, 4, 32, 36, 64}
    assert not second.monitor.alerts


# --- Hugging Face ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", [1.0, 1.01])
def test_hugging_face(data, tmp_path, monkeypatch, fault):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    # the folder tests/datasets looks like the library of that name
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)

    logged = []

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = layers()

        def forward(self, pixels, labels):
            logits = self.net(pixels)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Fault(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step >= 25:
                model.net[3].weight.grad.mul_(fault)

        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(logs["monitor/alerts"])

    callback = hugging_face_callback(every=5)
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=80, per_device_train_batch_size=16, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=40, disable_tqdm=True, learning_rate=1e-3, gradient_accumulation_steps=2,
    )  # fmt: skip
    rows = [{"pixels": x, "labels": y} for x, y in zip(*data, strict=True)]
    trainer = transformers.Trainer(Classifier(), settings, train_dataset=rows, callbacks=[callback, Fault()])
    trainer.train()
    monitor = callback.monitor
    assert monitor.steps == 80
    assert [(alert.kind, alert.tensors) for alert in monitor.alerts] == (
        [] if fault == 1.0 else [("broken gradient", ("net.3.weight",))]
    )
    assert logged == [0, len(monitor.alerts), len(monitor.alerts)]  # at steps 40 and 80, and at the end
