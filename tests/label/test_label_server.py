"""The MONAI Label server as 3D Slicer meets it: this project's app, and the segment package in the stock app."""

import csv
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.networks.classifier import SASwinClassifier
from custom.networks.segmenter import SASwinUNETR
from custom.transforms.contract import InputContract
from custom.weights.provenance import records_of
from custom.weights.settings import carrying
from sa_swin.phantom.subject import Config, make_subject
from sa_swin.release.build import Options, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SEGMENT, CLASSIFY = "sa_swin_segment", "sa_swin_classify"
SIZES = {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
INPUT = {"modality": "MR", "in_channels": 1, "spacing": 4.0, "spatial_size": [64, 64, 64]}
ROI = {"roi_size": [64, 32, 32]}  # so that windows slide
HEADS = ("lps", "oblique", "permuted", "ras")
TAUGHT = HEADS[:3]  # those with a corrected label
ALARMS = ("Traceback", "don't match", "ERROR")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Python of the environment that `make label-setup` makes, or of the one that SA_SWIN_LABEL_VENV names."""
    folder = Path(os.environ.get("SA_SWIN_LABEL_VENV", tmp_path_factory.mktemp("label") / "venv"))
    if not (folder / "installed").is_file():
        make = ["make", "label-setup", f"LABEL_VENV={folder}", f"PYTHON={sys.executable}"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the environment of the server cannot be made: {done.stderr[-500:]}")
    return folder / "bin" / "python"


def turned(image, degrees):
    """The same voxels, with the head turned about the vertical axis of the world."""
    angle = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return nib.Nifti1Image(np.asarray(image.dataobj), rotation @ image.affine)


def stored(image, axes):
    """The same image with another order and direction of the axes."""
    wanted = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """A folder of small heads with lesions, each stored in its own way."""
    config = Config(subjects=4, seed=1, spacing=4.0, modality=("FLAIR",), patients=1.0, skull="false", tilt=4.0)
    folder = tmp_path_factory.mktemp("heads")
    for number, name in enumerate(HEADS, 1):
        image = nib.as_closest_canonical(make_subject(config, number).images["FLAIR"])
        axes = {"lps": "LPS", "permuted": "PIR"}.get(name, "RAS")
        nib.save(turned(image, 17) if name == "oblique" else stored(image, axes), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def weights(heads, tmp_path_factory):
    """Seeded weights as `make demo` leaves trained ones; the segmenter marks about a fourteenth of a volume."""
    torch.manual_seed(5)
    networks = {"segment": SASwinUNETR(out_channels=2, **SIZES), "classify": SASwinClassifier(num_classes=2, **SIZES)}
    network = networks["segment"].eval()
    pair = InputContract(**INPUT)({"image": str(heads / "ras.nii.gz")})["image"].as_tensor()
    with torch.no_grad():
        logits = network(pair[None])[0]
        network.out.conv.conv.bias[1] -= (logits[1] - logits[0]).flatten().quantile(0.93)
    root = tmp_path_factory.mktemp("weights")
    for task, made in networks.items():
        folder = root / task / "models"
        folder.mkdir(parents=True)
        settings = {**SIZES, **INPUT, **(ROI if task == "segment" else {})}
        torch.save(carrying(made.state_dict(), seen=[], settings=settings), folder / "model.pt")
    return root


def read_nrrd(path):
    """Voxels of an NRRD file, and its affine in RAS millimetres."""
    head, _, body = Path(path).read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:] if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    assert fields["type"] in ("unsigned char", "uint8", "uchar")
    voxels = np.frombuffer(gzip.decompress(body) if fields["encoding"] == "gzip" else body, np.uint8)
    lines = [*fields["space directions"].split(" "), fields["space origin"]]
    affine = np.eye(4)
    affine[:3] = np.diag([-1, -1, 1]) @ np.array([[float(v) for v in line.strip("()").split(",")] for line in lines]).T
    return voxels.reshape([int(size) for size in fields["sizes"].split()], order="F"), affine


def acted(folder, server, steps):
    """Go through the steps with a server that has no network; answers by step, and the log."""
    unshare = shutil.which("unshare")
    alone = [unshare, "--map-root-user", "--net"] if unshare else []
    if not alone or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = {"log": str(folder / "log.txt"), "env": {}, **server}
    server["command"] = [str(word).replace("PORT", str(port)) for word in server["command"]]
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    server["env"] |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **dead}
    plan, answers = folder / "plan.json", folder / "answers.json"
    plan.write_text(json.dumps({"server": server, "port": port, "steps": steps}))
    words = [*alone, sys.executable, ROOT / "tests" / "slicer.py", plan, answers]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + Path(server["log"]).read_text()[-3000:]
    return json.loads(answers.read_text()), Path(server["log"]).read_text()


def run_bundle(config, checkpoint, images, output):
    """`monai.bundle run` of an inference; rows of its table by the images' names."""
    words = ["--config_file", config, "--bundle_root", config.parents[1], "--checkpoint", checkpoint]
    words += ["--dataset_dir", images, "--output_dir", output, "--num_workers", 0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (output / "cases.csv").open() as file:
        return {Path(row["image"]).name.split(".")[0]: row for row in csv.DictReader(file)}


def assert_same_voxels(mask, name, heads, output):
    """A mask that the server sent (NRRD) or kept (NIfTI) is that of `monai.bundle run`, on the grid of its image."""
    if mask.suffix == ".nrrd":
        voxels, affine = read_nrrd(mask)
    else:
        voxels, affine = np.asarray(nib.load(mask).dataobj), nib.load(mask).affine
    image, expected = nib.load(heads / f"{name}.nii.gz"), nib.load(output / f"{name}_pred.nii.gz")
    assert 0.003 < voxels.mean() < 0.5  # neither empty nor everything
    assert voxels.shape == image.shape
    np.testing.assert_allclose(affine, image.affine, atol=1e-3)
    np.testing.assert_array_equal(voxels, np.asarray(expected.dataobj))


def teach(masks):
    """Steps: segment, submit what came as corrected labels with a change, train, segment everything, start again."""
    corrected = {name: masks / f"{name}-corrected.nii.gz" for name in TAUGHT}
    return [
        *(["segment", SEGMENT, name, str(masks / f"{name}.nrrd")] for name in HEADS),
        *(["label", name, str(file)] for name, file in corrected.items()),
        ["train", SEGMENT],
        ["batch", SEGMENT],
        ["restart"],
        ["segment", SEGMENT, "oblique", str(masks / "again.nrrd")],
    ]


def write_corrections(heads, folder):
    """Corrected labels: a block in the left half of each head's box, in the grid of its image."""
    for name in TAUGHT:
        image = nib.load(heads / f"{name}.nii.gz")
        mask = np.zeros(image.shape, np.uint8)
        mask[20:34, 20:34, 20:34] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), folder / f"{name}-corrected.nii.gz")


