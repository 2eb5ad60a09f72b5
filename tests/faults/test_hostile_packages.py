"""Packages from strangers: nothing hides from `inspect`, nothing is unpickled, no zip gets further than its list."""

import json
import pickle
import stat
import zipfile

import pytest
import torch
import yaml

from sa_swin.release import archive
from sa_swin.release.archive import checksums, read_package
from sa_swin.release.errors import ReleaseError
from sa_swin.release.inspection import inspect, is_familiar, is_read, report
from sa_swin.release.verification import verify


def marked(files):
    """Kind and value of what is marked in a package."""
    content = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    return {(finding.kind, finding.value) for finding in inspect(content) if not is_familiar(finding)}


def config(content):
    return {"configs/train.yaml": yaml.safe_dump(content)}


@pytest.mark.parametrize(
    "target",
    [
        "@command",  # an alias: the name stands elsewhere, as plain text
        "%command",
        "$@command",
        "torch.os.system",
        "custom.support.files.os.system",
        "monai.bundle.scripts.subprocess.run",
        "torch.load",
        "torch.hub.load",
        "numpy.load",
        "run_cmd",
        "monai.apps.utils.download_url",
        "monai.utils.module.__builtins__",
        "builtins.eval",
        "eval",
        " os.system",
        "os.sys\u200btem",
    ],
)
def test_a_callable_that_reaches_out_is_marked(target):
    assert ("callable", target) in marked(config({"command": "os.system", "a": {"_target_": target}}))


def test_the_callables_of_our_own_configs_are_not_marked():
    from pathlib import Path

    root = Path(__file__).resolve().parents[2] / "bundles"
    for path in root.glob("*/configs/*.yaml"):
        assert marked({"configs/train.yaml": path.read_bytes()}) == set(), path


@pytest.mark.parametrize("key", ["network::_target_", "network#_target_", "a::b#_target_"])
def test_a_target_in_a_key_with_a_place_is_found(key):
    """MONAI sets nested ids from the keys of a config that is merged over another."""
    assert marked(config({key: "os.system"})) == {("callable", "os.system")}


def test_what_stands_in_the_target_itself_is_looked_at():
    nested = {"_target_": {"_target_": "functools.partial", "func": "$print"}}
    found = {
        (finding.kind, finding.value) for finding in inspect({"configs/a.json": json.dumps({"a": nested}).encode()})
    }
    assert found == {("callable", "functools.partial"), ("expression", "print")}


@pytest.mark.parametrize("key", ["_requires_", "_disabled_", "_mode_", "_desc_", "_meta_", "$print(1)"])
def test_expressions_under_every_key_are_found(key):
    found = inspect({"configs/a.json": json.dumps({"a": {key: ["$print(2)"]}}).encode()})
    assert ("expression", "print(2)") in {(finding.kind, finding.value) for finding in found}


@pytest.mark.parametrize("value", ["%/etc/x.json::a", "%../other/train.YAML#net", "%docs/x.yml"])
def test_another_file_that_a_macro_reads_is_marked(value):
    assert marked(config({"a": value})) == {("file", value[1:])}


def test_configs_are_looked_for_everywhere_and_in_any_spelling():
    for name in ("configs/EVIL.YAML", "docs/x.yml", "models/a/b.Json", "x.json"):
        assert marked({name: '{"_target_": "os.system"}'}) == {("callable", "os.system")}


def test_addresses_are_marked():
    large = {"large_files": [{"path": "models/model.pt", "url": "https://example.com/model.pt"}]}
    assert marked({"large_files.yml": yaml.safe_dump(large)}) == {("url", "https://example.com/model.pt")}


@pytest.mark.parametrize(
    "text",
    [
        "[handler_a]\nclass=StreamHandler\nargs: (__import__('os').system('x'),)\n",  # a colon
        "[handler_a]\nARGS = (__import__('os').system('x'),)\n",  # capitals
        "[handler_a]\nargs=(\n  __import__('os').system('x'),)\n",  # on a second line
        "[DEFAULT]\nargs=(__import__('os').system('x'),)\n[handler_a]\nlevel=INFO\n",  # inherited
        "[DEFAULT]\nhidden=__import__('os').system('x')\n[handler_a]\nargs=(%(hidden)s,)\n",  # put in
        "[handler_a]\nargs=()\n[handler_a]\nargs=(__import__('os').system('x'),)\n",  # a second time
    ],
)
def test_what_logging_would_evaluate_is_found_as_logging_reads_it(text):
    found = inspect({"configs/logging.conf": text.encode()})
    assert any("__import__('os').system('x')" in finding.value for finding in found if finding.kind == "logging")


