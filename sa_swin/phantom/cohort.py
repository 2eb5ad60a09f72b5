"""The built-in cohort: brains with and without a lesion, as a BIDS folder with datalists, from what nilearn ships.

`sa-swin phantom --output demo/cohort --subjects 40`
"""

import gzip
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import nibabel as nib
import torch
from tqdm import tqdm

from custom.support.files import WriteError, write_whole
from sa_swin.phantom.config import Config
from sa_swin.phantom.datalists import datalists, image_path, mask_path
from sa_swin.phantom.lesion import FINDINGS, LOOKS
from sa_swin.phantom.people import healthy_people
from sa_swin.phantom.person import make_person
from sa_swin.phantom.subject import Subject, make_subject

COLUMNS = {
    "participant_id": "Subject",
    "diagnosis": "healthy, or the kind of lesion: tumour, infarct, atrophy, haemorrhage",
    "healthy": "Whether there is no lesion: true or false",
    "side": "The subject's side of the lesion, from the affine (RAS): left or right, both where it has a twin at the "
    "mirrored place, midline where it lies across the midsagittal plane; n/a in the healthy",
    "lesion_ml": "Volume of the lesion mask in millilitres",
    "site": "Made-up site, which decides the storage orientation and the scale of MR values; of real heads their own",
    "source": "The healthy person on whose image this one is painted, by the name in the folder of images",
    "skull": "Whether skull and scalp are in the image: true or false",
    "anatomy": "Number of the label map the head was painted on; a map's subjects are all in one part of the split",
}
README = """A cohort made by sa-swin phantom of sa-swin, for tests, demonstrations and benchmarks: lesions are painted.

{healthy} healthy subjects, {patients} patients; participants.tsv says who is what, participants.json how to read it.
derivatives/lesions holds the patients' lesion masks, derivatives/pose every subject's midsagittal plane, true where the
head is painted, estimated where it is real: the points w of the world (RAS, mm) with normal . w = offset_mm.
datalists/*.json are MONAI datalists, relative to this folder, with the same split by subject for pretraining,
classification and segmentation. Research only.
"""


def write_json(path: Path, content: object) -> None:
    """Write JSON, indented."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_image(path: Path, image: nib.Nifti1Image) -> None:
    """Write `.nii.gz` without the time of day, so that the same image is the same file."""
    write_whole(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def pose_path(participant: str) -> str:
    """Where a subject's midsagittal plane lies in the cohort; the last of its files to be written."""
    return f"derivatives/pose/{participant}_pose.json"


def write_subject(root: Path, subject: Subject) -> None:
    """Write a subject's images, lesion mask and pose."""
    participant = str(subject.participant["participant_id"])
    for modality, image in subject.images.items():
        write_image(root / image_path(participant, modality), image)
    if subject.mask is not None:
        write_image(root / mask_path(participant), subject.mask)
    pose = subject.pose
    record = {
        "normal": [round(float(value), 9) for value in pose.normal],
        "offset_mm": round(pose.offset, 6),
        **dict(zip(("roll_deg", "yaw_deg", "pitch_deg"), (round(angle, 6) for angle in pose.angles), strict=True)),
        "shift_mm": [round(float(value), 6) for value in pose.shift],
        "participant": subject.participant,
    }
    write_json(root / pose_path(participant), record)


def make_and_write(root: Path, config: Config, number: int) -> None:
    """Make one subject and write it."""
    write_subject(root, (make_person if config.images else make_subject)(config, number))


