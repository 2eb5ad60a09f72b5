"""What a run says of the code it ran."""

import os
import subprocess

from custom.support.run_record import commit, resolved


def git(folder, *words):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_named_with_changes_and_the_repository_is_only_read(tmp_path):
    assert commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    code = tmp_path / "code.py"
    code.write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "Start")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    os.utime(code, (1, 1))  # git would now like to write its index anew
    before = (tmp_path / ".git" / "index").read_bytes()
    assert commit(tmp_path) == head
    assert (tmp_path / ".git" / "index").read_bytes() == before  # a run that is killed meanwhile leaves no lock
    code.write_text("a = 2\n")
    (tmp_path / "notes.txt").write_text("not tracked")
    assert commit(tmp_path) == f"{head}+changes"


def test_a_configuration_as_it_ran_has_the_values_that_its_knobs_came_to():
    config = {
        "spacing": "$@weights.get('spacing', 1.0)",
        "seed": 0,
        "device": "$torch.device('cpu')",
        "train": {"a": "$1"},
    }
    settings = {"spacing": 6, "seed": 1, "not there": 2}
    assert resolved(config, settings) == config | {"spacing": 6}
