import json
import zipfile

import pytest
import torch
from monai.bundle import ConfigParser

from custom.networks.classifier import SASwinClassifier
from custom.networks.segmenter import SASwinUNETR
from custom.support.errors import UserError
from custom.weights.provenance import records_of
from custom.weights.settings import carrying
from label_app.bundles import ROOT, prepare
from label_app.lib.partition import partition
from label_app.serve import environment, side_by_side
from sa_swin.release.build import Options, build

SIZES = {"feature_size": 12, "window_size": 4}
INPUT = {"modality": "MR", "in_channels": 1, "spacing": 4.0, "spatial_size": [64, 64, 64]}
SEEN = [{"stage": "segment", "section": "training", "label": "mask", "salt": "0f", "subjects": ["a"], "images": ["b"]}]
SEGMENT, CLASSIFY = "sa_swin_segment", "sa_swin_classify"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights as `make demo` leaves them: three classes to segment, at 4 mm."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    networks = {"segment": SASwinUNETR(out_channels=3, **SIZES), "classify": SASwinClassifier(num_classes=2, **SIZES)}
    for task, network in networks.items():
        folder = root / task / "models"
        folder.mkdir(parents=True)
        settings = {**SIZES, **INPUT, "align": False, "num_classes": 3 if task == "segment" else 2}
        torch.save(carrying(network.state_dict(), seen=SEEN, settings=settings), folder / "model.pt")
    return root


def model(served, bundle=SEGMENT):
    return served.folder / bundle / "models" / "model.pt"


def test_a_working_copy_has_the_weights_and_the_settings_of_their_training(weights, tmp_path):
    served = prepare(weights, tmp_path / "studies", tmp_path / "models")
    assert served.code == ROOT
    assert served.trained == ()
    for name in ("inference", "train"):
        config = ConfigParser.load_config_file(served.folder / SEGMENT / "configs" / f"{name}.yaml")
        assert (config["spacing"], config["num_classes"], config["feature_size"]) == (4.0, 3, 12)
        assert config["align"] is True  # how the training was fed, not what the weights are
    given = torch.load(weights / "segment" / "models" / "model.pt", weights_only=True)
    copy = torch.load(model(served), weights_only=True)
    assert given.keys() == copy.keys()
    assert all(torch.equal(given[name], copy[name]) for name in given)
    assert records_of(model(served)) == SEEN


def test_the_classes_that_a_client_sees_are_those_of_the_weights(weights, tmp_path):
    served = prepare(weights, tmp_path / "studies", tmp_path / "models")
    metadata = json.loads((served.folder / SEGMENT / "configs" / "metadata.json").read_text())
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert classes == {"0": "background", "1": "class 1", "2": "class 2"}
    metadata = json.loads((served.folder / CLASSIFY / "configs" / "metadata.json").read_text())
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert classes == {"0": "class 0", "1": "class 1"}


