import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from bundle_configs import ROOT, TASKS

UNIT_TESTS = ROOT / "ci" / "unit_tests"


def test_each_bundle_has_the_unit_test_that_the_model_zoo_looks_for():
    names = {path.name for path in UNIT_TESTS.glob("test_*.py")}
    assert names == {f"test_{path.name}.py" for path in (ROOT / "bundles").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_package_passes_its_unit_test_where_the_model_zoo_has_it(task, packages, tmp_path):
    with zipfile.ZipFile(packages[task]) as archive:
        archive.extractall(tmp_path / "models")
    shutil.copytree(UNIT_TESTS, tmp_path / "ci" / "unit_tests")
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "unittest", f"test_sa_swin_{task}"]
    own = tmp_path / "models" / f"sa_swin_{task}"  # before this checkout's code, which the zoo does not have
    places = {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "ci" / "unit_tests", own)))}
    found = subprocess.run(
        command, cwd=tmp_path, env=surroundings | places, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    assert "Ran 1 test" in found.stderr
