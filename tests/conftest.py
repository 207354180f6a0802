"""Settings of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.devices import DeviceTraffic, simulated_devices

# Each worker has a core: threads of torch in every one of them, and in the commands that they start, would only wait for
# each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Derandomised: a run tells about the change under test, never about the draw.
settings.register_profile(
    "suite", max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "run every fourth test, beginning with the first (0) to fourth (3), and those marked as every_commit"
    parser.addoption("--quarter", type=int, choices=range(4), help=help_)


# All tests of these folders are slow tests.
SLOW = [Path(__file__).parent / name for name in ("benchmarks", "browser")]


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow tests, real models first: at the end, one worker would run the last of them alone."""
    for item in items:
        if any(folder in item.path.parents for folder in SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name != "test_real_model.py"))
    quarter: int | None = config.getoption("quarter")
    if quarter is None:
        return
    always = [item for item in items if item.get_closest_marker("every_commit")]
    others = [item for item in items if item not in always]
    # Neighbours are mostly cases of one test, so most tests are run with some of their cases.
    chosen = others[quarter::4]
    config.hook.pytest_deselected(items=[*{*others} - {*chosen}])
    items[:] = [*always, *chosen]


@pytest.fixture
def device_traffic() -> Iterator[DeviceTraffic]:
    """The simulated devices of :mod:`tests.devices`, with the counts of what crosses between them and the CPU."""
    with simulated_devices() as traffic:
        yield traffic
