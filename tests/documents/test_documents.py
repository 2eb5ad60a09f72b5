import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_commands import PAGES, ROOT, blocks, check, commands

from sa_swin.reference import filled, knobs
from sa_swin.study.evidence import read
from sa_swin.study.overview import answer

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOLDERS = ("bundles", "custom", "sa_swin", "examples", "label_app", "benchmarks", "studies", "docs", "tests")
MADE = re.compile(r"(docs|tests)/(evidence|figures)/")
TINY = ["--spacing", "4", "--spatial_size", "[64,64,64]", "--roi_size", "[64,64,64]", "--feature_size", "12"]
TINY += ["--window_size", "4", "--depths", "[1,1,1,1]", "--num_heads", "[1,2,4,8]", "--num_workers", "0"]
TRAINING = [
    "--max_epochs",
    "1",
    "--val_interval",
    "1",
    "--warmup_epochs",
    "0",
    "--batch_size",
    "1",
    "--num_samples",
    "1",
]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_page_is_one(page):
    for words in commands(page):
        try:
            check(words)
        except (AssertionError, TypeError, KeyError, AttributeError, ValueError) as error:
            pytest.fail(f"{' '.join(words)}\n{type(error).__name__}: {error}")


def test_the_pages_have_commands_and_a_line_that_draws_is_none():
    assert len(commands(ROOT / "README.md")) >= 4
    assert commands(ROOT / "docs" / "architecture.md") == []


