import json
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import image_path, make_tree, mask_path

from custom.data.bids_names import parse_name
from custom.data.case import CohortError
from custom.data.datalist import load_datalist
from sa_swin.cohort.bids import Scan
from sa_swin.cohort.bids_files import parse_choice
from sa_swin.cohort.build import Built, Design, mask_names
from sa_swin.cohort.build import build as make
from sa_swin.cohort.command import build_command
from sa_swin.cohort.summary import summary
from sa_swin.cohort.table import Condition, class_numbers, conditions, read_table
from sa_swin.commands import in_a_sentence

SECTIONS = ("training", "validation", "testing")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("bids"))


@pytest.fixture
def build(tree, tmp_path):
    """Build from the tree; returns the datalists by bundle."""

    def run(**options):
        build_command(str(tmp_path / "lists"), **({"bids": str(tree)} | options))
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "lists").glob("*.json")}

    return run


def entries(lists):
    return [entry for section in SECTIONS for entry in lists.get(section, [])]


def part_of(lists):
    return {section: {entry["subject"] for entry in lists[section]} for section in SECTIONS if section in lists}


EVERYTHING = {
    "target": "diagnosis",
    "classes": "healthy=0,tumour|infarct=1",
    "healthy": "diagnosis=healthy",
    "mask": "label-lesion_mask",
}


def test_sessions_and_repeated_runs_become_entries_of_one_subject(build):
    lists = build()
    assert set(lists) == {"pretrain"}
    found = entries(lists["pretrain"])
    assert len(found) == 22
    by_subject = Counter(entry["subject"] for entry in found)
    assert by_subject["sub-01"] == by_subject["sub-03"] == 2
    assert {(e["session"], e.get("run")) for e in found if e["subject"] == "sub-03"} == {("1", "1"), ("1", "2")}
    assert {e["session"] for e in found if e["subject"] == "sub-01"} == {"1", "2"}
    parts = part_of(lists["pretrain"])
    assert sum(map(len, parts.values())) == 20


@pytest.mark.parametrize(("runs", "run"), [("first", "1"), ("last", "2")])
def test_one_run_can_be_chosen(build, runs, run):
    found = [entry for entry in entries(build(runs=runs)["pretrain"]) if entry["subject"] == "sub-03"]
    assert [entry["run"] for entry in found] == [run]


def test_the_three_bundles_get_lists_that_they_load_with_one_split(build, tree, tmp_path):
    lists = build(**EVERYTHING)
    assert set(lists) == {"pretrain", "classify", "segment"}
    assert part_of(lists["pretrain"]) == part_of(lists["classify"])
    for section, subjects in part_of(lists["segment"]).items():
        assert subjects <= part_of(lists["classify"])[section]
    for bundle, label in (("pretrain", "healthy"), ("classify", "class"), ("segment", "mask")):
        for section in SECTIONS:
            path = tmp_path / "lists" / f"{bundle}.json"
            assert load_datalist(path, section, tree, label, num_classes=2), (bundle, section)


def test_classes_are_what_the_mapping_says_and_the_mapping_is_written_down(build):
    lists = build(**EVERYTHING)
    assert lists["classify"]["labels"] == {"0": "healthy", "1": "tumour|infarct"}
    for entry in entries(lists["classify"]):
        number = int(entry["subject"].removeprefix("sub-"))
        assert entry["label"] == (number % 2 == 0)
        assert entry["healthy"] is (number % 2 == 1)
    assert build(target="diagnosis", overwrite=True)["classify"]["labels"] == {
        "0": "healthy",
        "1": "infarct",
        "2": "tumour",
    }


def test_masks_go_to_their_own_subject_and_session(build):
    found = entries(build(**EVERYTHING)["segment"])
    assert len(found) == 10
    for entry in found:
        subject = entry["subject"]
        expected = f"derivatives/lesions/{subject}/ses-1/anat/{subject}_ses-1_label-lesion_mask.nii.gz"
        assert entry["label"] == expected


def test_channels_are_matched_within_a_session_and_what_does_not_match_is_named(build):
    lists = build(image="T1w,FLAIR")
    found = entries(lists["pretrain"])
    for entry in found:
        t1, flair = entry["image"]
        assert t1.endswith("_T1w.nii.gz")
        assert flair.endswith("_FLAIR.nii.gz")
        assert t1.split("/")[:2] == flair.split("/")[:2]
    assert {"subject": "sub-01 ses-2", "reason": "no FLAIR image"} in lists["pretrain"]["left_out"]
    assert Counter(entry["subject"] for entry in found)["sub-03"] == 2  # each run with the session's only FLAIR


