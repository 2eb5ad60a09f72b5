"""How much of the host's memory a process may have: what is built in, or less where a container or a job says so."""

import os
from collections.abc import Iterator
from pathlib import Path

HOST_SHARE = 0.7
"""Of the memory that the process may have, for what is kept in it."""


def host_memory() -> int:
    """Bytes of the host's memory that may be used."""
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(HOST_SHARE * min([built_in, *cgroup_limits(), *slurm_limit()]))


def cgroup_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that the own control group, and those that it is in, may have, of either version.

    Args:
        own: file with the process's groups, `number:controllers:path` a line.
        root: where the groups' files are.
    """
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        place = Path(path.strip("/"))
        for folder in (place, *place.parents):
            file = base / folder / name
            text = file.read_text().strip() if file.is_file() else "max"
            if text.isdigit():
                yield int(text)


def slurm_limit() -> list[int]:
    """Bytes that a job of Slurm has asked for on this machine, where it has."""
    told = {name: os.environ.get(f"SLURM_{name}", "") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")}
    of_node, of_cpu, cpus = (int(text) if text.isdigit() else 0 for text in told.values())
    return [megabytes * 2**20 for megabytes in (of_node, of_cpu * cpus) if megabytes]
