"""A bundle run imports what MONAI imports, but for what it does not use; and that it gets as soon as it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from custom.support.startup import Deferred, deferring, referring

ROOT = Path(__file__).resolve().parents[2]
NOT_USED = {"mlflow", "sklearn", "pandas", "scipy.signal", "matplotlib.figure", "torch.distributed.fsdp"}


def python(code, *words):
    command = [sys.executable, "-c", f"import sys; from custom.support.startup import start_soon\n{code}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_bundle_run_imports_when_it_is_used_what_monai_would_import_at_once():
    done = python(f"""
start_soon()
import monai.bundle, monai.handlers
assert not {NOT_USED} & set(sys.modules), sorted({NOT_USED} & set(sys.modules))
from monai.data.dataset import pd
assert pd.DataFrame({{"a": [1, 2]}}).a.sum() == 3
from monai.metrics.embedding_collapse import sklearn_logistic
assert sklearn_logistic(C=2.0).C == 2.0
from monai.utils.jupyter_utils import plt
assert plt.Figure().axes == []
from ignite.handlers.checkpoint import ZeroRedundancyOptimizer
assert not isinstance(1, ZeroRedundancyOptimizer)
from torch.distributed.optim import ZeroRedundancyOptimizer as Real
assert issubclass(Real, object)
from monai.handlers.mlflow_handler import mlflow
assert mlflow.__version__
""", "monai.bundle")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["monai.bundle", "run", "--tracking", "mlflow"], ["pytest"]])
def test_mlflow_is_there_at_once_where_it_is_asked_for_and_anywhere_else(words):
    done = python("start_soon()\nimport monai.handlers\nassert 'mlflow' in sys.modules", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--dataset_dir", "%x"], ["--ckpt_dir=%x y"]])
def test_a_path_that_the_runner_would_look_up_in_its_configs_ends_in_a_sentence(words):
    done = python("start_soon()", "monai.bundle", "run", *words)
    assert done.returncode == 1
    option, text = " ".join(words).replace("=", " ").split(" ", 1)
    assert done.stderr == (
        f"error: {option} {text}: MONAI's runner reads that as a reference to a setting; write ./{text}\n"
    )


def test_a_reference_to_another_path_is_left_to_the_runner():
    assert referring(["run", "--output_dir", "%dataset_dir", "--dataset_dir", "./%x", "--seed", "%x"]) is None


def heir_of(base):
    class Own(base):
        pass

    return Own


def test_what_is_deferred_stands_for_a_class():
    asked = []
    later = Deferred(lambda: asked.append(1) or dict)
    assert not asked
    assert isinstance({}, later)
    assert not isinstance([], later)
    assert later(a=1) == {"a": 1}
    assert issubclass(heir_of(later), dict)
    assert later.fromkeys("a") == {"a": None}
    assert len(asked) == 1


def test_only_what_is_there_is_deferred():
    found = deferring(lambda module, name="": (f"{module} {name}", False), ("json", "no_such_package"))
    assert found("os") == ("os ", False)
    assert found("jsonschema", name="x") == ("jsonschema x", False)
    assert found("no_such_package") == ("no_such_package ", False)
    later, there = found("json.decoder", name="JSONDecoder")
    assert there
    assert later.upper() == "JSON.DECODER JSONDECODER"
