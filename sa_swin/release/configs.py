"""The configs of a package: those of the bundle, with the settings of its weights, working wherever they lie.

Settings, and what a package needs to find its own code, are put into the YAML text, so that its comments stay. Each
YAML file has a JSON twin, which `monai.bundle.load` and the Model Zoo read.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from monai.bundle import ConfigParser

from custom.support.files import json_text
from sa_swin.release.errors import ReleaseError

NOT_OF_THE_WEIGHTS = frozenset(
    [
        "align",
        "allow_leakage",
        "allow_outside",
        "anatomies",
        "cache_rate",
        "fold",
        "limit",
        "num_workers",
        "overlap",
        "override_contract",
        "planes",
        "precision",
        "pretrained",
        "pretrained_minimum",
        "resume",
        "untrusted",
        "use_checkpoint",
    ]
)
"""Knobs that say how a run was done, not what the weights are: a package keeps the bundle's own values."""

_ROOT = """\
# Where this package lies: known to a workflow of MONAI; its other tools take --bundle_root, or run in the package.
bundle_root: "$next((str(f.f_locals['self'].config_root_path.resolve().parent) for f, _ in traceback.walk_stack(None)\\
  \\ if 'config_root_path' in getattr(f.f_locals.get('self'), '__dict__', ())), '.')"
"""
_PACKAGE = """
# ---- package: the network is built with the code that lies here, and with no other version of it
package:
  imports:
  - $import sys
  - $import traceback
  path: $@bundle_root in sys.path or sys.path.insert(1, @bundle_root)
  code:
    _target_: custom.support.vendored.require
    digest: '{digest}'
    _requires_: '@package::path'
"""


def packaged(text: str, settings: Mapping[str, Any], digest: str, own: bool = True) -> str:
    """A config that stands alone (`train`, `inference`) as it goes into a package.

    Args:
        text: YAML.
        settings: knobs of the weights; those that this config has get these values.
        digest: of the code, from `custom.support.vendored.code_digest`.
        own: as in `of_the_weights`.

    Raises:
        ReleaseError: when the config has not the form of this project's configs.
    """
    text = with_settings(text, of_the_weights(text, settings, own))
    text = _replaced(text, r"^bundle_root: \.$", _ROOT.rstrip("\n"))
    text = _replaced(text, r"^(network_def:\n(?:  .*\n)*)", r"\g<1>  _requires_: '@package::code'\n")
    return text.rstrip("\n") + "\n" + _PACKAGE.format(digest=digest)


def knob_names(text: str) -> list[str]:
    """Names of the settings of a config, those that it records."""
    config = yaml.safe_load(text)
    if "bundle_root" not in config:
        raise ReleaseError("a config without bundle_root does not stand alone")
    return list(config["settings"])


def of_the_weights(text: str, settings: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """The values of a config's knobs that are of its weights.

    Args:
        text: YAML.
        settings: of the training of the weights.
        own: whether that was a training by this bundle, whose schedule is then its; else only what the config asks its
            weights for.
    """
    asked = defaults(text)
    names = [name for name in (knob_names(text) if own else asked) if name in settings]
    return asked | {name: settings[name] for name in names if name not in NOT_OF_THE_WEIGHTS}


def defaults(text: str) -> dict[str, Any]:
    """The settings that a config takes from its weights, as they are where those do not say.

    What lies beside the weights is looked for where the package is run.
    """
    config = yaml.safe_load(text)
    parser = ConfigParser(config | {"weights": {"_target_": "custom.weights.settings.Weights"}})
    names = [name for name in config["settings"] if str(config[name]).startswith("$@weights.get(")]
    return {name: parser.get_parsed_content(name) for name in names}


def with_settings(text: str, settings: Mapping[str, Any]) -> str:
    """The YAML text with other values of these top-level settings; comments stay where they are."""
    for name, value in settings.items():
        written = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
        text = _replaced(text, rf"^({name}: )(\S.*?)( *)(#.*)?$", lambda found, new=written: _line(found, new))
        if yaml.safe_load(text)[name] != value:
            raise ReleaseError(f"setting {name} cannot be written as {written}")
    return text


def _line(found: re.Match[str], value: str) -> str:
    name, old, gap, comment = found.groups()
    room = len(old) + len(gap) - len(value)  # so that comments stay aligned
    return f"{name}{value}{' ' * max(2, room)}{comment}" if comment else f"{name}{value}"


def _replaced(text: str, pattern: str, replacement: Any) -> str:
    text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if count != 1:
        raise ReleaseError(f"expected one place like {pattern!r} in a config, found {count}")
    return text


def json_twin(text: str) -> str:
    """The same config as JSON."""
    return json_text(yaml.safe_load(text))
