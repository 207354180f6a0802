"""Models without data, built from a configuration in which some fields have other values."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["can_be_stated", "configured"]


def configured(model: nn.Module, fields: Mapping[str, Any]) -> nn.Module | None:
    """Build a model of the same class, on the meta device, from the configuration with these fields.

    Parameters
    ----------
    model : nn.Module
        A model with a configuration; not changed.
    fields : mapping from str to value
        Fields of the configuration of the language model.

    Returns
    -------
    nn.Module or None
        None if no model can be built so.
    """
    # The class of the model may be one that llmrank.surgery.checkpoint has made for listed widths. Other loaders cannot find such
    # a class, so this function builds the first of its base classes that can be imported by name.
    places = ((cls, sys.modules.get(cls.__module__)) for cls in type(model).__mro__)
    exported: Any = next(cls for cls, module in places if getattr(module, cls.__name__, None) is cls)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return exported(_changed(model, fields)[0])  # type: ignore[no-any-return]
    except Exception:  # whatever a model raises for such a configuration, it could not be loaded with it
        return None


def can_be_stated(model: nn.Module, fields: Mapping[str, Any]) -> bool:
    """Whether the configuration with these fields is valid, so that it can be written and read."""
    try:
        for part in _changed(model, fields):
            getattr(part, "validate", lambda: None)()
    except Exception:  # a configuration that raises anything here could not be saved
        return False
    return True


def _changed(model: nn.Module, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the configuration with these fields, and its part that is the configuration of the language model."""
    config: Any = copy.deepcopy(model.config)
    of_language = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name, value in fields.items():
        setattr(of_language, name, value)
    return config, of_language
