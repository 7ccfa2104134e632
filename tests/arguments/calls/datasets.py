"""Valid calls of ``nlcompanion.datasets``."""

from functools import cache

import torch

import nlcompanion as nl
from calls.ingredients import empty_folder
from calls.table import COUNTS, NAMES, NONE, SEEDS, TEXTS, call
from nlcompanion import datasets


@cache
def small_digits():
    return nl.digits("test").first(30)


FLAGS = {"download": {"True"}, "progress": {"True"}, "folder": NONE}
call("digits", nl.digits, split="train")
call("describe", datasets.describe, dataset=nl.digits("test").first(10))
call("kmnist", nl.kmnist, FLAGS, split="train", folder=empty_folder(), download=False, progress=False)
call(
    "tiny_imagenet",
    nl.tiny_imagenet,
    {**FLAGS, "classes": COUNTS | NONE, "per_class": COUNTS | NONE},
    split="train",
    folder=empty_folder(),
    classes=2,
    per_class=2,
    download=False,
    progress=False,
)
call(
    "Dataset",
    nl.Dataset,
    {"name": TEXTS, "classes": NAMES, "levels": COUNTS, "source": TEXTS, "licence": TEXTS},
    name="two",
    images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
    labels=torch.tensor([0, 1]),
    classes=("a", "b"),
    levels=255,
    source="",
    licence="",
)
call("Dataset.first", lambda n: small_digits().first(n), {"n": {"three", "zero"}}, n=2)
call(
    "Dataset.balanced",
    lambda n, seed: small_digits().balanced(n, seed),
    {"n": {"three", "zero"}, "seed": SEEDS},
    n=2,
    seed=0,
)
call(
    "Dataset.tensors",
    lambda **kw: small_digits().tensors(**kw),
    {"flatten": {"True"}, "standardize": {"True"}},
    dtype=torch.float64,
    flatten=False,
    standardize=False,
)
