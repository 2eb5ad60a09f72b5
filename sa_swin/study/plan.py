"""A study file: its cohort, its arms, and the cells that they make."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from custom.support.errors import UserError
from custom.support.files import digest_of
from custom.support.run_record import commit
from custom.weights.pretrained import pretrained_file

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
BUNDLE_TASKS = ("pretrain", "classify", "segment")
TASKS = (*BUNDLE_TASKS, "normative")
AXES = ("task", "variant", "pretraining", "control", "label_percent")
"""What an arm is one combination of. Its cells differ by their seed alone."""
PLAIN = {"pretraining": "none", "control": "none", "label_percent": 100}
INPUT = ("modality", "in_channels", "counterpart", "spacing", "spatial_size")
"""Settings of what a network, or the normative score, sees."""
NETWORK = "network"
"""Key of a variant that is another network than the bundle's, by its `_target_`."""
PARTS = {
    "name", "title", "about", "commit", "cohort", "folds", "grid", "settings", "label_epochs", "variants",
    "pretraining", "controls", "groups", "seeds", "arms", "comparisons", *BUNDLE_TASKS,
}  # fmt: skip


class StudyError(UserError):
    """What is wrong with a study file."""


@dataclass(frozen=True)
class Arm:
    """One combination of the study's axes.

    Args:
        task: `classify`, `segment`, `pretrain` for the zero-shot score of a pretrained network, or `normative` for
            that of `sa_swin.study.normative`, which trains nothing.
        variant: name of a variant of the network.
        pretraining: name of a pretraining, or `none`.
        control: name of a control, or `none`.
        label_percent: of the training subjects.
    """

    task: str
    variant: str
    pretraining: str = "none"
    control: str = "none"
    label_percent: float = 100

    @property
    def name(self) -> str:
        """The arm in words, without the axes that stand at their usual value."""
        further = [f"{self.label_percent:g} % of labels"] if self.label_percent != 100 else []
        further += [text for text in (self.control,) if text != "none"]
        pretrained = [] if self.pretraining == "none" else [f"{self.pretraining} pretraining"]
        return ", ".join([self.variant, *pretrained, *further])


