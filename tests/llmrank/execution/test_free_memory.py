"""Free memory: what the machine has, or what the limits on the control groups of the process leave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from llmrank.execution import Execution, Processes
from llmrank.execution import free_memory as module
from llmrank.execution.free_memory import free_memory, left_by_limits, spare_memory


def write(folder: Path, **contents: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n", encoding="ascii")


def limits(tmp_path: Path, own: str) -> list[int]:
    (tmp_path / "own").write_text(own, encoding="ascii")
    return list(left_by_limits(tmp_path / "groups", tmp_path / "own"))


def test_version_2_limits_a_group_and_those_around_it(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    stat = "anon 500\ninactive_file 30\nactive_file 20"
    write(groups / "a" / "b", memory__max="max", memory__current=600, memory__stat=stat)
    write(groups / "a", memory__max=1000, memory__current=700, memory__stat=stat)
    write(groups, memory__stat=stat)  # the top has no limit
    assert limits(tmp_path, "0::/a/b\n") == [1000 - (700 - 50)]


def test_in_a_container_the_own_group_is_the_top(tmp_path: Path) -> None:
    stat = "inactive_file 0"
    write(tmp_path / "groups", memory__max=1000, memory__current=1100, memory__stat=stat)
    assert limits(tmp_path, "0::/\n") == [0]  # not negative
    assert limits(tmp_path, "0::/../outside\n") == [0]


def test_version_1(tmp_path: Path) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 20"
    files = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 400, "memory__stat": stat}
    write(tmp_path / "groups" / "memory", **files)
    own = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/\n0::/\n"
    assert limits(tmp_path, own) == [1000 - (400 - 50)]


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(left_by_limits(tmp_path, tmp_path / "absent")) == []
    assert limits(tmp_path, "0::/user.slice\n") == []


def test_the_smaller_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    for left, expected in (([], 100), ([150], 100), ([150, 70], 70)):
        monkeypatch.setattr(module, "left_by_limits", lambda left=left: left)
        assert free_memory() == free_memory(torch.device("cpu")) == expected


def test_a_device_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index, 100))
    assert free_memory(torch.device("cuda", 7)) == 7


def test_a_quarter_is_spare_for_all_processes_of_a_model_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda _device: 1000)
    model = torch.nn.Linear(2, 3)
    assert spare_memory(model, Execution()) == 250
    five = Processes()
    five.count = 5
    assert spare_memory(model, Execution(processes=five)) == 50
    assert spare_memory(model, Execution(device=torch.device("cpu"))) == 0
    model.bias = torch.nn.Parameter(torch.empty(3, device="meta"))
    assert spare_memory(model, Execution()) == 0
