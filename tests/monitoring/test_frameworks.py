"""A ledger within the real Lightning, accelerate and Hugging Face, each with a control that must be found."""

import logging
import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from loops import laws_of, network, samples
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nlcompanion.monitoring import Ledger, LedgerError

FAULT = r"gradient of 3\.weight is 1\.01 times"


@pytest.fixture(scope="module")
def data():
    x, y = samples()
    return x.float(), y


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


# --- Lightning ------------------------------------------------------------------------------------------------------


def lightning_run(data, make, *, faulty=False, manual=False, wrapped=False, **settings):
    """Train a LightningModule for two epochs with a ledger; returns the ledger."""
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network(dtype=torch.float32)
            self.automatic_optimization = not manual

        def training_step(self, batch, index):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            if manual:
                optimizers = self.optimizers()
                optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
                for optimizer in optimizers:
                    optimizer.zero_grad()
                self.manual_backward(loss)
                self.on_after_backward_of_mine()
                for optimizer in optimizers:
                    optimizer.step()
                return None
            return loss

        def on_after_backward(self):
            if not manual:
                self.on_after_backward_of_mine()

        def on_after_backward_of_mine(self):
            if faulty and self.trainer.current_epoch == 1:
                self.net[3].weight.grad.mul_(1.01)

        def configure_optimizers(self):
            return make(self)

    class Bookkeeper(lightning.Callback):
        def on_train_start(self, trainer, module):
            optimizers = module.optimizers() if wrapped else trainer.optimizers
            self.ledger = Ledger(laws_of(module.net, data), module, optimizers)

    bookkeeper = Bookkeeper()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", callbacks=[bookkeeper], **off, **settings)
    trainer.fit(Task(), DataLoader(TensorDataset(*data), batch_size=50))
    return bookkeeper.ledger


@pytest.mark.parametrize(
    ("kind", "manual", "wrapped"),
    [
        ("SGD", False, False),
        ("AdamW", True, True),
        *(
            pytest.param(*ways, marks=pytest.mark.slow)
            for ways in product(OPTIMIZERS, (False, True), (False, True))
            if ways not in (("SGD", False, False), ("AdamW", True, True))
        ),
    ],
)
def test_lightning(data, kind, manual, wrapped):
    """Automatic and manual steps, the trainer's optimizer and the module's wrapped one."""
    how = {"manual": manual, "wrapped": wrapped}
    ledger = lightning_run(data, lambda task: OPTIMIZERS[kind](task.parameters()), **how)
    assert ledger.steps == 16
    assert ledger.check() < 1e-6
    ledger = lightning_run(data, lambda task: OPTIMIZERS[kind](task.parameters()), faulty=True, **how)
    with pytest.raises(LedgerError, match=r"at step 9 of 16.*" + FAULT):
        ledger.check()


def test_lightning_with_clipping_accumulation_and_half_precision(data):
    def make(task):
        return OPTIMIZERS["AdamW"](task.parameters())

    ledger = lightning_run(data, make, gradient_clip_val=0.1, accumulate_grad_batches=2)
    assert ledger.steps == 8
    assert ledger.check() < 1e-6
    ledger = lightning_run(data, make, precision="bf16-mixed")
    assert 1e-6 < ledger.check() < ledger.tolerance == 8 * torch.finfo(torch.bfloat16).eps
    ledger = lightning_run(data, make, gradient_clip_val=0.01, gradient_clip_algorithm="value")
    with pytest.raises(LedgerError, match=r"0\.01 in size and none is larger: clipped by value"):
        ledger.check()


def test_lightning_with_two_optimizers(data):
    def make(task):
        matrices = [p for p in task.parameters() if p.ndim == 2]
        biases = [p for p in task.parameters() if p.ndim != 2]
        return OPTIMIZERS["SGD"](matrices), OPTIMIZERS["AdamW"](biases)

    for wrapped in (False, True):
        ledger = lightning_run(data, make, manual=True, wrapped=wrapped)
        assert ledger.steps == 16
        assert ledger.check() < 1e-6
    with pytest.raises(LedgerError, match=FAULT):
        lightning_run(data, make, manual=True, faulty=True).check()


# --- accelerate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_accelerate(data, kind, mixed):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    try:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed, gradient_accumulation_steps=2)
        net = network(dtype=torch.float32)
        laws, optimizer = laws_of(net, data), OPTIMIZERS[kind](net.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
        model, optimizer, schedule, loader = accelerator.prepare(
            net, optimizer, schedule, DataLoader(TensorDataset(*data), batch_size=25)
        )
        ledger = Ledger(laws, model, optimizer)

        def epoch(fault=1.0):
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(x), y))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                        net[3].weight.grad.mul_(fault)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()

        epoch()
        assert ledger.steps == 8
        assert ledger.check() < ledger.tolerance == (1e-6 if mixed == "no" else 0.0625)
        epoch(2.0)
        with pytest.raises(LedgerError):
            ledger.check()
    finally:
        accelerate.state.AcceleratorState._reset_state(True)


# --- Hugging Face ---------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow
RULES = ["adamw_torch", *(pytest.param(rule, marks=SLOW) for rule in ("adamw_torch_fused", "sgd", "adafactor"))]


@pytest.mark.parametrize("rule", RULES)
def test_hugging_face(data, rule, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    # the folder tests/datasets looks like the library of that name
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(dtype=torch.float32)

        def forward(self, pixels, labels):
            logits = self.net(pixels)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Bookkeeper(transformers.TrainerCallback):
        fault = 1.0

        def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
            self.net, self.ledger = model.net, Ledger(laws_of(model.net, data), model, optimizer)

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step >= 10:
                self.net[3].weight.grad.mul_(self.fault)

    bookkeeper = Bookkeeper()

    def fit(fault):
        bookkeeper.fault = fault
        settings = transformers.TrainingArguments(
            str(tmp_path), max_steps=12, per_device_train_batch_size=16, use_cpu=True, optim=rule, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=1e-2, weight_decay=0.1,
        )  # fmt: skip
        samples_ = [{"pixels": x, "labels": y} for x, y in zip(*data, strict=True)]
        transformers.Trainer(Classifier(), settings, train_dataset=samples_, callbacks=[bookkeeper]).train()
        return bookkeeper.ledger

    ledger = fit(1.0)
    assert ledger.steps == 12
    assert ledger.check() < 1e-6
    with pytest.raises(LedgerError, match=r"first at step 11 of 12.*gradient of 3\.weight is 1\.5 times"):
        fit(1.5).check()
