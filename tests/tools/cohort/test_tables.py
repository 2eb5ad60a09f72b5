"""Tables as spreadsheets leave them, ids as people write them, ages as registries publish them."""

import json
import math

import pytest

from custom.data.case import CohortError
from sa_swin.cohort.bids_facts import matched, plain_id
from sa_swin.cohort.command import build_command
from sa_swin.cohort.table import Condition, conditions, number_range, read_table

ROWS = [{"id": "1", "age": "40", "dx": "a"}, {"id": "2", "dx": "b"}]
TEXT = "id,age,dx\n1,40,a\n2,n/a,b\n"


def written(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "\ufeff" + TEXT,
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.replace(",", "\t").encode("utf-16-be"),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
        TEXT.replace(",", ";"),
        "sep=;\r\n" + TEXT.replace(",", ";"),
        TEXT.replace(",", "\t"),
        TEXT + ",,\n",
        TEXT + "n/a,,\n\n\n",
        "\n" + TEXT,
        'id,age,dx,,\n1,40,"a",,\n2,,b,,\n,,,,\n',
        "id , age,dx\n 1,40 ,a\n2,#N/A,b",
    ],
)
def test_however_a_spreadsheet_saved_it_the_table_says_the_same(tmp_path, content):
    assert [row for row in read_table(written(tmp_path, content)) if row] == ROWS


def test_a_tsv_may_hold_commas_in_its_cells_and_may_be_none(tmp_path):
    assert read_table(written(tmp_path, "id\tname\n1\ta,b;c\n", "t.tsv")) == [{"id": "1", "name": "a,b;c"}]
    assert read_table(written(tmp_path, "id;name\n1;a\n", "t.tsv")) == [{"id": "1", "name": "a"}]
    assert read_table(written(tmp_path, 'id,name\n1,"two\nlines"\n')) == [{"id": "1", "name": "two\nlines"}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"id\n\xe9\n", "is not UTF-8 text: .*; save it as CSV UTF-8"),
        ("a,b\n1,2,3\n", "line 2: more cells than the header has columns"),
        ("a,a\n1,2\n", "has two columns named a; rename one"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, content, sentence):
    with pytest.raises(CohortError, match=sentence):
        read_table(written(tmp_path, content))
    assert read_table(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("cell", "bounds"),
    [
        ("40", (40, 40)),
        ("45,5", (45.5, 45.5)),
        ("89+", (89, math.inf)),
        (">=89", (89, math.inf)),
        (">89", (math.nextafter(89, math.inf), math.inf)),
        ("<1", (-math.inf, math.nextafter(1, -math.inf))),
        ("<=18", (-math.inf, 18)),
        ("60-69", (60, 69)),
        ("60 \u2013 69", (60, 69)),
        ("-5", (-5, -5)),
        ("065Y", (65, 65)),
        ("018M", (1.5, 1.5)),
        ("old", None),
        ("69-60", None),
        ("2020-01-02", None),
        ("nan", None),
    ],
)
def test_a_cell_means_a_range_of_numbers(cell, bounds):
    assert number_range(cell) == bounds


@pytest.mark.parametrize(
    ("condition", "cell", "verdict"),
    [
        ("age>=18", "89+", True),
        ("age<18", "89+", "not age<18"),
        ("age>89", ">89", True),
        ("age>89", "89+", "age 89+ may be age>89 or not"),
        ("age<=90", "89+", "age 89+ may be age<=90 or not"),
        ("age>=65", "60-69", "age 60-69 may be age>=65 or not"),
        ("age>=60", "60-69", True),
        ("age<1", "<1", True),
        ("age>=18", "unknown", "age is no number but unknown"),
        ("age>=18", "065Y", True),
        ("sex=F", "F", True),
        ("age=40", "40.0", True),
    ],
)
def test_a_condition_holds_does_not_hold_or_cannot_be_told(condition, cell, verdict):
    one = Condition.parse(condition)
    facts = {one.column: cell}
    assert one.holds(facts) is (verdict is True)
    assert verdict is True or (one.unknown(facts) or f"not {one}") == verdict


