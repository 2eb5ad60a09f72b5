"""Packages built from trained weights, run in an environment that holds MONAI and what their metadata name."""

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from custom.weights.transfer import weights_digest
from sa_swin.release.archive import read_package
from sa_swin.release.verification import verify

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = Path(os.environ.get("SA_SWIN_SCHEMA", ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"))
TASKS = ("pretrain", "classify", "segment")
SIZES = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 64]}
RUN = {"align": False, "num_workers": 0}
TRAINING = {"max_epochs": 1, "val_interval": 1, "batch_size": 2, "warmup_epochs": 0, "seed": 3}


def run(python, cwd, *arguments, **options):
    """Run a module's command line, with one thread and no path but the environment's own; returns what it said."""
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-W", "ignore", *map(str, arguments), *words],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def closure(name, found=None):
    """Names of a distribution and of all that it requires here."""
    found = {} if found is None else found
    if name not in found:
        found[name] = importlib.metadata.distribution(name)
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(requirement.name, found)
    return found


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """Python of an environment with MONAI and the packages that the metadata name, and nothing of this repository.

    The torch of this environment is linked into it, so that no other is ever downloaded.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in closure("torch").values():
        tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    metadata = json.loads((ROOT / "bundles" / "sa_swin_segment" / "configs" / "metadata.json").read_text())
    packages = [f"{name}=={version}" for name, version in metadata["required_packages_version"].items()]
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    python = folder / "bin" / "python"
    run(python, folder, *pip, f"monai=={metadata['monai_version']}", f"numpy=={metadata['numpy_version']}", *packages)
    assert subprocess.run([python, "-c", "import custom"], cwd=folder, capture_output=True, check=False).returncode
    return python


@pytest.fixture(scope="session")
def tools(elsewhere, tmp_path_factory):
    """The same environment with what MONAI's own checks and exports need."""
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith(("jsonschema==", "onnx"))
    ]
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(elsewhere, tmp_path_factory.mktemp("tools"), *pip, *(pin for pin in pins if "onnxruntime" not in pin))
    return elsewhere


def config(folder, *names, kind="yaml"):
    files = [str(folder / "configs" / f"{name}.{kind}") for name in names]
    return files[0] if len(files) == 1 else json.dumps(files).replace('"', "'")


@pytest.fixture(scope="session", params=TASKS)
def released(request, repository, tiny_cohort, tmp_path_factory):
    """A bundle trained, evaluated and run from the repository, and the package of it: task, results, zip."""
    task, output = request.param, tmp_path_factory.mktemp(request.param)
    bundle = repository / "bundles" / f"sa_swin_{task}"
    sizes = SIZES if task == "classify" else {**SIZES, "roi_size": [32, 64, 64]}
    places = {"dataset_dir": tiny_cohort, "ckpt_dir": output / "models", "bundle_root": bundle}
    workflow = (sys.executable, repository, "-m", "monai.bundle", "run")
    options = {**sizes, **RUN, **places}
    training = {**TRAINING, "cache_rate": 0.0}
    run(*workflow, config_file=config(bundle, "train"), output_dir=output, **training, **options)
    files = config(bundle, "train", "evaluate")
    run(*workflow, config_file=files, output_dir=output / "evaluate", cache_rate=0.0, seed=TRAINING["seed"], **options)
    cases = {"datalist": tiny_cohort / "datalists" / f"{task}.json", "output_dir": output / "inference"}
    run(*workflow, config_file=config(bundle, "inference"), **cases, **options)
    said = run(
        sys.executable, repository, "-m", "sa_swin", "release", "build", f"sa_swin_{task}",
        weights=output / "models" / "model.pt", evaluation=output / "evaluate", trained_on="synthetic", output=output,
    )  # fmt: skip
    path = output / f"sa_swin_{task}.zip"
    assert str(path) in said
    return task, output, path


