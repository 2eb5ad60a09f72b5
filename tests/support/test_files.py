import pytest

from custom.support.files import write_whole


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
