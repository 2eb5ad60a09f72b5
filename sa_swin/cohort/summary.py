"""What `sa-swin cohort build` says of the datalists it made."""

from collections import Counter
from collections.abc import Hashable

from custom.data.datalist import SECTIONS
from sa_swin.cohort.bids import Scan
from sa_swin.cohort.build import Built, reasons


def summary(built: Built, scans: list[Scan]) -> str:
    """The split in figures, and what is left out."""
    strata = sorted({stratum for counts in built.subjects.values() for stratum in counts}, key=str)
    names = {stratum: stratum_name(stratum, built) for stratum in strata}
    width = max(14, *(len(name) + 2 for name in names.values()))
    lines = [f"{'subjects':<14}" + "".join(f"{name:>{width}}" for name in names.values())]
    for part, counts in built.subjects.items():
        name = f"fold {part}" if isinstance(part, int) else str(part)
        lines.append(f"{name:<14}" + "".join(f"{counts[stratum]:>{width}}" for stratum in strata))
    for part, counts in built.subjects.items():
        if empty := [names[stratum] for stratum in strata if not counts[stratum]]:
            lines.append(f"note: nobody of {', '.join(empty)} in {part}")
    lines += notes(built)
    entries = Counter(
        {name: sum(len(lists.get(section, ())) for section in SECTIONS) for name, lists in built.datalists.items()}
    )
    lines.append(f"{len(scans)} scans; entries: " + ", ".join(f"{name} {number}" for name, number in entries.items()))
    if built.left_out:
        lines.append("left out of some or all lists:\n  " + reasons(built.left_out).replace("; ", "\n  "))
    return "\n".join(lines)


def stratum_name(stratum: Hashable, built: Built) -> str:
    """What the subjects of a stratum have in common: a class's name, health, or a mask."""
    if isinstance(stratum, tuple):  # with the values of `stratify`
        first, *others = stratum
        return ", ".join([stratum_name(first, built), *map(str, others)])
    if isinstance(stratum, bool):
        lists = built.datalists.get("pretrain", {})
        healthy = any("healthy" in entry for section in SECTIONS for entry in lists.get(section, []))
        return ("" if stratum else "not " if healthy else "no ") + ("healthy" if healthy else "mask")
    return built.datalists.get("classify", {}).get("labels", {}).get(str(stratum), str(stratum))


def notes(built: Built) -> list[str]:
    """Lists that lack a part of the split, and classes that nobody has."""
    lines = []
    for bundle, lists in built.datalists.items():
        parts = {entry.get("fold", section) for section in SECTIONS for entry in lists.get(section, [])}
        named = {part: f"fold {part}" if isinstance(part, int) else str(part) for part in built.subjects}
        if lacking := [name for part, name in named.items() if part not in parts]:
            what = "mask" if bundle == "segment" else "entry"
            lines.append(f"note: no {what} in {', '.join(lacking)} of {bundle}.json; a training needs validation cases")
        if bundle == "classify":
            there = {str(entry["label"]) for section in SECTIONS for entry in lists.get(section, [])}
            absent = [name for number, name in lists["labels"].items() if number not in there]
            lines += [f"note: nobody has {name}, a class of classify.json" for name in absent]
    return lines