@pytest.fixture(scope="session")
def session(python, heads, weights, tmp_path_factory):
    """The app of this project from an empty directory: answers, log and places."""
    folder = tmp_path_factory.mktemp("app")
    studies, cwd, masks = (folder / name for name in ("studies", "cwd", "masks"))
    shutil.copytree(heads, studies)
    cwd.mkdir()
    masks.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.int16), np.eye(4)), studies / "empty.nii.gz")
    write_corrections(heads, masks)
    command = [python, "-W", "ignore", "-m", "label_app.serve", "--studies", studies, "--weights", weights]
    server = {"command": [*command, "--port", "PORT", "--models", folder / "models"], "cwd": str(cwd)}
    server["env"] = {"PYTHONPATH": str(ROOT)}
    steps = [
        ["start"],
        ["elsewhere"],
        ["segment", SEGMENT, "empty", str(masks / "empty.nrrd")],
        ["segment", SEGMENT, "nobody", str(masks / "nobody.nrrd")],
        ["train", SEGMENT],
        ["ask", SEGMENT, "oblique"],
        ["ask", CLASSIFY, "oblique"],
        *teach(masks),
    ]
    answers, log = acted(folder, server, steps)
    (copy,) = (folder / "models").iterdir()
    names = ["info", "elsewhere", "empty", "nobody", "untaught", "findings", "classes"]
    told = dict(zip(names, answers, strict=False)) | dict(zip(["train", "batch"], answers[-4:-2], strict=True))
    return {"told": told, "log": log, "folder": folder, "masks": masks, "studies": studies, "copy": copy}


