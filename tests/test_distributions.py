"""What a release promises and holds: its version, its dependencies, its files, and the promised names."""

from __future__ import annotations

import configparser
import io
import re
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import llmrank
from llmrank import cli
from llmrank.pipeline.descriptions import environment
from tests import public_surface
from tests.distributions import BUILT_FROM, ROOT, errors, errors_of_tags, package_files, project
from tests.lowest_versions import lower_bounds, newer, requirements

VERSION = project()["version"]
RELEASES = (ROOT / "docs" / "releases.md").read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert metadata.version("llmrank") == VERSION, (
        "pyproject.toml has another version than what is installed: install it again"
    )
    assert llmrank.__version__ == environment()["llmrank"] == VERSION
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"llmrank {VERSION}\n"


def test_every_dependency_has_a_lower_bound() -> None:
    found = requirements(*project()["optional-dependencies"])
    assert {"torch", "pytest", "types-psutil"} <= {each.name for each in found}
    assert not [str(each) for each in found if len(lower_bounds(each)) != 1]


def test_versions_above_the_lowest_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = {each.name: str(*lower_bounds(each)) for each in requirements("lora")}
    monkeypatch.setattr(metadata, "version", (lowest | {"scipy": "1.14.9"}).__getitem__)
    assert newer("lora") == []
    monkeypatch.setattr(metadata, "version", (lowest | {"scipy": "1.15.0", "peft": "1.0"}).__getitem__)
    assert newer("lora") == ["scipy>=1.14: 1.15.0 is installed", "peft>=0.18: 1.0 is installed"]


def test_package_data_are_the_files_of_the_packages_that_are_no_modules() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, listed in config["options.package_data"].items()
        for pattern in listed.split()
    ]
    data = [PurePosixPath(name) for name in package_files() if not name.endswith(".py")]
    undeclared = [name for name in data if not any(name.match(pattern) for pattern in patterns)]
    unused = [pattern for pattern in patterns if not any(name.match(pattern) for name in data)]
    assert (undeclared, unused) == ([], [])


def distributions_of(directory: Path, wheel: Mapping[str, bytes], sdist: Mapping[str, bytes]) -> Path:
    """Write a wheel and an sdist with these files and with metadata."""
    with zipfile.ZipFile(directory / f"llmrank-{VERSION}-py3-none-any.whl", "w") as archive:
        for name, content in {**wheel, f"llmrank-{VERSION}.dist-info/METADATA": b""}.items():
            archive.writestr(name, content)
    with tarfile.open(directory / f"llmrank-{VERSION}.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in {**sdist, "PKG-INFO": b"", "llmrank.egg-info/PKG-INFO": b""}.items():
            member = tarfile.TarInfo(f"llmrank-{VERSION}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return directory


def test_wrong_files_of_distributions_are_found(tmp_path: Path) -> None:
    files = package_files()
    beside = {name: (ROOT / name).read_bytes() for name in BUILT_FROM}
    assert errors(tmp_path, []) == [
        f"{tmp_path} should hold llmrank-{VERSION}-py3-none-any.whl and llmrank-{VERSION}.tar.gz, but it holds neither"
    ]
    distributions_of(tmp_path, files, files | beside)
    assert errors(tmp_path, []) == []
    without_data = {name: content for name, content in files.items() if name != "llmrank/cli/schemas.json"}
    distributions_of(tmp_path, without_data, files | beside | {"tests/house.py": b"", "README.md": b""})
    assert errors(tmp_path, []) == [
        "the wheel lacks llmrank/cli/schemas.json",
        "the sdist holds, but should not, tests/house.py",
        "the sdist holds with another content README.md",
    ]


def test_a_tag_states_the_version_and_has_a_section_of_the_changelog() -> None:
    changelog = "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2026-12-31\n\n- More.\n"
    assert errors_of_tags([], "0.3.0", changelog) == []
    assert errors_of_tags(["v0.2.0"], "0.2.0", changelog) == []
    assert errors_of_tags(["v0.2.0"], "0.3.0", changelog) == [
        "the commit has the tag v0.2.0, but pyproject.toml the version 0.3.0",
        'CHANGELOG.md has no section "## 0.3.0 - YEAR-MONTH-DAY"',
    ]


def test_the_page_of_releases_promises_what_is_noted() -> None:
    promised = set(re.findall(r"^\| \{py:mod\}`([\w.]+)` \|", RELEASES, flags=re.MULTILINE))
    assert promised == {package.__name__ for package in public_surface.PACKAGES}
    noted = public_surface.FILE.read_text(encoding="utf-8").splitlines()
    commands = tuple(f"llmrank {name} " for name in cli.COMMANDS)
    assert not [line for line in noted if not line.startswith((*commands, *(f"{name}." for name in promised)))]
