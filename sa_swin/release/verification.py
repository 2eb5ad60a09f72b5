"""Whether a package is what it says: its checksums, weights of tensors alone, and the code that its configs name."""

import io
import json
from collections.abc import Mapping

import torch

from custom.support.vendored import code_digest
from sa_swin.release.archive import check

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".npy", ".joblib")


def verify(files: Mapping[str, bytes]) -> list[str]:
    """Problems of a package, in sentences; none when it is sound. Nothing of it is run.

    Args:
        files: path below the package to content.
    """
    problems = check(files)
    for name, content in sorted(files.items()):
        if _may_be_pickled(name, content) and (reason := _not_tensors(content)):
            problems.append(f"{name} is not a checkpoint of tensors alone: {reason}")
    return problems + _code(files)


def _may_be_pickled(name: str, content: bytes) -> bool:
    """Whether somebody might unpickle a file: by its name, or by how it begins, as a pickle or torch's zip."""
    return name.lower().endswith(_PICKLES) or content[:1] == b"\x80" or content[:4] == b"PK\x03\x04"


def _not_tensors(content: bytes) -> str | None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the unpickler stumble in many ways
        return (str(error) or "it ends too early").splitlines()[0]
    return None


def _code(files: Mapping[str, bytes]) -> list[str]:
    """The configs refuse to run with other code; say so before they do."""
    found = code_digest({n.removeprefix("custom/"): c for n, c in files.items() if n.startswith("custom/")})
    problems = []
    for name in sorted(n for n in files if n.startswith("configs/") and n.endswith(".json")):
        try:
            content = json.loads(files[name])
        except ValueError:
            problems.append(f"{name} is not JSON")
            continue
        wanted = content.get("package", {}).get("code", {}).get("digest", found)
        if wanted != found:
            problems.append(f"{name} was made for other code than the custom/ of this package")
    return problems