def test_include_filters_by_number_and_by_text_and_says_who_is_out(build):
    lists = build(include="age>=40,sex=M")
    found = {int(entry["subject"].removeprefix("sub-")) for entry in entries(lists["pretrain"])}
    assert found == {number for number in range(10, 18) if number % 3}
    left_out = {item["subject"].split()[0]: item["reason"] for item in lists["pretrain"]["left_out"]}
    assert left_out["sub-01"] == "not age>=40"
    assert left_out["sub-12"] == "not sex=M"
    assert left_out["sub-19"] == "age is missing"


def test_a_missing_mask_keeps_a_patient_out_of_the_segment_list_alone_and_is_named(tmp_path):
    root = make_tree(tmp_path / "bids")
    mask_path(root, "sub-04").unlink()
    build_command(str(tmp_path / "lists"), str(root), **EVERYTHING)
    lists = {name: json.loads((tmp_path / "lists" / f"{name}.json").read_text()) for name in ("classify", "segment")}
    assert "sub-04" in {entry["subject"] for entry in entries(lists["classify"])}
    assert "sub-04" not in {entry["subject"] for entry in entries(lists["segment"])}
    assert {"subject": "sub-04 ses-1", "reason": "no label-lesion_mask"} in lists["segment"]["left_out"]


def test_two_masks_for_one_image_are_not_guessed_between(tmp_path):
    root = make_tree(tmp_path / "bids")
    twin = mask_path(root, "sub-04")
    other = root / "derivatives" / "second" / twin.relative_to(root / "derivatives" / "lesions")
    other.parent.mkdir(parents=True)
    other.write_bytes(twin.read_bytes())
    build_command(str(tmp_path / "lists"), str(root), mask="label-lesion_mask")
    lists = json.loads((tmp_path / "lists" / "segment.json").read_text())
    assert "sub-04" not in {entry["subject"] for entry in entries(lists)}
    assert any("2 files are its label-lesion_mask" in item["reason"] for item in lists["left_out"])
    build_command(str(tmp_path / "one"), str(root), mask="label-lesion_mask", derivative="second")
    lists = json.loads((tmp_path / "one" / "segment.json").read_text())
    assert [entry["subject"] for entry in entries(lists)] == ["sub-04"]


def test_what_a_session_table_says_goes_before_the_participants_table(tmp_path):
    root = make_tree(tmp_path / "bids")
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tsite\nses-2\twest\n")
    build_command(str(tmp_path / "lists"), str(root))
    found = entries(json.loads((tmp_path / "lists" / "pretrain.json").read_text()))
    assert {(e["session"], e["site"]) for e in found if e["subject"] == "sub-01"} == {("1", "north"), ("2", "west")}
    assert len({section for section, who in part_of(json.loads((tmp_path / "lists" / "pretrain.json").read_text()))
                .items() if "sub-01" in who}) == 1  # fmt: skip


@pytest.mark.parametrize("group", ["family", "site"])
def test_families_and_sites_stay_together(build, group):
    lists = build(group=group, split=(0.5, 0.25, 0.25))
    where = {}
    for section in SECTIONS:
        for entry in lists["pretrain"].get(section, []):
            where.setdefault(entry[group], set()).add(section)
    assert len(where) == {"family": 6, "site": 2}[group]
    assert all(len(sections) == 1 for sections in where.values())


def test_folds_are_written_as_the_reference_has_them_and_read_by_fold(build, tree, tmp_path):
    lists = build(folds=4, split=(0.8, 0, 0.2), **EVERYTHING)
    assert "validation" not in lists["classify"]
    assert all(
        isinstance(entry["fold"], int) and isinstance(entry["label"], int) for entry in lists["classify"]["training"]
    )
    path = tmp_path / "lists" / "classify.json"
    seen = set()
    for fold in range(4):
        held = {case["subject"] for case in load_datalist(path, "validation", tree, "class", fold=fold)}
        rest = {case["subject"] for case in load_datalist(path, "training", tree, "class", fold=fold)}
        assert held
        assert not held & rest
        assert not held & seen
        seen |= held
    assert len(seen) == 16


