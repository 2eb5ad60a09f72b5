"""Fuzzed datalists through every command: nothing is read outside of the dataset, or written outside of the output."""

import contextlib
import io
import json
import os
import sys
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from injected import fuzzing

from custom.data.datalist import find_cases, load_datalist
from custom.support.errors import UserError
from custom.volumes.saving import result_path
from sa_swin.cohort.command import build_command, check_command, leakage_command
from sa_swin.commands import in_a_sentence
from sa_swin.prepare import cohort as prepare

FAST, FULL = fuzzing(40, 60, fixed=True), fuzzing(1_000, 60)

PATHS = [
    "a.nii.gz",
    "b/a.nii.gz",
    "b/c.nii.gz",
    "./b/../a.nii.gz",
    "b/mask.nii.gz",
    "../secret/s.nii.gz",
    "b/../../secret/s.nii.gz",
    "../../../../../../../etc/passwd",
    "SECRET/s.nii.gz",  # made absolute
    "link.nii.gz",
    "folder/s.nii.gz",
    "pipe.nii.gz",
    "loop.nii.gz",
    "",
    ".",
    "..",
    "/",
    "a.nii.gz/x.nii.gz",
    "a\0.nii.gz",
    "a\nb.nii.gz",
    "\ud800.nii.gz",
    "\udce9.nii.gz",
    "ä" * 200 + ".nii.gz",
    "x/" * 1200 + "a.nii.gz",
    "~/a.nii.gz",
    "$HOME/a.nii.gz",
    "-rf",
    "list.json",
    "https://example.com/a.nii.gz",
]
IDS = ["1", "../../x", "/x", "x\ny", "x" * 5000, "\0", "\ud800", "=1+1", "", ".", "sub-01"]
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


NO_JSON = ["[" * 10**5, "{", "", "null", "3", '"x"', '{"training": ' + "9" * 5000 + "}", "\ufeff{}"]


def once_in(number, odd, usual):
    return st.integers(1, number).flatmap(lambda n: odd if n == number else usual)


def lists(rarely):
    """Datalists of which one thing in so many is out of order."""
    path = once_in(rarely, st.sampled_from(PATHS) | st.text(max_size=12), st.sampled_from(PATHS[:3]))
    entry = st.fixed_dictionaries(
        {
            "image": once_in(rarely, ODD | st.lists(path, max_size=2), path),
            "healthy": once_in(rarely, ODD, st.booleans()),
            "subject": once_in(rarely, ODD | st.sampled_from(IDS), st.sampled_from("123456")),
        },
        optional={
            "label": once_in(rarely, ODD | path, st.sampled_from([0, 1, "b/mask.nii.gz"])),
            "fold": once_in(rarely, ODD, st.integers(0, 1)),
            "side": once_in(rarely, ODD, st.sampled_from(["left", "right", "both"])),
            "site": once_in(rarely, ODD, st.just("north")),
        },
    )
    section = once_in(rarely, ODD, st.lists(once_in(rarely, ODD, entry), min_size=1, max_size=4))
    return st.fixed_dictionaries(
        {"training": section}, optional={"validation": section, "testing": section, "built": ODD}
    )


@st.composite
def texts(draw):
    """The text of a datalist; now and then with characters missing, or none of JSON at all."""
    if draw(st.integers(1, 40)) == 40:
        return draw(st.sampled_from(NO_JSON))
    text = json.dumps(draw(st.sampled_from([3, 10, 30, 100]).flatmap(lists)))
    if draw(st.integers(1, 40)) == 40:
        text = text[: draw(st.integers(0, len(text)))]
    return text


class Watch:
    """Files that this process opens, makes or renames, by Python's audit events, and what of it is not allowed."""

    def __init__(self):
        self.allowed = None
        self.found = []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.allowed is None or event not in ("open", "os.mkdir", "os.rename", "os.symlink", "os.link"):
            return
        base, data, out = self.allowed
        for path in arguments[:2] if event == "os.rename" else arguments[:1]:
            if not isinstance(path, str | bytes | os.PathLike):
                continue
            real = os.path.realpath(os.fsdecode(path))
            flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
            if event == "os.mkdir" and os.path.isdir(real):
                continue
            writes = event != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            cache = os.path.basename(real).removeprefix(".partial_").endswith(".contents.cache")
            inside = real == out or real.startswith(out + os.sep)
            if real.startswith(base) and not cache and ((writes and not inside) or real.startswith(data)):
                self.found.append((event, real))


@pytest.fixture(scope="session")
def watch():
    return Watch()


