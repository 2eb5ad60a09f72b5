import shutil
import stat
import subprocess
import zipfile

import monai.bundle
import pytest
import torch
from released import SETTINGS, committed, digest_of, network_of, options

from custom.weights.settings import carrying
from custom.weights.transfer import WeightsError
from sa_swin.__main__ import main
from sa_swin.release.archive import checksums, read_package, write_zip
from sa_swin.release.build import Options, build, large_files
from sa_swin.release.errors import ReleaseError
from sa_swin.release.privacy import check_privacy
from sa_swin.release.verification import verify

# ---- refusals


def test_weights_that_do_not_fit_the_network_are_refused(repository, weights, tmp_path):
    shutil.copytree(weights / "segment", tmp_path / "w")
    state = carrying(network_of("segment", feature_size=24).state_dict(), settings=SETTINGS)
    torch.save(state, tmp_path / "w" / "models" / "model.pt")
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
    with pytest.raises(ReleaseError, match="does not say what the weights were trained with"):  # nothing is executed
        build(repository, "sa_swin_segment", Options(tmp_path / "model.pt", onnx=False), tmp_path)


def test_values_that_are_not_finite_are_refused(repository, tmp_path):
    state = network_of("classify").state_dict()
    state["swinViT.patch_embed.proj.bias"][0] = float("nan")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"not finite, .*swinViT.patch_embed.proj.bias"):
        build(repository, "sa_swin_classify", Options(tmp_path / "model.pt", onnx=False), tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def changed_version(root):
    path = root / "bundles" / "sa_swin_segment" / "configs" / "metadata.json"
    path.write_text(path.read_text().replace('"version": "0.1.0"', '"version": "0.2.0"'))


def linked(root):
    (root / "custom" / "link.py").symlink_to(root / "custom" / "networks" / "saca.py")


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
        patch.setattr("custom.support.vendored.installed_digest", lambda: digest_of(checkout))
        with pytest.raises(ReleaseError, match=sentence):
            build(checkout, "sa_swin_segment", chosen, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


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


def command(*arguments):
    main(["release", *map(str, arguments)])


def test_without_weights_there_is_nothing_to_release(tmp_path):
    with pytest.raises(SystemExit, match=r"sa-swin release: no weights to release: .*classify/models/model.pt"):
        command("all", "--weights_dir", tmp_path)


# ---- verify


def test_a_fresh_package_is_sound_as_zip_and_as_folder(packages, unpacked, capsys):
    command("verify", packages["segment"])
    assert "files as they were built, weights of tensors alone" in capsys.readouterr().out
    (unpacked / "custom" / "__pycache__").mkdir()
    (unpacked / "custom" / "__pycache__" / "saca.cpython-311.pyc").write_bytes(b"compiled")
    (unpacked / "eval").mkdir()
    (unpacked / "eval" / "cases.csv").write_text("a result\n")
    assert verify(read_package(unpacked)) == []
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=unpacked, check=False)
    assert done.returncode == 0


def test_a_tampered_file_is_caught(unpacked):
    path = unpacked / "custom" / "networks" / "saca.py"
    path.write_text(path.read_text() + "\nimport os\n")
    (unpacked / "models" / "model.safetensors").unlink()
    (unpacked / "configs" / "more.yaml").write_text("a: 1\n")
    problems = verify(read_package(unpacked))
    assert problems[:3] == [
        "models/model.safetensors is missing",
        "configs/more.yaml is not listed",
        "custom/networks/saca.py was changed",
    ]
    assert "configs/train.json was made for other code than the custom/ of this package" in problems
    with pytest.raises(
        SystemExit, match=r"sa-swin release: .* is not as it was built: models/model.safetensors is missing"
    ):
        command("verify", unpacked)


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