@pytest.fixture
def package(released, tmp_path):
    """The package, unpacked somewhere, and an empty directory to run in: task, folder, directory."""
    task, _, path = released
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "packages")
    (tmp_path / "cwd").mkdir()
    return task, tmp_path / "packages" / f"sa_swin_{task}", tmp_path / "cwd"


def test_the_package_is_sound_and_its_card_and_metadata_have_the_figures(released):
    task, output, path = released
    files = read_package(path)
    assert verify(files) == []
    assert {"models/model.pt", "models/model.safetensors", "models/model.onnx"} <= files.keys()
    figures = json.loads((output / "evaluate" / "cases.json").read_text())["metrics"]
    stated = json.loads(files["configs/metadata.json"])["eval_metrics"]
    assert stated["n"] == figures["n"] == len((output / "evaluate" / "cases.csv").read_text().splitlines()) - 1
    name = {"pretrain": "loss", "classify": "accuracy", "segment": "dice"}[task]
    assert stated[name] == pytest.approx(figures[name], rel=1e-3)
    card = files["docs/README.md"].decode()
    assert f"| {name} | {figures[name]:.3g} |" in card
    assert "trained on synthetic data" in card
    assert "| training_cases | " in card
    assert "Largest difference from PyTorch" in card


def test_it_trains_to_its_own_weights_and_measures_its_own_figures(elsewhere, released, package, tiny_cohort):
    _, folder, cwd = package
    _, output, _ = released
    workflow = (elsewhere, cwd, "-m", "monai.bundle", "run")
    options = {**RUN, "dataset_dir": tiny_cohort}
    again = cwd / "again"
    train = {"output_dir": again, "ckpt_dir": again / "models", "cache_rate": 0.0}
    run(*workflow, config_file=config(folder, "train"), **train, **options)
    assert weights_digest(again / "models" / "model.pt") == weights_digest(output / "models" / "model.pt")
    files = config(folder, "train", "evaluate", kind="json")
    run(*workflow, config_file=files, output_dir=cwd / "evaluate", cache_rate=0.0, **options)
    for name in ("cases.csv", "cases.json"):
        expected, found = ((place / "evaluate" / name).read_text() for place in (output, cwd))
        if name == "cases.json":
            expected, found = (json.loads(text) for text in (expected, found))
            assert found.pop("checkpoint") == str(folder / "models" / "model.pt") != expected.pop("checkpoint")
        assert found == expected


def test_a_package_verifies_and_lists_itself(elsewhere, package):
    _, folder, _ = package
    assert "files as they were built" in run(elsewhere, folder, "-m", "sa_swin", "release", "verify", ".")
    said = run(elsewhere, folder, "-m", "sa_swin", "release", "inspect", ".")
    schema = json.loads((folder / "configs" / "metadata.json").read_text())["schema"]
    assert "custom.networks.SASwin" in said
    assert [line for line in said.splitlines() if line.startswith("! ")] == [f"! {schema}"]