@pytest.mark.parametrize(
    "line",
    [
        "sa-swin train segment --feature_sice 12",
        "sa-swin train segmentation --feature_size 12",
        "sa-swin predict segment --window::_targe_ x",
        "sa-swin cohort build --bids STUDY",
        "sa-swin cohort build --output lists --bid STUDY",
        "sa-swin cohort lekage",
        "sa-swin raport OUT",
        "make dmeo",
        "make release WEIGHT_DIR=OUT",
        "python -m monai.bundle run --config_file bundles/sa_swin_segment/configs/trian.yaml",
        "python -m benchmarks.scaling walk",
        "python examples/dmeo.py",
        "conda install sa-swin",
    ],
)
def test_a_command_that_is_wrong_is_found(line):
    with pytest.raises((AssertionError, TypeError, KeyError, AttributeError, ValueError)):
        check(line.split())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_every_file_named_is_there(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    for link in (link for link in links if "#" in link):
        target = (page.parent / link.partition("#")[0]).read_text() if not link.startswith("#") else text
        missing += [link] * (link.partition("#")[2] not in headings(target))
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]+)`", text)
    missing += [name for name in named if not (any(ROOT.glob(name)) or any(page.parents[1].glob(name)))]
    assert missing == []


def headings(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_read_in_two_minutes_and_has_the_method_and_a_result_in_pictures():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    pictures = re.findall(r"^!\[.*\]\((.*)\)", text, re.MULTILINE)
    assert pictures == ["docs/figures/method.png", "docs/figures/demo_cases.png"]
    assert all((ROOT / path).stat().st_size < 300_000 for path in pictures)


def test_the_reference_is_what_the_configs_make():
    text = (ROOT / "docs" / "reference.md").read_text()
    assert text == filled(text), "run `make docs`"


def test_a_knob_is_read_with_its_default_and_its_comment(tmp_path):
    whole = tmp_path / "train.yaml"
    whole.write_text(
        "# x\n\n# ---- knobs\na: [1, 2]  # mm, b: c\nb: ''\n\n# ---- paths\nd: $@a + '/e'\n# ---- run\nf: 1\n"
    )
    assert knobs(whole) == {"a": ("[1, 2]", "mm, b: c"), "b": ("''", ""), "d": ("$@a + '/e'", "")}
    layer = tmp_path / "evaluate.yaml"
    layer.write_text("# x: y\nsection: testing  # which list\nvalidate::dataset: 1\ng: 2\n")
    assert knobs(layer) == {"section": ("testing", "which list")}


def comparisons():
    """Of every comparison of the studies its figures as a page tells them, and what it is said to show."""
    words = {"yes": "shown", "not shown": "not shown", "too few": "too few trainings", "the opposite": "shown to lose"}
    found = {}
    for row in (row for study in read(ROOT / "studies" / "results") for row in study["summary"]["comparisons"]):
        figures = (f"{row['value']:.3f}", f"{row['other']:.3f}", f"{row['difference']:+.3f}")
        interval_of = (f"{row['low']:+.3f}", f"{row['high']:+.3f}")
        found[*figures, *interval_of, str(row["n"]), str(row["seeds"])] = words[answer(row)]
    return found


@pytest.mark.parametrize(("page", "least"), [("README.md", 12), ("weights/sa_swin_default.md", 8)])
def test_every_row_of_a_table_of_results_is_a_comparison_of_the_studies_with_its_verdict(page, least):
    figure, signed = r"(\d\.\d{3})", r"([+-]\d\.\d{3})"
    row = rf"^\| (.*?) \| {figure} \| {figure} \| {signed} \[{signed}, {signed}\] \| (\d+) \| (\d+) \| (.*?) \|$"
    told = re.findall(row, (ROOT / page).read_text(), re.MULTILINE)
    assert len(told) >= least
    known = comparisons()
    wrong = [name for name, *figures, verdict in told if verdict.split(";")[0] != known.get(tuple(figures))]
    assert wrong == []


def test_what_the_readme_says_is_shown_stands_in_the_evidence():
    told = (ROOT / "README.md").read_text().split("## What is shown")[1].split("\n## ")[0]
    numbers = re.findall(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]", told)
    evidence = (ROOT / "docs" / "evidence.md").read_text().replace(" | [", " [")
    assert len(numbers) > 8
    assert [number for number in numbers if number not in evidence] == []


def test_the_speeds_told_are_those_measured():
    results = "".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("throughput_cpu_*.md"))
    row = r"\| (\w+) \| (\d+) \| \w+ against (stock|stock best) \w+ \| ([\d.]+)x \| ([\d.]+)x \|"
    measured = {(task, size, other): figures for task, size, other, *figures in re.findall(row, results)}
    tasks = {"pretraining step": "pretrain", "classification step": "classify", "segmentation step": "segment"}
    tasks |= {"inference": "infer", "inference with the mirrored brain's": "infer_mirrored"}
    told = re.findall(
        r"\| (.*?) \| (\d+) \| ([\d.]+)x \| ([\d.]+)x \| ([\d.]+)x, ([\d.]+)x \|",
        (ROOT / "docs" / "speed.md").read_text(),
    )
    assert len(told) == len(measured) / 2
    for title, size, *figures in told:
        pairs = [measured[tasks[title], size, other] for other in ("stock", "stock best")]
        expected = [float(pair[column]) for column in (0, 1) for pair in pairs]
        assert [float(figure) for figure in figures] == pytest.approx(expected, abs=0.051), (title, size)


def test_the_errors_of_alignment_told_are_those_measured():
    told = re.findall(r"[\d.]+ / [\d.]+ / [\d.]+", (ROOT / "docs" / "speed.md").read_text())
    measured = (ROOT / "benchmarks" / "results" / "alignment_2026-11-29.md").read_text()
    assert len(told) == 2
    assert [errors for errors in told if errors not in measured] == []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a small synthetic BIDS cohort `STUDY` in it, without its datalists."""
    folder = tmp_path_factory.mktemp("documents")
    options = ["--subjects", "12", "--spacing", "4", "--findings", "tumour", "--lesion_ml", "30,60", "--tilt", "5"]
    execute(["sa-swin", "phantom", "--output", "STUDY", *options], folder)
    for path in (folder / "STUDY" / "datalists").glob("*.json"):
        path.unlink()
    return folder


def execute(words, folder, further=()):
    """Run a command of a page as a user would, in a folder."""
    start = [sys.executable, "-m", "sa_swin"] if words[0] == "sa-swin" else [sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [*start, *words[1:], *further]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
def test_the_three_commands_of_the_readme_run_one_after_the_other(study):
    path = [words for words in commands(ROOT / "README.md") if words[0] == "sa-swin"]
    assert [words[1] for words in path] == ["cohort", "train", "evaluate"]
    for words, further in zip(path, ((), [*TINY, *TRAINING], TINY), strict=True):
        execute(words, study, further)
    assert (study / "OUT" / "evaluate" / "cases.json").is_file()
    execute(["sa-swin", "report", "OUT/evaluate"], study)
    predict = [
        "predict",
        "segment",
        "--dataset_dir",
        "STUDY",
        "--output_dir",
        "OUT/predict",
        "--ckpt_dir",
        "OUT/models",
    ]
    execute(["sa-swin", *predict], study, TINY)
    assert len(list((study / "OUT" / "predict").rglob("*_pred.nii.gz"))) >= 12


@pytest.mark.slow
def test_the_lines_of_python_in_the_readme_run(study, monkeypatch):
    (code,) = blocks(ROOT / "README.md", "python")
    head = next((study / "STUDY").glob("sub-*/anat/*_T1w.nii.gz"))
    (study / "head.nii.gz").write_bytes(head.read_bytes())
    monkeypatch.chdir(study)
    names = {}
    exec(code, names)
    assert names["pair"].shape == (2, 96, 128, 96)
    assert names["logits"].shape == (1, 2, 96, 128, 96)


@pytest.mark.slow
def test_the_cheap_commands_of_the_cohort_page_run(study):
    page = [
        words for words in commands(Path(ROOT / "docs" / "how-to" / "cohorts.md")) if "STUDY/datalists" in str(words)
    ]
    assert [words[2] for words in page] == ["build", "check", "leakage"]
    build = ["--bids", "STUDY", "--output", "STUDY/datalists", "--image", "T1w", "--mask", "label-lesion_mask"]
    target = ["--target", "diagnosis", "--classes", "healthy=0,tumour=1", "--healthy", "diagnosis=healthy"]
    execute(["sa-swin", "cohort", "build", *build, *target], study, ["--overwrite", "True"])
    for words in page[1:]:
        execute(words, study)
