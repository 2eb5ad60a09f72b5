from pathlib import Path

import numpy as np
import pytest

from custom.evaluation.case_table import write_csv, write_json
from custom.evaluation.metrics import classification_summary, pretext_summary, segmentation_summary
from sa_swin.release.card import HEADINGS, SYNTHETIC, CardFacts, fill
from sa_swin.release.errors import ReleaseError
from sa_swin.release.evaluation import bootstrap, read_evaluation
from sa_swin.release.metadata import check_changelog, fitted
from sa_swin.release.onnx_export import OnnxModel

ROOT = Path(__file__).resolve().parents[3]
TASKS = ("pretrain", "classify", "segment")


def classified(count, wrong=0):
    """Cases of two classes in turn, the first `wrong` of them predicted wrongly."""
    rows = []
    for index in range(count):
        label = index % 2
        predicted = 1 - label if index < wrong else label
        probability = {f"probability_{c}": 0.9 if c == predicted else 0.1 for c in range(2)}
        rows.append(
            {"subject": f"p{index:03}", "image": "a.nii", **probability, "prediction": predicted, "label": label}
        )
    return rows


def segmented(count):
    dice = np.linspace(0.5, 0.9, count)
    return [
        {
            "subject": f"p{i:03}",
            "image": "a.nii",
            "dice": float(d),
            "hd95_mm": float("nan") if i == 0 else 4.0,
            "volume_ml": 10.0,
            "predicted_ml": 9.0,
            "volume_error_ml": -1.0,
        }
        for i, d in enumerate(dice)
    ]


def pretext(count):
    return [
        {"subject": f"p{i:03}", "image": "a.nii", "asymmetry": i / count, "healthy": i < count / 2, "loss": 2.0}
        for i in range(count)
    ]


CASES = {
    "pretrain": (pretext(8), pretext_summary),
    "classify": (classified(20, wrong=2), classification_summary),
    "segment": (segmented(9), segmentation_summary),
}


def written(folder, rows, summary, **context):
    """An evaluation as `evaluate.yaml` writes it."""
    folder.mkdir()
    write_csv(folder / "cases.csv", rows)
    write_json(folder / "cases.json", {"section": "testing", "seed": 0, **context, "metrics": dict(summary(rows))})
    return folder


@pytest.fixture(scope="module", params=TASKS)
def evaluation(request, tmp_path_factory):
    rows, summary = CASES[request.param]
    rows = [row | {"plane": "estimated"} for row in rows]
    folder = written(tmp_path_factory.mktemp(request.param) / "evaluate", rows, summary, weights_sha256="abc")
    return request.param, read_evaluation(folder, f"sa_swin_{request.param}", "abc")


def test_the_figures_are_those_of_the_evaluation_with_an_interval_around_each(evaluation):
    task, result = evaluation
    rows, summary = CASES[task]
    expected = {name: value for name, value in summary(rows).items() if np.isfinite(value)}
    assert result.metrics == pytest.approx(expected)
    assert result.metrics["n"] == len(rows) == len(result.subjects)
    assert set(result.intervals) == {name for name in expected if name != "n" and not name.startswith("n_")}
    assert all(low <= result.metrics[name] <= high for name, (low, high) in result.intervals.items())
    assert result.context == {"section": "testing", "seed": 0}


def test_the_metadata_get_the_figures_their_intervals_and_n(evaluation):
    _, result = evaluation
    entries = result.entries()
    name = next(iter(result.intervals))
    assert entries["n"] == result.metrics["n"]
    assert entries[name] == pytest.approx(result.metrics[name], rel=1e-3)
    assert entries[f"{name}_ci95"] == pytest.approx(result.intervals[name], rel=1e-3)


def test_the_interval_of_a_mean_is_that_of_its_normal_approximation():
    generator = np.random.default_rng(1)
    values = generator.normal(5, 2, 400)
    low, high = bootstrap([{"x": v} for v in values], lambda rows: {"m": float(np.mean([r["x"] for r in rows]))})["m"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)


def test_equal_cases_have_an_interval_of_no_width_and_the_same_cases_the_same_interval():
    rows = [{"subject": str(i), "dice": 0.5} for i in range(5)]
    assert bootstrap(rows, segmentation_summary)["dice"] == (0.5, 0.5)
    rows = segmented(9)
    assert bootstrap(rows, segmentation_summary) == bootstrap(rows, segmentation_summary)


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    rows, summary = CASES["segment"]
    for name, context in (("other", {"weights_sha256": "abd"}), ("unknown", {})):
        with pytest.raises(ReleaseError, match=r"cases.json is of other weights: (abd|not recorded), not abc"):
            read_evaluation(written(tmp_path / name, rows, summary, **context), "sa_swin_segment", "abc")


def test_figures_by_hand_are_refused(tmp_path):
    rows, summary = CASES["segment"]
    folder = written(tmp_path / "evaluate", rows, summary, weights_sha256="abc")
    text = (folder / "cases.json").read_text()
    (folder / "cases.json").write_text(text.replace('"dice": 0.7', '"dice": 0.9'))
    assert (folder / "cases.json").read_text() != text
    with pytest.raises(ReleaseError, match=r"does not agree with its cases.csv: dice$"):
        read_evaluation(folder, "sa_swin_segment", "abc")


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ReleaseError, match="holds no evaluation of sa_swin_segment"):
        read_evaluation(tmp_path, "sa_swin_segment", "abc")


