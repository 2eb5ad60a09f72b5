"""The command line of a bundle run as it was typed: its options must be settings of the bundle, its paths plain text.

`python -m monai.bundle run` takes any option, and reads values as Python literals and as its own references: a
misspelt setting would be passed over, and a folder `2026_11_28` be read as a number. What is started from Python has no
such command line, and is not looked at.
"""

import re
import sys
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent

from custom.support.errors import OptionError
from custom.support.startup import PATHS

RUNNER = (
    "config_file", "run_id", "init_id", "final_id", "meta_file", "logging_file", "args_file", "tracking",
    "tracking_uri", "experiment_name", "run_name", "save_execute_config", "workflow_name", "workflow_type",
    "properties_path",
)  # fmt: skip
"""Options of MONAI's runner itself, and of its tracking."""


@dataclass(frozen=True)
class BundleCommand:
    """What was typed behind `monai.bundle run`.

    Args:
        options: name to text, the last of each name; None where an option stands without a value.
    """

    options: Mapping[str, str | None]

    @property
    def files(self) -> list[str]:
        """The config files, in the order that they are merged in."""
        found = self._option("config_file")
        return [str(file) for file in (found if isinstance(found, list | tuple) else [found] if found else [])]

    @property
    def bundle(self) -> str | None:
        """Name of the folder that the bundle's `configs` lie in."""
        return Path(self.files[0]).resolve().parent.parent.name if self.files else None

    def overrides(self) -> dict[str, Any]:
        """Settings that are overridden, and their values as the runner reads them."""
        names = [*self._args_file(), *self.options]
        return {name: self._option(name) for name in dict.fromkeys(names) if name not in RUNNER}

    def config(self) -> dict[str, Any]:
        """The configuration as the runner merges it, without the bundle's metadata."""
        parser = ConfigParser(dict(ConfigParser.load_config_files(self.files)))
        for name, value in self.overrides().items():
            if value is not None:  # which the runner passes over
                parser.set(value, name)
        return parser.get()

    def _args_file(self) -> dict[str, Any]:
        file = self.options.get("args_file")
        return ConfigParser.load_config_file(file) if file and Path(file).is_file() else {}

    def _option(self, name: str) -> Any:
        return read_as_literal(self.options[name]) if name in self.options else self._args_file().get(name)


