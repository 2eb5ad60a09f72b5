import json
import shutil

import pytest
import torch
import torch.multiprocessing as mp
from bundle_configs import made
from planted import copy_under_another_name, head, save
from safetensors.torch import save_file
from torch import distributed as dist

from custom.support.errors import UserError, root_cause
from custom.weights.provenance import (
    LeakageError,
    LeakageGuard,
    on_rank_0,
    record_training,
    records_of,
)
from custom.weights.settings import as_metadata, carrying
from custom.weights.transfer import load_checkpoint, transfer, weights_digest


@pytest.fixture
def cases(tmp_path):
    """A function that gives cases of numbered subjects, with images on disk."""

    def make(*numbers):
        made = []
        for number in numbers:
            path = tmp_path / f"s{number}.nii.gz"
            if not path.exists():
                save(path, head(number)[0])
            made.append({"image": str(path), "subject": f"sub-{number}"})
        return made

    return make


def train(tmp_path, stage, label, training, validation, source="", name=None, **options):
    """The checkpoint of a training that saw these cases."""
    records = record_training(stage, label, training, validation, tmp_path / "list.json", source, **options)
    path = tmp_path / (name or f"{stage}.pt")
    torch.save(carrying({"weight": torch.ones(2)}, seen=records), path)
    return path


def ask(tmp_path, cases, checkpoint, **options):
    return LeakageGuard(cases, checkpoint, tmp_path / "list.json", **options).check()


def test_cases_that_were_not_seen_pass_and_the_report_says_what_the_weights_saw(tmp_path, cases):
    path = train(tmp_path, "classify", "class", cases(1, 2), cases(3))
    assert ask(tmp_path, cases(4, 5), path) == {
        "verdict": "none of the 2 cases was seen with a label in training",
        "cases_seen_with_label": 0,
        "cases_seen_without_label": 0,
        "weights_saw": [
            "classify, training: 2 subjects, label class",
            "classify, validation: 1 subjects, label class",
        ],
    }


@pytest.mark.parametrize(("number", "section"), [(1, "training"), (3, "validation")])
def test_a_subject_that_was_seen_with_a_label_is_refused_with_stage_list_and_label(tmp_path, cases, number, section):
    path = train(tmp_path, "pretrain", "healthy", cases(1, 2), cases(3))
    sentence = rf"1 of 2 test cases were seen before:\n  .*s{number}.nii.gz: subject {number} was in the {section} "
    with pytest.raises(LeakageError, match=sentence + "list of pretrain, with its healthy label"):
        ask(tmp_path, cases(number, 4), path)


def test_a_copy_under_another_name_and_subject_is_refused(tmp_path, cases):
    path = train(tmp_path, "pretrain", "healthy", cases(1, 2), cases(3))
    copy_under_another_name(tmp_path / "s1.nii.gz", tmp_path / "other.nii.gz")
    stranger = {"image": str(tmp_path / "other.nii.gz"), "subject": "x"}
    with pytest.raises(LeakageError, match=r"other.nii.gz: this image, under another name, was in the training list"):
        ask(tmp_path, [stranger], path)


def test_another_image_of_a_seen_subject_is_refused_and_sub_may_be_missing(tmp_path, cases):
    path = train(tmp_path, "classify", "class", cases(1), cases(3))
    (case,) = cases(9)
    with pytest.raises(LeakageError, match="subject 1 was in the training list"):
        ask(tmp_path, [case | {"subject": 1}], path)


def test_one_channel_in_common_is_enough(tmp_path, cases):
    path = train(tmp_path, "classify", "class", cases(1), cases(3))
    images = [case["image"] for case in cases(8, 1)]
    with pytest.raises(LeakageError, match="this image, under another name"):
        ask(tmp_path, [{"image": images, "subject": "x"}], path)


