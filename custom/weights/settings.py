"""What weights were trained with: input contract and network sizes travel inside the weights file, and are asked there.

A run that starts from weights takes their settings; one that was told otherwise is refused, with both values.
`model.pt` stays a flat state dict: what it carries is an attribute of the dictionary itself, which `torch.load` keeps
and everybody else passes over.
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from custom.data.datalist import class_names
from custom.weights.transfer import WeightsError, load_checkpoint, read_checkpoint, weights_digest

STATED = ("modality", "in_channels", "spacing", "spatial_size")
"""Settings of the input, which no tensor tells of."""
CONTRACT = (*STATED, "counterpart", "asymmetry_map")
"""All of the input contract; weights that do not speak of the last two have the mirror image, and no map."""
ENCODER = ("feature_size", "window_size", "depths", "num_heads", "symmetry")
"""Sizes of what pretraining hands on."""
HEAD = ("num_classes", "readout", "embedding_size", "dense")
"""Sizes of one task's network."""
OBJECTIVE = ("objective", "loss_weights", "painted")
"""What a training that goes on must not change: its losses, and its best weights by them, would not compare."""

logger = logging.getLogger(__name__)


def carrying(state: Mapping[str, Tensor], **facts: Any) -> OrderedDict[str, Tensor]:
    """A state dict that carries facts when it is saved: plain values, lists and dictionaries, which `carried` reads."""
    carrier = OrderedDict(state)
    for name, fact in facts.items():
        setattr(carrier, name, fact)
    return carrier


def as_metadata(**facts: Any) -> dict[str, str]:
    """The same facts as the metadata of a safetensors file; one entry, since it writes several in random order."""
    return {"carried": json.dumps(facts)}


def carried(path: str | Path, name: str) -> Any:
    """What a weights file carries under a name beside its tensors, or an entry of a whole checkpoint; else None.

    Raises:
        WeightsError: no such file, or not a checkpoint.
    """
    content = read_checkpoint(path)
    if Path(path).suffix == ".safetensors":
        return _metadata(path).get(name)
    found = getattr(content, name, None)
    return content.get(name) if found is None and isinstance(content, Mapping) else found


def _metadata(path: str | Path) -> dict[str, Any]:
    from safetensors import safe_open  # only where there is such a file: packages do without

    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("carried", "{}"))


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of a network that its tensors give away; what is not found stays at the config's default."""
    tables = {name: t for name, t in tensors.items() if name.endswith("relative_position_bias_table")}
    found: dict[str, Any] = {"symmetry": "saca" if any(n.startswith("symmetry.") for n in tensors) else "none"}
    if (patches := tensors.get("swinViT.patch_embed.proj.weight")) is not None:
        found |= {"feature_size": patches.shape[0], "in_channels": patches.shape[1]}
    if tables:
        stages = sorted({name.split(".")[1] for name in tables if name.startswith("swinViT.layers")})
        heads = {stage: [t.shape[1] for n, t in tables.items() if n.split(".")[1] == stage] for stage in stages}
        found["depths"] = [len(heads[stage]) for stage in stages]
        found["num_heads"] = [heads[stage][0] for stage in stages]
        found["window_size"] = (round(len(next(iter(tables.values()))) ** (1 / 3)) + 1) // 2  # (2 window - 1)^3 rows
    if any(name.startswith("head.") for name in tensors):
        found["readout"] = "places" if any(name.startswith("head.3.") for name in tensors) else "paper"
        if "in_channels" in found:
            mapped = any(name.startswith("head.4.") for name in tensors)  # the evidence of the asymmetry map
            found |= {"asymmetry_map": mapped, "in_channels": found["in_channels"] - int(mapped)}
    elif any(name.startswith("contrastive_head.") for name in tensors):
        found["readout"] = "paper" if any(name.startswith("symmetry_head.") for name in tensors) else "places"
    elif any(name.startswith("decoder1.") for name in tensors):
        found["readout"] = "places" if any(name.startswith("comparisons.") for name in tensors) else "paper"
    if any(name.startswith("contrastive_head.") for name in tensors):
        found["dense"] = any(name.startswith("dense_head.") for name in tensors)
    for prefix, name in (("contrastive_head.", "embedding_size"), ("head.", "num_classes"), ("out.", "num_classes")):
        if biases := [t for n, t in tensors.items() if n.startswith(prefix) and n.endswith(".bias")]:
            found[name] = len(biases[-1])
    return found


