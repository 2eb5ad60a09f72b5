"""The tutorial's notebook runs from the first cell to the last, and nothing that it made is in git."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from page_commands import ROOT, check

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LIMIT = 180  # seconds, on two idle cores


def cells(kind):
    """The sources of the notebook's cells of a kind."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_has_neither_outputs_nor_pictures():
    content = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") and not cell.get("attachments") for cell in content["cells"])
    assert NOTEBOOK.stat().st_size < 20_000


def test_its_commands_and_links_are_ones():
    lines = [line for cell in cells("code") if cell.startswith("%%bash") for line in cell.splitlines()[1:]]
    commands = [line.split() for line in lines if line.startswith("sa-swin")]
    assert len(commands) == 2
    for words in commands:
        check(words)
    links = re.findall(r"\]\(([^)\s#]+)\)", "".join(cells("markdown")))
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
    assert "tutorial.ipynb" in (NOTEBOOK.parent / "tutorial.md").read_text()


@pytest.mark.slow
def test_the_notebook_runs_within_three_minutes_and_its_network_learns(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=2 * LIMIT, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - start < LIMIT
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    first, last = map(float, re.search(r"first steps ([\d.]+), of the last ([\d.]+)", said).groups())
    assert last < 0.8 * first
    assert float(re.search(r"Dice on the file's grid ([\d.]+)", said)[1]) > 0.2
    assert len(list((tmp_path / "tutorial" / "OUT").glob("sub-*.html"))) == 2