def typed(words: Sequence[str] | None = None) -> BundleCommand | None:
    """The command line of this process, or None where it is no `python -m monai.bundle run`.

    Args:
        words: of a command line, its program first; by default those of this process.
    """
    words = sys.argv if words is None else words
    if Path(words[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or words[1:2] != ["run"]:
        return None
    return BundleCommand(options_of(words[2:]))


def options_of(words: Sequence[str]) -> dict[str, str | None]:
    """Options of a command line, `--name value` or `--name=value`, as Fire tells them apart."""
    found: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if is_option(word):
            name, equals, value = word.lstrip("-").partition("=")
            found[name.replace("-", "_")] = value if equals else None if is_option(following) else following
    return found


def is_option(word: str) -> bool:
    """Whether a word of a command line is an option's name, not its value."""
    return re.match(r"--|-[a-zA-Z]", word) is not None


def read_as_literal(text: str | None) -> Any:
    """A value as the runner reads it."""
    from fire.parser import DefaultParseValue  # there where somebody has typed a command for it

    return True if text is None else DefaultParseValue(text)


def check_options(command: BundleCommand | None = None) -> None:
    """Refuse what the runner would pass over or read as something else; the bundles' configs call it early in `run`.

    Args:
        command: by default that of this process, if it has one.

    Raises:
        OptionError: an option that is no setting, with the nearest that is; a path that is not taken as it was typed; a
            value that is not of its setting's kind.
    """
    command = command or typed()
    if command is None or not command.files:
        return
    config = ConfigParser.load_config_files(command.files)
    for name in PATHS:
        if name in command.options:
            check_path(name, command.options[name])
    for name, value in command.overrides().items():
        check_name(name, config)
        check_kind(name, value, config.get(name))


def check_name(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an option that addresses nothing in a config: no id of it, and no argument of one of its components.

    Raises:
        OptionError: with the nearest id.
    """
    known = set(ids(config))
    place = name.replace("#", "::")
    if place in known or place.split("::")[0] == "_meta_" or place in arguments(place, config):
        return
    near = get_close_matches(place, [*known, *RUNNER], 1, 0.6)
    hint = f"did you mean --{near[0]}" if near else "the settings stand at the top of the bundle's configs"
    raise OptionError(f"--{name} is no setting of this bundle: {hint}")


def check_kind(name: str, value: Any, default: Any) -> None:
    """Refuse text where a truth value or numbers belong: the runner takes `false` for text, which is true.

    Args:
        name: of a setting.
        value: as the runner reads it.
        default: of the config; of an expression that asks the weights first, what it falls back on.

    Raises:
        OptionError: with what was expected.
    """
    if isinstance(default, str) and (fallback := re.fullmatch(r"\$@weights\.get\('\w+', (.*)\)", default)):
        default = literal_eval(fallback[1])
    numbers = default if isinstance(default, list) else [default]
    parts = value if isinstance(value, list | tuple) else [value]
    texts = [part for part in parts if isinstance(part, str) and part[:1] not in ("$", "@", "%")]
    if isinstance(default, bool):
        if texts and texts != ["auto"]:
            raise OptionError(f"--{name} {value}: expected True or False, as Python writes them")
    elif numbers and all(isinstance(number, int | float) for number in numbers) and texts:
        raise OptionError(f"--{name} {value}: expected a number or numbers, such as {default}")


def ids(config: Any, place: str = "") -> Iterator[str]:
    """All ids of a config, as the runner addresses them: `train::trainer::max_epochs`."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        own = f"{place}::{key}" if place else str(key)
        yield own
        yield from ids(value, own)


def arguments(place: str, config: Mapping[str, Any]) -> list[str]:
    """What could be given to the component that an id would be an argument of, as ids; none where it is of none."""
    from inspect import Parameter, signature
    from pydoc import locate

    owner = place.rpartition("::")[0]
    parser = ConfigParser(dict(config))
    component = parser.get(owner) if owner else None
    if not ConfigComponent.is_instantiable(component):
        return []
    target = locate(str(ConfigComponent(component, locator=parser.locator).resolve_module_name()))
    taken = signature(target).parameters.values() if callable(target) else ()
    names = [*(p.name for p in taken if p.kind is not Parameter.VAR_KEYWORD), *ConfigComponent.non_arg_keys]
    return [f"{owner}::{argument}" for argument in names]


def check_path(name: str, text: str | None) -> None:
    """Refuse a path that the runner would not take as it was typed.

    Raises:
        OptionError: with what it would be read as, and how to write it.
    """
    if text is None:
        raise OptionError(f"--{name} has no value; a path that begins with - is written ./-...")
    if text in ("", "None") and name in ("datalist", "pretrained", "conformal") and not Path(text or "None").exists():
        return
    if text[:1] in ("$", "@", "%") and not Path(text).exists():
        return  # an expression of the runner
    if text.startswith("~"):
        raise OptionError(f"--{name} {text}: the shell did not put your home folder there; write the whole path")
    if "#" in text:
        raise OptionError(
            f"--{name} {text}: MONAI's runner reads # in a setting as the sign between the parts of an id, and would "
            "take another path; rename the folder, or link it to a name without #"
        )
    paths = read_as_literal(text)
    if name == "checkpoint" and isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
        return  # several weights
    value = text if text[:1] not in ("$", "@", "%") else None
    if value is None or read_as_literal(text) != text:
        read = "an expression" if value is None else repr(read_as_literal(text))
        raise OptionError(f"--{name} {text}: MONAI's runner reads that as {read}; write ./{text}")
