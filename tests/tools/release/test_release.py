import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, load_bundle_config, verify_metadata
from released import NETWORKS, SEEN, SETTINGS, checkpoint, digest_of, network_of, options
from safetensors.torch import load as load_safetensors

from custom.weights.pretrained import SHIPPED
from custom.weights.provenance import records_of
from custom.weights.settings import carrying, settings_in, sizes
from custom.weights.transfer import weights_digest
from sa_swin.release.archive import read_package
from sa_swin.release.build import Options, _onnx, build, conformal_of
from sa_swin.release.configs import NOT_OF_THE_WEIGHTS, defaults, knob_names, with_settings
from sa_swin.release.errors import ReleaseError
from sa_swin.release.verification import verify

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = Path(os.environ.get("SA_SWIN_SCHEMA", ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"))

# ---- what is in a package


@pytest.mark.parametrize("task", NETWORKS)
def test_a_package_holds_all_it_needs_below_one_folder_of_its_name(packages, task):
    with zipfile.ZipFile(packages[task]) as archive:
        names = archive.namelist()
    assert all(name.startswith(f"sa_swin_{task}/") for name in names)
    files = {name.removeprefix(f"sa_swin_{task}/") for name in names}
    workflows = ("train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate")
    assert {f"configs/{name}.{kind}" for name in workflows for kind in ("yaml", "json")} <= files
    assert {"LICENSE", "SHA256SUMS", "configs/metadata.json", "configs/logging.conf"} <= files
    assert {"docs/README.md", "docs/data_license.txt", "models/model.pt", "models/model.safetensors"} <= files
    tracked = subprocess.run(["git", "ls-files", "custom"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= files  # sub-packages too
    assert not [name for name in files if "__pycache__" in name]


def test_the_weights_that_segment_untrained_make_a_package_that_is_sound_and_says_what_they_have_seen(
    repository, tmp_path
):
    words = "brains painted from label maps, no patient"
    made = Options(SHIPPED["default"], trained_on=words, onnx=False)
    files = read_package(build(repository, "sa_swin_segment", made, tmp_path))
    assert verify(files) == []
    config = yaml.safe_load(files["configs/inference.yaml"])
    assert (config["asymmetry_map"], config["num_classes"], config["spacing"]) == (True, 2, [3.0, 3.0, 5.0])
    card = files["docs/README.md"].decode()
    assert words in card
    assert "Not for clinical use" in card
    tensors = load_safetensors(files["models/model.safetensors"])
    lesion = load_safetensors(SHIPPED["default"].read_bytes())["dense_head.conv.conv.weight"][0]
    assert torch.equal(tensors["out.conv.conv.weight"][1], lesion.float())


@pytest.mark.parametrize("task", NETWORKS)
def test_every_yaml_config_has_an_equal_json_twin(packages, task):
    files = read_package(packages[task])
    names = [name for name in files if name.endswith(".yaml") and name.startswith("configs/")]
    assert len(names) == 5
    for name in names:
        assert json.loads(files[name.replace(".yaml", ".json")]) == yaml.safe_load(files[name])


@pytest.mark.parametrize("task", NETWORKS)
def test_a_package_has_the_settings_of_its_weights_and_keeps_its_comments(packages, weights, repository, task):
    files = read_package(packages[task])
    told = sizes(torch.load(checkpoint(weights, task), weights_only=True)) | SETTINGS
    for name in ("train", "inference"):
        path = f"configs/{name}.yaml"
        before = (repository / "bundles" / f"sa_swin_{task}" / path).read_text()
        old, new = yaml.safe_load(before), yaml.safe_load(files[path])
        knobs = knob_names(before)
        for knob in knobs:
            if knob in told and knob not in NOT_OF_THE_WEIGHTS:
                assert new[knob] == told[knob], knob
            elif str(old[knob]).startswith("$@weights"):
                assert str(new[knob]) in old[knob], knob  # the default that stands there
            else:
                assert new[knob] == old[knob], knob
        assert new["align"] is True
        comments = [line.split("#")[1] for line in before.splitlines() if "  # " in line]
        assert len(comments) > 5
        assert all(comment in files[path].decode() for comment in comments)


def test_a_package_predicts_as_the_bundle_with_the_same_weights_and_takes_no_schedule_from_another_task(
    repository, weights, tmp_path
):
    told = SETTINGS | {"overlap": 0.25, "max_epochs": 7, "num_samples": 3}
    state = torch.load(checkpoint(weights, "segment"), weights_only=True)
    torch.save(carrying(state, settings=told), tmp_path / "own.pt")
    for path, epochs in ((tmp_path / "own.pt", 7), (SHIPPED["default"], 300)):
        files = read_package(build(repository, "sa_swin_segment", Options(path, onnx=False), tmp_path))
        train, inference = (json.loads(files[f"configs/{name}.json"]) for name in ("train", "inference"))
        assert train["max_epochs"] == epochs
        assert train["overlap"] == inference["overlap"] == 0.5
        assert train["num_samples"] == settings_in(path)["num_samples"]  # asked of the weights


@pytest.mark.parametrize(
    ("task", "names", "called"),
    [
        ("classify", None, ["class 0", "class 1"]),
        ("classify", ["well", "ill"], ["well", "ill"]),
        ("segment", None, ["background", "lesion"]),
        ("segment", ["background", "core"], ["background", "core"]),
    ],
)
def test_a_package_calls_its_classes_as_the_weights_do(repository, weights, tmp_path, task, names, called):
    state = torch.load(checkpoint(weights, task), weights_only=True)
    settings = SETTINGS | ({"class_names": names} if names else {})
    torch.save(carrying(state, seen=[SEEN], settings=settings), tmp_path / "model.pt")
    files = read_package(build(repository, f"sa_swin_{task}", Options(tmp_path / "model.pt", onnx=False), tmp_path))
    pred = json.loads(files["configs/metadata.json"])["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {str(number): name for number, name in enumerate(called)}


def test_one_number_for_a_size_is_exported_as_three_of_it(weights, monkeypatch):
    sizes = []
    monkeypatch.setattr("sa_swin.release.build.export", lambda network, channels, size: sizes.append(tuple(size)))
    for config in ({"roi_size": 32, "spatial_size": 64}, {"spatial_size": 64}, {"spatial_size": [64, 32, 32]}):
        _onnx(None, config, Options(checkpoint(weights, "segment")), print)
    assert sizes == [(32, 32, 32), (64, 64, 64), (64, 32, 32)]


@pytest.mark.parametrize("value", [1e-05, 2.0, 3, True, None, "", "saca", [1, 2], {"rotation": 1e-4}, [0.1, 1e-6]])
def test_a_setting_is_read_back_as_it_was(value):
    text = with_settings("first: 1  # kept\nknob: [3]     # of the weights\nlast: 'x'\n", {"knob": value})
    assert yaml.safe_load(text) == {"first": 1, "knob": value, "last": "x"}
    assert text.splitlines()[1].endswith("# of the weights")


@pytest.mark.parametrize("task", NETWORKS)
def test_the_training_records_every_knob_as_the_run_has_it(task):
    text = (ROOT / "bundles" / f"sa_swin_{task}" / "configs" / "train.yaml").read_text()
    config = yaml.safe_load(text)
    parser = ConfigParser(yaml.safe_load(text))
    parser["train"]["dataset"]["data"] = parser["train"]["cases"] = [{"image": "sub-1_T1w.nii"}] * 3
    parser["max_epochs"] = "$3 * 7"
    recorded = parser.get_parsed_content("train::carried::settings")
    names = list(config)
    knobs = {name: config[name] for name in names[: names.index("bundle_root")]} | defaults(text)
    del knobs["resume"]
    follows = {"dense": False} if task == "pretrain" else {}  # from the objective
    assert recorded == knobs | follows | {"max_epochs": 21, "training_cases": 3, "sequences": ["T1w"]}


@pytest.mark.parametrize("task", NETWORKS)
def test_the_weights_fit_strictly_and_are_those_of_the_checkpoint_in_both_formats(packages, weights, task):
    files = read_package(packages[task])
    expected = torch.load(checkpoint(weights, task), weights_only=True)
    flat = torch.load(io.BytesIO(files["models/model.pt"]), weights_only=True)
    safe = load_safetensors(files["models/model.safetensors"])
    assert set(flat) == set(safe) == set(expected)
    assert all(torch.equal(flat[name], expected[name]) and torch.equal(safe[name], expected[name]) for name in expected)
    network_of(task).load_state_dict(flat, strict=True)


def test_what_the_weights_have_seen_goes_with_them_in_both_formats(packages, tmp_path):
    files = read_package(packages["classify"])
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(files[f"models/{name}"])
        assert records_of(tmp_path / name) == [SEEN]


def test_figures_of_intervals_go_with_the_weights_that_they_are_of_and_with_no_others(weights, tmp_path):
    path = Path(shutil.copy(checkpoint(weights, "segment"), tmp_path / "model.pt"))
    assert conformal_of(path) == {}
    for digest, expected in ((weights_digest(path), {"models/conformal.json"}), ("ab", set())):
        content = {"coverage": 0.9, "lesions": {}, "subjects": 20, "settings": {}, "weights_sha256": [digest]}
        (tmp_path / "conformal.json").write_text(json.dumps(content))
        assert conformal_of(path).keys() == expected


def test_the_state_of_a_training_is_released_as_its_network_alone(repository, weights, tmp_path):
    state = torch.load(checkpoint(weights, "classify"), weights_only=True)
    (tmp_path / "models").mkdir()
    content = {"network": state, "optimizer": {"lr": 1.0}, "best": 0.5, "settings": SETTINGS}
    torch.save(content, tmp_path / "models" / "last.ckpt")
    chosen = Options(tmp_path / "models" / "last.ckpt", onnx=False)
    files = read_package(build(repository, "sa_swin_classify", chosen, tmp_path))
    assert set(torch.load(io.BytesIO(files["models/model.pt"]), weights_only=True)) == set(state)


def test_weights_that_carry_no_settings_need_those_of_a_file_and_tell_their_sizes(repository, tmp_path):
    weights, settings = tmp_path / "some.pt", tmp_path / "some.json"
    torch.save(network_of("segment", in_channels=2).state_dict(), weights)
    with pytest.raises(
        ReleaseError, match=r"some.pt does not say .* no modality, spacing, spatial_size; .* --settings"
    ):
        build(repository, "sa_swin_segment", Options(weights, onnx=False), tmp_path)
    settings.write_text(json.dumps({"modality": "CT", "spacing": 2.0, "spatial_size": [64, 64, 64]}))
    chosen = Options(weights, settings=settings, onnx=False)
    files = read_package(build(repository, "sa_swin_segment", chosen, tmp_path))
    config = json.loads(files["configs/train.json"])
    assert (config["feature_size"], config["window_size"], config["in_channels"]) == (12, 4, 2)
    assert (config["modality"], config["spacing"], config["depths"]) == ("CT", 2.0, [2, 2, 2, 2])
    (tmp_path / "model.safetensors").write_bytes(files["models/model.safetensors"])
    assert settings_in(tmp_path / "model.safetensors")["spacing"] == 2.0
    image = json.loads(files["configs/metadata.json"])["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 4
    assert image["channel_def"]["2"] == "mirrored_0"


@pytest.mark.parametrize("task", NETWORKS)
def test_the_metadata_fit_the_schema_and_the_weights(packages, task, tmp_path):
    pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip(f"no schema at {SCHEMA}; give its place in SA_SWIN_SCHEMA")
    content = read_package(packages[task])["configs/metadata.json"]
    (tmp_path / "metadata.json").write_bytes(content)
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))
    assert json.loads(content)["network_data_format"]["inputs"]["image"]["modality"] == "CT"


def test_monai_reads_the_configs_from_the_zip(packages):
    parser = load_bundle_config(str(packages["segment"]), "train.json")
    assert parser["feature_size"] == 12
    assert parser["_meta_"]["version"] == "0.1.0"


def test_large_files_are_named_with_address_and_checksum(repository, weights, tmp_path):
    chosen = options(weights, url="https://example.com/seg/")
    files = read_package(build(repository, "sa_swin_segment", chosen, tmp_path))
    entries = yaml.safe_load(files["large_files.yml"])["large_files"]
    assert [entry["path"] for entry in entries] == ["models/model.pt", "models/model.safetensors"]
    assert entries[0]["url"] == "https://example.com/seg/model.pt"
    assert entries[0]["hash_val"] == hashlib.sha256(files["models/model.pt"]).hexdigest()


def test_monai_fetches_the_large_files_of_a_package_without_them(repository, weights, tmp_path):
    path = build(repository, "sa_swin_segment", options(weights, url="https://example.com/seg"), tmp_path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "sa_swin_segment"
    shutil.move(folder / "models", tmp_path / "served")
    listed = (folder / "large_files.yml").read_text()
    (folder / "large_files.yml").write_text(listed.replace("https://example.com/seg", f"file://{tmp_path}/served"))
    monai.bundle.download_large_files(bundle_path=str(folder))
    assert verify(read_package(folder)) == ["large_files.yml was changed"]


@pytest.mark.slow
def test_another_process_builds_the_same_bytes(packages, repository, weights, tmp_path):
    command = ["sa_swin_segment", "--weights", str(checkpoint(weights, "segment"))]
    command += ["--output", str(tmp_path), "--onnx", "False", "--trained_on", "synthetic"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sa_swin", "release", *command],
        cwd=repository,
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sa_swin_segment.zip" in done.stdout
    assert (tmp_path / "sa_swin_segment.zip").read_bytes() == packages["segment"].read_bytes()


# ---- it runs where nothing of this repository is

ELSEWHERE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path = [path for path in sys.path if path != {root!r}]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
try:
    import custom
except ImportError:
    pass
else:
    raise SystemExit(f"custom is importable without a package: {{custom.__file__}}")
import monai.bundle
"""


def elsewhere(code, tmp_path):
    """Run Python in another directory, without any `custom` to import."""
    folder = tmp_path / "cwd"
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE.format(root=str(ROOT)) + code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def loads(folder, *tasks):
    lines = [f"monai.bundle.load('sa_swin_{task}', bundle_dir={str(folder)!r}, device='cpu')" for task in tasks]
    return "\n".join([f"networks = [{', '.join(lines)}]", "print('all loaded')"])


def test_packages_of_one_commit_load_in_one_process_from_any_directory(packages, weights, tmp_path):
    tasks = ("segment", "classify")
    for task in tasks:
        with zipfile.ZipFile(packages[task]) as archive:
            archive.extractall(tmp_path)
    code = f"""
{loads(tmp_path, *tasks)}
import torch
for network, path in zip(networks, {[str(checkpoint(weights, task)) for task in tasks]}):
    state, expected = network.state_dict(), torch.load(path, weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
print("from", sys.modules["custom"].__file__)
"""
    done = elsewhere(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"from {tmp_path}/sa_swin_segment/custom/__init__.py" in done.stdout


@pytest.mark.slow
def test_two_packages_of_different_code_refuse_to_share_a_process(packages, repository, tmp_path):
    for task in ("segment", "classify"):
        with zipfile.ZipFile(packages[task]) as archive:
            archive.extractall(tmp_path)
    other = tmp_path / "sa_swin_classify"
    (other / "custom" / "networks" / "saca.py").open("a").write("# another version\n")
    for config in (other / "configs").glob("*.json"):
        config.write_text(config.read_text().replace(digest_of(repository), digest_of(other)))
    assert elsewhere(loads(tmp_path, "classify"), tmp_path).returncode == 0
    done = elsewhere(loads(tmp_path, "segment", "classify"), tmp_path)
    assert done.returncode != 0
    assert "packages of different versions cannot share a process" in done.stderr
    assert "all loaded" not in done.stdout
