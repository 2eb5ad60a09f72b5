import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from custom.support.files import stamp_of, write_whole


@pytest.mark.parametrize("content", [b"new", "new", lambda path: path.write_text("new")])
def test_a_file_is_replaced_by_the_whole_of_the_new_one(tmp_path, content):
    path = tmp_path / "deep" / "file.nii.gz"
    write_whole(path, "old, and longer")
    write_whole(path, content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def fail(partial):
        assert partial.suffix == ".txt"
        partial.write_text("half of")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tasks_of_the_same_process_number_on_one_file_system_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in containers
    texts = [str(number) * 5000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [write_whole(tmp_path / "file.json", text) for _ in range(20)], texts))
    assert (tmp_path / "file.json").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("named", ["scan.hdr", "scan.img"])
def test_the_stamp_of_a_pair_changes_with_either_file(tmp_path, named):
    stamps = []
    for content in ({".hdr": "1", ".img": "2"}, {".hdr": "1", ".img": "22"}, {".hdr": "11", ".img": "22"}):
        for suffix, text in content.items():
            if not (path := tmp_path / f"scan{suffix}").exists() or path.read_text() != text:
                path.write_text(text)
        stamps.append(stamp_of(tmp_path / named))
    assert len({tuple(stamp) for stamp in stamps}) == 3
    (tmp_path / ("scan.img" if named == "scan.hdr" else "scan.hdr")).unlink()
    assert stamp_of(tmp_path / named) == stamps[2][:2]
    assert stamp_of(tmp_path / "none.hdr") == []