def task_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The bundle whose network tensors are of, by their last layers: `segment`, `pretrain`, `classify`, or None."""
    heads = (("out.", "segment"), ("contrastive_head.", "pretrain"), ("head.", "classify"))
    return next((task for prefix, task in heads if any(name.startswith(prefix) for name in tensors)), None)


def names_to(count: int, given: Sequence[str] | None, masks: bool) -> list[str]:
    """Names of `count` classes: those that weights were given, and "class 2" for one that has none.

    Args:
        count: of classes, the background of masks included.
        given: `class_names` of the weights; a list may have fewer.
        masks: whether class 0 is the background, and a single further one the lesion where nothing is given.
    """
    default = ["background", "lesion"] if count == 2 else ["background"]
    names = list(given or (default if masks else []))
    return [*names[:count], *(f"class {index}" for index in range(len(names), count))]


def telling(names: Sequence[str]) -> dict[int, str]:
    """The names of classes by number, in lower case, that say which one it is: not "class 1", nor a mask's "lesion"."""
    nothing = r"class \d+|lesion" if names[:1] == ["background"] else r"class \d+"
    return {number: name.lower() for number, name in enumerate(names) if not re.fullmatch(nothing, name)}


def channels_of(settings: Mapping[str, Any]) -> int:
    """Channels of each half of the pair: of the files, and of the asymmetry map."""
    return int(settings.get("in_channels", 1)) + int(settings.get("asymmetry_map", False))


def settings_in(path: str | Path) -> dict[str, Any] | None:
    """The settings that weights carry, or None; those of old weights, with what has come since and was so for them.

    Raises:
        WeightsError: as `carried`.
    """
    found = carried(path, "settings")
    if not isinstance(found, Mapping) or not found:
        return None
    found = {"asymmetry_map": False} | found  # from before there was one
    if "readout" in found:
        return found
    return {name: value for name, value in sizes(load_checkpoint(path)).items() if name == "readout"} | found


