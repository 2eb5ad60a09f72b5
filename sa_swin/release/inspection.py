"""What the configs of a package would run: every callable and every expression, listed without running any."""

import builtins
import configparser
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from custom.support.vendored import code_digest, installed_digest
from sa_swin.release.errors import ReleaseError

FAMILIAR = ("monai", "torch", "ignite", "numpy", "custom")
KINDS = ("callable", "expression", "import", "file", "url", "code", "logging")
MOST_VALUES = 100_000
"""Values of a config: with references of YAML a short text can stand for billions."""

_REACHES_OUT = {
    *("load", "load_inline", "load_url", "run", "run_cmd", "compile", "eval", "exec", "open", "extractall"),
    *("download", "download_url", "download_and_extract", "download_mmar"),
}
"""Functions of the familiar packages that unpickle, run or fetch what they are given."""
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,9}://", re.IGNORECASE)
_FILE = re.compile(r"%.*\.(?:json|ya?ml)(?:::|#|$)", re.IGNORECASE | re.DOTALL)
_CODE = (".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".pth", ".egg", ".whl", ".sh")


@dataclass(frozen=True, order=True)
class Runnable:
    """One thing that a config runs, or that runs without one.

    Args:
        kind: `callable` (a `_target_`), `expression` (evaluated as Python), `import`, `file` (another config that is
            read), `url`, `code` (Python that lies where it would be imported), or `logging` (evaluated by Python's
            logging).
        value: as it stands in the config.
        file, id: where.
    """

    kind: str
    value: str
    file: str
    id: str


def inspect(files: Mapping[str, bytes]) -> list[Runnable]:
    """All that the configs of a package would run, in order of kind and value.

    Args:
        files: path below the package to content; of what is neither config nor code the name is enough. A JSON file
            that equals its YAML twin is listed once.

    Raises:
        ReleaseError: a config that cannot be read, or refers to itself.
    """
    configs = {name: _parsed(name, content) for name, content in sorted(files.items()) if _is_config(name)}
    findings = list(_code(files))
    for name, content in configs.items():
        try:
            if not _is_twin(name, configs):
                findings += _walk(content, name)
        except RecursionError as error:
            raise ReleaseError(f"{name} refers to itself, or is nested too deeply") from error
    for name in (name for name in sorted(files) if is_logging(name)):
        findings += _logging(files[name].decode(errors="replace"), name)
    return sorted(findings)


def is_read(name: str) -> bool:
    """Whether `inspect` needs a file's content."""
    return _is_config(name) or is_logging(name) or (name.startswith("custom/") and name.endswith(".py"))


def is_logging(name: str) -> bool:
    """Whether a file may configure Python's logging."""
    return name.lower().endswith((".conf", ".ini", ".cfg"))


def _is_config(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml", ".json"))


def _is_twin(name: str, configs: Mapping[str, Any]) -> bool:
    twin = name.removesuffix("json") + "yaml"
    return name.endswith(".json") and twin in configs and configs[twin] == configs[name]


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content) if name.lower().endswith(".json") else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ReleaseError(f"{name} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _walk(content: Any, file: str) -> Iterator[Runnable]:
    """Expressions, callables, files and URLs of a config; keys name places, as `a::b` and `a#b` do in MONAI."""
    left = MOST_VALUES
    waiting = [(content, "")]
    while waiting:
        value, place = waiting.pop()
        if (left := left - 1) < 0:
            raise ReleaseError(f"{file} holds more than {MOST_VALUES} values, or refers to itself")
        if isinstance(value, Mapping):
            for key, own in value.items():
                if isinstance(own, str) and re.split("::|#", str(key))[-1] == "_target_":
                    yield Runnable("callable", own, file, "::".join(filter(None, [place, *_parents(str(key))])))
                waiting.append((own, f"{place}::{key}" if place else str(key)))
        elif isinstance(value, list):
            waiting += [(own, f"{place}::{index}" if place else str(index)) for index, own in enumerate(value)]
        elif isinstance(value, str):
            yield from _text(value, file, place)


def _parents(key: str) -> list[str]:
    return re.split("::|#", key)[:-1]


def _text(value: str, file: str, place: str) -> Iterator[Runnable]:
    if value.startswith("$"):
        is_import = value[1:].lstrip().startswith(("import ", "from "))
        yield Runnable("import" if is_import else "expression", value[1:], file, place)
    if _FILE.match(value):
        yield Runnable("file", value[1:], file, place)
    if _URL.search(value):
        yield Runnable("url", value, file, place)


def _logging(text: str, file: str) -> Iterator[Runnable]:
    """What `logging.config.fileConfig` evaluates, as its own parser reads it."""
    parser = configparser.ConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ReleaseError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}") from error
    for section in parser.sections():
        for name in ("class", "args", "kwargs"):
            if parser.has_option(section, name):
                try:
                    value = parser.get(section, name)
                except configparser.Error:
                    value = parser.get(section, name, raw=True)
                yield Runnable("logging", f"{name}={value}", file, section)


def _code(files: Mapping[str, bytes]) -> Iterator[Runnable]:
    """Code beside the configs: where a package lies, Python looks for every module, also for those it has already."""
    own = {name.removeprefix("custom/"): content for name, content in files.items() if name.startswith("custom/")}
    for name in files:
        if name.lower().endswith(_CODE) and not (name.startswith("custom/") and name.endswith(".py")):
            yield Runnable("code", name, PurePosixPath(name).name, "")
    if own and code_digest(own) != installed_digest():
        yield Runnable("code", "custom/, which is not the code of this installation", "custom", "")


def is_familiar(finding: Runnable) -> bool:
    """Whether a callable is of MONAI (a bare name, but no builtin), torch, ignite, numpy or the package's `custom`.

    Not so what they import from elsewhere (`torch.os.system`), or what unpickles, runs or fetches what it is given.
    """
    if finding.kind in ("file", "url", "code"):
        return False
    if finding.kind != "callable":
        return True
    top, *rest = finding.value.split(".")
    if not _NAME.fullmatch(finding.value) or finding.value.split(".")[-1] in _REACHES_OUT:
        return False
    if not rest:
        return not hasattr(builtins, top)
    return top in FAMILIAR and not any(part in sys.stdlib_module_names or part.startswith("__") for part in rest)


def report(findings: list[Runnable]) -> str:
    """A table for people: each value once, with the places where it stands; what a terminal would obey is escaped."""
    lines = []
    for kind in KINDS:
        places: dict[str, list[Runnable]] = {}
        for finding in (f for f in findings if f.kind == kind):
            places.setdefault(finding.value, []).append(finding)
        if places or kind in ("callable", "expression", "import", "logging"):
            lines.append(f"{kind}s: {len(places)}" if kind not in ("logging", "code") else f"{kind}: {len(places)}")
        for value, where in places.items():
            mark = "  " if is_familiar(where[0]) else "! "
            files = ", ".join(dict.fromkeys(f"{f.file.rsplit('/', 1)[-1]} {f.id}" for f in where[:3]))
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            lines.append(f"{mark}{_printable(value)}\n      {_printable(files)}{more}")
    strange = sum(not is_familiar(finding) for finding in findings)
    lines.append(
        f"{strange} things from elsewhere than {', '.join(FAMILIAR)}, or that run or fetch others (marked !); the "
        "others may do harm, too"
    )
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """One line of text, with control characters, and those that change its direction, as escapes."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