@dataclass(frozen=True, eq=False)
class Cell:
    """One bundle run: an arm with a seed and a fold, the settings that it comes to, and the pretraining it starts from.

    Args:
        arm: its arm.
        seed: of the training.
        settings: overrides of the bundle's configuration.
        control: keyword arguments of `sa_swin.study.controls.ControlledContract`.
        align: whether it runs on the aligned cohort.
        cohort: options of the cohort and its grid, a part of the identity.
        start: the pretraining cell whose weights it starts from.
        fold: whose subjects it is tested on, where there are folds.
        network: that takes the place of the bundle's, as a configuration has it; None leaves it.
    """

    arm: Arm
    seed: int
    settings: Mapping[str, Any]
    control: Mapping[str, Any]
    align: bool
    cohort: Mapping[str, Any]
    start: "Cell | None" = None
    fold: int | None = None
    network: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Identity: cells with the same settings are the same run, whatever their names."""
        content = {
            "task": self.arm.task,
            "seed": self.seed,
            "settings": dict(self.settings),
            "control": dict(self.control),
            "align": self.align,
            "cohort": dict(self.cohort),
            "start": self.start and self.start.digest,
            "fold": self.fold,
            "network": self.network and dict(self.network),
        }
        if name := self.settings.get("pretrained"):  # other weights under the same name are another run
            content["weights"] = file_digest(pretrained_file(name))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The cell in words."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.arm.task}: {self.arm.name}{fold}, seed {self.seed}"


@cache
def file_digest(path: str) -> str:
    """SHA-256 of a file.

    Raises:
        StudyError: it cannot be read.
    """
    try:
        return digest_of(path)
    except OSError as error:
        raise StudyError(f"no weights {path}: {error.strerror}") from error


@cache
def knobs(task: str) -> frozenset[str]:
    """Names of the settings of a bundle's training.

    Raises:
        StudyError: where the bundles are not: the package was installed without its repository.
    """
    path = BUNDLES / f"sa_swin_{task}" / "configs" / "train.yaml"
    if not path.is_file():
        raise StudyError(f"no {path}: a study needs the repository's bundles; install with pip install --editable")
    return frozenset(yaml.safe_load(path.read_text())["settings"])


class Study:
    """A study file, checked.

    Args:
        path: YAML with the parts named in `PARTS`; `studies/*.yaml` are examples.

    Raises:
        StudyError: with what is wrong.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise StudyError(f"{path} is no study file: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or set(content) - PARTS or not {"cohort", "grid", "arms"} <= set(content):
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise StudyError(f"{path}: a study has cohort, grid, arms, and further {sorted(PARTS)}; found {found}")
        self.content = {"name": Path(path).stem, "seeds": [0, 1, 2], "groups": {}, "comparisons": [],
                        **content}  # fmt: skip
        if epochs := content.get("label_epochs"):
            self.content["label_epochs"] = {str(percent): own for percent, own in epochs.items()}  # as JSON has them
        number = content.get("folds", 0)
        if not isinstance(number, int) or number < 0 or number == 1:
            raise StudyError(f"folds must be 0 (the cohort's own split) or at least 2, got {number}")
        self.named = {
            "variant": content.get("variants", {}),
            "pretraining": {"none": {}, **content.get("pretraining", {})},
            "control": {"none": {}, **content.get("controls", {})},
        }
        self.arms = list(dict.fromkeys(arm for block in content["arms"] for arm in self.block(block)))
        self.comparisons = [self.comparison(entry) for entry in self.content["comparisons"]]

    def block(self, block: Mapping[str, Any]) -> Iterator[Arm]:
        """All arms of a block of the grid, each of whose axes is one value or a list of them."""
        values = {**PLAIN, **block}
        if missing := [axis for axis in AXES if axis not in values] or sorted(set(values) - set(AXES)):
            raise StudyError(f"an arm has {', '.join(AXES)}; look at {', '.join(missing)} of {dict(block)}")
        lists = [value if isinstance(value, list) else [value] for value in (values[axis] for axis in AXES)]
        for combination in product(*lists):
            arm = Arm(*combination)
            self.check(arm)
            yield arm

    def check(self, arm: Arm) -> None:
        """Refuse an arm with a name that the study does not explain."""
        if arm.task not in TASKS:
            raise StudyError(f"task must be one of {', '.join(TASKS)}, got {arm.task}")
        for axis, known in self.named.items():
            if getattr(arm, axis) not in known:
                raise StudyError(f"unknown {axis} '{getattr(arm, axis)}', the study names {', '.join(known)}")
        if arm.task == "pretrain" and arm.pretraining == "none":
            raise StudyError("an arm of task pretrain needs a pretraining")

    def comparison(self, entry: Mapping[str, Any]) -> tuple[Arm, Arm, str | None]:
        """The two arms of a comparison, the second of which is what the first is held against, and the group."""
        shared = {key: value for key, value in entry.items() if key not in ("arm", "against", "group")}
        arms = [next(self.block({**shared, **entry[side]})) for side in ("arm", "against")]
        if unknown := [arm.name for arm in arms if arm not in self.arms]:
            raise StudyError(f"a comparison with {'; '.join(unknown)}, which is no arm of the study")
        group = entry.get("group")
        if group is not None and group not in self.content["groups"]:
            raise StudyError(f"unknown group '{group}', the study names {', '.join(self.content['groups'])}")
        return arms[0], arms[1], group

    @property
    def cohort(self) -> dict[str, Any]:
        """What decides the images: options of the cohort and of `sa-swin prepare`."""
        return {"cohort": self.content["cohort"], **self.content["grid"], "folds": len(self.folds)}

    @property
    def folds(self) -> list[int | None]:
        """The folds, in each of which other subjects are tested; `[None]` where the cohort's own split is used."""
        return list(range(self.content.get("folds", 0))) or [None]

    def cell(self, arm: Arm, seed: int, fold: int | None = None) -> Cell:
        """An arm's cell with a seed, in a fold."""
        control = dict(self.named["control"][arm.control])
        align = control.pop("align", True)
        if arm.task == "normative":  # nothing is drawn: every seed is the same cell
            settings = {**self.content.get("settings", {}), **self.content["grid"]}
            seen = {name: value for name, value in settings.items() if name in INPUT}
            return Cell(arm, 0, seen, control, align, self.cohort, fold=fold)
        settings = self.settings(arm, seed)
        start = None
        if arm.task != "pretrain" and arm.pretraining != "none":
            start = self.cell(Arm("pretrain", arm.variant, arm.pretraining, arm.control), seed, fold)
        network = self.named["variant"][arm.variant].get(NETWORK)
        return Cell(arm, seed, settings, control, align, self.cohort, start, fold, network)

    def settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Overrides of the arm's bundle; a variant's settings for other bundles are passed over."""
        parts = [self.content.get("settings", {}), self.content["grid"], self.content.get(arm.task, {})]
        variant = {key: value for key, value in self.named["variant"][arm.variant].items() if key != NETWORK}
        if unknown := sorted(set(variant).difference(*map(knobs, BUNDLE_TASKS))):
            raise StudyError(f"variant {arm.variant}: no bundle has a setting {', '.join(unknown)}")
        parts.append({key: value for key, value in variant.items() if key in knobs(arm.task)})
        if arm.task == "pretrain":
            parts.append(self.named["pretraining"][arm.pretraining])
        merged = {key: value for part in parts for key, value in part.items()} | {"seed": seed}
        if arm.task != "pretrain":
            merged["label_percent"] = arm.label_percent
            own = self.content.get("label_epochs", {}).get(f"{arm.label_percent:g}")
            merged |= {"max_epochs": own} if own else {}
        if unknown := sorted(set(merged) - knobs(arm.task)):
            raise StudyError(f"the bundle {arm.task} has no setting {', '.join(unknown)}")
        return merged

    def cells(self) -> list[Cell]:
        """All cells, each once, what others start from first.

        Raises:
            StudyError: when the study is of other code than this, or names settings that the bundles do not have.
        """
        wanted, found = self.content.get("commit"), str(commit())
        if wanted and not found.startswith(wanted):
            raise StudyError(f"study {self.content['name']} is of commit {wanted}, this is {found}; check that one out")
        cells = [
            self.cell(arm, seed, fold) for seed in self.content["seeds"] for fold in self.folds for arm in self.arms
        ]
        starts = [cell.start for cell in cells if cell.start]
        return list({cell.digest: cell for cell in [*starts, *cells]}.values())


def describe(arm: Arm) -> dict[str, Any]:
    """An arm as JSON holds it."""
    return asdict(arm) | {"name": arm.name}


def members(facts: Mapping[str, Mapping[str, Any]], group: Mapping[str, Any] | None) -> set[str]:
    """Subjects that a group names; the healthy, and class 0, belong to every group.

    Args:
        facts: of each subject.
        group: for each fact a list of its values, or bounds of a number, such as `{from: 3, below: 10}`.
    """
    return {
        subject
        for subject, own in facts.items()
        if own.get("healthy")
        or own.get("label") == 0
        or all(meets(own.get(key), wanted) for key, wanted in (group or {}).items())
    }


def meets(value: Any, wanted: Sequence[Any] | Mapping[str, float]) -> bool:
    """Whether a fact is one of the values, or within bounds."""
    if not isinstance(wanted, Mapping):
        return value in wanted
    return value is not None and wanted.get("from", -math.inf) <= float(value) < wanted.get("below", math.inf)