def test_a_table_gives_the_same_kind_of_lists(tmp_path):
    rows = ["patient;visit;t1;flair;lesion;group;age"]
    rows += [f"p{i};v{v};p{i}/{v}/t1.nii;p{i}/{v}/flair.nii;{'m.nii' if i % 2 else ''};{'ab'[i % 2]};{20 + i}"
             for i in range(12) for v in range(2)]  # fmt: skip
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    options = {"image": ("t1", "flair"), "subject": "patient", "session": "visit", "target": "group", "mask": "lesion"}
    build_command(str(tmp_path / "lists"), table=str(tmp_path / "scans.csv"), include="age>20", **options)
    lists = json.loads((tmp_path / "lists" / "classify.json").read_text())
    assert len(entries(lists)) == 22
    entry = next(entry for entry in entries(lists) if entry["subject"] == "p3" and entry["session"] == "v1")
    assert entry["image"] == ["p3/1/t1.nii", "p3/1/flair.nii"]
    assert entry["label"] == 1
    segment = json.loads((tmp_path / "lists" / "segment.json").read_text())
    assert {e["subject"] for e in entries(segment)} == {f"p{i}" for i in range(1, 12, 2)}


def test_a_list_split_by_scan_is_split_anew_by_subject(tmp_path):
    scans = [
        {"image": f"ADNI_{i:03d}_S_{v}.nii", "label": i % 2, "fold": (i + v) % 5} for i in range(30) for v in range(3)
    ]
    (tmp_path / "adni.json").write_text(json.dumps({"training": scans}))
    where = {}
    options = {"subject_pattern": r"(ADNI_\d+)_S", "target": "label", "folds": 5, "split": (1, 0, 0)}
    build_command(str(tmp_path / "lists"), datalist=str(tmp_path / "adni.json"), **options)
    for entry in json.loads((tmp_path / "lists" / "classify.json").read_text())["training"]:
        where.setdefault(entry["subject"], []).append(entry["fold"])
    assert len(where) == 30
    assert all(len(folds) == 3 and len(set(folds)) == 1 for folds in where.values())


def table_with_a_split(tmp_path, *rows):
    text = ["subject,path,part", *(f"{subject},{subject}.nii,{part}" for subject, part in rows)]
    (tmp_path / "scans.csv").write_text("\n".join(text) + "\n")
    build_command(str(tmp_path / "lists"), table=str(tmp_path / "scans.csv"), image="path", split="part")
    return part_of(json.loads((tmp_path / "lists" / "pretrain.json").read_text()))


def test_a_split_that_is_given_is_taken_as_it_is(tmp_path):
    parts = table_with_a_split(tmp_path, ("a", "train"), ("b", "Training"), ("c", "val"), ("d", "test"), ("a", "train"))
    assert parts == {"training": {"a", "b"}, "validation": {"c"}, "testing": {"d"}}


def test_a_given_split_that_tears_a_subject_apart_is_refused(tmp_path):
    with pytest.raises(CohortError, match="a: column 'part' puts it in testing, but a is in training"):
        table_with_a_split(tmp_path, ("a", "train"), ("a", "test"))
    with pytest.raises(CohortError, match="b: expected train, val or test in column 'part', found 3"):
        table_with_a_split(tmp_path, ("a", "train"), ("b", "3"))


def test_a_prefix_keeps_persons_of_two_studies_with_one_id_apart(build):
    assert {entry["subject"] for entry in entries(build(prefix="IXI-")["pretrain"])} == {
        f"IXI-sub-{number:02d}" for number in range(1, 21)
    }


SCANS = st.lists(
    st.builds(
        lambda number, visit, site, family, ill, marked: Scan(
            f"s{number}",
            (f"s{number}_{visit}.nii",),
            str(visit),
            mask="m.nii" if marked else None,
            facts={"site": site, "family": f"F{family % 7}", "dx": ("healthy", "tumour", "infarct")[ill]},
        ),
        *(st.integers(0, 40), st.integers(0, 3), st.sampled_from("AB"), st.integers(0, 20), st.integers(0, 2)),
        st.booleans(),
    ),
    min_size=1,
    max_size=80,
)


@given(SCANS, st.sampled_from([0, 2, 5]), st.booleans(), st.integers(0, 5))
def test_no_subject_and_no_family_is_on_two_sides_of_a_split_of_any_list(scans, folds, together, seed):
    plan = Design(target="dx", healthy=conditions("dx=healthy"), keep=["site"], folds=folds, seed=seed,
                group=["family"] if together else [])  # fmt: skip
    where, families = {}, {}
    for lists in make(scans, plan, "table").datalists.values():
        for section in SECTIONS:
            for entry in lists.get(section, []):
                part = entry.get("fold", section)
                where.setdefault(entry["subject"], set()).add(part)
                families.setdefault(entry.get("family"), set()).add(part)
    assert set(where) == {scan.subject for scan in scans}
    assert all(len(parts) == 1 for parts in where.values())
    assert not together or all(len(parts) == 1 for parts in families.values())