def test_what_pretraining_saw_is_handed_on_through_fine_tuning(tmp_path, cases):
    first = train(tmp_path, "pretrain", "healthy", cases(1, 2), cases(3))
    second = train(tmp_path, "classify", "class", cases(4), cases(5), source=first)
    third = train(tmp_path, "segment", "mask", cases(6), cases(7), source=second)
    with pytest.raises(LeakageError, match="subject 2 was in the training list of pretrain"):
        ask(tmp_path, cases(2), third)
    assert [record["stage"] for record in records_of(third)] == ["pretrain"] * 2 + ["classify"] * 2 + ["segment"] * 2


def test_pretraining_without_labels_refuses_nothing_but_is_counted(tmp_path, cases):
    first = train(tmp_path, "pretrain", "none", cases(1, 2, 9), cases(3))
    second = train(tmp_path, "classify", "class", cases(1), cases(2), source=first)
    report = ask(tmp_path, cases(3, 9, 4), second)
    assert report["verdict"] == "none of the 3 cases was seen with a label in training"
    assert (report["cases_seen_with_label"], report["cases_seen_without_label"]) == (0, 2)


def test_leakage_can_be_allowed_and_the_report_says_so(tmp_path, cases, caplog):
    path = train(tmp_path, "classify", "class", cases(1), cases(3))
    report = ask(tmp_path, cases(1, 4), path, allow_leakage=True)
    assert report["verdict"].startswith("LEAKAGE, allowed by --allow_leakage: 1 of 2 cases were seen with a label")
    assert report["cases_seen_with_label"] == 1
    assert "s1.nii.gz: subject 1 was in the training list" in caplog.text


def test_weights_that_say_nothing_are_unknown_also_after_fine_tuning(tmp_path, cases, caplog):
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign.pt")
    assert "unknown" in ask(tmp_path, cases(4), tmp_path / "foreign.pt")["verdict"]
    unknown = f"unknown (SHA-256 {weights_digest(tmp_path / 'foreign.pt')[:12]})"
    assert f"it is not known what {unknown} saw" in caplog.text
    tuned = train(tmp_path, "classify", "class", cases(1), cases(3), source=tmp_path / "foreign.pt")
    assert unknown in ask(tmp_path, cases(4), tuned)["verdict"]
    with pytest.raises(LeakageError, match="subject 1 was"):
        ask(tmp_path, cases(1), tuned)


def test_a_training_refuses_validation_cases_that_it_trains_on(tmp_path, cases):
    with pytest.raises(LeakageError, match=r"1 of 2 validation cases were seen before"):
        train(tmp_path, "classify", "class", cases(1, 2), cases(2, 3))
    shutil.copy(tmp_path / "s1.nii.gz", tmp_path / "copy.nii.gz")
    copy = {"image": str(tmp_path / "copy.nii.gz"), "subject": "other"}
    with pytest.raises(LeakageError, match="this image, under another name"):
        train(tmp_path, "classify", "class", cases(1, 2), [copy])
    assert train(tmp_path, "pretrain", "none", cases(1, 2), cases(2)).is_file()
    assert train(tmp_path, "classify", "class", cases(1, 2), cases(2), allow_leakage=True).is_file()


def test_a_training_refuses_validation_cases_that_its_pretraining_was_trained_on(tmp_path, cases):
    first = train(tmp_path, "pretrain", "healthy", cases(1, 2), cases(3))
    with pytest.raises(LeakageError, match="subject 2 was in the training list of pretrain"):
        train(tmp_path, "classify", "class", cases(1), cases(2), source=first)
    assert train(tmp_path, "classify", "class", cases(1), cases(3), source=first).is_file()


def test_a_resumed_training_adds_to_its_record(tmp_path, cases):
    first = train(tmp_path, "classify", "class", cases(1), cases(3))
    torch.save({"network": {}, "seen": records_of(first)}, tmp_path / "last.ckpt")
    second = train(tmp_path, "classify", "class", cases(1, 2), cases(3), source=tmp_path / "last.ckpt")
    assert [len(record["subjects"]) for record in records_of(second)] == [2, 1]


