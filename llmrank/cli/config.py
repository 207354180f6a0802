"""The settings of a command in a file: read for ``--config``, and made for a report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrank.bounded_files import read_bounded
from llmrank.cli.arguments.shared import TextArgument
from llmrank.errors import OptionError, did_you_mean
from llmrank.text.places import without_folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CommandParser"]

# Options that are no settings of a result: they say where the result goes or what is printed, or which code of other people may
# run. They are not written to a report, nor read from one, because a report may come with the checkpoint of a stranger.
NOT_SETTINGS = {
    "checkpoints",
    "config",
    "debug",
    "figure",
    "help",
    "json",
    "offload_folder",
    "open",
    "output",
    "plot",
    "private",
    "push_to_hub",
    "quiet",
    "resume",
    "task_dir",
    "track",
    "trust_remote_code",
    "verbose",
}


class CommandParser(argparse.ArgumentParser):
    """The parser of a command. The defaults of its options may come from a preset and from a file (``--config``).

    The parsed options have an attribute ``settings``: a dict of the options of this run, which ``--config`` can read again.
    """

    def __init__(self, **settings: Any) -> None:
        self._presets: Mapping[str, Mapping[str, Any]] = {}
        # The defaults of options that may be repeated; argparse would join them with the values of the command line.
        self._lists: dict[str, list[str]] = {}
        super().__init__(**settings)

    @property
    def options(self) -> list[argparse.Action]:
        """The options and arguments of all groups."""
        return self._actions

    def add_config_option(self) -> None:
        """Add ``--config``. The other options have been added before."""
        help_text = "read options from a TOML file, or from the report.json of another run"
        self.add_argument("--config", type=Path, metavar="FILE", help=help_text)
        for option in self.options:
            if isinstance(option.default, list) and option.nargs is None:
                self._lists[option.dest], option.default = option.default, None

    def add_presets(self, presets: Mapping[str, Mapping[str, Any]], help_text: str) -> None:
        """Add ``--preset``. A preset sets options by their names; the file and the command line take precedence over it."""
        self._presets = presets
        self.add_argument("--preset", choices=presets, help=help_text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments. The command line takes precedence over the file of ``--config``, and the file over a preset."""
        # These two options come first, because they set the defaults of the others.
        finder = argparse.ArgumentParser(add_help=False, prog=self.prog)
        finder.add_argument("--config")
        if self._presets:
            finder.add_argument("--preset")
        found = finder.parse_known_args(args)[0]
        try:
            settings = {} if found.config is None else _read(Path(found.config), self._command)
            preset = str(getattr(found, "preset", None) or settings.get("preset"))
            self._set_defaults(self._presets.get(preset, {}), f"preset {preset}")
            self._set_defaults(settings, str(found.config))
        except OptionError as error:
            self.error(str(error))
        options, rest = super().parse_known_args(args, namespace)
        for name, values in self._lists.items():
            setattr(options, name, getattr(options, name) or values)
        kept = [option for option in self.options if option.dest not in NOT_SETTINGS]
        given = {option_name(option): getattr(options, option.dest, None) for option in kept}
        written = {name: _plain(value) for name, value in given.items() if value is not None and value != []}
        options.settings = {"command": self._command, **written}
        return options, rest

    @property
    def _command(self) -> str:
        return self.prog.split()[-1]

    def _set_defaults(self, settings: Mapping[str, Any], path: str) -> None:
        """Make the settings of a file or preset (`path`) the defaults of options. Text is converted when arguments are parsed."""
        is_report = Path(path).suffix == ".json"
        actions = {option_name(action): action for action in self.options if action.dest not in ("config", "help")}
        for name, value in settings.items():
            if is_report and name.replace("-", "_") in NOT_SETTINGS:
                raise OptionError(f"{path}: {name!r} cannot be set in a report; give it on the command line")
            if name not in actions:
                raise OptionError(
                    f"{path}: unknown key {name!r}{did_you_mean(name, actions)}; the keys are the names of the options of "
                    f"{self.prog}, without dashes before them"
                )
            action = actions[name]
            many = action.dest in self._lists or action.nargs == "*"
            # A setting can be true or false if its option takes no value, or if the value may be left out.
            if isinstance(value, bool) and (action.nargs == 0 or action.const is True):
                action.default = value if action.nargs == 0 else value or None
            elif action.nargs == 0 or isinstance(value, (bool, dict)) or isinstance(value, list) is not many:
                expected = "true or false" if action.nargs == 0 else "a list" if many else "a text or a number"
                raise OptionError(f"{path}: {name} must be {expected}, got {value!r}")
            elif action.choices is not None and value not in action.choices:  # argparse does not check defaults
                raise OptionError(f"{path}: {name} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
            elif action.dest in self._lists:
                self._lists[action.dest] = [str(entry) for entry in value]
            else:
                action.default = [str(entry) for entry in value] if many else str(value)
            action.required = False
            if not action.option_strings and not many:
                action.nargs = "?"


def option_name(action: argparse.Action) -> str:
    """Return the name of an option without the dashes before it, or the name of an argument."""
    return next((name[2:] for name in action.option_strings if name.startswith("--")), action.dest)


def _read(path: Path, command: str) -> dict[str, Any]:
    """Read settings from a TOML file, or from the ``config`` of a report in JSON. Settings that are null are left out."""
    try:
        text = read_bounded(path)
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(
            f"cannot read the settings in {path}: {error}; expected a TOML file or a report.json"
        ) from None
    if isinstance(content, dict) and path.suffix == ".json":
        content = content.get("config")
    if not isinstance(content, dict):
        raise OptionError(f"{path} holds no settings; expected a TOML file, or the report.json of a command of llmrank")
    given = content.pop("command", command)
    if given != command:
        raise OptionError(f"{path} holds settings of llmrank {given}; run that command with it, or leave the file out")
    return {name: value for name, value in content.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value in a form that a file can hold. Absolute paths become names, because reports name no local folders."""
    if isinstance(value, Mapping):  # --max-memory
        return ",".join(f"{device}={size}" for device, size in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    if isinstance(value, (Path, str)):  # one place or name, or several texts with commas between them
        is_place = os.path.exists(value)  # noqa: PTH110 (that of a Path raises for long texts)
        value = Path(value) if is_place and isinstance(value, TextArgument) else value  # ./a.txt is a.txt
        parts = [str(value)] if is_place else str(value).split(",")
        return ",".join(map(without_folders, parts))
    return value
