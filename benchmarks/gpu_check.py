"""Does everything run on this GPU, and do its numbers agree with the CPU's? A table in under four minutes.

    make gpu-packages         # where packages can be fetched: what the other machine lacks, into .gpu/site
    make gpu-check            # on the machine with the GPU; DEVICE=cpu tries the script itself

The bundles run in processes of their own, beside the checks of networks and steps; full memory comes last, alone.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch
import yaml
from torch import Tensor, nn

from benchmarks.gpu_bundles import BUNDLES, SIZES, CheckError, Checks, cohort
from custom.losses import PretextLoss
from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.support.files import write_whole
from custom.support.run_record import commit, machine, versions
from custom.symmetry import symmetric_pair
from custom.training.replay import PLAIN_STEPS, ReplayedStep
from sa_swin.plan.command import plan_command
from sa_swin.plan.trial import measured

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("pretrain", "classify", "segment")
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "pretrainer": SASwinPretrainer,
    "pretrainer, paper's readout": lambda **sizes: SASwinPretrainer(readout="paper", **sizes),
    "classifier": SASwinClassifier,
    "classifier, paper's readout": lambda **sizes: SASwinClassifier(readout="paper", **sizes),
    "segmenter": lambda **sizes: SASwinUNETR(out_channels=2, **sizes),
    "segmenter, channel": lambda **sizes: SASwinUNETR(out_channels=2, symmetry="channel", **sizes),
    "segmenter, none": lambda **sizes: SASwinUNETR(out_channels=2, symmetry="none", **sizes),
    "segmenter, recomputed": lambda **sizes: SASwinUNETR(out_channels=2, use_checkpoint=True, **sizes),
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
OUTPUT_WITHIN = {"fp32": 2e-3, "bf16": 5e-2}  # fp32 convolutions of a GPU round to tf32
GRADIENT_WITHIN = {"fp32": 5e-2, "bf16": 0.3}
FULL = """
import json, sys, torch
hold = torch.empty(torch.cuda.mem_get_info()[0] - 2**30, dtype=torch.uint8, device="cuda")
from monai.bundle.scripts import run
run(**json.loads(sys.stdin.read()))
"""
"""Takes a GPU's memory but for a gigabyte, and runs a bundle in what is left."""


def outputs(network: nn.Module, pair: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """A network's output in eval mode, and the gradients of the sum of its squares, all in one vector each."""
    network.zero_grad()
    with torch.autocast(pair.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        out = network.eval()(pair).float()
    out.square().sum().backward()
    gradients = torch.cat([p.grad.flatten().float() for p in network.parameters() if p.grad is not None])
    return out.detach().flatten().cpu(), gradients.cpu()


def apart(value: Tensor, reference: Tensor) -> float:
    """Distance relative to the reference."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def check_network(make: Callable[..., nn.Module], device: str, feature_size: int, roi: int) -> str:
    """A network on a device in fp32 and bf16 against the CPU's fp32: output and gradients."""
    torch.manual_seed(0)
    network = make(feature_size=feature_size)
    for parameter in network.parameters():  # branches that start at zero would hide what they compute
        nn.init.normal_(parameter, std=0.1) if not parameter.any() else None
    pair = symmetric_pair(torch.randn(2, 1, roi, 64, roi))
    expected = outputs(network, pair, None)
    network, pair, words = network.to(device), pair.to(device), []
    for name, dtype in PRECISIONS.items() if device == "cuda" else [("fp32", None)]:
        found = [apart(*both) for both in zip(outputs(network, pair, dtype), expected, strict=True)]
        words.append(f"{name} output {found[0]:.1e}, gradients {found[1]:.1e}")
        if not (found[0] <= OUTPUT_WITHIN[name] and found[1] <= GRADIENT_WITHIN[name]):
            raise CheckError(f"{words[-1]}; allowed {OUTPUT_WITHIN[name]:.0e}, {GRADIENT_WITHIN[name]:.0e}")
    return "; ".join(words)


def losses_of(device: str, feature_size: int, enabled: bool, steps: int = 8) -> tuple[list[float], ReplayedStep]:
    """Losses of a short pretraining with its steps replayed or not."""
    torch.manual_seed(0)
    network = SASwinPretrainer(feature_size=feature_size).to(device).train()
    optimizer, loss_of = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True), PretextLoss()
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device == "cuda")

    def gradients(pair: Tensor, targets: dict[str, Tensor]) -> Tensor:
        with half:
            pred = network(pair)
        loss = loss_of({name: value.float() for name, value in pred.items()}, targets)
        loss.backward()
        return loss.detach()

    step, losses = ReplayedStep(gradients, list(network.parameters()), enabled), []
    for number in range(steps):
        torch.manual_seed(number)
        pair = symmetric_pair(torch.randn(4, 1, 64, 64, 64)).to(device)
        labels = torch.arange(4, device=device)
        losses.append(step(pair, {"image": pair[:, :1], "rotation": labels, "healthy": labels > 1}).item())
        optimizer.step()
    return losses, step


