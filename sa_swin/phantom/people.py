"""Healthy people whose images a cohort is painted on, each once, as a patient or as a healthy one."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


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
        ValueError: when there is none.
    """
    rows = participants(Path(folder) / "participants.tsv")
    found: dict[str, Person] = {}
    for path in sorted(Path(folder).glob("sub-*/**/*_T1w.nii*")):
        name = path.relative_to(folder).parts[0]
        row = rows.get(name, {})
        person = row.get("person", "n/a")
        person = name if person in ("", "n/a") else person
        found.setdefault(person, Person(name, str(path), row.get("site", "n/a")))
    if not found:
        raise ValueError(f"{folder}: expected T1w images of a BIDS folder (sub-*/anat/*_T1w.nii.gz), found none")
    return tuple(found.values())


def participants(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a participants.tsv by participant; none without the file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        return {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t") if row.get("participant_id")}


def chosen(folder: str, number: int, seed: int) -> list[Person]:
    """So many of the people, in an order in which those of one site are neighbours: who takes turns is even in each."""
    people = healthy_people(folder)
    order = np.random.default_rng([seed, 2]).permutation(len(people))[:number]
    return sorted((people[i] for i in order), key=lambda person: person.site)
