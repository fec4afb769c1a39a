"""From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels and Meta Co-Training.

    from transfermpl import load_classifier, train

`__all__` is what a program of yours needs. It is loaded when it is first used: importing the package costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.api import Run, train
    from .deploy.classifier import Classifier, load_classifier
    from .train import TrainingFault
    from .utils import UserError

__version__ = "0.1.0"

__all__ = ["Classifier", "Run", "TrainingFault", "UserError", "__version__", "load_classifier", "train"]

# Where each name is defined.
PLACES = {
    "Classifier": "deploy.classifier",
    "Run": "deploy.api",
    "TrainingFault": "train",
    "UserError": "utils",
    "load_classifier": "deploy.classifier",
}


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module(f"{__name__}.train")
    if name in PLACES:
        return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _TrainModule(ModuleType):
    """train.py, which can be called: Python gives a package's attribute `train` to the module of that name."""

    def __call__(self, *args: Any, **options: Any) -> Run:
        from .deploy.api import train

        return train(*args, **options)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and type(value) is ModuleType:
            value.__class__ = _TrainModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
