"""Valid calls of ``nlcompanion.training``."""

import os
from functools import cache

from wrong_values import FUNCTIONS, POSITIVE

import nlcompanion as nl
from calls.ingredients import empty_folder
from calls.table import ANY_COUNT, COUNTS, NONE, SEEDS, TEXTS, call

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
