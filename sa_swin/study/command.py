"""Run a study, or make the page of evidence.

`sa-swin study studies/classify.yaml --work WORK` runs what is missing of the grid and writes the
study's JSON; `sa-swin study evidence` makes `docs/evidence.md` from all of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.phantom.cohort import words
from sa_swin.study import cells, evidence
from sa_swin.study.cohort import make_cohort
from sa_swin.study.plan import Study
from sa_swin.study.summary import collect, summarize


def run(
    study: str,
    work: str,
    results: str = "studies/results",
    workers: int = 1,
    device: str | Sequence[str] = "cpu",
    only: str | None = None,
) -> None:
    """Run the cells of a study that have not run yet, and write its JSON: scores, figures and comparisons.

    Interrupted, it goes on where it stopped: a cell is known by a digest of its settings. Not for clinical use.

    Args:
        study: YAML file of the study.
        work: folder for the cohort and the cells; studies on one cohort may share it.
        results: folder of the JSON, named after the study.
        workers: cells that run side by side.
        device: such as cpu, cuda:0 or cuda:0,cuda:1; workers take turns among them.
        only: run only the cells whose name holds this text, such as "seed 0".
    """
    try:
        plan = Study(study)
        folder = Path(str(work)).absolute()
        make_cohort(plan, folder, workers)
        wanted = [cell for cell in plan.cells() if only is None or str(only) in cell.name]
        runs = cells.run_all(wanted, folder, words(device), workers)
        failures = {c.name: why for c, why in tqdm(runs, "cells", len(wanted), unit="cell", disable=None) if why}
        collected = collect(plan, folder)
        content = collected | {"summary": summarize(plan, collected)}
    except UserError as error:
        sys.exit(f"sa-swin study: {error}")
    target = Path(results) / f"{plan.content['name']}.json"
    write_whole(target, evidence.dumps(content))
    print(f"{target}: {len(collected['arms'])} arms, {len(collected['missing'])} still missing")
    if failures:
        sys.exit("sa-swin study: failed:\n" + "\n".join(f"  {name}: {why}" for name, why in failures.items()))


def make_evidence(results: str = "studies/results", output: str = "docs/evidence.md") -> None:
    """Make the page of evidence and its plots from the studies' JSON files.

    Args:
        results: folder of the JSON files.
        output: the page; plots go into a folder `evidence` beside it.
    """
    try:
        written = evidence.write(Path(results), Path(output))
    except UserError as error:
        sys.exit(f"sa-swin study: {error}")
    print("\n".join(str(path) for path in written))
