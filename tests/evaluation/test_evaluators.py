import errno
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset, IterableDataset, MetaTensor
from monai.transforms import Lambdad
from torch import nn

from custom.data.case import CohortError
from custom.data.dataset import FailedCase, collate_cases
from custom.evaluation.case_table import CaseTable
from custom.evaluation.evaluators import TolerantEvaluator
from custom.support.errors import root_cause
from custom.support.files import WriteError, unwritable
from custom.transforms.checks import VolumeError


class Fragile(nn.Module):
    """Doubles an image; one of negative voxels does not fit in memory."""

    def forward(self, image):
        if image.min() < 0:
            raise RuntimeError("not enough memory")
        return 2 * image


def save(mask):
    """Stands for what writes a mask; large values cannot be written."""
    number = {1000: errno.ENOSPC, 500: errno.ENOENT, 120: errno.EACCES}.get(int(mask.max()))
    if number:
        error = OSError(number, os.strerror(number))
        raise unwritable(Path("/results/mask.nii.gz"), error) from error
    if mask.max() > 50:
        raise VolumeError("d.nii.gz: too bright")
    return mask


def run(values, **options):
    """Rows of a table over cases `a`, `b`, ... of one value each."""
    cases = []
    for name, value in zip("abcde", values, strict=False):
        meta = {"filename_or_obj": f"{name}.nii.gz"}
        cases.append({"image": MetaTensor(torch.full((1, 2, 2, 2), value), meta=meta), "subject": name})
    expected = [{"image": f"{case['subject']}.nii.gz"} for case in cases]
    table = CaseTable(lambda output: {"value": output["pred"].max().item()}, expected=expected)
    evaluator = TolerantEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), **options),
        network=Fragile(),
        postprocessing=Lambdad("pred", save),
        val_handlers=[table],
    )
    return evaluator, table


def without_free(message: str) -> str:
    """A message without what is free on a file system, which changes while tests run."""
    return re.sub(r" \([\d,.]+ MB free on its file system\)", "", message)


def test_a_case_that_fails_in_the_network_or_in_saving_costs_no_other_case(caplog):
    evaluator, table = run([1.0, -1.0, 60.0, 30.0, 3.0])
    missing = r"3 of 5 cases failed.*\n  b.nii.gz: not enough memory\n  c.nii.gz: .*denied.*\n  d.nii.gz: too bright"
    with caplog.at_level(logging.ERROR), pytest.raises(CohortError, match=missing):
        evaluator.run()
    assert {row["subject"]: row["value"] for row in table.rows} == {"a": 2.0, "e": 6.0}
    said = [record.getMessage() for record in caplog.records if record.name == "custom.evaluation.evaluators"]
    told = str(unwritable(Path("/results/mask.nii.gz"), PermissionError(13, "Permission denied")))
    assert [without_free(message) for message in said] == [
        "left out: b.nii.gz: not enough memory",
        f"left out: c.nii.gz: {without_free(told)}",
        "left out: d.nii.gz: too bright",
    ]


def test_a_batch_that_fails_is_named_with_all_its_files(caplog):
    evaluator, table = run([1.0, -1.0, 3.0, 4.0], batch_size=2)
    with pytest.raises(CohortError, match=r"2 of 4 cases failed"):
        evaluator.run()
    assert [row["subject"] for row in table.rows] == ["c", "d"]
    assert "left out: a.nii.gz, b.nii.gz: not enough memory" in caplog.text


def test_a_case_that_could_not_be_loaded_is_named_with_its_reason_and_the_others_are_done(tmp_path):
    class Cases(IterableDataset):
        def __iter__(self):
            yield {"image": MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": "a.nii.gz"})}
            yield FailedCase("b.nii.gz", "b.nii.gz: too steep", "look at it")
            yield FailedCase("c.nii.gz", "too flat", "look at it")

    table = CaseTable(lambda output: {}, expected=[{"image": f"{name}.nii.gz"} for name in "abc"])
    loader = DataLoader(Cases([]), batch_size=1, collate_fn=collate_cases)
    evaluator = TolerantEvaluator(torch.device("cpu"), loader, Fragile(), val_handlers=[table])
    with pytest.raises(
        CohortError, match=r"^2 of 3 cases failed.*:\n  b.nii.gz: too steep\n  c.nii.gz: too flat\n  look at it$"
    ):
        evaluator.run()
    assert [row["image"] for row in table.rows] == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("value", "reason"), [(500.0, "No space left on device"), (250.0, "No such file or directory")]
)
def test_a_full_disk_or_a_folder_that_is_gone_ends_the_run_at_once(value, reason):
    evaluator, table = run([1.0, value, 3.0])
    with pytest.raises(RuntimeError) as caught:
        evaluator.run()
    cause = root_cause(caught.value)
    assert isinstance(cause, WriteError)
    assert reason in str(cause)
    assert [row["subject"] for row in table.rows] == ["a"]
