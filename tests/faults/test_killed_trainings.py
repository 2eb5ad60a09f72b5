"""Trainings of the bundles, killed and asked to leave at random moments, end bit for bit as those never stopped."""

import os
import random
import re
import signal
import socket
import subprocess
import sys

import pytest
from bundle_runs import (
    ROOT,
    TASKS,
    config_files,
    differences,
    end_of,
    finished,
    log_of,
    overrides,
    started,
)
from faults import KillAtRename, KillInSave, KillWorker, SignalAt, SignalGroup, SpoilImages

pytestmark = pytest.mark.slow

EVENTS = 45  # about one epoch: two steps and a validation
KILLS = 17  # per bundle, at random events; those in writes come on top
PATIENCE = 120  # seconds in which what has lost a process must have ended


@pytest.fixture(scope="module")
def whole(tiny_cohort, tmp_path_factory):
    """What the never-stopped training of a bundle leaves; each is run once."""
    ends = {}

    def end(task):
        if task not in ends:
            output = tmp_path_factory.mktemp(f"whole-{task}")
            assert finished(task, tiny_cohort, output) == 0, log_of(output)
            ends[task] = end_of(output)
        return ends[task]

    return end


def chain(task, root, output, draw, number, code):
    """Run a training, stopping it at random moments with a signal, until it ends; how often it was stopped."""
    for stops in range(100):
        fault = SignalAt(draw.randrange(1, 2 * EVENTS), number, draw.choice([0.0, draw.uniform(0.0, 0.3)]))
        found = finished(task, root, output, resume="auto", before=fault)
        if found == 0:
            return stops
        assert found in code, log_of(output)[-3000:]
    raise AssertionError("it makes no progress")


@pytest.mark.parametrize("task", TASKS)
def test_a_training_killed_at_random_moments_ends_as_if_it_had_not_been(task, whole, tiny_cohort, tmp_path):
    draw, kills, chains = random.Random(task), 0, 0
    while kills < KILLS:
        output, chains = tmp_path / str(chains), chains + 1
        kills += chain(task, tiny_cohort, output, draw, signal.SIGKILL, {-signal.SIGKILL})
        assert differences(whole(task), end_of(output)) == [], chains
    print(f"{task}: {kills} kills in {chains} trainings")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "fault",
    [
        KillInSave(1, 0.0),
        KillInSave(2, 0.5),
        KillInSave(4, 0.999),
        KillAtRename(3, True),
        KillAtRename(5, False),
        KillAtRename(6, False),
        KillAtRename(6, True),
    ],
    ids=str,
)
def test_a_training_killed_while_it_writes_ends_as_if_it_had_not_been(task, fault, whole, tiny_cohort, tmp_path):
    assert finished(task, tiny_cohort, tmp_path, before=fault) == -signal.SIGKILL, log_of(tmp_path)
    assert finished(task, tiny_cohort, tmp_path, resume="auto") == 0, log_of(tmp_path)
    assert differences(whole(task), end_of(tmp_path)) == []
    assert not list((tmp_path / "models").glob(".partial*"))


@pytest.mark.parametrize("task", TASKS)
def test_a_training_asked_to_leave_says_so_and_ends_as_if_it_had_not_been(task, whole, tiny_cohort, tmp_path):
    draw, stops = random.Random(task), 0
    for number in range(3):
        # -SIGTERM: the signal came when the training had ended already
        stops += chain(task, tiny_cohort, tmp_path / str(number), draw, signal.SIGTERM, {75, -signal.SIGTERM})
        assert differences(whole(task), end_of(tmp_path / str(number))) == [], number
    print(f"{task}: asked to leave {stops} times")
    assert stops >= 3


def test_another_start_would_show(whole, tiny_cohort, tmp_path):
    assert finished("classify", tiny_cohort, tmp_path, seed=1) == 0
    assert differences(whole("classify"), end_of(tmp_path))


# ---- data-loader workers


def test_workers_change_nothing_and_outlive_a_sigterm_to_all_processes(whole, tiny_cohort, tmp_path):
    assert finished("classify", tiny_cohort, tmp_path, num_workers=2, before=SignalGroup(30)) == 75, log_of(tmp_path)
    assert "DataLoader worker" not in log_of(tmp_path)
    assert finished("classify", tiny_cohort, tmp_path, num_workers=2, resume=True) == 0, log_of(tmp_path)
    assert differences(whole("classify"), end_of(tmp_path)) == []


