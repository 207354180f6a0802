"""The places of texts and models, as reports name them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["without_folders"]

# What stands before the place of a dataset.
DATASET = "dataset:"


def without_folders(place: str) -> str:
    """Replace an absolute path by its last part, as ``./NAME``, because reports name no local folders.

    Parameters
    ----------
    place : str
        A path, a name on the hub, or a source such as ``dataset:/home/me/rows,,test``.

    Returns
    -------
    str
        No model or dataset of the hub is called ``./NAME``.

    Examples
    --------
    >>> without_folders("dataset:/home/me/rows,,test"), without_folders("/home/me/model"), without_folders("org/model")
    ('dataset:./rows,,test', './model', 'org/model')
    """
    prefix = DATASET if place.startswith(DATASET) else ""
    path, *others = place.removeprefix(prefix).split(",") if prefix else [place]
    return f"{prefix}{','.join([f'./{Path(path).name}', *others])}" if Path(path).is_absolute() else place
