"""Healthy people whose images a cohort is painted on, each once, as a patient or as a healthy one."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sa_swin.cohort.bids_facts import scan_facts


@dataclass(frozen=True)
class Person:
    """A healthy person's image, and the site that participants.tsv has for it."""

    name: str
    path: str
    site: str


@lru_cache(maxsize=4)
def healthy_people(folder: str) -> tuple[Person, ...]:
    """One T1w image of each person in a BIDS folder; the column `person` of participants.tsv joins scans of one.

    Raises:
        ValueError: when there is none, or the table names none of them.
    """
    paths = {path: path.relative_to(folder).parts[0] for path in sorted(Path(folder).glob("sub-*/**/*_T1w.nii*"))}
    if not paths:
        raise ValueError(f"{folder}: expected T1w images of a BIDS folder (sub-*/anat/*_T1w.nii.gz), found none")
    sessions = [(name.removeprefix("sub-"), None) for name in dict.fromkeys(paths.values())]
    facts = scan_facts(Path(folder), sessions)
    found: dict[str, Person] = {}
    for path, name in paths.items():
        own = facts[name.removeprefix("sub-"), None]
        found.setdefault(own.get("person", name), Person(name, str(path), own.get("site", "n/a")))
    return tuple(found.values())


def chosen(folder: str, number: int, seed: int) -> list[Person]:
    """So many of the people, in an order in which those of one site are neighbours: who takes turns is even in each."""
    people = healthy_people(folder)
    order = np.random.default_rng([seed, 2]).permutation(len(people))[:number]
    return sorted((people[i] for i in order), key=lambda person: person.site)
