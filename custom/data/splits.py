"""Splits and label fractions by subject: stratified, with relatives kept together, the same for the same seed."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from custom.data.case import Case, CohortError, subject_of

Part = Hashable  # "training", "testing", or the number of a fold


def split_subjects(
    strata: Mapping[str, Hashable],
    shares: Mapping[Part, float],
    groups: Sequence[Sequence[str]] = (),
    seed: int = 0,
) -> dict[str, Part]:
    """Assign every subject to a part, so that each part gets its share of every stratum.

    Without groups the number of a stratum's subjects in a part is the exact share rounded down or up. Subjects that
    groups join (families, sites; groups that overlap become one) go to one part, the largest groups first, each to the
    part whose strata it brings nearest to their shares; single subjects then even out what is left.

    Args:
        strata: stratum of each subject, e.g. its class.
        shares: of the parts, positive numbers with sum 1.
        groups: subjects that stay together.
        seed: of the random order.

    Raises:
        CohortError: shares that are not positive or do not sum to 1.
    """
    if not shares or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise CohortError(f"shares must be positive and sum to 1, got {dict(shares)}")
    generator = np.random.default_rng(seed)
    order = sorted(strata)
    order = [order[i] for i in generator.permutation(len(order))]
    units = connected(order, groups)
    sizes = Counter(strata.values())
    counts = {part: Counter[Hashable]() for part in shares}
    assigned: dict[str, Part] = {}
    for done, unit in enumerate(sorted((unit for unit in units if len(unit) > 1), key=len, reverse=True)):
        empty = [part for part in shares if not counts[part]]
        free = empty if len(units) - done <= len(empty) else shares  # no part stays empty that need not
        part = _nearest_part(Counter(strata[subject] for subject in unit), counts, sizes, {p: shares[p] for p in free})
        assigned.update(dict.fromkeys(unit, part))
        counts[part].update(strata[subject] for subject in unit)
    lag = dict.fromkeys(shares, 0.0)
    for stratum in sorted(sizes, key=lambda name: (sizes[name], str(name))):  # the rarest first
        single = [unit[0] for unit in units if len(unit) == 1 and strata[unit[0]] == stratum]
        wanted = {part: max(0.0, sizes[stratum] * shares[part] - counts[part][stratum]) for part in shares}
        for part, number in apportioned(len(single), wanted, lag).items():
            assigned.update(dict.fromkeys(single[:number], part))
            single = single[number:]
    return {subject: assigned[subject] for subject in strata}


def with_some_of_each(
    parts: Mapping[str, Part], strata: Mapping[str, Hashable], groups: Sequence[Sequence[str]]
) -> dict[str, Part]:
    """The same parts; of each stratum without a validation subject one moves there, with whom groups join to it."""
    found, units = dict(parts), connected(sorted(parts), groups)
    for stratum in sorted(set(strata.values()), key=str):
        own = [unit for unit in units if any(strata[subject] == stratum for subject in unit)]
        if len(own) > 1 and all(found[unit[0]] == "training" for unit in own):
            found |= dict.fromkeys(min(own, key=len), "validation")
    return found


def connected(subjects: Sequence[str], groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Subjects joined by groups, directly or through one another, in the order of `subjects`."""
    parent = {subject: subject for subject in subjects}

    def root(subject: str) -> str:
        while parent[subject] != subject:
            parent[subject] = parent[parent[subject]]
            subject = parent[subject]
        return subject

    for group in groups:
        for subject in group[1:]:
            parent[root(subject)] = root(group[0])
    units = defaultdict(list)
    for subject in subjects:
        units[root(subject)].append(subject)
    return list(units.values())


def _nearest_part(
    unit: Counter, counts: Mapping[Part, Counter], sizes: Mapping[Hashable, int], shares: Mapping[Part, float]
) -> Part:
    """The part that a group leaves nearest to its shares of all strata, by squared error relative to each."""

    def error(part: Part, added: int) -> float:
        return sum(
            (((counts[part][stratum] + added * unit[stratum]) / size - shares[part]) ** 2) / shares[part]
            for stratum, size in sizes.items()
        )

    return min(shares, key=lambda part: error(part, 1) - error(part, 0))


def apportioned(number: int, wanted: Mapping[Part, float], lag: dict[Part, float]) -> dict[Part, int]:
    """Whole numbers with the sum `number`, in proportion to `wanted`, each rounded down or up.

    Args:
        number: to hand out.
        wanted: positive weight of each part.
        lag: how far each part is behind so far; decides who is rounded up, and is brought up to date.
    """
    scale = number / total if (total := sum(wanted.values())) else 0.0
    exact = {part: weight * scale for part, weight in wanted.items()}
    whole = {part: math.floor(value + 1e-9) for part, value in exact.items()}
    for part, value in exact.items():
        lag[part] += value - whole[part]
    open_parts = [part for part, value in exact.items() if value - whole[part] > 1e-9]
    for part in sorted(open_parts, key=lambda part: lag[part], reverse=True)[: number - sum(whole.values())]:
        whole[part] += 1
        lag[part] -= 1
    return whole


def stratum_of(entries: Sequence[Case]) -> Hashable:
    """The class most of a subject's entries have, where they have one; else whether it is healthy, or None."""
    labels = [entry["label"] for entry in entries if isinstance(entry.get("label"), int)]
    if not labels:
        labels = [entry["healthy"] for entry in entries if isinstance(entry.get("healthy"), bool)]
    return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0] if labels else None


def label_fraction(entries: Sequence[Case], percent: float, seed: int = 0) -> list[Case]:
    """The entries of a share of the subjects: nested (a larger share holds every smaller one), by class, reproducible.

    Each class keeps its share of subjects, rounded up, so that none is lost. Who comes first depends on the seed and
    the subject's name alone, so that it is the same in every list and fold that the subject is in.

    Args:
        entries: of the training list.
        percent: above 0, up to 100.
        seed: of the order of the subjects.

    Raises:
        CohortError: a percentage out of range.
    """
    if not 0 < percent <= 100:
        raise CohortError(f"fraction must be a percentage above 0 and up to 100, got {percent}")
    by_subject = defaultdict(list)
    for entry in entries:
        by_subject[subject_of(entry)].append(entry)
    strata = defaultdict(list)
    for subject, own in by_subject.items():
        strata[stratum_of(own)].append(subject)
    kept = set()
    for subjects in strata.values():
        subjects.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest())
        kept.update(subjects[: math.ceil(len(subjects) * percent / 100 - 1e-9)])
    return [entry for entry in entries if subject_of(entry) in kept]
