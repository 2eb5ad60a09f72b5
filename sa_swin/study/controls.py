"""Mirrored counterparts that are wrong on purpose: what symmetry awareness gains must vanish with them.

Shapes: a symmetric pair is `(2C, X, Y, Z)`, C channels of the image, then C of its mirrored counterpart.
"""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import AffineTransform
from monai.transforms import create_rotate, create_translate
from torch import Tensor

from custom.data.datalist import SECTIONS, read_lists
from custom.support.errors import UserError
from custom.symmetry import mirror, split_pair
from custom.transforms.contract import InputContract

KINDS = ("none", "other_subject", "wrong_axis", "own_image", "misaligned", "reflected")


def wrong_axis(counterpart: Tensor) -> Tensor:
    """The image flipped front to back, from its mirror image `(C, X, Y, Z)`."""
    return mirror(counterpart).flip(-2)


def own_image(counterpart: Tensor) -> Tensor:
    """The image itself, from its mirror image: the network without anything to compare."""
    return mirror(counterpart)


def misaligned(counterpart: Tensor, spacing: Sequence[float], shift_mm: float = 0.0, degrees: float = 0.0) -> Tensor:
    """The mirror image `(C, X, Y, Z)` moved along the left-right axis and turned about the vertical one.

    Args:
        counterpart: the mirror image.
        spacing: mm per voxel.
        shift_mm: towards the right.
        degrees: of the turn, about the centre of the volume.
    """
    centre = create_translate(3, [(size - 1) / 2 for size in counterpart.shape[1:]])
    scale = np.diag([*spacing, 1.0]) @ np.linalg.inv(centre)  # voxels to mm from the centre
    move = create_translate(3, (shift_mm, 0.0, 0.0)) @ create_rotate(3, (0.0, 0.0, np.deg2rad(degrees)))
    matrix = np.linalg.inv(scale) @ np.linalg.inv(move) @ scale  # of voxels, from target to source
    sample = AffineTransform(normalized=False, mode="bilinear", padding_mode="border", align_corners=True)
    return sample(counterpart[None].float(), torch.as_tensor(matrix, dtype=torch.float32)[None])[0]


class ControlledContract(InputContract):
    """The input contract with a mirrored counterpart that a control has replaced; prepared volumes stay in memory.

    Args:
        kind: one of `KINDS`; `other_subject` takes the mirror image of the next subject in the same list; `reflected`
            is no control but the pair of the reflected brain.
        datalist: lists of the cohort's images, for `other_subject`.
        dataset_dir: what their paths are relative to.
        shift_mm, degrees: of `misaligned`.
        arguments: of `InputContract`.

    Raises:
        UserError: when `kind` is unknown.
    """

    prepared: dict[Hashable, Mapping[Hashable, Any]] = {}  # noqa: RUF012  shared by all the cells of a process

    def __init__(
        self,
        kind: str = "none",
        datalist: str | None = None,
        dataset_dir: str = ".",
        shift_mm: float = 0.0,
        degrees: float = 0.0,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        if kind not in KINDS:
            raise UserError(f"unknown control '{kind}', choose one of {', '.join(KINDS)}")
        self.kind = kind
        self.arguments = arguments
        self.other_image = other_images(datalist, dataset_dir) if kind == "other_subject" else {}
        spacing = arguments.get("spacing", 1.0)
        spacing = list(spacing) if isinstance(spacing, Sequence) else [spacing] * 3
        self.replace: dict[str, Callable[[Tensor], Tensor]] = {
            "wrong_axis": wrong_axis,
            "own_image": own_image,
            "misaligned": lambda counterpart: misaligned(counterpart, spacing, shift_mm, degrees),
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.kind == "none":
            result = self.remembered("whole", data, lambda: self.mapped(dict(self.load(data))))
        else:
            result = self.mapped(self.replaced(data))
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in result.items()}

    def replaced(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The symmetric pair with the counterpart that the control says."""
        result = dict(self.load(data))
        image, counterpart = split_pair(result["image"])
        if self.kind == "reflected":
            result["image"] = torch.cat([counterpart, image], dim=0)
        else:
            result["image"] = torch.cat([image, self.counterpart(str(data["image"]), counterpart)], dim=0)
        return result

    @cached_property
    def without_label(self) -> "ControlledContract":
        """The same contract for an image that comes without its mask."""
        return ControlledContract(**self.arguments | {"label_key": None})

    def counterpart(self, path: str, own: Tensor) -> Tensor:
        """What takes the place of the mirrored counterpart."""
        if self.kind == "other_subject":
            other = self.without_label.load({"image": self.other_image[os.path.abspath(path)]})
            return split_pair(other["image"])[1].as_tensor()
        plain = own.as_tensor() if isinstance(own, MetaTensor) else own
        return self.replace[self.kind](plain)

    def load(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """The symmetric pair, and the label if there is one, from memory once they were made."""
        return self.remembered("pair", data, lambda: self.paired(data))

    def remembered(
        self, what: str, data: Mapping[Hashable, Any], make: Callable[[], Mapping[Hashable, Any]]
    ) -> Mapping[Hashable, Any]:
        """What was made of a case before, or is made now."""
        key = (what, repr(sorted(self.arguments.items())), str(data["image"]), str(data.get("label")))
        if key not in self.prepared:
            self.prepared[key] = make()
        return self.prepared[key]


def other_images(datalist: str | Path, dataset_dir: str | Path) -> dict[str, str]:
    """For each image of a cohort one of another subject, drawn whatever its label, so that it tells nothing of it.

    Both are absolute paths. The other is of the same list; where that has one subject alone, of the training's or else
    the validation's: no test image reaches the training.

    Raises:
        UserError: there is no other subject.
    """
    lists, rng = read_lists(Path(datalist)), np.random.default_rng(0)
    pairs: dict[str, str] = {}
    seen = [lists.get(name, []) for name in ("training", "validation")]
    for section in SECTIONS:
        entries = lists.get(section, [])
        for entry in entries:
            pools = ([e for e in pool if e["subject"] != entry["subject"]] for pool in (entries, *seen))
            if not (others := next(filter(None, pools), [])):
                raise UserError(f"{datalist}: the control other_subject needs two subjects, {section} has one")
            other = others[int(rng.integers(len(others)))]
            own, theirs = (os.path.abspath(Path(dataset_dir) / e["image"]) for e in (entry, other))
            pairs[own] = theirs
    return pairs
