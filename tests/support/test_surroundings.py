"""Where a user has no name, no home, nowhere to write settings: imports, and with them every command, still work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("USER", "LOGNAME", "LNAME", "USERNAME")
NAMELESS = ["unshare", "-U", "--map-user=4242", "--map-group=4242"]


def import_in(environment, *words, before=()):
    known = {name: value for name, value in os.environ.items() if name not in (*NAMES, "HOME", "TMPDIR")}
    command = [*before, sys.executable, "-B", *(words or ("-c", "import custom, monai.config.deviceconfig"))]
    return subprocess.run(
        command, env={**known, "PYTHONPATH": str(ROOT), **environment}, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("code", ["import custom, getpass; getpass.getuser()", "import getpass; getpass.getuser()"])
def test_a_user_without_a_name_gets_one_before_anything_asks(code):
    if not shutil.which("unshare") or import_in({"USER": "x"}, "-c", "", before=NAMELESS).returncode:
        pytest.skip("no user namespaces here")
    done = import_in({}, "-c", code, before=NAMELESS)
    assert done.returncode == 0, done.stderr


def test_without_a_home_no_folder_of_that_name_is_made(tmp_path):
    code = "import custom, os; print(os.path.expanduser('~'))"
    if not shutil.which("unshare") or import_in({"USER": "x"}, "-c", "", before=NAMELESS).returncode:
        pytest.skip("no user namespaces here")
    done = import_in({}, "-c", code, before=NAMELESS)
    assert os.path.isabs(done.stdout.strip()), done


@pytest.mark.parametrize("place", [{"HOME": "/proc/none"}, {"MPLCONFIGDIR": "/proc/none"}, {"TMPDIR": "/proc/none"}])
def test_nowhere_to_write_is_no_hindrance(place):
    code = "import custom, matplotlib, tempfile; tempfile.gettempdir()"
    done = import_in({"USER": "x", **place}, "-c", code)
    assert done.returncode == 0, done.stderr