def test_a_released_checkpoint_names_nobody_and_two_cannot_be_joined(tmp_path, cases):
    first, second = (train(tmp_path, "classify", "class", cases(1), cases(3), name=f"{i}.pt") for i in range(2))
    text = first.read_bytes()
    assert b"sub-1" not in text
    assert b"s1.nii" not in text
    seen = [{value for record in records_of(path) for value in record["subjects"]} for path in (first, second)]
    assert not seen[0] & seen[1]


RECORD = {"stage": "classify", "section": "training", "label": "class", "salt": "s", "subjects": ["a"], "images": []}


def test_what_was_looked_for_before_a_run_is_not_looked_for_again(tmp_path, cases, monkeypatch):
    (case,) = cases(1)
    torch.save(carrying({"weight": torch.ones(2)}, seen=[]), tmp_path / "model.pt")
    guard = LeakageGuard([case], tmp_path / "model.pt", tmp_path / "list.json")
    found = guard.check()
    monkeypatch.setattr("custom.weights.provenance.records_of", None)
    assert guard.check() == found


def test_weights_with_a_record_load_as_any_flat_state_dict(tmp_path):
    network = torch.nn.Linear(2, 3)
    torch.save(carrying(network.state_dict(), seen=[RECORD]), tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"weight", "bias"}
    other = torch.nn.Linear(2, 3)
    other.load_state_dict(content)
    torch.testing.assert_close(other.weight, network.weight)
    assert transfer(other, load_checkpoint(tmp_path / "model.pt"), ("",), 1.0).share == 1
    assert records_of(tmp_path / "model.pt") == [RECORD]


def test_a_safetensors_file_can_carry_the_record_too(tmp_path):
    tensors = {"weight": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata=as_metadata(seen=[RECORD]))
    assert records_of(tmp_path / "model.safetensors") == [RECORD]
    save_file(tensors, tmp_path / "other.safetensors")
    assert records_of(tmp_path / "other.safetensors")[0]["label"] == "unknown"


def test_a_second_training_reads_no_image(tmp_path, cases, monkeypatch):
    train(tmp_path, "classify", "class", cases(1, 2), cases(3))
    monkeypatch.setattr("custom.data.contents.file_hashes", lambda path: pytest.fail(f"{path} was read again"))
    train(tmp_path, "classify", "class", cases(1, 2), cases(3))
    ask(tmp_path, cases(1), tmp_path / "classify.pt", allow_leakage=True)