def test_a_killed_worker_ends_the_run_with_a_sentence_and_a_later_run_goes_on(whole, tiny_cohort, tmp_path):
    assert finished("classify", tiny_cohort, tmp_path, num_workers=2, before=KillWorker(2)) == 1
    assert log_of(tmp_path).splitlines()[-1].startswith("error: a data-loader worker was killed")
    assert finished("classify", tiny_cohort, tmp_path, num_workers=2, resume=True) == 0, log_of(tmp_path)
    assert differences(whole("classify"), end_of(tmp_path)) == []


# ---- numbers gone wrong


@pytest.mark.parametrize("task", TASKS)
def test_images_that_are_not_finite_are_named_and_end_the_training_beyond_the_budget(task, tiny_cohort, tmp_path):
    spoilt = SpoilImages((2, 3, 4))
    assert finished(task, tiny_cohort, tmp_path, before=spoilt, max_skipped_steps=2) == 1
    log = log_of(tmp_path)
    assert re.search(
        r"step 1 of 2 that may be skipped, epoch 1, iteration 2: the loss is nan in the batch of sub-", log
    )
    assert re.search(r"^error: stopped at epoch 2, iteration 4: .* 2 such steps are allowed", log.splitlines()[-1])
    end = end_of(tmp_path)
    assert end["last"]["trainer"]["iteration"] == 2
    assert all(tensor.isfinite().all() for tensor in end["best"].values())
    assert finished(task, tiny_cohort, tmp_path, resume=True) == 0, log_of(tmp_path)


# ---- two processes


def pair(root, output, port, faults=(None, None), **changes):
    """Two processes of a training, running."""
    return [
        started("classify", root, output, rank=rank, world=2, port=port, before=fault, batch_size=1, **changes)
        for rank, fault in enumerate(faults)
    ]


def codes(processes, within=PATIENCE):
    """Exit codes; None for what has not ended in time, which is then killed."""
    for process in processes:
        process.join(within)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


@pytest.fixture(scope="module")
def whole_pair(tiny_cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole-pair")
    assert codes(pair(tiny_cohort, output, free_port())) == [0, 0], log_of(output, 1)
    return end_of(output)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("rank", "event"), [(0, 7), (1, 20), (0, 41), (1, 55), (0, 75)])
def test_one_killed_process_of_two_ends_both_with_a_sentence_and_they_go_on(
    rank, event, whole_pair, tiny_cohort, tmp_path
):
    faults = [SignalAt(event) if number == rank else None for number in (0, 1)]
    found = codes(pair(tiny_cohort, tmp_path, free_port(), faults))
    assert found[rank] == -signal.SIGKILL
    assert found[1 - rank] == 1
    assert "error: another process of this run has ended" in log_of(tmp_path, 1 - rank)
    assert codes(pair(tiny_cohort, tmp_path, free_port(), resume="auto")) == [0, 0], log_of(tmp_path, 0)
    assert differences(whole_pair, end_of(tmp_path)) == []


@pytest.mark.parametrize("event", [12, 37, 60])
def test_one_process_of_two_asked_to_leave_takes_the_other_with_it(event, whole_pair, tiny_cohort, tmp_path):
    faults = [None, SignalAt(event, signal.SIGTERM)]
    assert codes(pair(tiny_cohort, tmp_path, free_port(), faults)) == [75, 75], log_of(tmp_path, 0)
    assert codes(pair(tiny_cohort, tmp_path, free_port(), resume=True)) == [0, 0], log_of(tmp_path, 0)
    assert differences(whole_pair, end_of(tmp_path)) == []


def test_two_processes_skip_a_step_together(tiny_cohort, tmp_path):
    found = codes(pair(tiny_cohort, tmp_path, free_port(), [None, SpoilImages((2,))]))
    assert found == [0, 0], log_of(tmp_path, 0)
    for rank in (0, 1):
        assert "step 1 of 3 that may be skipped, epoch 1, iteration 2" in log_of(tmp_path, rank)
    assert end_of(tmp_path)["last"]["step_guard"] == {"skipped": 1}


# ---- the documented command lines


def words(task, root, output, **changes):
    settings = overrides(task, root, output, **changes)
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def command(root, output, **changes):
    """`python -m monai.bundle run` of the classifier, in a process of its own."""
    files = config_files("classify")[0]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            files,
            *words("classify", root, output, **changes),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_the_command_line_stopped_and_given_again_ends_as_if_it_had_not_been(
    number, code, whole, tiny_cohort, tmp_path
):
    process = command(tiny_cohort, tmp_path, resume="auto")
    for line in process.stdout:
        if "Epoch[2] Metrics" in line:
            process.send_signal(number)
            break
    process.communicate()
    assert process.returncode == code
    again = command(tiny_cohort, tmp_path, resume="auto")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "resumed from" in output
    assert differences(whole("classify"), end_of(tmp_path)) == []