def facts(task, **changes):
    values = {
        "name": f"sa_swin_{task}",
        "version": "0.1.0",
        "commit": "c0ffee",
        "monai": "1.6.1",
        "settings": {"modality": "MR", "spacing": 3.0, "max_epochs": 7, "seed": 5, "num_workers": 4},
        "trained_on": None,
        "evaluation": None,
        "onnx": None,
    }
    return CardFacts(**{**values, **changes})


def filled(task, **changes):
    return fill((ROOT / "bundles" / f"sa_swin_{task}" / "docs" / "README.md").read_text(), facts(task, **changes))


def section(card, heading):
    return card.split(f"# {heading}\n")[1].split("\n# ")[0]


@pytest.mark.parametrize("task", TASKS)
def test_the_card_has_the_headings_of_the_zoo_and_is_not_for_clinical_use(task):
    card = filled(task)
    assert [line[2:] for line in card.splitlines() if line.startswith("# ")] == list(HEADINGS)
    assert "Not for clinical use" in section(card, "Model overview")
    assert "cut from commit c0ffee" in section(card, "Model overview")


def test_the_card_shows_settings_and_not_the_metadata_among_them():
    card = filled("segment", settings={"max_epochs": 7, "_meta_": {"version": "0.1.0"}})
    assert "| max_epochs | 7 |" in card
    assert "_meta_" not in card


def test_the_card_claims_no_figures_and_no_training_data_that_nobody_stated():
    card = filled("segment")
    assert "no figures are claimed" in section(card, "Performance")
    assert "was not recorded" in section(card, "Data")
    assert "without an ONNX file" in section(card, "Output")


def test_the_card_says_where_training_was_on_synthetic_data(evaluation):
    task, result = evaluation
    card = filled(task, trained_on="synthetic", evaluation=result)
    assert SYNTHETIC in section(card, "Data")
    assert SYNTHETIC in section(card, "Performance")
    assert "No weights trained on patients" not in card
    assert "Trained on 5 heads." in section(filled(task, trained_on="Trained on 5 heads."), "Data")


def test_the_card_shows_each_figure_with_its_interval_and_the_number_of_its_cases(tmp_path):
    rows, summary = CASES["segment"]
    folder = written(tmp_path / "evaluate", rows, summary, weights_sha256="abc")
    result = read_evaluation(folder, "sa_swin_segment", "abc")
    text = section(filled("segment", evaluation=result), "Performance")
    low, high = result.intervals["dice"]
    assert f"| dice | 0.7 | {low:.3g} to {high:.3g} | 9 |" in text
    assert "| hd95_mm | 4 | 4 to 4 | 8 |" in text  # one of the nine has no distance
    assert "1000 bootstrap resamples" in text


def test_the_card_shows_the_settings_and_the_exact_preprocessing():
    card = filled("segment")
    assert "| spacing | 3.0 |" in section(card, "Preprocessing")
    training = section(card, "Training configuration")
    assert "| max_epochs | 7 |" in training
    assert "| seed | 5 |" in training
    assert "num_workers" not in training


def test_the_card_states_how_far_the_onnx_file_is_from_pytorch():
    text = section(filled("segment", onnx=OnnxModel(b"", (1, 2, 64, 64, 64), 3e-6, 2.5)), "Output")
    assert "1 x 2 x 64 x 64 x 64" in text
    assert "3.0e-06, at outputs up to 2.5" in text


@pytest.mark.parametrize("task", TASKS)
def test_the_commands_of_the_card_are_those_of_the_package(task):
    text = section(filled(task), "Commands")
    assert f"B=sa_swin_{task}\n" in text
    assert "bundles/" not in text
    assert f'monai.bundle.load("sa_swin_{task}"' in text


def test_a_card_without_a_heading_is_refused():
    with pytest.raises(ReleaseError, match="lacks the headings Limitations"):
        fill("\n".join(f"# {heading}\ntext\n" for heading in HEADINGS if heading != "Limitations"), facts("segment"))


def test_a_version_needs_its_changelog_entry():
    check_changelog({"version": "1.0.0", "changelog": {"1.0.0": "first"}})
    for changelog in ({}, {"0.9.0": "before"}, {"1.0.0": ""}):
        with pytest.raises(ReleaseError, match=r"is of version 1.0.0, but its changelog has"):
            check_changelog({"version": "1.0.0", "changelog": changelog})


def test_stale_figures_of_the_bundle_are_not_carried_along(evaluation):
    _, result = evaluation
    channels = {"image": {"channel_def": {}}}, {"pred": {"channel_def": {"0": "background", "1": "lesion"}}}
    meta = {
        "eval_metrics": {"dice": 1.0},
        "network_data_format": dict(zip(("inputs", "outputs"), channels, strict=True)),
    }
    settings = {"in_channels": 1, "modality": "MR"}
    assert "eval_metrics" not in fitted(meta, settings, 2, None)
    assert fitted(meta, settings, 2, result)["eval_metrics"] == result.entries()
    assert fitted(meta, settings, 3, None)["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "class 2"
