import csv

import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from custom.data.dataset import FailedCase
from custom.evaluation.batch_inference import (
    FinishedCases,
    InferenceTable,
    failed_reasons,
    overview,
    write_failed,
)
from custom.evaluation.metrics import embedding_row


class Embedder(nn.Module):
    """The mean of an image, and an embedding that follows from it."""

    def forward(self, image):
        mean = image.flatten(1).mean(1)
        return {"asymmetry": mean / 10, "embedding": torch.stack([mean, -mean, mean**2], dim=1)}


def embed(folder, images):
    """Do what is missing of these images, and give the finished cases."""
    cases = [{"image": str(path), "subject": f"sub-{path.stem}"} for path in images]
    finished = FinishedCases(cases, folder, folder / "model.pt", {})
    items = [case | {"image": MetaTensor(torch.full((1, 2, 2, 2), float(case["subject"][4:])),
                                         meta={"filename_or_obj": case["image"]})}
             for case in finished.missing()]  # fmt: skip
    table = InferenceTable(embedding_row, finished, folder)
    SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset(items)), Embedder(), val_handlers=[table]).run()
    return finished


def test_embeddings_of_earlier_and_later_cases_are_in_one_file_in_the_order_of_the_table(tmp_path):
    images = [tmp_path / f"{number}.nii" for number in (3, 1, 2)]
    for path in images:
        path.write_bytes(b"an image")
    embed(tmp_path, images[:2])
    assert embed(tmp_path, images).found == {str(path) for path in images[:2]}
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["subject", "image", "asymmetry"]] * 3
    with np.load(tmp_path / "embeddings.npz") as stored:
        assert stored["subject"].tolist() == [row["subject"] for row in rows] == ["sub-1", "sub-2", "sub-3"]
        assert stored["image"].tolist() == [row["image"] for row in rows]
        np.testing.assert_array_equal(stored["embedding"], [[1, -1, 1], [2, -2, 4], [3, -3, 9]])


def test_the_closing_table_tells_cases_of_one_file_name_apart_and_has_their_planes():
    cases = [{"image": f"/data/{subject}/anat/T1w.nii"} for subject in ("a", "b", "c")]
    rows = [
        {"subject": "a", "image": cases[0]["image"], "score": 0.25, "plane": "estimated", "plane_yaw_deg": 1.5},
        {"subject": "b", "image": cases[1]["image"], "score": 0.5, "plane": "found, not trusted",
         "plane_yaw_deg": -20.25, "plane_reason": "margin 0.14"},
    ]  # fmt: skip
    image = cases[2]["image"]
    why = {image: FailedCase(image, f"{image}: yaw +3.0, not trusted", "look at it")}
    first, head, *lines = overview(cases, rows, {cases[0]["image"]}, why).splitlines()
    columns = ["case", "state", "score", "plane", "plane_yaw_deg", "plane_reason", "why_failed"]
    assert (first, head.split()) == ("2 of 3 cases done", columns)
    assert [line.split() for line in lines] == [
        ["a/anat/T1w.nii", "done", "before", "0.25", "estimated", "1.5"],
        ["b/anat/T1w.nii", "done", "0.5", "found,", "not", "trusted", "-20.2", "margin", "0.14"],
        ["c/anat/T1w.nii", "failed", "yaw", "+3.0,", "not", "trusted"],
    ]


def test_why_cases_failed_is_a_table_that_goes_when_none_fails(tmp_path):
    failed = {
        "/b,c.nii": FailedCase("/b,c.nii", 'no "head"\nin it', "look at it"),
        "/a.nii": FailedCase("/a.nii", "/a.nii: no such file"),
    }
    write_failed(tmp_path / "failed.csv", failed)
    assert (tmp_path / "failed.csv").read_text().splitlines()[0] == "image,reason,remedy"
    assert failed_reasons(tmp_path) == {"/a.nii": "/a.nii: no such file", "/b,c.nii": '/b,c.nii: no "head"\nin it'}
    write_failed(tmp_path / "failed.csv", {})
    assert failed_reasons(tmp_path) == {}
    assert not list(tmp_path.iterdir())
