import itertools
import queue
import re
import subprocess
import sys

import pytest
import torch

from custom.support.errors import UserError, advice, root_cause, user_sentence


def chained(*errors):
    """The last of a chain of errors, each raised from the one before."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_the_first_of_a_chain_is_the_cause():
    first = KeyError("x")
    assert root_cause(chained(first, ValueError(), RuntimeError())) is first


def test_what_the_user_can_mend_comes_before_its_own_cause():
    sentence = UserError("no file")
    assert root_cause(chained(OSError(), sentence, RuntimeError("Failed to instantiate"))) is sentence


def test_a_circle_of_causes_ends():
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert root_cause(one) is two


def run(code):
    setting = "from custom.support.errors import UserError, report_errors\nreport_errors()\n"
    return subprocess.run([sys.executable, "-c", setting + code], capture_output=True, text=True, check=False)


def test_a_users_error_is_one_sentence_on_stderr_and_a_failure():
    done = run(
        "try:\n    raise UserError('no datalist at x')\nexcept UserError as e:\n    raise RuntimeError('!') from e"
    )
    assert done.returncode != 0
    assert done.stderr == "error: no datalist at x\n"
    assert done.stdout == ""


def test_any_other_error_keeps_its_traceback():
    done = run("raise KeyError('unexpected')")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


SYSTEM_ERRORS = {
    "a GPU's memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "batch_size.*roi_size",
    ),
    "the host's memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        "cache_rate",
    ),
    "python's memory": (MemoryError(), "cache_rate"),
    "a worker that vanished": (
        chained(queue.Empty(), RuntimeError("DataLoader worker (pid(s) 41, 42) exited unexpectedly")),
        "num_workers.*--resume True",
    ),
    "a worker that was killed": (
        RuntimeError("DataLoader worker (pid 41) is killed by signal: Killed. "),
        "num_workers.*--resume True",
    ),
    "another process": (
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:37215"),
        "another process of this run has ended.*--resume True",
    ),
}


@pytest.mark.parametrize("name", SYSTEM_ERRORS)
def test_what_takes_memory_or_processes_away_has_advice(name):
    error, pattern = SYSTEM_ERRORS[name]
    assert re.search(pattern, advice(chained(error, ValueError("Failed to instantiate"))))


def test_an_unknown_error_and_a_slow_file_server_have_no_advice():
    assert advice(RuntimeError("shape mismatch")) == advice(TimeoutError("Connection timed out")) == ""


def test_the_advice_comes_last_behind_the_traceback():
    done = run("raise RuntimeError('DataLoader worker (pid 41) is killed by signal: Killed.')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a data-loader worker was killed")


def test_a_users_error_in_an_engine_is_told_once_and_without_a_traceback():
    done = run("""
import logging
from ignite.engine import Engine
from monai.handlers import StatsHandler
def refuse(engine, batch):
    logging.getLogger("step").info("at work")
    try:
        raise UserError("a.nii is half a file")
    except UserError as error:
        raise RuntimeError("applying transform Load") from error
logging.basicConfig(level=logging.INFO)
report_errors()
engine = Engine(refuse)
StatsHandler(name=None).attach(engine)
engine.run([0])
""")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: a.nii is half a file"
    assert "at work" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "terminating" not in done.stderr


def test_any_other_error_in_an_engine_is_logged():
    done = run("from ignite.engine import Engine\nEngine(lambda e, b: 1 / 0).run([0])")
    assert "terminating due to exception: division by zero" in done.stderr


IN_A_WORKER = """Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "transform.py", line 1, in apply
    read()
custom.data.case.CohortError: 2 files are missing:
  a.nii
  b.nii

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
RuntimeError: applying transform <Load>
"""


def test_of_an_error_in_a_worker_the_sentence_is_found_in_its_text():
    assert user_sentence(RuntimeError(IN_A_WORKER)) == "2 files are missing:\n  a.nii\n  b.nii"
    assert user_sentence(UserError(IN_A_WORKER)) == "2 files are missing:\n  a.nii\n  b.nii"
    other = IN_A_WORKER.replace("custom.data.case.CohortError", "KeyError")
    assert user_sentence(RuntimeError(other)) == ""