def test_lists_of_an_earlier_build_are_named_beside_those_of_this_one(build, tmp_path, capsys):
    build(**EVERYTHING)
    (tmp_path / "lists" / "own.json").write_text('{"training": []}')
    (tmp_path / "lists" / "broken.json").write_text("{")
    assert "earlier build" not in capsys.readouterr().out
    build_command(str(tmp_path / "lists"), datalist=str(tmp_path / "lists" / "classify.json"), seed=1, overwrite=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "still has classify.json, segment.json of an earlier build; remove" in last


def test_lists_that_are_there_are_not_replaced_unasked(build, tmp_path):
    first = build(seed=1)
    assert build(seed=1) == first
    with pytest.raises(CohortError, match=r"pretrain\.json is there already and would change"):
        build(seed=2)
    assert build(seed=2, overwrite=True) != first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bids": None}, "give one of --bids, --table and --datalist; got none"),
        ({"table": "x.csv"}, "give one of --bids, --table and --datalist; got bids, table"),
        ({"bids": "/nowhere"}, "no BIDS folder at /nowhere"),
        ({"image": "T2w"}, r"has no T2w image; there are T1w \(22\), FLAIR \(20\)"),
        ({"image": "T1w.nii"}, "expected a BIDS suffix"),
        ({"target": "dx"}, "has no column 'dx', or no value in it; there are age, diagnosis, family, sex, side, site"),
        ({"include": "age>old"}, "'age>old' compares with 'old', which is not a number"),
        ({"include": "__import__('os')"}, "expected a condition such as age>=18"),
        ({"include": "age>=200"}, "no scan is left; 19 not age>=200: sub-01 ses-1, .* and 14 more; 3 age is missing"),
        ({"target": "diagnosis", "classes": "healthy=0,tumor=1"}, "no subject has tumor; the target's values are"),
        ({"target": "diagnosis", "classes": "healthy=0,tumour=2"}, r"must be numbered 0, 1, 2, ...; got \[0, 2\]"),
        ({"target": "diagnosis", "classes": "healthy"}, "expected classes such as"),
        ({"split": (0.5, 0.2, 0.2)}, "shares must be positive and sum to 1"),
        ({"split": "half"}, "expected numbers such as 0.6,0.15,0.25, or a column that there is, got half"),
        ({"split": (0.5, 0.5)}, r"expected three shares, .* got \[0.5, 0.5\] and 0"),
        ({"folds": 1}, "at least 2 folds"),
        ({"runs": "second"}, "runs must be one of all, first, last; got 'second'"),
        ({"mask": "mask", "derivative": "none"}, "no derivatives at .*none"),
    ],
)
def test_wrong_options_are_one_sentence_and_exit_code_2(build, capsys, options, sentence):
    with pytest.raises(CohortError, match=sentence) as raised:
        build(**options)

    with pytest.raises(SystemExit) as stopped, in_a_sentence("sa-swin cohort", 2):
        raise raised.value
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"sa-swin cohort: {raised.value}\n"


def test_a_subject_with_two_rows_is_refused(tmp_path):
    root = make_tree(tmp_path / "bids")
    with (root / "participants.tsv").open("a") as file:
        file.write("sub-07\t20\tM\ttumour\tsouth\tleft\tF9\n")
    with pytest.raises(CohortError, match=r"participants.tsv, line 22: sub-07 has a row already"):
        build_command(str(tmp_path / "lists"), str(root))


def test_names_are_taken_apart_as_bids_has_them():
    file = parse_name("sub-01/ses-a/anat/sub-01_ses-a_acq-3d_run-02_T1w.nii.gz")
    assert file.suffix == "T1w"
    assert file.entities == {"sub": "01", "ses": "a", "acq": "3d", "run": "2"}
    assert [parse_name(name) for name in ("T1w.nii.gz", "sub-01_T1w.json", "sub-01.nii.gz", "x_sub-01_T1w.nii")] == [
        None
    ] * 4
    assert parse_choice("acq-3d_T1w") == ("T1w", {"acq": "3d"})


@pytest.mark.parametrize(
    ("text", "facts", "holds"),
    [
        ("age>=18", {"age": "18.0"}, True),
        ("age<18", {"age": "18"}, False),
        ("age>9", {"age": "10"}, True),  # as numbers, not as text
        ("age>9", {"age": "young"}, False),
        ("age=18", {"age": "18.0"}, True),
        ("site=north|south", {"site": "south"}, True),
        ("site!=north|south", {"site": "west"}, True),
        ("site!=north", {}, False),
        ("side = left", {"side": "left"}, True),
    ],
)
def test_conditions(text, facts, holds):
    assert Condition.parse(text).holds(facts) is holds


