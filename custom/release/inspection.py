"""What the configs of a package would run: every callable and every expression, listed without running any."""

import builtins
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from custom.release.errors import ReleaseError

FAMILIAR = ("monai", "torch", "ignite", "numpy", "custom")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that a config runs.

    Args:
        kind: `callable` (a `_target_`), `expression` (evaluated as Python), `import`, or `logging` (evaluated by
            Python's logging).
        value: as it stands in the config.
        file, id: where.
    """

    kind: str
    value: str
    file: str
    id: str


def inspect(files: Mapping[str, bytes]) -> list[Finding]:
    """All that the configs of a package would run, in order of kind and value.

    Args:
        files: path below the package to content. A JSON file that equals its YAML twin is listed once.

    Raises:
        ReleaseError: a config that cannot be read.
    """
    configs = {name: _parsed(name, content) for name, content in sorted(files.items()) if _is_config(name)}
    findings: list[Finding] = []
    for name, content in configs.items():
        if configs.get(name.removesuffix("json") + "yaml") != content or not name.endswith(".json"):
            findings += _walk(content, name, "")
    for name in (name for name in sorted(files) if name.startswith("configs/") and name.endswith(".conf")):
        findings += _logging(files[name].decode(errors="replace"), name)
    return sorted(findings)


def _is_config(name: str) -> bool:
    return name.endswith((".yaml", ".yml", ".json")) and (name.startswith("configs/") or "/" not in name)


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content) if name.endswith(".json") else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError) as error:
        raise ReleaseError(f"{name} cannot be read: {' '.join(str(error).split())}") from error


def _walk(content: Any, file: str, place: str) -> Iterator[Finding]:
    """Expressions and callables below a place, also in the keys."""
    if isinstance(content, Mapping):
        if "_target_" in content:
            yield Finding("callable", str(content["_target_"]), file, place)
        for key, value in content.items():
            if key != "_target_" or str(value).startswith("$"):
                yield from _walk(value, file, f"{place}::{key}" if place else str(key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _walk(value, file, f"{place}::{index}" if place else str(index))
    elif isinstance(content, str) and content.startswith("$"):
        is_import = content[1:].lstrip().startswith(("import ", "from "))
        yield Finding("import" if is_import else "expression", content[1:], file, place)


def _logging(text: str, file: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        name, _, value = line.partition("=")
        if name.strip() in ("args", "kwargs", "class"):
            yield Finding("logging", f"{name.strip()}={value.strip()}", file, f"line {number}")


def is_familiar(finding: Finding) -> bool:
    """Whether a callable is of MONAI (a bare name, but no builtin), torch, ignite, numpy or the package's `custom`."""
    top, dot, _ = finding.value.partition(".")
    return finding.kind != "callable" or (top in FAMILIAR if dot else not hasattr(builtins, top))


def report(findings: list[Finding]) -> str:
    """A table for people: each value once, with the places where it stands."""
    lines = []
    for kind in ("callable", "expression", "import", "logging"):
        places: dict[str, list[Finding]] = {}
        for finding in (f for f in findings if f.kind == kind):
            places.setdefault(finding.value, []).append(finding)
        lines.append(f"{kind}s: {len(places)}" if kind != "logging" else f"logging: {len(places)}")
        for value, where in places.items():
            mark = "  " if is_familiar(where[0]) else "! "
            files = ", ".join(dict.fromkeys(f"{f.file.rsplit('/', 1)[-1]} {f.id}" for f in where[:3]))
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            lines.append(f"{mark}{' '.join(value.split())}\n      {files}{more}")
    strange = sum(not is_familiar(finding) for finding in findings)
    lines.append(
        f"{strange} callables from elsewhere than {', '.join(FAMILIAR)} (marked !); the others may do harm, too"
    )
    return "\n".join(lines) + "\n"
