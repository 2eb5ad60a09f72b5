import os
import sys

import pytest
from bundle_configs import configs

from custom.support.bundle_command import (
    BundleCommand,
    OptionError,
    check_kind,
    check_name,
    check_options,
    check_path,
    options_of,
    read_as_literal,
    typed,
)

RUN = ["/somewhere/monai/bundle/__main__.py", "run"]
CONFIG = {
    "learning_rate": 1e-4,
    "max_epochs": 3,
    "train": {"trainer": {"_target_": "SupervisedTrainer", "max_epochs": "@max_epochs"}, "handlers": [{"a": 1}]},
    "validate": {"window": {"_target_": "SlidingWindowInferer", "overlap": 0.5}},
}

LITERALS = ("2026_11_28", "2024", "1e3", "1_000", "0x10", "True", "None", "[a]", "{a}", "a,b", "'a'", "(a)")
PLAIN = ("a b", "Daten/Köln", "it's", "/data/50% x", "/data/a$b", "/data/a@b", "./-study", "/d/=x")


def command(*words):
    return typed([*RUN, *words])


def test_only_the_command_line_of_the_bundle_runner_is_looked_at():
    assert typed(["/venv/bin/pytest", "run", "--learningrate", "1"]) is None
    assert typed(["/somewhere/monai/bundle/__main__.py", "verify_metadata"]) is None
    assert command("--seed", "3") == BundleCommand({"seed": "3"})


def test_options_are_told_apart_as_fire_does():
    words = ["training", "--a", "1", "--b=x=y", "--c", "--d-e", "-3", "-f", "g", "--a", "2"]
    assert options_of(words) == {"a": "2", "b": "x=y", "c": None, "d_e": "-3", "f": "g"}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("learningrate", "learning_rate"),
        ("max_epoch", "max_epochs"),
        ("train::trainer::max_epoch", "train::trainer::max_epochs"),
        ("train#trainer#maxepochs", "train::trainer::max_epochs"),
        ("validate::windows::overlap", "validate::window::overlap"),
        ("train::handlers::0::b", "train::handlers::0::a"),
        ("loging_file", "logging_file"),
    ],
)
def test_a_name_that_addresses_nothing_is_refused_with_the_nearest(name, near):
    with pytest.raises(OptionError, match=f"--{name} is no setting of this bundle: did you mean --{near}"):
        check_name(name, CONFIG)


@pytest.mark.parametrize(
    "name",
    [
        "learning_rate",
        "train::trainer::max_epochs",
        "train#trainer#max_epochs",
        "train::handlers::0::a",
        "train::trainer::event_names",  # an argument that the config does not give
        "validate::window::progress",
        "train::trainer::_disabled_",
        "_meta_::version",
    ],
)
def test_a_name_that_addresses_an_id_or_an_argument_is_taken(name):
    check_name(name, CONFIG)


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(OptionError, match="--xyzzy is no setting of this bundle: the settings stand at the top"):
        check_name("xyzzy", CONFIG)


