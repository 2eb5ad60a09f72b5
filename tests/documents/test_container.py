"""The two descriptions of the container hold the same, and what they name is there."""

import re
import subprocess

import pytest
from page_commands import ROOT

FOLDER = ROOT / "container"
SOURCE = "/opt/sa-swin/source/"
FORMS = ("Containerfile", "sa-swin.def")


def copied(form):
    """What a description copies from the repository, and where to."""
    text = (FOLDER / form).read_text()
    if form == "Containerfile":
        lines = [line.split()[1:] for line in re.findall(r"^COPY .*", text, re.MULTILINE)]
        pairs = [(name, target) for *names, target in lines for name in names]
    else:
        pairs = [line.split() for line in re.search(r"%files\n((?: .*\n)+)", text)[1].splitlines()]
    return {name: f"{target}{name}" if target.endswith("/") else target for name, target in pairs}


@pytest.mark.parametrize("form", FORMS)
def test_all_that_an_installation_needs_goes_in(form):
    names = copied(form)
    assert all((ROOT / name).exists() and target == f"{SOURCE}{name}" for name, target in names.items())
    assert names.keys() >= {"custom", "sa_swin", "bundles", "pyproject.toml", "constraints.txt", "README.md"}
    assert copied("Containerfile") == names


@pytest.mark.parametrize("form", FORMS)
def test_both_run_the_same_lines_and_start_the_app(form):
    text = (FOLDER / form).read_text()
    assert f"sh {SOURCE}container/install.sh" in text
    assert re.search(r"/opt/sa-swin/venv/bin/sa-swin\W+app\b", text)
    assert "debian:bookworm-slim" in text
    places = [
        dict(re.findall(r"(\w+)=(\S+)", re.search(r"(?:ENV|export) (.*)", (FOLDER / f).read_text())[1])) for f in FORMS
    ]
    assert places[0] == places[1]
    assert "Research only, not for clinical use" in text


def test_the_lines_are_sound_and_pin_the_torch_of_the_constraints():
    assert subprocess.run(["sh", "-n", FOLDER / "install.sh"], check=False).returncode == 0
    pinned = re.search(r"torch==\S+", (FOLDER / "install.sh").read_text())[0]
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()
