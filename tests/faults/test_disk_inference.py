"""Inference with the disk full or gone from each of its writes on: what is done stays done."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from injected import full_from, tree
from monai.bundle import ConfigWorkflow

from custom.networks.segmenter import SASwinUNETR
from custom.support.errors import root_cause
from custom.support.files import WriteError
from custom.weights.settings import carrying

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "sa_swin_segment" / "configs" / "inference.yaml"
TINY = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 32], "num_workers": 0}


@pytest.fixture
def segmented(tiny_cohort, tmp_path):
    """A function that segments two images into a folder; it returns the error that ended it, or None."""
    root = tmp_path / "in"
    root.mkdir()
    for name in ("sub-0.nii.gz", "sub-1.nii.gz"):
        shutil.copy(tiny_cohort / name, root)
    network = SASwinUNETR(out_channels=2, feature_size=12, window_size=4)
    network.out.conv.conv.bias.data += torch.tensor([0.0, 10.0])  # a finding in every image
    torch.save(carrying(network.state_dict(), settings={"modality": "MR", "in_channels": 1}), tmp_path / "model.pt")

    def run(output, **options):
        workflow = ConfigWorkflow(
            str(CONFIG),
            logging_file=False,
            workflow_type="infer",
            **TINY,
            roi_size=[32, 64, 32],
            align=False,
            device="$torch.device('cpu')",
            dataset_dir=str(root),
            output_dir=str(output),
            checkpoint=str(tmp_path / "model.pt"),
            save_probabilities=True,
            save_asymmetry=True,
            **options,
        )
        workflow.initialize()
        try:
            workflow.run()
        except Exception as error:  # what `custom.support.errors.report_errors` is given
            return root_cause(error)
        return None

    return run


def results(folder):
    """What a run left, but for when it was begun and what is to be done anew."""
    return {name: content for name, content in tree(folder).items() if not name.startswith(("run_", "finished"))}


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vanishing", [False, True])
def test_inference_stops_at_any_write_and_a_second_run_completes_it(segmented, tmp_path, monkeypatch, step, vanishing):
    assert segmented(tmp_path / "whole") is None
    expected = results(tmp_path / "whole")
    assert {"sub-1_pred.nii.gz", "sub-1_probability.nii.gz", "sub-1_asymmetry.nii.gz", "findings.csv"} <= set(expected)
    number = 1 - step
    while True:
        number += step
        output = tmp_path / f"out_{number}"
        output.mkdir()
        with full_from(number, monkeypatch, output if vanishing else None) as writes:
            error = segmented(output)
        found = results(output) if output.exists() else {}
        assert not [name for name in found if ".partial" in name]
        assert found.items() <= expected.items()
        if len(writes) < number:
            break
        assert isinstance(error, WriteError), error
        assert " cannot be written: " in str(error)
        assert segmented(output) is None
        assert results(output) == expected
    assert number > 10


def test_a_damaged_list_of_finished_cases_costs_those_cases_only(segmented, tmp_path):
    assert segmented(tmp_path / "out") is None
    expected = results(tmp_path / "out")
    path = tmp_path / "out" / "finished.jsonl"
    first, one, other = path.read_text().splitlines()
    for damaged in ([first, one, other[:40]], [first, "[" * 10**5, one], [first, '{"image": 1}', "null", other], ["{"]):
        path.write_text("\n".join(damaged))
        assert segmented(tmp_path / "out") is None
        assert results(tmp_path / "out") == expected
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(line["image"] for line in lines[1:]) == [str(tmp_path / "in" / f"sub-{n}.nii.gz") for n in (0, 1)]
