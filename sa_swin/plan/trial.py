"""What a training takes of memory, measured: two short trainings on the cohort's largest case, and a line through them.

Activations grow with the voxels that the network sees in a step; all else (the process, weights, the optimizer, a head
on its way from the file, a validation) does not.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.data.case import Case
from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.bundles import bundle_folder, config_files, quick_start

MARGIN = 1.15
"""What is planned with, over what the line says: windows of other sizes, fragments, longer trainings."""
STEPS = {"cpu": 2, "cuda": 6}
"""Optimizer steps of a trial: with the optimizer's state, and on a GPU with the step recorded."""
RUN = """
import atexit, json, re, sys
def tell():
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    import torch
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        peak = total - free
    print("peak", peak)
atexit.register(tell)
from monai.bundle.scripts import run
run(**json.load(sys.stdin))
"""
"""A bundle's run that ends with the bytes that were resident at most, or that a GPU has given out."""


class TrialError(UserError):
    """A training that did not run."""


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes.

    Args:
        fixed: whatever it sees.
        voxel: more for each voxel that the network sees in a step.
    """

    fixed: float
    voxel: float

    def of(self, voxels: int) -> float:
        """Bytes at so many voxels, with `MARGIN`."""
        return MARGIN * (self.fixed + self.voxel * voxels)


Peak = Callable[[int], int]
"""Bytes of a training with so many volumes in a step."""


def need(peak: Peak, voxels: int, batches: tuple[int, int] = (1, 3)) -> Need:
    """The line through two trainings.

    Args:
        peak: bytes by batch size.
        voxels: that the network sees of one volume.
        batches: of the two.
    """
    low, high = (peak(batch) for batch in batches)
    voxel = max(high - low, 0) / (voxels * (batches[1] - batches[0]))
    return Need(low - voxel * voxels * batches[0], voxel)


def measured(task: str, settings: Mapping[str, Any], case: Case, root: Path, device: str, batch: int) -> int:
    """Bytes that a training of some steps on one case takes, with its validation.

    Args:
        task: bundle's short name.
        settings: of the bundle.
        case: entry of a datalist.
        root: what its paths are relative to.
        device: `cpu` or `cuda`.
        batch: volumes in a step.

    Raises:
        TrialError: it did not run; with its last line.
    """
    bundle = bundle_folder(task)
    with tempfile.TemporaryDirectory() as place:
        datalist = Path(place) / "list.json"
        cases = [case | {"subject": f"trial-{number}"} for number in range(batch * STEPS[device] + 1)]
        write_whole(datalist, json.dumps({"training": cases[1:], "validation": cases[:1]}))
        once = {"config_file": str(config_files("train", bundle)[0]), "bundle_root": str(bundle), "batch_size": batch}
        once |= {"dataset_dir": str(root), "datalist": str(datalist), "output_dir": place, "ckpt_dir": place}
        once |= {"max_epochs": 1, "val_interval": 1, "warmup_epochs": 0, "cache_rate": 0.0, "num_workers": 0}
        once |= {"allow_leakage": True, "untrusted": "found", "device": f"$torch.device({device!r})"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN],
            input=json.dumps({**settings, **once}),
            capture_output=True,
            text=True,
            env=os.environ | quick_start(),
        )
    if done.returncode or "peak " not in done.stdout:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrialError(f"a trial training on {case['image']} failed: {last}")
    return int(done.stdout.rsplit("peak ", 1)[1])
