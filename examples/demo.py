"""The whole line on the built-in cohort: pretrain, fine-tune both tasks, evaluate held-out subjects, infer, one table.

`python examples/demo.py --output demo` (what `make demo` runs). A step whose result is there is not done
again. Everything here is synthetic and small: the figures show that the parts work together, not how well they would do
on patients.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from sa_swin import commands

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "spacing": 3.0,  # mm
    "spatial_size": [64, 64, 64],
    "feature_size": 12,
    "window_size": 4,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "num_workers": 0,
}
TRAININGS = {
    "pretrain": {
        "max_epochs": 8,
        "warmup_epochs": 1,
        "batch_size": 6,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        # The steps are few, and the zero-shot score is what the table shows of them.
        "loss_weights": {"inpainting": 0.1, "rotation": 0.1, "contrastive": 0.1, "symmetry": 10.0},
        "roi_size": [32, 64, 64],  # one hemisphere's width
        "num_samples": 1,
        "val_interval": 4,
    },
    "classify": {"max_epochs": 6, "warmup_epochs": 1, "batch_size": 6, "learning_rate": 2e-3, "val_interval": 2},
    "segment": {
        "max_epochs": 9,
        "warmup_epochs": 1,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "roi_size": [64, 64, 64],
        "num_samples": 1,
        "val_interval": 3,
    },
}
COHORT = {
    "spacing": 3,
    "modality": "FLAIR",
    "skull": "false",
    "findings": "tumour,infarct,haemorrhage",
    "lesion_ml": "30,90",
    "workers": 2,
}
FINE_TUNED = ("classify", "segment")


def demo(output: str = "demo", subjects: int = 160, seed: int = 0, align: bool = True) -> None:
    """Run the demonstration.

    Args:
        output: folder of cohort, weights, tables, masks and reports.
        subjects: of the built-in cohort.
        seed: of the cohort and of every training.
        align: find the midsagittal plane of every head; False takes heads as they lie, to see what alignment is worth.
    """
    out = Path(output).resolve()
    step(
        "a cohort of synthetic FLAIR brains, half of them with a one-sided lesion",
        out / "cohort" / "participants.tsv",
        ["sa_swin", "phantom", *options(output=out / "cohort", subjects=subjects, seed=seed, **COHORT)],
    )
    if align:  # once, so that no training does it again; evaluation and inference start from the raw files
        sizes = {"spacing": SIZES["spacing"], "spatial_size": ",".join(map(str, SIZES["spatial_size"]))}
        settings = options(dataset_dir=out / "cohort", output=out / "prepared", workers=2, **sizes)
        step(
            "midsagittal alignment", out / "prepared" / "datalists" / "segment.json", ["sa_swin", "prepare", *settings]
        )
    for task in TRAININGS:
        for workflow in ("train", "evaluate", "inference"):
            run(out, task, workflow, seed, align)
            folder = out / task / workflow
            step(f"{task}: report of {workflow}", folder / "report.html", ["sa_swin", "report", str(folder)])
    sys.stdout.write(table(out, seed))


def run(out: Path, task: str, workflow: str, seed: int, align: bool) -> None:
    """One workflow of a bundle, as a user would run it."""
    bundle = ROOT / "bundles" / f"sa_swin_{task}"
    config = str(bundle / "configs" / f"{workflow}.yaml")
    settings = {**SIZES, "bundle_root": bundle, "dataset_dir": out / "cohort", "ckpt_dir": out / task / "models"}
    settings |= {"output_dir": out / task / workflow, "align": align}
    if "roi_size" in TRAININGS[task]:
        settings["roi_size"] = TRAININGS[task]["roi_size"]
    if workflow == "train" and align:
        settings |= {"dataset_dir": out / "prepared", "align": False}
    if workflow == "inference":
        settings["datalist"] = out / "cohort" / "datalists" / "segment.json"
    else:
        settings |= {**TRAININGS[task], "seed": seed}
        if task in FINE_TUNED:
            settings["pretrained"] = out / "pretrain" / "models" / "model.pt"
    if workflow == "evaluate":
        config = f"['{bundle / 'configs' / 'train.yaml'}','{config}']"
    done = out / task / "models" / "done" if workflow == "train" else out / task / workflow / "cases.csv"
    step(f"{task}: {workflow}", done, ["monai.bundle", "run", *options(config_file=config, **settings)])
    done.touch()


def options(**values: object) -> list[str]:
    """Command line options from names and values."""
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def step(title: str, done: Path, command: list[str]) -> None:
    """Run a command unless its result is there; stop the demonstration if it fails."""
    if done.exists():
        sys.stdout.write(f"== {title}: there already\n")
        return
    sys.stdout.write(f"== {title}\n")
    sys.stdout.flush()
    start = time.monotonic()
    subprocess.run([sys.executable, "-W", "ignore", "-m", *command], check=True, cwd=ROOT)
    sys.stdout.write(f"== {title}: {time.monotonic() - start:.0f} s\n")


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