@pytest.mark.parametrize(
    "name", ["numpy.py", "monai/__init__.py", "scripts/x.py", "custom/__pycache__/files.cpython-311.pyc", "custom/x.so"]
)
def test_code_that_python_would_import_in_the_place_of_another_is_marked(name):
    assert ("code", name) in marked({name: b""})


def test_code_that_is_not_this_installations_is_said_so():
    assert {kind for kind, _ in marked({"custom/support/files.py": b"import os"})} == {"code"}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", "a: &a {b: *a}", "[" * 5000 + "]" * 5000, "a: !!python/name:os.system", "a: !evil x"]
)
def test_a_config_that_is_a_trap_is_refused_at_once(text):
    with pytest.raises(ReleaseError, match=r"configs/train.yaml (cannot be read|refers to itself|holds more than)"):
        inspect({"configs/train.yaml": text.encode(), "configs/train.json": b"{}"})


def test_json_nested_without_end_is_refused():
    with pytest.raises(ReleaseError, match=r"configs/a.json cannot be read"):
        inspect({"configs/a.json": b"[" * 10**5})


def test_the_list_cannot_be_rewritten_by_what_stands_in_it():
    """A terminal obeys escape sequences: they could erase the line above, or show it from right to left."""
    text = report(inspect({"configs/a.json": json.dumps({"a": "$1\x1b[1A\x1b[2K\u202e\r2\x9b"}).encode()}))
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[1A\\x1b[2K\\u202e" in text


# ---- zips


def zipped(path, *entries, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = options.get("compression", zipfile.ZIP_STORED)
            file.writestr(entry, content)
    return path


REGULAR = stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("name", "mode", "sentence"),
    [
        ("p/../../x", REGULAR, "not below one folder"),
        ("/p/x", REGULAR, "not below one folder"),
        ("p\\..\\x", REGULAR, "not below one folder"),
        ("C:/p/x", REGULAR, "not below one folder"),
        ("x", REGULAR, "not below one folder"),
        ("p/x\x1b[2K", REGULAR, "not printable"),
        ("p/x\ny", REGULAR, "not printable"),
        ("p/link", stat.S_IFLNK | 0o777, "a symlink"),
        ("p/pipe", stat.S_IFIFO | 0o644, "no plain file"),
        ("p/device", stat.S_IFCHR | 0o644, "no plain file"),
    ],
)
def test_a_member_that_is_no_plain_file_below_the_folder_is_refused(tmp_path, name, mode, sentence):
    with pytest.raises(ReleaseError, match=sentence):
        read_package(zipped(tmp_path / "p.zip", (name, b"x", mode)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_than_a_packages_are_refused(tmp_path, compression):
    with pytest.raises(ReleaseError, match="compressed as no package is"):
        read_package(zipped(tmp_path / "p.zip", ("p/x", b"x", REGULAR), compression=compression))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = zipped(tmp_path / "p.zip", ("p/x", bytes(2**20), REGULAR), compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(archive, "_SMALL", 2**19)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(ReleaseError, match=r"claims 0\.0 GB unpacked; no package of its size does"):
        read_package(path)


def test_too_many_files_and_texts_too_large_are_refused(tmp_path, monkeypatch):
    entries = [(f"p/configs/{number}.json", b"{}" * 9, REGULAR) for number in range(9)]
    path = zipped(tmp_path / "p.zip", *entries)
    monkeypatch.setattr(archive, "_LARGEST_TEXT", 10)
    with pytest.raises(ReleaseError, match=r"holds configs/0.json of 0 MB; no config"):
        read_package(path, is_read)
    monkeypatch.setattr(archive, "_MOST_FILES", 5)
    with pytest.raises(ReleaseError, match="holds 9 files"):
        read_package(path)


def test_an_inspection_reads_no_weights(tmp_path):
    path = zipped(tmp_path / "p.zip", ("p/models/model.pt", b"x" * 99, REGULAR), ("p/configs/a.json", b"{}", REGULAR))
    assert read_package(path, is_read) == {"models/model.pt": b"", "configs/a.json": b"{}"}


class Payload:
    """What runs a function when it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("name", ["models/model.pt", "models/weights", "models/x.npz", "docs/figure.png"])
def test_pickled_code_is_found_whatever_its_file_is_called(tmp_path, name, capsys):
    for save in (lambda path: torch.save(Payload(), path), lambda path: path.write_bytes(pickle.dumps(Payload(), 4))):
        save(tmp_path / "payload")
        files = {name: (tmp_path / "payload").read_bytes()}
        files["SHA256SUMS"] = checksums(files)
        assert any(f"{name} is not a checkpoint of tensors alone" in problem for problem in verify(files))
    assert capsys.readouterr().out == ""