class Weights:
    """The weights that a run uses, or starts from, and the settings that they were trained with.

    Several weights are used together, as those of the folds of one training; the first speaks for all.

    Args:
        path: of the weights, or a list; empty where a training starts from nothing.
        names: of the settings that bind the run; None takes all.
        optional: weights that carry no settings bind nothing (a training that starts from published ones).
        resume_from: the checkpoint to go on from, exactly, where that is what they are.
        several: whether several can be used together.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path] = "",
        names: tuple[str, ...] | None = None,
        optional: bool = False,
        resume_from: str = "",
        several: bool = True,
    ) -> None:
        self.paths = paths_of(path)
        self.path, self.resume_from, self.optional, self.several = self.paths[0], resume_from, optional, several
        there = bool(self.path) and Path(self.path).is_file()
        settings = settings_in(self.path) if there else None
        self.unknown = there and settings is None and not optional
        if self.unknown:
            settings = sizes(load_checkpoint(self.path))
        self.settings = {n: v for n, v in (settings or {}).items() if names is None or n in names}

    def get(self, name: str, default: Any) -> Any:
        """A setting of the weights; the default where there are none, or where they need not say.

        Raises:
            WeightsError: weights that should say and do not.
        """
        if name not in self.settings and self.unknown and name in (*STATED, *ENCODER, *HEAD, "roi_size"):
            missing = [n for n in (*STATED, "roi_size") if n not in self.settings]
            options = " ".join(f"--{n}" for n in dict.fromkeys([name, *missing]))
            raise WeightsError(
                f"{self.path} does not say what it was trained with: no {name}; give {options} as they were in its "
                "training"
            )
        return self.settings.get(name, default)

    def check(self, settings: Mapping[str, Any], override: bool = False) -> None:
        """Refuse settings of a run that contradict those of its weights, or warn where that is overridden.

        Raises:
            WeightsError: with the values of both; where there is no such file, or several are not of one training, or
                cannot be used together here.
        """
        if len(self.paths) > 1 and not self.several:
            raise WeightsError(f"weights of pretraining are used one at a time, got {len(self.paths)}: give one file")
        if missing := [path for path in self.paths if path and not Path(path).is_file()]:
            raise WeightsError(f"no checkpoint at {missing[0]}")
        for path in self.paths[1:]:
            self.check_member(path)
        asked = (*CONTRACT, *ENCODER, *HEAD, *(OBJECTIVE if self.resume_from else ()))
        known = [name for name in asked if name in self.settings and name in settings]
        differing = [name for name in known if not same(self.settings[name], settings[name])]
        if not differing:
            return
        values = "; ".join(f"{n} {self.settings[n]}, here {settings[n]}" for n in differing)
        message = f"{self.path} was trained with other settings than those of this run: {values}"
        if not override:
            raise WeightsError(
                f"{message}. Leave out {' '.join(f'--{n}' for n in differing)} to take those of the weights; "
                "--override_contract True goes on with other ones all the same"
            )
        logger.warning("%s; --override_contract goes on", message)

    def check_classes(self, datalist: str | Path | None, override: bool = False) -> None:
        """Refuse a datalist whose classes have other names than those of the weights, or warn, as `check` does.

        Raises:
            WeightsError: with the names of both.
        """
        names = self.settings.get("class_names") or [], class_names(datalist) or []
        own, other = map(telling, names)
        if all(own[number] == other[number] for number in own.keys() & other.keys()):
            return
        told = [", ".join(f"{number} {name}" for number, name in enumerate(listed)) for listed in names]
        message = f"{self.path} was trained on the classes {told[0]}; {datalist} has {told[1]}"
        if not override:
            raise WeightsError(
                f"{message}. Give a list with the numbers of the weights; --override_contract True goes on all the same"
            )
        logger.warning("%s; --override_contract goes on", message)

    def check_member(self, path: str) -> None:
        """Refuse weights that cannot be used together with the first.

        Raises:
            WeightsError: with the settings that differ.
        """
        own = settings_in(path) or sizes(load_checkpoint(path))
        names = [name for name in (*CONTRACT, *ENCODER, *HEAD) if name in own and name in self.settings]
        if differing := [name for name in names if not same(self.settings[name], own[name])]:
            values = "; ".join(f"{name} {self.settings[name]} and {own[name]}" for name in differing)
            raise WeightsError(f"{self.path} and {path} are not of one training, and cannot go together: {values}")

    def digest(self) -> str | list[str]:
        """SHA-256 of the weights; of several a list."""
        found = [weights_digest(path) for path in self.paths]
        return found[0] if len(found) == 1 else found

    def beside(self, name: str) -> str | None:
        """A file in the folder of the first weights, if it is there."""
        path = Path(self.path).parent / name
        return str(path) if self.path and path.is_file() else None


def paths_of(path: str | Path | Sequence[str | Path]) -> list[str]:
    """One path or several as a list of text."""
    return [str(path)] if isinstance(path, str | Path) else [str(part) for part in path] or [""]


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; a number stands for three equal ones."""
    rows = [list(value) if isinstance(value, list | tuple) else None for value in (one, other)]
    length = max(len(row) for row in rows if row is not None) if any(row is not None for row in rows) else 1
    one, other = (row if row is not None else [value] * length for row, value in zip(rows, (one, other), strict=True))
    return one == other