@pytest.fixture(scope="session")
def before(session, heads, weights, tmp_path_factory):
    """Results of `monai.bundle run` with the weights that the server started with."""
    output = tmp_path_factory.mktemp("before")
    config = session["copy"] / SEGMENT / "configs" / "inference.yaml"
    run_bundle(config, weights / "segment" / "models" / "model.pt", heads, output)
    return output


def test_the_server_tells_what_it_can_do(session):
    info = session["told"]["info"]
    assert info["models"][SEGMENT]["type"] == "segmentation"
    assert info["models"][SEGMENT]["labels"] == {"lesion": 1}
    assert info["models"][CLASSIFY]["type"] == "classification"
    assert list(info["trainers"]) == [SEGMENT]
    assert "Not for clinical use" in info["description"]


@pytest.mark.parametrize("name", HEADS)
def test_every_voxel_is_that_of_monai_bundle_run(session, before, heads, name):
    assert_same_voxels(session["masks"] / f"{name}.nrrd", name, heads, before)


def test_training_changes_the_served_weights_and_no_others(session, weights):
    assert session["told"]["train"]["status"] == "DONE", session["told"]["train"]
    served = torch.load(session["copy"] / SEGMENT / "models" / "model.pt", weights_only=True)
    given = torch.load(weights / "segment" / "models" / "model.pt", weights_only=True)
    changed = [name for name in given if not torch.equal(given[name], served[name])]
    assert len(changed) > 50
    near = [torch.nn.functional.cosine_similarity(given[n].flatten(), served[n].flatten(), 0) for n in changed]
    assert torch.stack(near).median() > 0.9  # training went on from these weights
    stages = {record["stage"] for record in records_of(session["copy"] / SEGMENT / "models" / "model.pt")}
    assert "segment" in stages


def test_masks_after_training_are_those_of_the_new_weights_also_after_a_restart(session, before, heads, tmp_path):
    bundle = session["copy"] / SEGMENT
    run_bundle(bundle / "configs" / "inference.yaml", bundle / "models" / "model.pt", heads, tmp_path)
    for name in HEADS:
        assert_same_voxels(session["studies"] / "labels" / "original" / f"{name}.nii.gz", name, heads, tmp_path)
    assert_same_voxels(session["masks"] / "again.nrrd", "oblique", heads, tmp_path)
    old = np.asarray(nib.load(before / "oblique_pred.nii.gz").dataobj)
    assert (old != np.asarray(nib.load(tmp_path / "oblique_pred.nii.gz").dataobj)).any()


def test_one_bad_image_of_many_is_named_and_the_others_are_done(session):
    batch = session["told"]["batch"]
    assert batch["status"] == "ERROR"
    assert any(
        "1 of 5 images failed, the others are done: empty: " in line for line in batch["details"]
    )  # or a thread logs last
    kept = {path.name for path in (session["studies"] / "labels" / "original").iterdir()}
    assert kept == {f"{name}.nii.gz" for name in HEADS}


def test_probabilities_are_those_of_monai_bundle_run_and_sum_to_one(session, heads, weights, tmp_path):
    answer = session["told"]["classes"]
    scores = {entry["label"]: entry["score"] for entry in answer["prediction"]}
    assert list(scores) == ["class 0", "class 1"]  # these weights know no names
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    config = session["copy"] / CLASSIFY / "configs" / "inference.yaml"
    row = run_bundle(config, weights / "classify" / "models" / "model.pt", heads, tmp_path)["oblique"]
    assert scores["class 1"] == pytest.approx(float(row["probability_1"]), abs=1e-5)


