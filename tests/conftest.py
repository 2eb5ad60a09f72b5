import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings
from released import checkout, packages, unpacked, weights  # noqa: F401  fixtures

from custom.painting.anatomies import CHANNELS

SPACING = 6.0  # mm, of the tiny volumes

torch.set_num_threads(1)  # small tensors: more threads lose several times over, wherever a core is shared

settings.register_profile("unhurried", deadline=None)  # a machine with other work is no failure
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  MONAI's random transforms draw from it


@pytest.fixture
def convolved_in(monkeypatch):
    """The dtypes that autocast asks convolutions for; all run in fp32: in bf16 some CPUs take minutes."""
    asked = set()
    for kind in (torch.nn.Conv3d, torch.nn.ConvTranspose3d):

        def noted(layer, image, convolve=kind.forward):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else image.dtype
            asked.add(dtype)
            with torch.autocast("cpu", enabled=False):
                return convolve(layer, image.float()).to(dtype)

        monkeypatch.setattr(kind, "forward", noted)
    return asked


@pytest.fixture
def small():
    """Arguments of a small network."""
    return {"feature_size": 12, "window_size": 4}


@pytest.fixture
def pair():
    """A batch of two symmetric pairs of random volumes, `(2, 2, 64, 32, 32)`."""
    image = torch.randn(2, 1, 64, 32, 32)
    return torch.cat([image, image.flip(2)], dim=1)


def write_nifti(path, array, affine=None):
    """Write an array and return its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([SPACING, SPACING, SPACING, 1.0]) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def write_volume():
    return write_nifti


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory):
    """A folder of eight tiny heads, half of them patients, with the three datalists: four to train, two, two."""
    root = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    lists = {
        name: {split: [] for split in ("training", "validation", "testing")}
        for name in ("pretrain", "classify", "segment")
    }
    splits = ["training"] * 4 + ["validation"] * 2 + ["testing"] * 2
    for number, split in enumerate(splits):
        name, healthy = f"sub-{number}", number % 2 == 0
        head = np.zeros((32, 36, 32), np.float32)
        head[4:-4, 4:-4, 4:-4] = 40 + 4 * generator.standard_normal((24, 28, 24))  # may be MR, or CT
        mask = np.zeros(head.shape, np.uint8)
        if not healthy:
            mask[6:12, 10:20, 10:20] = 1
        write_nifti(root / f"{name}.nii.gz", head + 32 * mask)
        write_nifti(root / "derivatives" / f"{name}_mask.nii.gz", mask)
        case = {"image": f"{name}.nii.gz", "healthy": healthy, "subject": name}
        lists["pretrain"][split].append(case)
        lists["classify"][split].append(case | {"label": int(not healthy)})
        if not healthy:
            lists["segment"][split].append(case | {"label": f"derivatives/{name}_mask.nii.gz"})
    (root / "datalists").mkdir()
    for name, content in lists.items():
        (root / "datalists" / f"{name}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A checkout of this project's code and bundles as they are now, in one commit."""
    source = Path(__file__).resolve().parents[1]
    root = tmp_path_factory.mktemp("checkout") / "sa-swin"
    for part in ("custom", "sa_swin", "bundles"):
        shutil.copytree(source / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "models", "eval"))
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for arguments in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "All of it")):
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def tissues(tmp_path_factory):
    """A folder with one ball of a head: white matter in grey matter in fluid, in bone, in fat."""
    folder = tmp_path_factory.mktemp("tissues")
    axes = [(np.arange(n) - (n - 1) / 2) * 4 for n in (48, 56, 48)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    shells = {"wm": (0, 45), "gm": (45, 60), "csf": (60, 65), "bone": (65, 72), "fat": (72, 80), "brain": (0, 65)}
    maps = np.zeros((*radius.shape, len(CHANNELS)), np.uint8)
    for name, (low, high) in shells.items():
        maps[..., CHANNELS.index(name)] = 255 * ((radius >= low) & (radius < high))
    nib.save(nib.Nifti1Image(maps, np.diag([4.0, 4, 4, 1])), folder / "ball_tissues.nii.gz")
    return folder
