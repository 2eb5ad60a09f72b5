import hashlib
import io
import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, load_bundle_config, verify_metadata
from safetensors.torch import load as load_safetensors

from custom.networks import SASwinClassifier, SASwinPretrainer, SASwinUNETR
from custom.provenance import records_of, with_records
from custom.release.archive import checksums, read_package, write_zip
from custom.release.build import Options, build, large_files
from custom.release.configs import NOT_OF_THE_WEIGHTS, knob_names, with_settings
from custom.release.errors import ReleaseError
from custom.release.privacy import check_privacy
from custom.release.verification import verify
from custom.vendored import code_digest
from custom.weights import WeightsError

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = Path(os.environ.get("SA_SWIN_SCHEMA", ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"))
NETWORKS = {"pretrain": SASwinPretrainer, "classify": SASwinClassifier, "segment": SASwinUNETR}
SEEN = {
    "stage": "classify",
    "section": "training",
    "label": "class",
    "salt": "0f",
    "subjects": ["ab"],
    "images": ["cd"],
}
SETTINGS = {
    "modality": "CT",
    "spacing": 6.0,
    "spatial_size": [32, 64, 64],
    "feature_size": 12,
    "window_size": 4,
    "seed": 7,
    "align": False,
    "training_cases": 4,
}


def committed(root):
    """Commit whatever a test did to a checkout."""
    for arguments in (("add", "--all"), ("commit", "--quiet", "--message", "Change it")):
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def checkout(repository, tmp_path):
    """A copy of the checkout that a test may spoil."""
    return Path(shutil.copytree(repository, tmp_path / "spoilt", symlinks=True))


def network_of(task, **changes):
    size = {"feature_size": 12, "window_size": 4, **changes}
    return NETWORKS[task](**({"out_channels": 2} if task == "segment" else {}), **size)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Checkpoints of small networks with the settings of their trainings beside them."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("weights")
    for task in NETWORKS:
        folder = root / task / "models"
        folder.mkdir(parents=True)
        torch.save(with_records(network_of(task).state_dict(), [SEEN]), folder / "model.pt")
        (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return root


def checkpoint(weights, task):
    return weights / task / "models" / "model.pt"


def options(weights, task="segment", **changes):
    return Options(checkpoint(weights, task), onnx=False, **changes)


@pytest.fixture(scope="session")
def packages(repository, weights, tmp_path_factory):
    """The three packages, without ONNX: task to zip."""
    output = tmp_path_factory.mktemp("dist")
    return {
        task: build(repository, f"sa_swin_{task}", options(weights, task, trained_on="synthetic"), output)
        for task in NETWORKS
    }


@pytest.fixture
def unpacked(packages, tmp_path):
    """The segmentation package, unpacked."""
    with zipfile.ZipFile(packages["segment"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / "sa_swin_segment"


# ---- what is in a package


@pytest.mark.parametrize("task", NETWORKS)
def test_a_package_holds_all_it_needs_below_one_folder_of_its_name(packages, task):
    with zipfile.ZipFile(packages[task]) as archive:
        names = archive.namelist()
    assert all(name.startswith(f"sa_swin_{task}/") for name in names)
    files = {name.removeprefix(f"sa_swin_{task}/") for name in names}
    workflows = ("train", "evaluate", "inference", "multi_gpu_train")
    assert {f"configs/{name}.{kind}" for name in workflows for kind in ("yaml", "json")} <= files
    assert {"LICENSE", "SHA256SUMS", "configs/metadata.json", "configs/logging.conf"} <= files
    assert {"docs/README.md", "docs/data_license.txt", "models/model.pt", "models/model.safetensors"} <= files
    tracked = subprocess.run(["git", "ls-files", "custom"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= files  # sub-packages too
    assert not [name for name in files if "__pycache__" in name]


@pytest.mark.parametrize("task", NETWORKS)
def test_every_yaml_config_has_an_equal_json_twin(packages, task):
    files = read_package(packages[task])
    names = [name for name in files if name.endswith(".yaml") and name.startswith("configs/")]
    assert len(names) == 4
    for name in names:
        assert json.loads(files[name.replace(".yaml", ".json")]) == yaml.safe_load(files[name])


@pytest.mark.parametrize("task", NETWORKS)
def test_a_package_has_the_settings_of_its_weights_and_keeps_its_comments(packages, repository, task):
    files = read_package(packages[task])
    for name in ("train", "inference"):
        path = f"configs/{name}.yaml"
        before = (repository / "bundles" / f"sa_swin_{task}" / path).read_text()
        old, new = yaml.safe_load(before), yaml.safe_load(files[path])
        knobs = knob_names(before)
        for knob in knobs:
            expected = SETTINGS.get(knob, old[knob]) if knob not in NOT_OF_THE_WEIGHTS else old[knob]
            assert new[knob] == expected, knob
        assert new["align"] is True
        comments = [line.split("#")[1] for line in before.splitlines() if "  # " in line]
        assert len(comments) > 5
        assert all(comment in files[path].decode() for comment in comments)


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
    parser["train"]["dataset"]["data"] = ["case"] * 3
    parser["max_epochs"] = "$3 * 7"
    index = next(i for i, handler in enumerate(config["train"]["handlers"]) if "settings" in handler)
    recorded = parser.get_parsed_content(f"train::handlers::{index}::settings")
    knobs = {name: config[name] for name in knob_names(text)}
    assert recorded == knobs | {"max_epochs": 21, "training_cases": 3}


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


def test_the_state_of_a_training_is_released_as_its_network_alone(repository, weights, tmp_path):
    state = torch.load(checkpoint(weights, "classify"), weights_only=True)
    (tmp_path / "models").mkdir()
    shutil.copy(checkpoint(weights, "classify").parent / "settings.json", tmp_path / "models")
    torch.save({"network": state, "optimizer": {"lr": 1.0}, "best": 0.5}, tmp_path / "models" / "last.pt")
    chosen = Options(tmp_path / "models" / "last.pt", onnx=False)
    files = read_package(build(repository, "sa_swin_classify", chosen, tmp_path))
    assert set(torch.load(io.BytesIO(files["models/model.pt"]), weights_only=True)) == set(state)


def test_without_recorded_settings_the_sizes_are_read_from_the_weights(repository, tmp_path):
    torch.save(network_of("segment", in_channels=2).state_dict(), tmp_path / "some.pt")
    files = read_package(build(repository, "sa_swin_segment", Options(tmp_path / "some.pt", onnx=False), tmp_path))
    config = json.loads(files["configs/train.json"])
    assert (config["feature_size"], config["window_size"], config["in_channels"]) == (12, 4, 2)
    assert config["depths"] == [2, 2, 2, 2]
    assert config["num_heads"] == [3, 6, 12, 24]
    assert b"were not recorded" in files["docs/README.md"]
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


def test_another_process_builds_the_same_bytes(packages, repository, weights, tmp_path):
    command = ["sa_swin_segment", "--weights", str(checkpoint(weights, "segment"))]
    command += ["--output", str(tmp_path), "--onnx", "False", "--trained_on", "synthetic"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "custom.release", *command],
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


def test_two_packages_of_different_code_refuse_to_share_a_process(packages, repository, tmp_path):
    for task in ("segment", "classify"):
        with zipfile.ZipFile(packages[task]) as archive:
            archive.extractall(tmp_path)
    other = tmp_path / "sa_swin_classify"
    (other / "custom" / "saca.py").open("a").write("# another version\n")
    for config in (other / "configs").glob("*.json"):
        config.write_text(config.read_text().replace(digest_of(repository), digest_of(other)))
    assert elsewhere(loads(tmp_path, "classify"), tmp_path).returncode == 0
    done = elsewhere(loads(tmp_path, "segment", "classify"), tmp_path)
    assert done.returncode != 0
    assert "packages of different versions cannot share a process" in done.stderr
    assert "all loaded" not in done.stdout


# ---- refusals


def test_weights_that_do_not_fit_the_network_are_refused(repository, weights, tmp_path):
    shutil.copytree(weights / "segment", tmp_path / "w")
    torch.save(network_of("segment", feature_size=24).state_dict(), tmp_path / "w" / "models" / "model.pt")
    with pytest.raises(WeightsError, match=r"not set: .* at least 100% must match"):
        build(repository, "sa_swin_segment", Options(tmp_path / "w" / "models" / "model.pt", onnx=False), tmp_path)
    assert not (tmp_path / "sa_swin_segment.zip").exists()


def test_weights_of_another_bundle_are_refused(repository, weights, tmp_path):
    with pytest.raises(WeightsError, match="must match"):
        build(repository, "sa_swin_segment", options(weights, "classify"), tmp_path)


class Payload:
    """What a pickle could run."""

    def __reduce__(self):
        return pytest.fail, ("code of the checkpoint was run",)


def test_a_malicious_pickle_as_weights_is_refused(repository, tmp_path):
    torch.save({"weight": torch.zeros(1), "payload": Payload()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="is not a checkpoint of tensors alone"):
        build(repository, "sa_swin_segment", Options(tmp_path / "model.pt", onnx=False), tmp_path)


def test_values_that_are_not_finite_are_refused(repository, tmp_path):
    state = network_of("classify").state_dict()
    state["swinViT.patch_embed.proj.bias"][0] = float("nan")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ReleaseError, match=r"not finite, in swinViT.patch_embed.proj.bias"):
        build(repository, "sa_swin_classify", Options(tmp_path / "model.pt", onnx=False), tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def changed_version(root):
    path = root / "bundles" / "sa_swin_segment" / "configs" / "metadata.json"
    path.write_text(path.read_text().replace('"version": "0.1.0"', '"version": "0.2.0"'))


def linked(root):
    (root / "custom" / "link.py").symlink_to(root / "custom" / "saca.py")


COMMITTED = {
    "a symlink": (linked, "custom/link.py is a symlink"),
    "an absolute path": (
        lambda root: write(root / "custom" / "more.py", "DATA = '/home/someone/data'\n"),
        "custom/more.py holds the path /home/someone",
    ),
    "a path of another system": (
        lambda root: write(root / "custom" / "more.py", r"DATA = 'C:\Users\someone'"),
        r"custom/more.py holds the path C:\\Users",
    ),
    "the path of the checkout, in a binary file": (
        lambda root: (root / "custom" / "more.bin").write_bytes(b"\0" + str(root.resolve()).encode() + b"\0"),
        "custom/more.bin holds the path",
    ),
    "a subject id in the docs": (
        lambda root: write(root / "bundles" / "sa_swin_segment" / "docs" / "notes.md", "as in sub-0423\n"),
        "docs/notes.md holds the subject id sub-0423",
    ),
    "a subject id of a public cohort": (
        lambda root: write(root / "custom" / "sub" / "more.py", "CASE = '002_S_0295'\n"),
        "custom/sub/more.py holds the subject id 002_S_0295",
    ),
    "a version without a changelog entry": (changed_version, r"of version 0.2.0, but its changelog has 0.1.0"),
}


@pytest.mark.parametrize("case", COMMITTED)
def test_what_must_not_be_released_is_refused(checkout, weights, case, tmp_path):
    spoil, sentence = COMMITTED[case]
    spoil(checkout)
    committed(checkout)
    chosen = options(weights)
    # The code of the test process runs, whatever else lies in the checkout.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("custom.vendored.installed_digest", lambda: digest_of(checkout))
        with pytest.raises(ReleaseError, match=sentence):
            build(checkout, "sa_swin_segment", chosen, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def digest_of(root):
    folder = root / "custom"
    return code_digest({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")})


@pytest.mark.parametrize(
    ("path", "text"), [("custom/more.py", "x = 1\n"), ("bundles/sa_swin_segment/docs/README.md", "changed")]
)
def test_code_that_is_not_committed_is_refused(checkout, weights, path, text, tmp_path):
    write(checkout / path, text)
    with pytest.raises(ReleaseError, match=f"untracked or changed: {path}"):
        build(checkout, "sa_swin_segment", options(weights), tmp_path / "dist")


def test_a_folder_that_is_no_checkout_is_refused(weights, tmp_path):
    (tmp_path / "bundles" / "sa_swin_segment" / "configs").mkdir(parents=True)
    with pytest.raises(ReleaseError, match="gives no commit to cut a package from"):
        build(tmp_path, "sa_swin_segment", options(weights), tmp_path / "dist")


def test_a_bundle_that_is_none_is_refused(repository, weights, tmp_path):
    with pytest.raises(
        ReleaseError, match=r"no bundle sa_swin_seg in .*; there are sa_swin_classify, sa_swin_pretrain"
    ):
        build(repository, "sa_swin_seg", options(weights), tmp_path)


def test_the_ids_of_the_cases_evaluated_are_refused_and_those_of_examples_are_not():
    text = {"docs/README.md": b'"subject": "sub-001", a case_17x'}
    check_privacy(text, ["case_17", "sub-001", "3"])
    with pytest.raises(ReleaseError, match=r"docs/README.md holds the subject id case_17x"):
        check_privacy(text, ["case_17x"])


@pytest.mark.parametrize("url", ["example.com", "file:///models"])
def test_an_address_that_is_none_for_others_is_refused(url):
    with pytest.raises(ReleaseError, match=f"--url should start with https://, got {url}"):
        large_files({"models/model.pt": b""}, url)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["custom.release", *map(str, arguments)])
    runpy.run_module("custom.release", run_name="__main__")


def test_without_weights_there_is_nothing_to_release(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: no weights to release: .*classify/models/model.pt"):
        command(monkeypatch, "all", "--weights_dir", tmp_path)


# ---- verify


def test_a_fresh_package_is_sound_as_zip_and_as_folder(packages, unpacked, monkeypatch, capsys):
    command(monkeypatch, "verify", packages["segment"])
    assert "files as they were built, weights of tensors alone" in capsys.readouterr().out
    (unpacked / "custom" / "__pycache__").mkdir()
    (unpacked / "custom" / "__pycache__" / "saca.cpython-311.pyc").write_bytes(b"compiled")
    (unpacked / "eval").mkdir()
    (unpacked / "eval" / "cases.csv").write_text("a result\n")
    assert verify(read_package(unpacked)) == []
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=unpacked, check=False)
    assert done.returncode == 0


def test_a_tampered_file_is_caught(unpacked, monkeypatch):
    path = unpacked / "custom" / "saca.py"
    path.write_text(path.read_text() + "\nimport os\n")
    (unpacked / "models" / "model.safetensors").unlink()
    (unpacked / "configs" / "more.yaml").write_text("a: 1\n")
    problems = verify(read_package(unpacked))
    assert problems[:3] == [
        "models/model.safetensors is missing",
        "configs/more.yaml is not listed",
        "custom/saca.py was changed",
    ]
    assert "configs/train.json was made for other code than the custom/ of this package" in problems
    with pytest.raises(SystemExit, match=r"error: .* is not as it was built: models/model.safetensors is missing"):
        command(monkeypatch, "verify", unpacked)


def test_a_malicious_pickle_is_refused_even_where_the_checksums_were_made_anew(unpacked):
    torch.save({"weight": torch.zeros(1), "payload": Payload()}, unpacked / "models" / "model.pt")
    files = read_package(unpacked)
    files["SHA256SUMS"] = checksums({name: content for name, content in files.items() if name != "SHA256SUMS"})
    problems = verify(files)
    assert len(problems) == 1
    assert problems[0].startswith("models/model.pt is not a checkpoint of tensors alone")


def zipped(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return path


PLAIN, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([("p/a", b"", PLAIN), ("p/../../out", b"", PLAIN)], r"p/\.\./\.\./out, which is not below one folder"),
        ([("/etc/out", b"", PLAIN)], "/etc/out, which is not below one folder"),
        ([("p/a", b"", PLAIN), ("q/a", b"", PLAIN)], "q/a, which is not below one folder"),
        ([("p/a", b"/etc/passwd", LINK)], "holds a symlink: p/a"),
        ([("p/a", b"1", PLAIN), ("p/./a", b"2", PLAIN)], "holds a twice"),
    ],
)
def test_a_zip_that_would_write_elsewhere_is_refused(tmp_path, entries, sentence):
    with pytest.raises(ReleaseError, match=sentence):
        read_package(zipped(tmp_path / "p.zip", entries))


def test_a_damaged_zip_is_refused(packages, tmp_path):
    content = bytearray(packages["classify"].read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "sa_swin_classify.zip").write_bytes(content)
    with pytest.raises(ReleaseError, match="is damaged"):
        read_package(tmp_path / "sa_swin_classify.zip")


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_is_no_package_is_refused(tmp_path, content):
    (tmp_path / "p.zip").write_bytes(content)
    with pytest.raises(ReleaseError, match="no package at"):
        read_package(tmp_path / "p.zip")


def test_a_zip_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        write_zip(tmp_path / "p.zip", "p", {"a": b"fine", "b": object()})
    assert list(tmp_path.iterdir()) == []


# ---- the hub


def test_a_package_goes_to_the_hugging_face_hub_up_to_the_network_call(unpacked, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, **options: calls.append(("create_repo", options)))
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **options: calls.append(("upload_folder", options)))
    monkeypatch.setattr(hub.HfApi, "create_tag", lambda self, **options: calls.append(("create_tag", options)))
    monai.bundle.push_to_hf_hub(
        repo="someone/sa_swin_segment", name="sa_swin_segment", bundle_dir=str(unpacked.parent), version="0.1.0"
    )
    assert [name for name, _ in calls] == ["create_repo", "upload_folder", "create_tag"]
    assert calls[1][1] == {"repo_id": "someone/sa_swin_segment", "folder_path": str(unpacked)}
    card = (unpacked / "README.md").read_text()
    assert card.startswith("---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: mit\n---\n")
    assert "Not for clinical use" in card