@pytest.fixture
def places(tmp_path, write_volume):
    """A dataset beside what is secret, with links from one to the other."""
    data, secret = tmp_path / "data", tmp_path / "secret"
    volume = np.random.default_rng(0).normal(100, 10, (12, 14, 10)).astype(np.float32)
    for path in (data / "a.nii.gz", data / "b" / "a.nii.gz", data / "b" / "c.nii.gz", secret / "s.nii.gz"):
        write_volume(path, volume + zlib.crc32(str(path).encode()) % 50, np.diag([-8.0, -8.0, 8.0, 1.0]))
    mask = (volume > 100).astype(np.uint8)
    write_volume(data / "b" / "mask.nii.gz", mask, np.diag([-8.0, -8.0, 8.0, 1.0]))
    (data / "link.nii.gz").symlink_to(secret / "s.nii.gz")
    (data / "folder").symlink_to(secret)
    (data / "loop.nii.gz").symlink_to(data / "loop.nii.gz")
    os.mkfifo(data / "pipe.nii.gz")
    (tmp_path / "out").mkdir()
    return tmp_path


def commands(path, places, allow_outside):
    """Everything that reads a datalist, each as a function."""
    data, out = places / "data", places / "out"
    text = str(path)
    for label in ("none", "class", "mask", "healthy"):
        for section in ("training", "validation"):
            options = {"label": label, "fold": 1, "workers": 1, "label_percent": 50, "allow_outside": allow_outside}
            yield lambda section=section, options=options: load_datalist(path, section, data, **options)
    check = {"workers": 1, "json": str(out / "report.json"), "quarantine": str(out / "rest.json")}
    yield lambda: check_command(text, str(data), allow_outside=allow_outside, **check)
    lists = {"pretrain": text, "classify": text}
    yield lambda: leakage_command(**lists, dataset_dir=str(data), workers=1, allow_outside=allow_outside)
    build = {"datalist": text, "target": "healthy", "keep": "side,site", "overwrite": True}
    yield lambda: build_command(str(out / "lists"), **build)
    sizes = {"spacing": 8.0, "spatial_size": [12, 14, 10], "untrusted": "as_it_lies", "allow_outside": allow_outside}
    yield lambda: prepare.prepare_command(str(out / "prepared"), str(data), text, **sizes)


def goes_through(text, places, watch, allow_outside):
    data, out = places / "data", places / "out"
    path = places / "list.json"
    path.write_text(text.replace("SECRET", str(places / "secret")))
    for command in commands(path, places, allow_outside):
        screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            watch.found.clear()
            watch.allowed = (str(places), str(places / ("nothing" if allow_outside else "secret")), str(out))
            try:
                with in_a_sentence("sa-swin cohort", 2):
                    command()
            except (UserError, SystemExit):
                pass
            finally:
                watch.allowed = None
        assert watch.found == []
    with contextlib.suppress(UserError):
        for case in find_cases(path, data, "training", allow_outside):
            image = case["image"] if isinstance(case["image"], str) else case["image"][0]
            assert os.path.realpath(result_path(image, data, out, "pred")).startswith(str(out) + os.sep)


def fuzz(how, places, watch):
    @how
    @given(texts(), st.booleans())
    @example(json.dumps({"training": [{"image": path, "label": path, "healthy": True} for path in PATHS]}), False)
    @example(json.dumps({"training": [{"image": path, "healthy": True} for path in PATHS]}), True)
    def run(text, allow_outside):
        goes_through(text, places, watch, allow_outside)

    secret = {file: file.stat().st_mtime_ns for file in (places / "secret").rglob("*")}
    run()
    assert {file: file.stat().st_mtime_ns for file in (places / "secret").rglob("*")} == secret
    assert {file.name for file in places.iterdir()} <= {"data", "secret", "out", "list.json", ".contents.cache"}


def test_40_fuzzed_datalists_end_in_a_sentence_and_touch_nothing_else(places, watch):
    fuzz(FAST, places, watch)


@pytest.mark.slow
def test_1000_fuzzed_datalists_end_in_a_sentence_and_touch_nothing_else(places, watch):
    fuzz(FULL, places, watch)


def test_the_watch_sees_what_it_is_to_see(places, watch):
    watch.found.clear()
    watch.allowed = (str(places), str(places / "secret"), str(places / "out"))
    try:
        (places / "data" / "folder" / "s.nii.gz").read_bytes()
        (places / "data" / "new").write_text("")
        (places / "out" / "new").write_text("")
    finally:
        watch.allowed = None
    assert [event for event, _ in watch.found] == ["open", "open"]
