"""Valid calls of ``nlcompanion.training``."""

import os
from functools import cache

from wrong_values import FUNCTIONS, POSITIVE

import nlcompanion as nl
from calls.ingredients import empty_folder
from calls.table import ANY_COUNT, COUNTS, FROM_ZERO, NONE, SEEDS, TEXTS, call

PLAIN = POSITIVE - {"one number in a tensor"}  # settings are stored as numbers of Python
SETTINGS = {"subset": 64, "model": "conv_bn", "eps": 1e-5, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
SETTINGS |= {"batch_size": 32, "epochs": 1, "lr_drops": (), "constrain_norm": False, "init_scale": 1.0, "width": 0.5}
SETTINGS |= {"precision": "float32", "device": "cpu", "seed": 0, "label_noise": 0.0, "augment": False}
SETTINGS |= {"filter_lr": 0.1, "filter_weight_decay": 0.0, "dataset": "digits"}
call(
    "TrainConfig",
    nl.TrainConfig,
    {
        "subset": NONE,
        "eps": PLAIN | {"zero"},
        "lr": PLAIN,
        "momentum": {"zero", "a half"},
        "weight_decay": PLAIN | {"zero"},
        "batch_size": NONE | COUNTS,
        "epochs": COUNTS,
        "lr_drops": NONE | {"empty list", "empty tensor", "no rows", "dict"},
        "constrain_norm": {"True"},
        "init_scale": PLAIN,
        "width": {"a half", "three"},
        "device": {"device"},
        "seed": SEEDS,
        "label_noise": {"zero", "a half"},
        "filter_lr": PLAIN | NONE,
        "filter_weight_decay": PLAIN | NONE | {"zero"},
    },
    **SETTINGS,
)


@cache
def checkpoint():
    return os.path.join(empty_folder(), "run.pt")


call(
    "train",
    nl.train,
    {"checkpoint": NONE | TEXTS, "resume": {"True"}, "data": NONE, "progress": NONE | {"True"}}
    | {
        "stride": NONE | ANY_COUNT,
        "evaluate_every": NONE | ANY_COUNT,
        "watch": NONE | FUNCTIONS - {"of nothing"},
        "capture": {"True"},
    }
    | {"compiled": {"True"}},
    config=nl.TrainConfig(**{**SETTINGS, "filter_lr": None, "filter_weight_decay": None}),
    checkpoint=None,
    resume=True,
    data=None,
    progress=False,
    stride=1,
    evaluate_every=1,
    watch=None,
    capture=False,
    compiled=False,
)
call(
    "sweep",
    nl.sweep,
    {"configs": {"empty list"}, "executor": NONE | COUNTS, "run": {"True"}, "retry_failed": {"True"}}
    | {"progress": {"True"} | FUNCTIONS - {"of nothing"}, "folder": TEXTS},
    configs=[nl.TrainConfig(**SETTINGS)],
    folder=empty_folder(),
    executor=None,
    run=False,
    retry_failed=True,
    progress=False,
)
call("load_sweep", nl.load_sweep, folder=empty_folder())


@cache
def planned():
    return nl.sweep([nl.TrainConfig(**SETTINGS)], empty_folder(), run=False)


CONFIG = nl.TrainConfig(**SETTINGS)
FROM_ZERO_ON = ANY_COUNT | {"zero"}
call("TrainConfig.lr_at", CONFIG.lr_at, {"epoch": FROM_ZERO_ON}, epoch=1)
call("TrainConfig.filter_lr_at", CONFIG.filter_lr_at, {"epoch": FROM_ZERO_ON}, epoch=1)
call("TrainConfig.steps_per_epoch", CONFIG.steps_per_epoch, {"samples": ANY_COUNT - {"three"}}, samples=64)
call("TrainConfig.from_dict", nl.TrainConfig.from_dict, {"settings": {"dict"}}, settings=SETTINGS)
call("TrainConfig.from_dict of one", lambda value: nl.TrainConfig.from_dict({"lr": value}), {"value": PLAIN}, value=0.1)
call("Sweep.where", lambda lr: planned().where(lr=lr), {"lr": PLAIN}, lr=0.1)
call("Sweep.where of drops", lambda drops: planned().where(lr_drops=drops), {"drops": {"empty list"}}, drops=())
call("Sweep.by", lambda settings: planned().by(settings), settings="lr")
call("Sweep.table", lambda settings: planned().table(settings), settings="lr")


@cache
def content():
    config = nl.TrainConfig(**{**SETTINGS, "filter_lr": None, "filter_weight_decay": None})
    return nl.train(config, progress=False).to_dict()


def run_with(entry):
    return lambda value: nl.Run.from_dict({**content(), entry: value})


call("Run.from_dict", nl.Run.from_dict, content=content())
IN_A_RUN = {
    "steps": SEEDS,
    "duration": FROM_ZERO,
    "data": {"dict"},
    "environment": {"dict"},
    "config": {"dict"},
}
for entry, valid in content().items():
    call(f"Run.from_dict of {entry}", run_with(entry), {"value": IN_A_RUN.get(entry, set())}, value=valid)
call(
    "Run.from_dict of a curve",
    lambda losses: nl.Run.from_dict({**content(), "records": {**content()["records"], "loss": losses}}),
    losses=content()["records"]["loss"],
)