def test_a_missing_value_is_no_verdict():
    (one,) = conditions("age>=18")
    assert not one.holds({})
    assert one.unknown({}) == "age is missing"


@pytest.mark.parametrize("name", ["sub-001", "001", "1", "1.0", "sub_01", "Sub-1", " 1 "])
def test_an_id_is_the_same_however_it_is_written(name):
    assert plain_id(name) == "1"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("sub-IXI013", "ixi13"),
        ("002_S_0413", "2s413"),
        ("10", "10"),
        ("sub-0", "0"),
        ("subject1", "subject1"),
        ("100", "100"),
    ],
)
def test_ids_keep_what_tells_them_apart(name, plain):
    assert plain_id(name) == plain


def test_an_id_is_matched_only_where_that_leaves_no_doubt():
    one, other = {"a": "1"}, {"a": "2"}
    assert matched({"1": one}, ["001"]) == {"001": one}
    assert matched({"01": one, "1": other}, ["01", "001"]) == {"01": one}  # 1 may be 01 or 001
    assert matched({"1": one}, ["01", "001"]) == {}
    assert matched({"01": one, "1": other}, ["001"]) == {}
    assert matched({"1": one, "001": other}, ["001", "1"]) == {"001": other, "1": one}


@pytest.fixture
def build(tmp_path):
    """Build from six empty FLAIR files and a participants table; returns diagnoses and ages by subject."""
    for n in range(1, 7):
        path = tmp_path / "bids" / f"sub-{n:03d}" / "anat" / f"sub-{n:03d}_FLAIR.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()

    def run(table, **options):
        written(tmp_path / "bids", table, "participants.tsv")
        options = {"image": "FLAIR", "keep": "dx,age", "split": (1, 0, 0), "overwrite": True} | options
        build_command(str(tmp_path / "lists"), str(tmp_path / "bids"), **options)
        entries = json.loads((tmp_path / "lists" / "pretrain.json").read_text())["training"]
        return {entry["subject"]: (entry.get("dx"), entry.get("age")) for entry in entries}

    return run


EXPECTED = {f"sub-{n:03d}": ("ab"[n % 2], str(20 + n)) for n in range(1, 7)}


@pytest.mark.parametrize("form", ["sub-{:03d}", "{:03d}", "{}", "{}.0", "sub-{}", "SUB_{:02d}"])
def test_participants_are_found_however_their_ids_are_written(build, form):
    rows = [f"{form.format(n)}\t{'ab'[n % 2]}\t{20 + n}" for n in range(1, 7)]
    assert build("participant_id\tdx\tage\n" + "\n".join(rows) + "\n\t\t\t\t\n") == EXPECTED


def test_a_table_that_names_none_of_the_subjects_is_told_with_both_kinds_of_ids(build):
    with pytest.raises(
        CohortError, match="has no row of the 6 subjects: its ids are like P7, the folders like sub-001"
    ):
        build("participant_id\tdx\nP7\ta\n")


def test_an_age_above_the_registrys_limit_is_an_age(build):
    rows = [f"sub-{n:03d}\t{'89+' if n % 2 else '40'}" for n in range(1, 7)]
    found = build("participant_id\tage\n" + "\n".join(rows), keep="age", include="age>=18")
    assert len(found) == 6
    assert set(build("participant_id\tage\n" + "\n".join(rows), keep="age", include="age>80")) == {
        "sub-001", "sub-003", "sub-005",
    }  # fmt: skip


def test_a_row_twice_is_one_row_and_a_contradiction_is_told(build):
    rows = "participant_id\tdx\tage\n" + "".join(f"{n}\t{'ab'[n % 2]}\t{20 + n}\n" for n in range(1, 7))
    assert build(rows + "6\ta\t26\n") == EXPECTED
    with pytest.raises(CohortError, match="line 8: 6 has a row already; one row per participant_id"):
        build(rows + "6\tb\t26\n")
    with pytest.raises(CohortError, match="line 2: no participant_id; there are subject, dx"):
        build("subject\tdx\n1\ta\n")