def test_inference_gives_what_the_repository_gives(elsewhere, released, package, tiny_cohort):
    task, folder, cwd = package
    _, output, _ = released
    cases = {"datalist": tiny_cohort / "datalists" / f"{task}.json", "output_dir": cwd / "inference"}
    command = (elsewhere, cwd, "-m", "monai.bundle", "run")
    run(*command, config_file=config(folder, "inference", kind="json"), dataset_dir=tiny_cohort, **cases, **RUN)
    assert (cwd / "inference" / "cases.csv").read_text() == (output / "inference" / "cases.csv").read_text()
    masks = sorted(path.name for path in (output / "inference").glob("*_pred.nii.gz"))
    assert (len(masks) > 0) == (task == "segment")
    for name in masks:
        expected, found = (nib.load(place / "inference" / name) for place in (output, cwd))
        assert np.array_equal(found.affine, expected.affine)
        assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    with (cwd / "inference" / "cases.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 0


LOAD = """
import monai.bundle, sys, torch
network = monai.bundle.load({name!r}, bundle_dir={folder!r}, workflow_type={workflow!r}, device="cpu")
pair = torch.randn(1, 2, 64, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save(network.eval()(pair), {output!r})
assert sys.modules["custom"].__file__.startswith({folder!r})
parser = monai.bundle.load_bundle_config({path!r}, "train.json")
assert parser["feature_size"] == 12, parser["feature_size"]
"""


def test_monai_loads_the_same_network_from_the_download(elsewhere, released, repository, tmp_path):
    task, output, path = released
    name, folder = f"sa_swin_{task}", tmp_path / "downloaded"
    folder.mkdir()
    download = (elsewhere, tmp_path, "-m", "monai.bundle", "download")
    run(*download, name=name, url=f"file://{path}", bundle_dir=folder)
    state = torch.load(output / "models" / "model.pt", weights_only=True)
    from sa_swin.release.model import network_of

    network = network_of(json.loads(read_package(path)["configs/inference.json"]))
    network.load_state_dict(state)
    pair = torch.randn(1, 2, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(pair)
    for workflow in ("train", "inference"):
        values = {"name": name, "folder": str(folder), "workflow": workflow, "path": str(path)}
        run(elsewhere, tmp_path, "-c", LOAD.format(output=str(tmp_path / "pred.pt"), **values))
        assert torch.equal(torch.load(tmp_path / "pred.pt", weights_only=True), expected)


def test_monais_checks_pass(tools, package, tmp_path):
    _, folder, cwd = package
    command = (tools, cwd, "-m", "monai.bundle")
    meta = {"meta_file": folder / "configs" / "metadata.json"}
    if SCHEMA.is_file():
        schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
        run(*command, "verify_metadata", filepath=schema, hash_val="06954cad2cc5d3784e72077ac76f0fc8", **meta)
    for workflow in ("train", "inference"):
        options = {"config_file": config(folder, workflow, kind="json"), "net_id": "network_def", "device": "cpu"}
        said = run(*command, "verify_net_in_out", bundle_root=folder, **options, **meta)
        assert "data shape of network is verified with no error" in said


def test_monais_exports_work(tools, package):
    _, folder, cwd = package
    options = {
        "net_id": "network_def",
        "meta_file": folder / "configs" / "metadata.json",
        "config_file": config(folder, "inference", kind="json"),
        "ckpt_file": folder / "models" / "model.pt",
        "bundle_root": folder,
    }
    command = (tools, cwd, "-m", "monai.bundle")
    run(*command, "ckpt_export", filepath=cwd / "model.ts", use_trace=True, **options)
    run(*command, "onnx_export", filepath=cwd / "model.onnx", **options)
    pair = torch.randn(1, 2, 64, 64, 64)
    traced = torch.jit.load(cwd / "model.ts", map_location="cpu")
    import onnxruntime

    session = onnxruntime.InferenceSession(cwd / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = traced(pair).numpy()
    found = session.run(None, {session.get_inputs()[0].name: pair.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_the_onnx_file_gives_what_the_network_gives(released):
    import onnxruntime

    from sa_swin.release.model import network_of

    files = read_package(released[2])
    content = json.loads(files["configs/inference.json"])
    network = network_of(content)
    network.load_state_dict(torch.load(released[1] / "models" / "model.pt", weights_only=True))
    session = onnxruntime.InferenceSession(files["models/model.onnx"], providers=["CPUExecutionProvider"])
    pair = torch.randn(session.get_inputs()[0].shape)
    assert list(pair.shape) == [1, 2, 32, 64, 64]
    with torch.no_grad():
        expected = network(pair).numpy()
    found = session.run(None, {"image": pair.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert str(ROOT).encode() not in files["models/model.onnx"]
    assert b"site-packages" not in files["models/model.onnx"]


def test_two_builds_are_byte_identical_with_the_onnx_file(released, repository, tmp_path):
    task, output, path = released
    run(
        sys.executable, repository, "-m", "sa_swin", "release", "build", f"sa_swin_{task}",
        weights=output / "models" / "model.pt", evaluation=output / "evaluate", trained_on="synthetic", output=tmp_path,
    )  # fmt: skip
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