def test_the_names_that_the_weights_carry_are_those_that_a_client_sees(weights, tmp_path):
    path = tmp_path / "weights" / "classify" / "models" / "model.pt"
    path.parent.mkdir(parents=True)
    state = torch.load(weights / "classify" / "models" / "model.pt", weights_only=True)
    torch.save(carrying(state, seen=SEEN, settings={**SIZES, **INPUT, "class_names": ["well", "ill"]}), path)
    served = prepare(tmp_path / "weights", tmp_path / "studies", tmp_path / "models")
    metadata = json.loads((served.folder / CLASSIFY / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "well", "1": "ill"}


def test_what_was_trained_stays_and_other_weights_or_studies_start_anew(weights, tmp_path):
    first = prepare(weights, tmp_path / "studies", tmp_path / "models")
    state = torch.load(model(first), weights_only=True)
    state["out.conv.conv.bias"] += 1
    torch.save(state, model(first))
    again = prepare(weights, tmp_path / "studies", tmp_path / "models")
    assert again.folder == first.folder
    assert again.trained == (SEGMENT,)
    assert torch.equal(torch.load(model(again))["out.conv.conv.bias"], state["out.conv.conv.bias"])
    others = prepare(weights, tmp_path / "other studies", tmp_path / "models")
    assert others.folder != first.folder
    assert others.trained == ()


def test_a_package_is_served_with_its_own_code(weights, repository, tmp_path):
    dist = tmp_path / "dist"
    package = build(repository, SEGMENT, Options(weights / "segment" / "models" / "model.pt", onnx=False), dist)
    served = prepare(dist, tmp_path / "studies", tmp_path / "models")
    assert [path.name for path in served.folder.iterdir()] == [SEGMENT]
    assert (served.code / "custom" / "networks" / "segmenter.py").is_file()
    assert environment(served.code)["PYTHONPATH"].startswith(str(served.folder))
    with zipfile.ZipFile(package) as archive:
        archive.extractall(dist)
    (dist / SEGMENT / "custom" / "networks" / "segmenter.py").write_text("changed")
    with pytest.raises(UserError, match=r"not as it was built: custom/networks/segmenter\.py"):
        prepare(dist, tmp_path / "studies", tmp_path / "models")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no weights in .*expected packages .*or trained weights"):
        prepare(tmp_path, tmp_path, tmp_path / "models")


def test_images_that_lie_side_by_side_are_served_from_where_they_are(tmp_path, write_volume):
    write_volume(tmp_path / "a.nii.gz", torch.zeros(4, 4, 4).numpy())
    assert side_by_side(tmp_path) == tmp_path


def test_images_of_a_bids_folder_are_linked_and_no_results(tmp_path, write_volume):
    for name in ("sub-1_T1w", "sub-1_FLAIR", "sub-2_FLAIR"):
        write_volume(tmp_path / name[:5] / "anat" / f"{name}.nii.gz", torch.zeros(4, 4, 4).numpy())
    write_volume(tmp_path / "derivatives" / "masks" / "sub-1_FLAIR_mask.nii.gz", torch.zeros(4, 4, 4).numpy())
    folder = side_by_side(tmp_path)
    assert folder == tmp_path / "derivatives" / "monailabel"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sub-1_FLAIR.nii.gz", "sub-1_T1w.nii.gz", "sub-2_FLAIR.nii.gz"
    ]  # fmt: skip
    assert sorted(path.name for path in side_by_side(tmp_path, "*_FLAIR.nii.gz").iterdir()) == [
        "sub-1_FLAIR.nii.gz", "sub-2_FLAIR.nii.gz"
    ]  # fmt: skip
    assert (folder / "sub-2_FLAIR.nii.gz").resolve() == tmp_path / "sub-2" / "anat" / "sub-2_FLAIR.nii.gz"


def test_images_that_links_lead_to_outside_are_served_where_that_is_allowed(tmp_path, tmp_path_factory, write_volume):
    store = tmp_path_factory.mktemp("store")
    write_volume(store / "a.nii.gz", torch.zeros(4, 4, 4).numpy())
    (tmp_path / "sub-1").symlink_to(store)
    with pytest.raises(UserError, match=r"sub-1/a.nii.gz: lies outside .* give --allow_outside True"):
        side_by_side(tmp_path)
    folder = side_by_side(tmp_path, allow_outside=True)
    assert (folder / "a.nii.gz").resolve() == store / "a.nii.gz"


def test_two_images_of_one_name_are_refused(tmp_path, write_volume):
    for folder in ("case_1", "case_2"):
        write_volume(tmp_path / folder / "flair.nii.gz", torch.zeros(4, 4, 4).numpy())
    with pytest.raises(UserError, match=r"case_1/flair.nii.gz and .*case_2/flair.nii.gz have one name"):
        side_by_side(tmp_path)


def pairs(count):
    return [
        {"image": f"/studies/sub-{i}.nii.gz", "label": f"/studies/labels/final/sub-{i}.nii.gz"} for i in range(count)
    ]


def test_a_labelled_case_stays_on_its_side_when_others_come():
    few, many = partition(pairs(40), 0.2), partition(pairs(400), 0.2)
    for side in (0, 1):
        assert all(pair in many[side] for pair in few[side])
    assert [*few[0], *few[1]] != []
    assert 50 < len(many[1]) < 110
    assert sorted(pair["image"] for part in many for pair in part) == sorted(pair["image"] for pair in pairs(400))


def test_one_labelled_case_at_least_is_trained_on():
    assert partition(pairs(1), 1.0) == (pairs(1), [])
    assert partition(pairs(3), 0.0) == (pairs(3), [])
