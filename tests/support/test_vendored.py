import hashlib

import pytest

from custom.support.vendored import CodeError, code_digest, installed_digest, require


def test_the_digest_is_that_of_names_and_contents_in_order():
    expected = hashlib.sha256(b"a.py\x001\x00x" + b"b/c.py\x002\x00yz").hexdigest()
    assert code_digest({"b/c.py": b"yz", "a.py": b"x"}) == expected


@pytest.mark.parametrize("other", [{"a.py": b"y"}, {"b.py": b"x"}, {"a.py": b"x", "b.py": b""}, {}])
def test_another_name_content_or_file_is_another_digest(other):
    assert code_digest(other) != code_digest({"a.py": b"x"})


def test_only_python_files_count():
    assert code_digest({"a.py": b"x", "notes.md": b"changed"}) == code_digest({"a.py": b"x"})


def test_the_code_that_runs_is_accepted_and_any_other_refused():
    require(installed_digest())
    with pytest.raises(CodeError, match=r"cut with `custom` 000000000000, but .*custom is [0-9a-f]{12}: packages"):
        require("0" * 64)
