"""What a release holds: ``python -m tests.distributions DIRECTORY [TAG ...]`` checks the sdist and the wheel in a directory.

The wheel holds the files of both packages, byte by byte those of this tree, and besides them its metadata alone. The sdist holds
the same files and those that build the wheel. Tags of the commit state the version, and the changelog has a section for it.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("graphs", "llmrank")
BUILT_FROM = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}

Files = Mapping[str, bytes]


def project() -> dict[str, Any]:
    """Return the table ``project`` of pyproject.toml."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def package_files() -> dict[str, bytes]:
    """Return the files of both packages by their path, except those that Python compiles."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths if path.parent.name != "__pycache__"}


def files_of_wheel(path: Path) -> dict[str, bytes]:
    """Return the files of a wheel, except its metadata."""
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")]
        return {name: wheel.read(name) for name in names}


def files_of_sdist(path: Path) -> dict[str, bytes]:
    """Return the files of an sdist by their path within its only folder, except metadata."""
    found = {}
    with tarfile.open(path) as sdist:
        for member in sdist:
            content = sdist.extractfile(member)
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if content is not None and name.name != "PKG-INFO" and not name.parts[0].endswith(".egg-info"):
                found[name.as_posix()] = content.read()
    return found


def differences(what: str, found: Files, expected: Files) -> list[str]:
    """Say which files are missing, too many, or others than in this tree."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    lists = {"lacks": missing, "holds, but should not,": extra, "holds with another content": changed}
    return [f"the {what} {verb} {', '.join(names)}" for verb, names in lists.items() if names]


def errors_of_tags(tags: Sequence[str], version: str, changelog: str) -> list[str]:
    """Say which tags of the commit state another version, and whether the changelog lacks a section for a tagged one."""
    wrong = [tag for tag in tags if tag != f"v{version}"]
    found = [f"the commit has the tag {tag}, but pyproject.toml the version {version}" for tag in wrong]
    if tags and not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changelog, flags=re.MULTILINE):
        found.append(f'CHANGELOG.md has no section "## {version} - YEAR-MONTH-DAY"')
    return found


def errors(directory: Path, tags: Sequence[str]) -> list[str]:
    """Say what is wrong with the distributions in a directory, which holds one sdist and one wheel."""
    version = project()["version"]
    names = {path.name for path in directory.iterdir() if path.suffix in (".whl", ".gz")}
    wheel, sdist = f"llmrank-{version}-py3-none-any.whl", f"llmrank-{version}.tar.gz"
    if names != {wheel, sdist}:
        return [f"{directory} should hold {wheel} and {sdist}, but it holds {', '.join(sorted(names)) or 'neither'}"]
    files = package_files()
    in_sdist = files_of_sdist(directory / sdist)
    beside = {name: (ROOT / name).read_bytes() for name in BUILT_FROM}
    beside["setup.cfg"] = in_sdist.get("setup.cfg", b"")  # setuptools adds lines to it
    return [
        *differences("wheel", files_of_wheel(directory / wheel), files),
        *differences("sdist", in_sdist, files | beside),
        *errors_of_tags(tags, version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
    ]


if __name__ == "__main__":
    sys.exit("\n".join(errors(Path(sys.argv[1]), sys.argv[2:])) or None)
