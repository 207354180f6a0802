"""The lowest versions of dependencies: ``python -m tests.lowest_versions`` fails where a newer one is installed.

Of a bound such as ``>=2.10`` each 2.10.x is taken for the lowest, because an index may lack the first of them.
"""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from tests.distributions import project


def requirements(*extras: str) -> list[Requirement]:
    """Return the dependencies and those of some extras, where an extra may name others of llmrank."""
    table = project()
    listed = [*table["dependencies"], *(each for extra in extras for each in table["optional-dependencies"][extra])]
    found = []
    for requirement in map(Requirement, listed):
        # With the dependencies of an extra come those of llmrank once more.
        found += requirements(*requirement.extras) if requirement.name == "llmrank" else [requirement]
    return list(dict.fromkeys(found))


def lower_bounds(requirement: Requirement) -> list[Version]:
    """Return the versions behind ``>=``."""
    return [Version(each.version) for each in requirement.specifier if each.operator == ">="]


def is_lowest(installed: str, bound: Version) -> bool:
    """Whether a version begins with the numbers of a bound."""
    return Version(installed).release[: len(bound.release)] == bound.release


def newer(*extras: str) -> list[str]:
    """Say which dependencies are installed in a newer version than the lowest."""
    needed = [each for each in requirements(*extras) if each.marker is None or each.marker.evaluate()]
    found = {each: metadata.version(each.name) for each in needed}
    return [
        f"{each}: {installed} is installed"
        for each, installed in found.items()
        if not all(is_lowest(installed, bound) for bound in lower_bounds(each))
    ]


if __name__ == "__main__":
    sys.exit("\n".join(newer("test")) or None)
