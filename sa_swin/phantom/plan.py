"""Who in the built-in cohort gets what, without a tell: no attribute says anything about another one.

Values are handed out by minimisation (Pocock and Simon, Biometrics 31, 1975), as clinical trials assign treatments:
each subject gets the value that lags most behind its share among the subjects that are like this one in any respect.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from custom.data.splits import apportioned
from sa_swin.phantom.anatomy import label_maps
from sa_swin.phantom.config import Config

SITES = {"north": ("RAS", 1.0), "south": ("LPS", 0.6), "west": ("LIA", 1.7)}
"""Per site: storage orientation and the scanner's gain on MR values."""
SIDES = {"left": -1, "right": 1}
PLACES = {"both": "bilateral", "midline": "midline"}
"""The placement of a lesion that has no side, by what participants.tsv says instead of one."""
QUARTERS = 4
"""Parts of the range of volumes in which as many lesions are."""

Value = TypeVar("Value", bound=Hashable)
Level = tuple[str, Hashable]


class Balance(Generic[Value]):
    """Values of one attribute, handed out one after another so that they keep their shares at every level of others.

    Args:
        shares: of the values; those of share 0 are never given.
    """

    def __init__(self, shares: Mapping[Value, float]) -> None:
        self.shares = {value: share for value, share in shares.items() if share > 0}
        self.counts: defaultdict[Level, Counter[Value]] = defaultdict(Counter)

    def choose(
        self, levels: Sequence[Level], generator: np.random.Generator, allowed: Collection[Value] | None = None
    ) -> Value:
        """The value that lags most, summed over the levels and over all so far; ties are drawn.

        Args:
            levels: the subject's value of every other attribute.
            generator: of the draw.
            allowed: values to choose from, in place of all.
        """
        tables = [self.counts[level] for level in (("all", None), *levels)]
        sizes = [table.total() + 1 for table in tables]
        values = [value for value in self.shares if allowed is None or value in allowed]
        lags = [
            sum(self.shares[value] * size - table[value] for table, size in zip(tables, sizes, strict=True))
            for value in values
        ]
        value = values[int(generator.choice(np.flatnonzero(np.array(lags) > max(lags) - 1e-6)))]
        for table in tables:
            table[value] += 1
        return value


def even(values: Collection[Value]) -> Balance[Value]:
    """A balance of values with equal shares."""
    return Balance(dict.fromkeys(values, 1 / len(values)))


@dataclass(frozen=True)
class Plan:
    """What one subject gets.

    Args:
        diagnosis: healthy, or a finding.
        side: left, right, both or midline; n/a in the healthy.
        quarter: of the range of volumes, on a log scale, in which the lesion's lies, 0 to 3; -1 in the healthy.
        site: of `SITES`.
        bare: whether skull and scalp are left out.
        anatomy: number of the label map.
        reflected: whether the label map is.
    """

    diagnosis: str
    side: str
    quarter: int
    site: str
    bare: bool
    anatomy: int
    reflected: bool

    @property
    def place(self) -> str:
        """Which of `sa_swin.phantom.lesion.PLACEMENTS` the lesion has."""
        return PLACES.get(self.side, "one-sided")


@lru_cache(maxsize=8)
def plans(config: Config) -> tuple[Plan, ...]:
    """The plan of every subject; that of one does not depend on how many follow."""
    one_sided = 1 - config.bilateral - config.midline
    sides = {"left": one_sided / 2, "right": one_sided / 2, "both": config.bilateral, "midline": config.midline}
    finding, side, quarter = even(config.findings), Balance(sides), even(range(QUARTERS))
    bare = Balance({True: {"true": 0, "false": 1, "mixed": 0.5}[config.skull], False: float(config.skull != "false")})
    anatomies = len(label_maps(config.anatomies)) if config.anatomies else 1
    rest = {"site": even(SITES), "bare": bare, "anatomy": even(range(anatomies)), "reflected": even((False, True))}
    made = []
    for number in range(1, config.subjects + 1):
        generator = np.random.default_rng([config.seed, number, 1])
        own: dict[str, Hashable] = {"diagnosis": "healthy", "side": "n/a", "quarter": -1}
        if is_patient(config, number):
            own["diagnosis"] = finding.choose([], generator)
            own["side"] = side.choose(tuple(own.items())[:1], generator)
            own["quarter"] = quarter.choose(tuple(own.items())[:2], generator)
        for name, balance in rest.items():
            own[name] = balance.choose((("healthy", own["diagnosis"] == "healthy"), *own.items()), generator)
        made.append(Plan(**own))
    return tuple(made)


def is_patient(config: Config, number: int) -> bool:
    """Whether a subject is one: healthy and patients take turns, by the share of patients."""
    return int(number * config.patients + 1e-9) > int((number - 1) * config.patients + 1e-9)


def apportion(
    rows: Sequence[Sequence[Level]], shares: Mapping[Value, float], generator: np.random.Generator
) -> list[Value]:
    """A value for every row: its share, rounded, of the rows of one class, and as near to it as can be elsewhere.

    Args:
        rows: the values of a subject's other attributes, its class first.
        shares: of the values.
        generator: of order and draws.
    """
    balance, sizes = Balance(shares), Counter(row[0] for row in rows)
    free = {name: Counter(apportioned(size, shares, dict.fromkeys(shares, 0.0))) for name, size in sizes.items()}
    given: dict[int, Value] = {}
    for i in generator.permutation(len(rows)):
        own = free[rows[i][0]]
        given[int(i)] = value = balance.choose(rows[i], generator, +own)
        own[value] -= 1
    return [given[i] for i in range(len(rows))]
