"""What memory a plan counts on: the least of what is built in and what a container or a job leaves."""

import os

import pytest

from sa_swin.plan import host
from sa_swin.plan.host import HOST_SHARE, cgroup_limits, host_memory

BUILT_IN = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def machine(tmp_path):
    """A machine with these files of control groups; the limits that a process of these groups reads there."""

    def limits(groups, **files):
        (tmp_path / "cgroup").write_text(groups)
        for place, text in files.items():
            path = tmp_path / "sys" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sorted(cgroup_limits(tmp_path / "cgroup", tmp_path / "sys"))

    return limits


def test_the_own_group_and_those_around_it_limit_in_version_2(machine):
    files = {"memory.max": "max\n", "a/memory.max": "5000\n", "a/b/memory.max": "7000\n", "c/memory.max": "1\n"}
    assert machine("0::/a/b\n", **files) == [5000, 7000]


def test_a_container_sees_its_own_group_at_the_top_in_either_version(machine):
    assert machine("0::/\n", **{"memory.max": "4000\n"}) == [4000]
    groups = "5:devices:/docker/x\n4:memory:/docker/x\n0::/\n"
    assert machine(groups, **{"memory/memory.limit_in_bytes": "3000\n", "memory.max": "max\n"}) == [3000]


def test_without_control_groups_nothing_limits(machine, tmp_path):
    assert machine("0::/\n") == []
    assert list(cgroup_limits(tmp_path / "nowhere", tmp_path)) == []


@pytest.mark.parametrize(
    ("group", "job", "expected"),
    [([], "", BUILT_IN), ([2**30], "", 2**30), ([2**30], "100", 100 * 2**20), ([2**62], "0", BUILT_IN),
     ([], "all", BUILT_IN)],
)  # fmt: skip
def test_the_least_of_what_is_there_is_shared_out(monkeypatch, group, job, expected):
    monkeypatch.setattr(host, "cgroup_limits", lambda: group)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", job)
    assert host_memory() == int(HOST_SHARE * expected)


def test_a_job_that_asked_for_memory_by_the_processor_has_that_of_its_processors(monkeypatch):
    monkeypatch.setattr(host, "cgroup_limits", lambda: [])
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "50")
    assert host_memory() == int(HOST_SHARE * BUILT_IN)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert host_memory() == int(HOST_SHARE * 200 * 2**20)
