"""What the tests of the three bundles share: a small cohort of noise, and the three workflows run on it for one epoch.

As the MONAI Model Zoo runs them, from its root, where `models/<bundle>` is the unpacked package:

    python ci/unit_tests/runner.py --b sa_swin_segment
"""

import json
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

SIZES = {
    "modality": "MR",
    "spacing": 6.0,
    "spatial_size": [32, 64, 64],
    "feature_size": 12,
    "window_size": 4,
    "num_workers": 0,
}
TRAINING = {"max_epochs": 1, "val_interval": 1, "warmup_epochs": 0, "batch_size": 2, "cache_rate": 0.0}
CASES = {"training": 2, "validation": 2, "testing": 2}


class BundleCase(unittest.TestCase):
    """The three workflows of a bundle on a cohort of noise."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def check_workflows(self, bundle: str, **options: object) -> None:
        """Train, evaluate and predict; each leaves what it says.

        Args:
            bundle: its name.
            options: settings that it alone has.
        """
        self.write_cohort(masks=bundle.endswith("segment"))
        self.run_workflow(bundle, "train", "train", **TRAINING, **options)
        assert (self.folder / "models" / "model.pt").is_file()
        self.run_workflow(bundle, "train", "train", "evaluate", cache_rate=0.0, **options)
        self.run_workflow(bundle, "infer", "inference", **options)
        for name in ("evaluate", "inference"):
            rows = (self.folder / name / "cases.csv").read_text().splitlines()
            assert len(rows) == 1 + CASES["testing"]

    def write_cohort(self, masks: bool) -> None:
        """Heads of noise, every second one with a lesion, and their datalist."""
        rng = np.random.default_rng(0)
        lists = {
            section: [self.case(f"{section}-{index}", bool(index % 2), masks, rng) for index in range(count)]
            for section, count in CASES.items()
        }
        (self.folder / "list.json").write_text(json.dumps(lists))

    def case(self, subject: str, lesion: bool, masks: bool, rng: np.random.Generator) -> dict[str, object]:
        """A head's entry, once its image and mask are written."""
        image = rng.normal(size=(32, 64, 64)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[4:10, 20:30, 20:30] = lesion
        for name, volume in (("image", image), ("mask", mask)):
            nib.save(nib.Nifti1Image(volume, np.diag([6.0, 6.0, 6.0, 1.0])), self.folder / f"{subject}_{name}.nii.gz")
        label = f"{subject}_mask.nii.gz" if masks else int(lesion)
        return {"image": f"{subject}_image.nii.gz", "subject": subject, "label": label, "healthy": not lesion}

    def run_workflow(self, bundle: str, kind: str, *names: str, **options: object) -> None:
        """Initialise, check MONAI's properties, run and finalise."""
        root = Path("models") / bundle
        workflow = ConfigWorkflow(
            [str(root / "configs" / f"{name}.json") for name in names],
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=str(root / "configs" / "logging.conf"),
            workflow_type=kind,
            bundle_root=str(root),
            dataset_dir=str(self.folder),
            datalist=str(self.folder / "list.json"),
            output_dir=str(self.folder / names[-1]),
            ckpt_dir=str(self.folder / "models"),
            align=False,
            **SIZES,
            **options,
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()