@pytest.mark.parametrize(
    "text", ["2026_11_28", "2024", "1e3", "1_000", "0x10", "True", "None", "[a]", "{a}", "a,b", "'a'", "(a)"]
)
def test_a_path_that_would_be_read_as_a_literal_is_refused_and_taken_with_a_dot(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_as_literal(text) != text
    with pytest.raises(OptionError, match=r"MONAI's runner reads that as .*; write \./"):
        check_path("dataset_dir", text)
    assert read_as_literal(f"./{text}") == f"./{text}"
    check_path("dataset_dir", f"./{text}")


@pytest.mark.parametrize("text", ["study#2", "/data/study#2", "#"])
def test_a_path_with_the_sign_of_an_id_is_refused(text):
    with pytest.raises(OptionError, match="would take another path; rename the folder"):
        check_path("output_dir", text)


def test_a_folder_whose_name_is_an_expression_is_refused_and_an_expression_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_path("output_dir", "$@bundle_root + '/eval'")
    for name in ("$study", "@study", "%study"):
        (tmp_path / name).mkdir()
        with pytest.raises(OptionError, match=r"reads that as an expression; write \./"):
            check_path("output_dir", name)


@pytest.mark.parametrize(
    "text", ["a b", "Daten/Köln", "it's", "/data/50% x", "/data/a$b", "/data/a@b", "./-study", "/d/=x"]
)
def test_a_plain_path_is_taken(text):
    assert read_as_literal(text) == text
    check_path("dataset_dir", text)


def test_a_name_in_parts_of_letters_is_not_taken_for_one_in_whole_letters():
    decomposed = "Ko\u0308ln"  # as macOS writes it; the runner would look for K\u00f6ln
    with pytest.raises(OptionError, match="reads that as"):
        check_path("dataset_dir", decomposed)


def test_no_list_is_no_file_of_that_name_unless_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_path("datalist", "None")
    check_path("pretrained", "")
    (tmp_path / "None").touch()
    with pytest.raises(OptionError, match=r"write \./None"):
        check_path("datalist", "None")


def test_a_path_without_a_value_or_with_the_home_sign_is_refused():
    with pytest.raises(OptionError, match="--dataset_dir has no value; a path that begins with -"):
        check_options(command("--config_file", configs("segment", "train")[0], "--dataset_dir", "-study"))
    with pytest.raises(OptionError, match="the shell did not put your home folder there"):
        check_path("output_dir", "~/out")


@pytest.mark.parametrize("task", ["pretrain", "classify", "segment"])
def test_the_bundles_take_their_own_settings_and_no_others(task, tmp_path):
    layers = (("evaluate",), ("multi_gpu_train",), ("evaluate", "multi_gpu_evaluate"))
    for files in [configs(task, "train", *names) for names in layers] + [configs(task, "inference")]:
        given = ["--config_file", str(files), "--spacing", "6", "--dataset_dir", "data", "--tracking", "mlflow"]
        check_options(command(*given))
        with pytest.raises(OptionError, match="did you mean --spacing"):
            check_options(command(*given, "--spacng", "6"))
    args = tmp_path / "args.json"
    args.write_text('{"config_file": "' + configs(task, "inference")[0] + '", "chekpoint": "x"}')
    with pytest.raises(OptionError, match="--chekpoint is no setting of this bundle: did you mean --checkpoint"):
        check_options(command("--args_file", str(args)))


def test_several_weights_are_a_list_of_paths_and_a_single_path_is_text():
    check_path("checkpoint", "['a/model.pt', '2026_11_28/model.pt']")
    for text in ("[1, 2]", "2026_11_28", "[]"):
        with pytest.raises(OptionError, match="MONAI's runner reads that as"):
            check_path("checkpoint", text)
    with pytest.raises(OptionError, match="MONAI's runner reads that as"):
        check_path("output_dir", "['a']")


def test_the_configuration_is_merged_as_the_runner_does(monkeypatch):
    files = configs("segment", "train", "evaluate")
    given = [*RUN, "--config_file", str(files), "--train#trainer#max_epochs", "7", "--datalist", "None", "--fold=2"]
    monkeypatch.setattr(sys, "argv", given)
    found = typed()
    config = found.config()
    assert (config["train"]["trainer"]["max_epochs"], config["fold"], config["contract"]["label_key"]) == (7, 2, None)
    assert config["datalist"] == "$@dataset_dir + '/datalists/segment.json'"
    assert found.bundle == "sa_swin_segment"
    assert found.overrides() == {"train#trainer#max_epochs": 7, "datalist": None, "fold": 2}
    assert os.path.basename(found.files[1]) == "evaluate.yaml"


@pytest.mark.parametrize(
    ("value", "default", "sentence"),
    [
        ("false", True, "--knob false: expected True or False"),
        ("no", False, "--knob no: expected True or False"),
        ("ten", 300, "--knob ten: expected a number or numbers, such as 300"),
        ("abc", "$@weights.get('spacing', 1.0)", "--knob abc: expected a number or numbers, such as 1.0"),
        ([64, "x", 64], "$@weights.get('size', [96, 96, 96])", r"expected a number or numbers, such as \[96, 96, 96\]"),
    ],
)
def test_text_in_place_of_a_truth_value_or_of_numbers_is_refused(value, default, sentence):
    with pytest.raises(OptionError, match=sentence):
        check_kind("knob", value, default)


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (False, True), (0, True), ("auto", False), ("$not @x", True), (3, 0.5), ("@max_epochs", 3), (None, 1.0),
        ([1, 1, 2], "$@weights.get('spacing', 1.0)"), ("CT", "$@weights.get('modality', 'MR')"), ("x", None), ("x", {}),
        ("x", []), (2, "text"), ([0.3, 0.7], None),
    ],
)  # fmt: skip
def test_what_is_of_its_settings_kind_is_taken(value, default):
    check_kind("knob", value, default)


def test_a_bundle_run_refuses_false_written_small():
    with pytest.raises(OptionError, match="--align false: expected True or False"):
        check_options(command("--config_file", configs("segment", "train")[0], "--align", "false"))
