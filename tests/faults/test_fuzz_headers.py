"""Fuzzed volume files through every reader: nothing but a sentence on the file, in bounded time and memory."""

import contextlib
import gzip
import logging
import resource

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from injected import fuzzing

from custom.data.case import CohortError
from custom.data.contents import file_hashes
from custom.support.errors import UserError, root_cause
from custom.transforms.contract import InputContract
from custom.volumes.loading import load_volume
from sa_swin.cohort.voxels import Expected, check_case

FAST, FULL = fuzzing(300, 20, fixed=True), fuzzing(10_000, 20)
MOST_MEMORY = 2**30
"""Bytes beyond what the process had: a header may claim far more."""

FLOATS = [
    0.0,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e-45,
    1e-8,
    0.5,
    1.0,
    -1.0,
    300.0,
    352.0,
    1e9,
    3e38,
    -3e38,
]
INTEGERS = [-(2**63), -(2**31), -(2**15), -1, 0, 1, 2, 3, 4, 7, 8, 16, 128, 1792, 348, 2**15 - 1, 2**31 - 1, 2**63 - 1]
CONTRACT = InputContract(spacing=6.0, spatial_size=(32, 32, 32), untrusted="as_it_lies")


def base(kind):
    """A sound file's bytes, uncompressed, and the type of its header."""
    array = np.random.default_rng(0).normal(100, 10, (12, 14, 10)).astype(np.int16)
    affine = np.diag([-8.0, -8.0, 8.0, 1.0])
    if kind == "mgh":
        return nib.MGHImage(array, affine).to_bytes(), nib.freesurfer.mghformat.MGHHeader.template_dtype
    image = {"nifti1": nib.Nifti1Image, "nifti2": nib.Nifti2Image}[kind](array, affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    image.set_qform(affine, 1)
    return image.to_bytes(), type(image.header).template_dtype


BASES = {kind: base(kind) for kind in ("nifti1", "nifti2", "mgh")}


@st.composite
def volumes(draw):
    """A name and the content of a file: header fields, bytes and the compressed stream changed, cut or continued."""
    kind = draw(st.sampled_from(["nifti1", "nifti1", "nifti1", "nifti2", "mgh"]))
    raw, dtype = BASES[kind]
    order = ">" if kind == "mgh" else draw(st.sampled_from("<<<>"))
    header = np.frombuffer(raw[: dtype.itemsize], dtype.newbyteorder(">" if kind == "mgh" else "<"))
    header = header.astype(dtype.newbyteorder(order))
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(dtype.names))
        place = header[name].reshape(-1)
        index = draw(st.integers(0, place.size - 1))
        if place.dtype.kind == "f":
            place[index] = draw(st.sampled_from(FLOATS) | st.floats(width=32))
        elif place.dtype.kind in "iu":
            limits = np.iinfo(place.dtype)
            value = draw(st.sampled_from(INTEGERS) | st.integers(limits.min, limits.max))
            place[index] = min(max(value, limits.min), limits.max)
        else:
            place[index] = draw(st.binary(max_size=place.dtype.itemsize))
    content = bytearray(header.tobytes() + raw[dtype.itemsize :])
    mutated(draw, content, 1)
    suffix = draw(st.sampled_from([".mgh", ".mgz"] if kind == "mgh" else [".nii", ".nii.gz"]))
    if draw(st.integers(0, 30)) == 0:
        suffix = draw(st.sampled_from([".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".img", ".gz", ".png", ""]))
    if suffix.endswith("z"):
        content = bytearray(gzip.compress(bytes(content), 1, mtime=0))
        mutated(draw, content, 2)
    return f"image{suffix}", bytes(content)


def mutated(draw, content, rarely):
    """Bytes flipped, the end cut off or noise added, now and then."""
    for _ in range(draw(st.sampled_from([0] * rarely * 2 + [1, 2, 8]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    if draw(st.integers(0, 4 * rarely)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    if draw(st.integers(0, 8 * rarely)) == 0:
        content += draw(st.binary(max_size=64))


@contextlib.contextmanager
def bounded_memory(most=MOST_MEMORY):
    """Let the process have so much more address space than it has; `MemoryError` beyond it."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "image.nii"
    path.write_bytes(BASES["nifti1"][0])
    return str(path)


def goes_through(name, content, folder, sound):
    """A file through all readers. What the check finds sound, a training takes; what it takes is a finite volume."""
    path = folder / name
    path.write_bytes(content)
    path = str(path)
    checked = check_case({"image": path}, Expected("none", 1, None))
    errors = [finding for finding in checked.findings if finding.severity == "error"]
    assert all(finding.file == path for finding in checked.findings)
    check_case({"image": sound, "label": path}, Expected("mask", 1, 2))
    try:
        assert file_hashes(path) == checked.contents[path]
    except CohortError:
        assert errors
    volume, sentence = attempted(path)
    if volume is None:
        assert errors
        assert path in sentence
        return
    assert volume.ndim == 4
    assert torch.isfinite(volume.affine).all()
    if not errors:
        assert torch.isfinite(volume).all()
    try:
        pair = CONTRACT({"image": path})["image"]
    except RuntimeError as error:
        if not isinstance(root_cause(error), UserError):
            raise
    else:
        assert torch.isfinite(pair).all()


def attempted(path):
    """A volume, or None and why there is none."""
    try:
        return load_volume(path), ""
    except UserError as error:
        return None, str(error)


def fuzz(how, folder, sound):
    @how
    @given(volumes())
    def run(volume):
        with bounded_memory(), np.errstate(all="ignore"):
            goes_through(*volume, folder, sound)

    logging.disable()  # nibabel says much, and pytest keeps it
    try:
        run()
    finally:
        logging.disable(logging.NOTSET)


def test_300_fuzzed_volume_files_end_in_a_sentence_or_in_a_sound_volume(tmp_path, sound):
    fuzz(FAST, tmp_path, sound)


@pytest.mark.slow
def test_10000_fuzzed_volume_files_end_in_a_sentence_or_in_a_sound_volume(tmp_path, sound):
    fuzz(FULL, tmp_path, sound)
