import itertools
import subprocess
import sys

from custom.errors import UserError, root_cause


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
    setting = "from custom.errors import UserError, report_errors\nreport_errors()\n"
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
