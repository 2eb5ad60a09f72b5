import json

import numpy as np
import pytest

from custom.evaluation.case_table import write_csv
from sa_swin.__main__ import main

NAMES = ("volume_ml", "predicted_ml", "asymmetry_index", "predicted_asymmetry_index")


def evaluation(folder, subjects, digest, seen=0, **settings):
    """What an evaluation of weights on some subjects leaves."""
    generator = np.random.default_rng(len(subjects))
    rows = [
        {"subject": name, "image": f"/data/{name}.nii", **dict(zip(NAMES, generator.random(4).tolist(), strict=True))}
        for name in subjects
    ]
    folder.mkdir()
    write_csv(folder / "cases.csv", rows)
    content = {"weights_sha256": digest, "leakage": {"cases_seen_with_label": seen}}
    (folder / "cases.json").write_text(json.dumps(content))
    (folder / "run_evaluate.json").write_text(json.dumps({"settings": {"overlap": 0.5, "seed": 0, **settings}}))
    return str(folder)


def calibrate(*arguments):
    main(["weights", "calibrate", *map(str, arguments)])


def test_evaluations_of_folds_become_one_file_of_figures(tmp_path, capsys):
    folders = [evaluation(tmp_path / "0", "abcdef", "12"), evaluation(tmp_path / "1", "ghij", "34")]
    calibrate("--evaluations", *folders, "--output", tmp_path / "conformal.json")
    found = json.loads((tmp_path / "conformal.json").read_text())
    assert (found["cases"], found["coverage"], found["weights_sha256"]) == (10, 0.9, ["12", "34"])
    assert found["settings"] == {"overlap": 0.5}
    assert found["lesions"]["1"]["volume"]["radius"] > 0
    told = capsys.readouterr().out
    assert "10 cases, 90% asked; research only" in told
    assert "class 1: volume within a factor of" in told


def test_too_few_cases_are_said_to_be_too_few(tmp_path, capsys):
    calibrate("--evaluations", evaluation(tmp_path / "0", "abc", ["12"]), "--output", tmp_path / "conformal.json")
    assert json.loads((tmp_path / "conformal.json").read_text())["lesions"]["1"]["volume"]["radius"] is None
    assert "volume too few subjects; side: too few subjects, 3 subjects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (lambda folder: evaluation(folder, "ag", "34"), "a.nii is in two evaluations"),
        (lambda folder: evaluation(folder, "gh", "34", seen=2), "2 cases were seen in training"),
        (str, "holds no evaluation"),
        (lambda folder: evaluation(folder, "gh", "34", overlap=0.25), "of other settings (--overlap 0.5, here 0.25)"),
    ],
)
def test_cases_that_cannot_count_are_refused(tmp_path, second, sentence):
    folders = [evaluation(tmp_path / "0", "abcdef", "12"), second(tmp_path / "1")]
    with pytest.raises(SystemExit) as stop:
        calibrate("--evaluations", *folders, "--output", tmp_path / "conformal.json")
    assert sentence in str(stop.value.code)
    assert not (tmp_path / "conformal.json").exists()