def test_several_conditions_come_from_one_option():
    assert [str(condition) for condition in conditions("age>=18,sex=F")] == ["age>=18", "sex=F"]
    assert [str(condition) for condition in conditions(("age>=18", "sex=F"))] == ["age>=18", "sex=F"]


def test_numbers_are_numbered_by_size():
    assert class_numbers(["10", "2", "1"]) == {"1": 0, "2": 1, "10": 2}


def test_what_is_not_known_is_not_in_a_row(tmp_path):
    (tmp_path / "t.tsv").write_text("﻿a\tb\tc\n1\tn/a\t\n", encoding="utf-8")
    assert read_table(tmp_path / "t.tsv") == [{"a": "1"}]


def test_ten_thousand_subjects_with_masks_take_less_than_ten_seconds(tmp_path):
    root = tmp_path / "bids"
    rows = ["participant_id\tage\tdiagnosis"]
    for number in range(10_000):
        subject = f"sub-{number:05d}"
        for path in (image_path(root, subject), mask_path(root, subject)):
            path.parent.mkdir(parents=True)
            path.touch()
        rows.append(f"{subject}\t{number % 80}\t{'ab'[number % 2]}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    start = time.process_time()  # not the clock: the machine may have other work
    build_command(
        str(tmp_path / "lists"), str(root), mask="label-lesion_mask", target="diagnosis", healthy="diagnosis=a"
    )
    assert time.process_time() - start < 10
    assert len(entries(json.loads((tmp_path / "lists" / "segment.json").read_text()))) == 10_000


def cohort_command(*words):
    command = [sys.executable, "-m", "sa_swin", "cohort", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("lists", "strata", "names"),
    [
        ({"classify": {"labels": {"0": "healthy", "1": "tumour"}}}, (0, 1), ["healthy", "tumour"]),
        ({"pretrain": {"training": [{"healthy": True}]}}, (True, False), ["not healthy", "healthy"]),
        ({"pretrain": {"training": [{"subject": "a"}]}}, (True, False), ["no mask", "mask"]),
        ({"classify": {"labels": {"1": "tumour"}}}, ((1, "F"), ("unknown", "M")), ["unknown, M", "tumour, F"]),
    ],
)
def test_the_table_of_the_split_says_what_its_columns_count(lists, strata, names):
    built = Built(lists, [], {"training": Counter(dict.fromkeys(strata, 2)), "testing": Counter()})
    head, row, *_ = summary(built, []).splitlines()
    assert sorted(re.split(r"\s{2,}", head)[1:]) == sorted(names)
    assert row.split() == ["training", "2", "2"]
    assert all(name in summary(built, []).split("note: nobody of")[1] for name in names)


def test_the_command_line_builds_checks_and_fails_as_it_says(tmp_path):
    root = make_tree(tmp_path / "bids")
    lists = root / "datalists"
    done = cohort_command("build", "--bids", root, "--output", lists, "--target", "diagnosis", "--include", "age>=20")
    assert done.returncode == 0, done.stderr
    assert "not age>=20: sub-01 ses-1" in done.stdout
    assert cohort_command("check", "--datalist", lists / "classify.json").returncode == 0
    first = json.loads((lists / "classify.json").read_text())["training"][0]["image"]
    (root / first).write_bytes(b"no image")
    done = cohort_command("check", "--datalist", lists / "classify.json")
    assert done.returncode == 1
    assert f"{first}\n  error, unreadable" in done.stdout
    done = cohort_command("check", "--datalist", lists / "none.json")
    assert done.returncode == 2
    assert done.stderr.startswith("sa-swin cohort: no datalist at")
    assert "Traceback" not in done.stderr
    assert "--subject_pattern" in cohort_command("build", "--help").stdout


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        ("label-lesion_mask", "lesion"),
        ("desc-x_label-GM_mask", "GM"),
        ("label-L_desc-T1lesion_mask", "class 1"),  # ATLAS: the letter is no name
        ("label-1_mask", "class 1"),
        (None, "class 1"),
    ],
)
def test_a_mask_is_called_what_its_file_says_where_that_is_a_name(mask, name):
    assert mask_names(mask) == {"0": "background", "1": name}


def test_cohorts_need_neither_torch_nor_monai():
    code = "import sys, sa_swin.cohort.command; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
