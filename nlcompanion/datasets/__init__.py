"""The data: digits (embedded), KMNIST, Tiny ImageNet."""

from nlcompanion.datasets.dataset import Dataset, describe
from nlcompanion.datasets.digits import digits
from nlcompanion.datasets.download import DataError
from nlcompanion.datasets.kmnist import kmnist
from nlcompanion.datasets.tiny_imagenet import tiny_imagenet

__all__ = ["DataError", "Dataset", "describe", "digits", "kmnist", "tiny_imagenet"]
