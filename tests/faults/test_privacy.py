"""What is passed on says nothing of whom it came from: reports, settings beside weights, converted weights."""

import json
import re
import sys

import pytest
import torch

from custom.evaluation.case_table import write_csv
from custom.networks.segmenter import SASwinUNETR
from custom.support.run_record import of_weights, record_run
from custom.weights.conversion import convert_file
from sa_swin.report.page import page, read_run, report_command
from sa_swin.report.privacy import HIDDEN, without_places

WHO = ("Doe_Jane", "sub-1337", "/home/jane", "clinic_study", "T1w_jane", "P9_pretrained")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of inference, and one of training, whose every file says whose it is."""
    folder = tmp_path / "clinic_study_results"
    data = "/home/jane/clinic_study"
    rows = [
        {
            "subject": subject,
            "image": f"{data}/{subject}/T1w_jane.nii.gz",
            "volume_ml_class1": volume,
            "plane": plane,
            "plane_similarity": 0.5 + number / 10,
        }
        for number, (subject, volume, plane) in enumerate(
            [("Doe_Jane", 3.5, "estimated"), ("sub-1337", 0.0, "estimated"), ("sub-1338", 1.0, "center of the array")]
        )
    ]
    write_csv(folder / "cases.csv", rows)
    write_csv(folder / "findings.csv", [{"subject": "sub-1337", "image": rows[1]["image"], "finding": 1}])
    summary = {"checkpoint": f"{data}/P9_pretrained.pt", "section": "testing", "metrics": {"dice": 0.5}}
    (folder / "cases.json").write_text(json.dumps(summary))
    entries = [row | {"label": row["image"], "family": row["subject"]} for row in rows]
    (tmp_path / "list.json").write_text(json.dumps({"testing": entries}))
    config = {
        "seed": 0,
        "dataset_dir": data,
        "output_dir": str(folder),
        "datalist": str(tmp_path / "list.json"),
        "pretrained": f"{data}/P9_pretrained.pt",
        "checkpoint": "$@output_dir + '/model.pt'",
        "nested": [{"further": f"$open('{data}/T1w_jane.txt')"}, "~/P9_pretrained", "C:\\Users\\Doe_Jane"],
    }
    paths = {name: config[name] for name in ("dataset_dir", "datalist", "output_dir")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
    command = ["monai/bundle/__main__.py", "run", "--config_file", str(tmp_path / "configs" / "inference.json")]
    monkeypatch.setattr(sys, "argv", command)
    record_run("inference", {"seed": 0}, paths)
    return folder


def test_a_report_names_nobody_unless_it_is_asked_to(run, capsys):
    report_command(str(run))
    text = (run / "report.html").read_text()
    assert [who for who in WHO if who in re.sub(r"base64,[^\"]*", "", text)] == []
    for fact in ("case 1", "case 2", "3.5", "volume ml class1", "seed"):
        assert fact in text
    assert "$@output_dir + &#x27;/model.pt&#x27;" in text
    named = page(read_run(run, ids=True))
    assert [who for who in WHO if who not in named] == []


def test_a_case_has_the_number_of_its_row_and_its_findings_too(run):
    found = read_run(run)
    assert [row["subject"] for row in found.rows] == ["case 1", "case 2", "case 3"]
    assert [row["subject"] for row in found.findings] == ["case 2"]
    assert found.rows[1]["volume_ml_class1"] == "0.0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/a/b.pt", HIDDEN),
        ("data/x", HIDDEN),
        ("~", HIDDEN),
        ("D:\\x", HIDDEN),
        ("saca", "saca"),
        ("$@a + '/x.json'", "$@a + '/x.json'"),
        ("$open('/a/b')", f"$open('{HIDDEN}')"),
        ("$@a + '/root/x'", f"$@a + '{HIDDEN}/x'"),
        (3, 3),
        ([1, ["/a"]], [1, [HIDDEN]]),
        ({"checkpoint": "model.pt"}, {"checkpoint": HIDDEN}),
        ({"section": "testing"}, {"section": "testing"}),
    ],
)
def test_paths_are_hidden_and_expressions_stay(value, shown):
    assert without_places(value, ["/root"]) == shown


def test_the_settings_that_weights_carry_tell_no_path():
    found = of_weights({"pretrained": "/home/jane/P9_pretrained.pt", "symmetry": "saca", "seed": 3}, training_cases=4)
    assert found == {"pretrained": "(a path)", "symmetry": "saca", "seed": 3, "training_cases": 4}


def test_converted_weights_hold_no_name(tmp_path):
    source = tmp_path / "Doe_Jane.pt"
    torch.save(SASwinUNETR(feature_size=12, window_size=4).state_dict(), source)
    contents = []
    for name in ("sub-1337.pt", "P9_pretrained.pt"):
        convert_file(source, "segment", tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
        assert not any(who.encode() in contents[-1] for who in WHO)
    assert contents[0] == contents[1]