def one_rank(rank, world, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    done = []

    def refuse():
        raise UserError("seen before")

    assert on_rank_0(lambda: done.append(rank) or "result")() == "result"
    assert done == ([0] if rank == 0 else [])
    with pytest.raises(UserError, match="seen before"):
        on_rank_0(refuse)()
    dist.destroy_process_group()


def test_the_first_process_asks_and_all_get_the_answer_or_the_refusal(tmp_path):
    mp.spawn(one_rank, (2, str(tmp_path)), nprocs=2)


# ---- in the bundles


def run(task, workflow, root, output, **changes):
    bundle = made(task, workflow, root, output, **changes)
    bundle.initialize()
    bundle.run()


@pytest.fixture
def cohort(tiny_cohort, tmp_path):
    """A cohort whose pretraining list holds an image that classifiers are tested on, under other names."""
    root = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    copy_under_another_name(root / "sub-6.nii.gz", root / "renamed.nii.gz")
    leaky = json.loads((root / "datalists" / "pretrain.json").read_text())
    leaky["training"].append({"image": "renamed.nii.gz", "healthy": True, "subject": "sub-77"})
    (root / "datalists" / "leaky.json").write_text(json.dumps(leaky))
    return root


@pytest.fixture
def tuned(cohort, tmp_path, monkeypatch):
    """A function that fine-tunes a classifier from a pretraining, by objective, on the leaky list."""
    monkeypatch.setattr("sys.excepthook", lambda *args: None)

    def train(objective):
        options = {"max_epochs": 1, "num_samples": 1, "objective": objective}
        options["datalist"] = str(cohort / "datalists" / "leaky.json")
        run("pretrain", "train", cohort, tmp_path / "pretrain", **options)
        weights = str(tmp_path / "pretrain" / "models" / "model.pt")
        run("classify", "train", cohort, tmp_path / "classify", max_epochs=1, pretrained=weights)
        return tmp_path / "classify"

    return train


def report(output):
    return json.loads((output / "cases.json").read_text())["leakage"]


def test_the_classifier_refuses_to_be_tested_on_what_pretraining_saw_under_another_name(tuned, cohort):
    output = tuned("paper")
    with pytest.raises(Exception) as raised:  # noqa: PT011  MONAI wraps what configs raise
        run("classify", "evaluate", cohort, output)
    assert (
        "sub-6.nii.gz: this image, under another name, was in the training list of pretrain, with its healthy"
        in str(root_cause(raised.value))
    )
    assert not (output / "cases.json").exists()
    run("classify", "evaluate", cohort, output, allow_leakage=True)
    assert report(output)["cases_seen_with_label"] == 1
    assert report(output)["verdict"].startswith("LEAKAGE, allowed")
    assert report(output)["weights_saw"] == [
        "pretrain, training: 5 subjects, label healthy",
        "pretrain, validation: 2 subjects, label healthy",
        "classify, training: 4 subjects, label class",
        "classify, validation: 2 subjects, label class",
    ]


def test_after_label_free_pretraining_the_same_test_passes(tuned, cohort):
    output = tuned("label_free")
    run("classify", "evaluate", cohort, output)
    assert report(output)["verdict"] == "none of the 2 cases was seen with a label in training"
    assert report(output)["cases_seen_without_label"] == 1


@pytest.mark.parametrize("task", ["pretrain", "classify", "segment"])
def test_every_bundle_refuses_its_own_validation_list_as_a_test(task, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *args: None)
    options = {"num_samples": 1} if task != "classify" else {}
    run(task, "train", tiny_cohort, tmp_path, max_epochs=1, val_interval=1, **options)
    lists = json.loads((tiny_cohort / "datalists" / f"{task}.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps(lists | {"testing": lists["validation"]}))
    with pytest.raises(Exception) as raised:  # noqa: PT011
        run(task, "evaluate", tiny_cohort, tmp_path, datalist=str(tmp_path / "list.json"))
    assert f"was in the validation list of {task}" in str(root_cause(raised.value))
    run(task, "evaluate", tiny_cohort, tmp_path)
    assert report(tmp_path)["cases_seen_with_label"] == 0


def test_the_validation_list_is_measured_as_what_the_weights_were_selected_on(cases, tmp_path):
    trained, selected, other = cases(1, 2, 3)
    seen = record_training("segment", "mask", [trained], [selected], tmp_path / "list.json")
    torch.save(carrying({"weight": torch.ones(2)}, seen=seen), tmp_path / "model.pt")

    def found(*chosen, section="validation"):
        return LeakageGuard(chosen, [tmp_path / "model.pt"], tmp_path / "list.json", section=section).check()

    verdict = found(selected, other)["verdict"]
    assert verdict.startswith("none of the 2 cases was trained on, but the weights were selected on 1")
    assert found(selected)["cases_seen_with_label"] == 0
    for case, section in ((trained, "validation"), (selected, "testing")):
        with pytest.raises(LeakageError):
            found(case, section=section)


@pytest.mark.parametrize("record", [{"stage": "x"}, [], None, "x", RECORD | {"subjects": 3}, RECORD | {"images": [3]}])
def test_a_record_of_another_form_is_as_good_as_none(tmp_path, record):
    torch.save(carrying({"weight": torch.ones(2)}, seen=[record]), tmp_path / "model.pt")
    assert [found["label"] for found in records_of(tmp_path / "model.pt")] == ["unknown"]