def run_all(root: Path, config: Config, numbers: list[int], workers: int) -> Iterator[tuple[int, str | None]]:
    """Make subjects, in this process or in several; each number comes back with what went wrong, if anything did."""
    if workers == 1:
        for number in numbers:
            yield number, reason(lambda number=number: make_and_write(root, config, number))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures: dict[Future[None], int] = {pool.submit(make_and_write, root, config, n): n for n in numbers}
        try:
            for future in as_completed(futures):
                yield futures[future], reason(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # where one cannot be written, the others cannot either


def reason(task: Callable[[], object]) -> str | None:
    """Run a task; what went wrong in a line, or None.

    Raises:
        WriteError: when the results cannot be written.
    """
    try:
        task()
    except WriteError:
        raise
    except Exception as error:  # one bad subject never loses the others
        return f"{type(error).__name__}: {error}"
    return None


def start(root: Path, config: Config) -> None:
    """Claim the output folder for a configuration.

    Raises:
        ValueError: when something else is in it already.
    """
    record = root / "cohort.json"
    if record.exists():
        found = Config().record | json.loads(record.read_text())  # an option that is younger stood at its default
        changed = [key for key, value in config.record.items() if found[key] != value]
        if changed:
            theirs = ", ".join(f"{key} {found[key]} (now {config.record[key]})" for key in changed)
            raise ValueError(f"{root} holds a cohort made with {theirs}; choose another --output or remove it")
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no cohort; choose another --output")
    write_json(record, config.record)


def write_tables(root: Path, config: Config, participants: list[dict[str, object]]) -> None:
    """Write everything that describes the cohort as a whole; participants.tsv comes last."""
    generator = [{"Name": "sa-swin phantom"}]
    about = {"Name": "sa-swin built-in cohort", "BIDSVersion": "1.9.0", "GeneratedBy": generator}
    write_json(root / "dataset_description.json", about | {"DatasetType": "raw"})
    for name in ("lesions", "pose"):
        write_json(root / "derivatives" / name / "dataset_description.json", about | {"DatasetType": "derivative"})
    patients = sum(not row["healthy"] for row in participants)
    write_whole(root / "README", README.format(healthy=len(participants) - patients, patients=patients))
    write_whole(root / ".bidsignore", "cohort.json\ndatalists/\n*_CT.nii.gz\n")
    columns = {name: text for name, text in COLUMNS.items() if all(name in row for row in participants)}
    write_json(root / "participants.json", {name: {"Description": text} for name, text in columns.items()})
    for bundle, lists in datalists(participants, config.modality, config.seed, config.shares).items():
        write_json(root / "datalists" / f"{bundle}.json", lists)
    lines = ["\t".join(columns), *("\t".join(cell(row[name]) for name in columns) for row in participants)]
    write_whole(root / "participants.tsv", "\n".join(lines) + "\n")


def cell(value: object) -> str:
    """A value as participants.tsv has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_cohort(root: Path, config: Config, workers: int = 1) -> tuple[int, dict[int, str]]:
    """Make a cohort, or what is missing of it.

    Args:
        root: the cohort's folder.
        config: what decides its content.
        workers: processes.

    Returns:
        How many subjects were made now, and what went wrong by subject number.

    Raises:
        ValueError: when the folder holds something else.
    """
    start(root, config)
    names = {number: f"sub-{number:03d}" for number in range(1, config.subjects + 1)}
    missing = [number for number, name in names.items() if not (root / pose_path(name)).exists()]
    if not missing and (root / "participants.tsv").exists():
        return 0, {}
    runs = run_all(root, config, missing, workers)
    results = dict(tqdm(runs, "cohort", len(missing), unit="subject", disable=None))
    failures = {number: text for number, text in sorted(results.items()) if text}
    poses = [root / pose_path(name) for name in names.values()]
    write_tables(root, config, [json.loads(path.read_text())["participant"] for path in poses if path.exists()])
    return len(missing) - len(failures), failures


def words(value: object) -> tuple[str, ...]:
    """A command line's list, "a,b"."""
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    return tuple(str(part).strip() for part in parts)


def phantom_command(
    output: str,
    subjects: int | None = None,
    seed: int = 0,
    modality: str = "T1w",
    spacing: float = 2.0,
    patients: float = 0.5,
    findings: str | None = None,
    skull: str = "true",
    tilt: float = 8.0,
    noise: float = 1.0,
    workers: int = 1,
    anatomies: str | None = None,
    lesions: str | None = None,
    images: str | None = None,
    lesion_ml: tuple[float, float] | None = None,
    bilateral: float = 0.0,
    midline: float = 0.0,
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25),
) -> None:
    """Make a cohort of brains with and without lesions: a BIDS folder with masks, planes and datalists.

    The same options give the same files, byte for byte. An interrupted run goes on where it stopped.

    Args:
        output: folder of the cohort.
        subjects: how many, 4 at least; by default 40, or everybody in images.
        seed: of every random draw.
        modality: T1w, FLAIR or CT, or several, such as "T1w,FLAIR".
        spacing: voxel size in mm.
        patients: share of the subjects with a lesion, 0 to 1.
        findings: of the patients: tumour, infarct, atrophy, haemorrhage; all by default, on images all but atrophy.
        skull: true (whole head), false (brain only) or mixed.
        tilt: largest roll, yaw and pitch of the head in degrees, and its largest shift in mm (10 at most).
        noise: factor on noise, texture and bias field; 0 for none.
        workers: processes.
        anatomies: folder of FreeSurfer label maps of whole heads, in place of the ICBM152 template.
        lesions: folder of lesion masks in standard space, for infarcts and haemorrhages, on images for all lesions.
        images: BIDS folder of healthy people's T1w images, each used once, in place of painted heads.
        lesion_ml: smallest and largest volume of the lesions, such as 30,90; by default 4,60, on images 3,40.
        bilateral: share of the patients with a twin of their lesion at the mirrored place, 0 to 1.
        midline: share of the patients with a lesion across the midsagittal plane, 0 to 1.
        shares: of the subjects in training, validation and testing.
    """
    try:
        folders = (None if folder is None else str(folder) for folder in (anatomies, lesions, images))
        config = Config(
            subjects or (len(healthy_people(str(images))) if images else 40),
            seed,
            words(modality),
            spacing,
            patients,
            words(findings or (tuple(LOOKS) if images else FINDINGS)),
            str(skull).lower(),
            tilt,
            noise,
            *folders,
            lesion_ml and tuple(lesion_ml),
            bilateral,
            midline,
            tuple(shares),
        )
        if workers < 1:
            raise ValueError(f"workers must be at least 1; got {workers}")
        made, failures = make_cohort(Path(str(output)), config, workers)
    except ValueError as error:
        sys.exit(f"sa-swin phantom: {error}")
    if failures:
        listed = "\n".join(f"  sub-{number:03d}: {text}" for number, text in failures.items())
        sys.exit(f"sa-swin phantom: {made} subjects written, {len(failures)} failed:\n{listed}")
    print(f"{output}: {made} subjects written" if made else f"{output}: finished already, nothing to do")
