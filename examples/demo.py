"""The whole line on the built-in cohort: pretrain, fine-tune both tasks, evaluate held-out subjects, infer, one table.

`python examples/demo.py --output demo` (what `make demo` runs). A step whose result is there is not done
again. Everything here is synthetic and small: the figures show that the parts work together, not how well they would do
on patients.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from custom.support.errors import UserError
from sa_swin import commands

ROOT = Path(__file__).resolve().parents[1]
SPACING, SPATIAL_SIZE = 5, [32, 64, 64]  # mm, voxels
SIZES = {
    "spacing": SPACING,
    "spatial_size": SPATIAL_SIZE,
    "feature_size": 12,
    "window_size": 4,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
}
TRAINING = {"learning_rate": 2e-3, "warmup_epochs": 1, "num_workers": 0, "align": False}
TRAININGS = {
    "pretrain": {
        **SIZES,
        "max_epochs": 6,
        "batch_size": 6,
        "weight_decay": 0.01,
        # The steps are few, and the zero-shot score is what the table shows of them.
        "objective": "balanced",
        "roi_size": SPATIAL_SIZE,
        "num_samples": 1,
        "val_interval": 3,
    },
    "classify": {"max_epochs": 8, "batch_size": 6, "val_interval": 8},
    "segment": {"max_epochs": 9, "batch_size": 2, "roi_size": [32, 64, 32], "num_samples": 1, "val_interval": 3},
}
COHORT = {
    "spacing": SPACING,
    "modality": "FLAIR",
    "skull": "false",
    "findings": "tumour,infarct,haemorrhage",
    "lesion_ml": "30,90",
    "workers": 2,
}
NEW = "sub-00[0-7]*_FLAIR.nii.gz"
"""Heads of the cohort that are segmented as a folder of new files is."""


def demo(output: str = "demo", subjects: int = 72, seed: int = 0) -> None:
    """Run the demonstration.

    Args:
        output: folder of cohort, weights, tables, masks and reports.
        subjects: of the built-in cohort.
        seed: of the cohort and of every training.
    """
    out = Path(output).resolve()
    cohort, prepared = out / "cohort", out / "prepared"
    sa_swin(
        "a cohort of synthetic FLAIR brains, half of them with a one-sided lesion",
        cohort / "participants.tsv",
        "phantom",
        output=cohort,
        subjects=subjects,
        seed=seed,
        **COHORT,
    )
    sa_swin(
        "midsagittal alignment",
        prepared / "datalists" / "segment.json",
        "prepare",
        dataset_dir=cohort,
        output=prepared,
        workers=2,
        spacing=SPACING,
        spatial_size=SPATIAL_SIZE,
    )
    train = {"dataset_dir": prepared, "seed": seed, **TRAINING}
    run(out, "pretrain", "train", **train, **TRAININGS["pretrain"])
    train["pretrained"] = out / "pretrain" / "models" / "model.pt"

    def segment() -> None:
        run(out, "segment", "train", **train, **TRAININGS["segment"])
        # On the files as they lie: the masks are measured, and written, on their voxel grids.
        run(out, "segment", "evaluate", dataset_dir=cohort)
        run(out, "segment", "predict", dataset_dir=cohort, images=NEW)

    def classify() -> None:
        run(out, "pretrain", "evaluate", dataset_dir=prepared, align=False)
        run(out, "classify", "train", **train, **TRAININGS["classify"])
        run(out, "classify", "evaluate", dataset_dir=prepared, align=False)

    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))  # for each of two processes
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(segment), pool.submit(classify)]:
            done.result()
    sys.stdout.write(table(out, seed))


def run(out: Path, task: str, workflow: str, **settings: object) -> None:
    """One workflow of a bundle and, of what it found, the report, as a user would run them."""
    folder, models = out / task / workflow, out / task / "models"
    done = models / "done" if workflow == "train" else folder / "cases.csv"
    sa_swin(f"{task}: {workflow}", done, workflow, task, output_dir=folder, ckpt_dir=models, **settings)
    done.touch()
    if workflow != "train":
        sa_swin(f"{task}: report of {workflow}", folder / "report.html", "report", str(folder))


def options(**values: object) -> list[str]:
    """Command line options from names and values."""
    return [text for name, value in values.items() for text in (f"--{name}", str(value).replace(" ", ""))]


def sa_swin(title: str, done: Path, *words: str, **values: object) -> None:
    """Run a command of `sa-swin` unless its result is there; its output is kept in a log beside the result's folder.

    Raises:
        UserError: when it fails, with the end of the log.
    """
    if done.exists():
        sys.stdout.write(f"== {title}: there already\n")
        return
    log = done.parent.parent / f"{words[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"== {title} ...\n")
    sys.stdout.flush()
    start = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "sa_swin", *words, *options(**values)]
    with log.open("w") as file:
        failed = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode
    if failed:
        raise UserError(f"{log.read_text()[-2000:]}\n{title} failed with exit code {failed}; all it said is in {log}")
    sys.stdout.write(f"== {title}: {time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()


def table(out: Path, seed: int) -> str:
    """The measured figures of the three bundles on the held-out subjects."""
    rows = [
        ("pretrain", "zero-shot AUC, healthy against patients", "zero_shot_auc", "0.5"),
        ("classify", "AUC, healthy against patients", "auc", "0.5"),
        ("classify", "balanced accuracy", "balanced_accuracy", "0.5"),
        ("segment", "mean Dice of the lesion", "dice", "0"),
        ("segment", "mean HD95 (mm)", "hd95_mm", ""),
        ("segment", "mean absolute volume error (ml)", "absolute_volume_error_ml", ""),
    ]
    lines = [
        f"\nHeld-out synthetic subjects, seed {seed}; a small network, minutes of training. Not for clinical use.",
        f"{'bundle':<10}{'figure':<42}{'value':>8}{'chance':>8}{'n':>5}",
    ]
    for task, title, name, chance in rows:
        metrics = json.loads((out / task / "evaluate" / "cases.json").read_text())["metrics"]
        lines.append(f"{task:<10}{title:<42}{metrics[name]:>8.3f}{chance:>8}{metrics['n']:>5}")
    return "\n".join([*lines, f"\nWeights, tables, masks and reports (*/*/report.html) are in {out}", ""])


if __name__ == "__main__":
    commands.run(sys.argv[1:], "examples/demo.py", {"": "demo:demo"})