def check_replay(device: str, feature_size: int) -> str:
    """A step that is replayed as a CUDA graph gives the losses of one that is not."""
    plain, _ = losses_of(device, feature_size, enabled=False)
    replayed, step = losses_of(device, feature_size, enabled=device == "cuda")
    if device == "cuda" and step.recording is None:
        raise CheckError("the step was not recorded; the log says why")
    worst = max(abs(a - b) / abs(b) for a, b in zip(replayed, plain, strict=True))
    if not worst < 2e-2:
        raise CheckError(f"losses {replayed}, without a graph {plain}")
    return f"losses of {len(plain)} steps within {worst:.1e}; the last {replayed[-1]:.4f}, plain {plain[-1]:.4f}"


def check_fallback(disturb: Callable[[Tensor], Any]) -> str:
    """A step on a GPU that cannot be recorded, for what is done with its loss, goes on as it is."""
    weight = nn.Parameter(torch.ones(3, device="cuda"))

    def disturbed(values: Tensor) -> Tensor:
        loss = (weight * values).sum()
        loss.backward()
        disturb(loss)
        return loss.detach()

    step = ReplayedStep(disturbed, [weight])
    results = [step(torch.full((3,), float(number), device="cuda")).item() for number in range(PLAIN_STEPS + 3)]
    torch.manual_seed(0)
    nn.functional.dropout(weight)  # random numbers are there as before
    if results != [3.0 * number for number in range(PLAIN_STEPS + 3)] or step.recording is not None or step.enabled:
        raise CheckError(f"results {results}, enabled {step.enabled}")
    return "it falls back, with the right results"


def check_full_memory(folder: Path) -> str:
    """With a GPU's memory full, a training ends in one sentence that helps."""
    settings: dict[str, Any] = SIZES | {"feature_size": 48, "spatial_size": [64, 64, 64], "roi_size": [64, 64, 64]}
    settings |= {"config_file": str(BUNDLES / "sa_swin_segment" / "configs" / "train.yaml"), "align": False}
    settings |= {"bundle_root": str(BUNDLES / "sa_swin_segment"), "dataset_dir": str(folder / "cohort")}
    settings |= {
        "output_dir": str(folder / "full"),
        "ckpt_dir": str(folder / "full"),
        "batch_size": 6,
        "num_samples": 4,
    }
    done = subprocess.run(
        [sys.executable, "-c", FULL], input=json.dumps(settings), capture_output=True, text=True, cwd=ROOT, check=False
    )
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0 or not last.startswith("error: the memory is full: make batch_size"):
        raise CheckError(f"exit code {done.returncode}, last line: {last[:300]}")
    return "one sentence, last: " + last[:60] + "..."


