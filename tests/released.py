"""Small weights, and the packages that are built of them: for the tests of releases, which share them."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.support.vendored import code_digest
from custom.weights.settings import carrying
from sa_swin.release.build import Options, build

NETWORKS = {"pretrain": SASwinPretrainer, "classify": SASwinClassifier, "segment": SASwinUNETR}
SEEN = {
    "stage": "classify",
    "section": "training",
    "label": "class",
    "salt": "0f",
    "subjects": ["ab"],
    "images": ["cd"],
}
SETTINGS = {
    "modality": "CT",
    "spacing": 6.0,
    "spatial_size": [32, 64, 64],
    "feature_size": 12,
    "window_size": 4,
    "seed": 7,
    "align": False,
    "training_cases": 4,
}


def committed(root):
    """Commit whatever a test did to a checkout."""
    for arguments in (("add", "--all"), ("commit", "--quiet", "--message", "Change it")):
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def checkout(repository, tmp_path):
    """A copy of the checkout that a test may spoil."""
    return Path(shutil.copytree(repository, tmp_path / "spoilt", symlinks=True))


def network_of(task, **changes):
    size = {"feature_size": 12, "window_size": 4, **changes}
    return NETWORKS[task](**({"out_channels": 2} if task == "segment" else {}), **size)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Checkpoints of small networks that carry the settings of their trainings."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("weights")
    for task in NETWORKS:
        folder = root / task / "models"
        folder.mkdir(parents=True)
        state = carrying(network_of(task).state_dict(), seen=[SEEN], settings=SETTINGS)
        torch.save(state, folder / "model.pt")
    return root


def checkpoint(weights, task):
    return weights / task / "models" / "model.pt"


def options(weights, task="segment", **changes):
    return Options(checkpoint(weights, task), onnx=False, **changes)


@pytest.fixture(scope="session")
def packages(repository, weights, tmp_path_factory):
    """The three packages, without ONNX: task to zip."""
    output = tmp_path_factory.mktemp("dist")
    return {
        task: build(repository, f"sa_swin_{task}", options(weights, task, trained_on="synthetic"), output)
        for task in NETWORKS
    }


@pytest.fixture
def unpacked(packages, tmp_path):
    """The segmentation package, unpacked."""
    with zipfile.ZipFile(packages["segment"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / "sa_swin_segment"


def digest_of(root):
    folder = root / "custom"
    return code_digest({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")})