def test_the_answer_tells_the_findings_and_their_sides(session, before):
    answer = session["told"]["findings"]
    with (before / "cases.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if "oblique" in row["image"])
    assert answer["sides"]["volume_ml_class1"] == pytest.approx(float(row["volume_ml_class1"]))
    assert answer["sides"]["right_ml_class1"] == pytest.approx(float(row["right_ml_class1"]))
    assert answer["findings"][0]["volume_ml"] >= answer["findings"][-1]["volume_ml"]
    assert answer["midsagittal"]["similarity"] > 0


def test_errors_reach_the_client_as_sentences(session):
    told = session["told"]
    assert told["empty"]["status"] == 422
    assert "empty.nii.gz: channel 0 of the image is constant" in told["empty"]["detail"]
    assert told["nobody"] == {"status": 422, "detail": f"there is no image 'nobody' in {session['studies']}"}
    assert told["untaught"]["status"] == "ERROR"
    assert (
        told["untaught"]["details"][-1] == "error: there is no final label to train on; submit a corrected label first"
    )


def test_this_computer_alone_is_answered(session):
    assert session["told"]["elsewhere"] == {"allowed": None, "status": 400, "listens": ["127.0.0.1"]}
    assert "reachable from this computer alone" in session["log"]


def test_the_log_is_clean_and_nothing_is_left_in_the_directory(session):
    lines = [line for line in session["log"].splitlines() if any(word in line for word in ALARMS)]
    assert [line for line in lines if "left out empty: " not in line] == []
    assert list((session["folder"] / "cwd").iterdir()) == []
    assert not list(session["folder"].rglob("*_pred.nii.gz"))  # masks go to the client


@pytest.fixture(scope="session")
def stock(python, heads, weights, repository, tmp_path_factory):
    """The segment package alone in MONAI Label's own `monaibundle` app."""
    folder = tmp_path_factory.mktemp("stock")
    masks, cwd, models = folder / "masks", folder / "cwd", folder / "apps" / "monaibundle" / "model"
    for made in (masks, cwd):
        made.mkdir()
    shutil.copytree(heads, folder / "studies")
    write_corrections(heads, masks)
    download = ["apps", "--download", "--name", "monaibundle", "--output", folder / "apps"]
    monailabel = [python, "-W", "ignore", "-m", "monailabel.main"]
    subprocess.run([*map(str, (*monailabel, *download))], cwd=cwd, check=True, capture_output=True)
    package = build(repository, SEGMENT, Options(weights / "segment" / "models" / "model.pt", onnx=False), folder)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(models)
    words = ["start_server", "--app", models.parent, "--studies", folder / "studies", "--host", "127.0.0.1"]
    conf = ["--conf", "models", SEGMENT, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    server = {"command": [*monailabel, *words, "--port", "PORT", *conf], "cwd": str(cwd)}
    answers, log = acted(folder, server, [["start"], *teach(masks)])
    return {"told": answers, "log": log, "folder": folder, "masks": masks, "bundle": models / SEGMENT}


def test_the_stock_app_gives_the_same_voxels(stock, before, heads):
    for name in HEADS:
        assert_same_voxels(stock["masks"] / f"{name}.nrrd", name, heads, before)


def test_the_stock_app_trains_the_package_and_goes_on_with_its_weights(stock, weights, heads, tmp_path):
    train, batch = stock["told"][-4:-2]
    assert (train["status"], batch["status"]) == ("DONE", "DONE"), (train, batch)
    model = stock["bundle"] / "models" / "model.pt"
    given = torch.load(weights / "segment" / "models" / "model.pt", weights_only=True)
    trained = torch.load(model, weights_only=True)
    assert any(not torch.equal(given[name], trained[name]) for name in given)
    run_bundle(stock["bundle"] / "configs" / "inference.yaml", model, heads, tmp_path)
    for name in HEADS:
        kept = stock["folder"] / "studies" / "labels" / "original" / f"{name}.nii.gz"
        assert_same_voxels(kept, name, heads, tmp_path)
    assert_same_voxels(stock["masks"] / "again.nrrd", "oblique", heads, tmp_path)


def test_the_log_of_the_stock_app_is_clean(stock):
    lines = [line for line in stock["log"].splitlines() if any(word in line for word in ALARMS)]
    assert lines == []
    assert not list(stock["folder"].rglob("*_pred.nii.gz"))  # masks go to the client