def check_plan(device: str, folder: Path, gigabytes: float = 6.0) -> str:
    """A training with the plan for so much memory takes no more."""
    cohort, plan = folder / "cohort", folder / "plan.yaml"
    plan_command(str(cohort), memory=gigabytes, device=device, feature_size=12, output=str(plan))
    settings = yaml.safe_load(plan.read_text())
    case = json.loads((cohort / "datalists" / "segment.json").read_text())["training"][0]
    taken = measured("segment", settings, case, cohort, device, settings["batch_size"]) / 2**30
    if not taken < gigabytes:
        raise CheckError(f"it takes {taken:.2f} GB, planned for {gigabytes:.2f} GB")
    return f"it takes {taken:.2f} GB, planned for {gigabytes:.2f} GB"


def bundle_processes(device: str, folder: Path) -> dict[str, subprocess.Popen[bytes]]:
    """A process per bundle, each with a log."""
    processes = {}
    for task in TASKS:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_bundles"]
        words += ["--task", task, "--device", device, "--folder", str(folder)]
        with (folder / f"{task}.log").open("w") as log:
            processes[task] = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    return processes


def collected(processes: dict[str, subprocess.Popen[bytes]], folder: Path, end: float) -> list[dict[str, Any]]:
    """What the bundles' processes found; one that does not end in time, or badly, is a check that failed."""
    rows: list[dict[str, Any]] = []
    for task, process in processes.items():
        try:
            code = process.wait(max(1.0, end - time.monotonic()))
            trouble = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            trouble = "it took too long"
        found = folder / f"{task}.json"
        rows += json.loads(found.read_text()) if found.exists() else []
        if trouble:
            log = (folder / f"{task}.log").read_text().strip().splitlines()
            rows.append(
                {"check": f"{task}: ended", "passed": False, "seconds": 0.0, "reason": f"{trouble}; {log[-1:]}"}
            )
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """The table, and a line that says how many passed."""
    width = max(len(row["check"]) for row in rows)
    lines = []
    for row in rows:
        word = "pass" if row["passed"] else "FAIL"
        lines.append(f"{word}  {row['check']:{width}}  {row['seconds']:6.1f} s  {row['reason']}")
    return "\n".join([*lines, f"{sum(row['passed'] for row in rows)} of {len(rows)} checks passed"])


def main(
    device: str = "cuda",
    output: str = "benchmarks/results",
    feature_size: int = 24,
    roi: int = 64,
    budget_seconds: float = 220.0,
) -> None:
    """Run all checks, print a table and write it as JSON; exit code 1 where one failed.

    Args:
        device: cuda, or cpu to try the script itself.
        output: folder of gpu_check_<device>.json.
        feature_size: of the networks that are compared.
        roi: X and Z of their input in voxels.
        budget_seconds: bundles that take longer are stopped.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cohort(folder / "cohort")
        processes = bundle_processes(device, folder)
        checks = Checks(folder / "checks.json")
        for name, make in NETWORKS.items():
            checks(f"network: {name}", lambda make=make: check_network(make, device, feature_size, roi))
        checks("step replayed as a CUDA graph", lambda: check_replay(device, feature_size))
        if device == "cuda":
            checks("step that waits for the GPU", lambda: check_fallback(Tensor.item))
            state = torch.cuda.get_rng_state()
            checks("step that cannot be recorded", lambda: check_fallback(lambda _: torch.cuda.set_rng_state(state)))
        rows = collected(processes, folder, start + budget_seconds) + checks.found
        if device == "cuda":
            torch.cuda.empty_cache()
            checks("memory full", lambda: check_full_memory(folder))
            checks("training with a plan", lambda: check_plan(device, folder))
            rows += checks.found[-2:]
        logs = "\n".join((folder / f"{task}.log").read_text()[-3000:] for task in TASKS)
    about = {"commit": commit(), "machine": machine(), "versions": versions()}
    content = {**about, "seconds": round(time.monotonic() - start, 1), "checks": rows}
    write_whole(Path(output) / f"gpu_check_{device}.json", json.dumps(content, indent=1, default=str) + "\n")
    failed = not all(row["passed"] for row in rows)
    sys.stdout.write((logs + "\n" if failed else "") + report(rows) + f" in {content['seconds']} s\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    fire.Fire(main)
