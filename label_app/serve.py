"""Serve the bundles to 3D Slicer and other clients of MONAI Label: `python -m label_app.serve --studies DIR`.

`make label-setup` makes the environment that it runs in. Research only. Not for clinical use.
"""

import json
import os
import sys
from pathlib import Path

from custom.data.datalist import find_cases
from custom.support.errors import UserError
from label_app.bundles import prepare
from sa_swin import commands

APP = Path(__file__).resolve().parent
HOST = "127.0.0.1"
IMAGES = ["*.nii.gz", "*.nii"]


def serve(
    studies: str,
    weights: str = "demo",
    port: int = 8000,
    images: str = "*",
    models: str = str(APP / "model"),
    allow_outside: bool = False,
) -> None:
    """Start the server on this computer's loopback address: no other computer can reach it.

    Segmentation (sa_swin_segment, which also trains on corrected labels) and classification (sa_swin_classify). The
    weights themselves are never changed; training goes on in a working copy.

    Args:
        studies: folder of NIfTI files, whose corrected labels are kept in STUDIES/labels. Where they lie in folders
            below, as in BIDS, STUDIES/derivatives/monailabel gets links to them, and the labels.
        weights: folder of packages (sa_swin_segment.zip, ...) or of trained weights, as `make demo` leaves them.
        port: of the server.
        images: which files of folders below: *_FLAIR.nii.gz.
        models: folder for the working copies of the weights.
        allow_outside: serve files that symlinks lead to outside of STUDIES, too.
    """
    if not studies:
        raise UserError("which images? give their folder: make label-server STUDIES=DIR")
    folder = side_by_side(Path(studies).resolve(), images, allow_outside)
    served = prepare(Path(weights).resolve(), folder, Path(models).resolve())
    for bundle in served.trained:
        _say(f"{bundle}: goes on from what was trained here; remove {served.folder / bundle} to start from {weights}")
    _say(f"http://{HOST}:{port} is reachable from this computer alone. Research only, not for clinical use.")
    os.chdir(served.folder)  # MONAI's runs write below the working directory
    arguments = ["start_server", "--app", APP, "--studies", folder, "--host", HOST, "--port", port]
    arguments += ["--uvicorn_app", "lib.web:app", "--conf", "bundles", served.folder]
    command = [sys.executable, "-m", "monailabel.main", *arguments]
    sys.stderr.flush()
    os.execve(sys.executable, [str(word) for word in command], environment(served.code))


def side_by_side(studies: Path, pattern: str = "*", allow_outside: bool = False) -> Path:
    """The folder that MONAI Label can serve, as it does not look into folders below: the studies, or links to them.

    Args:
        studies: folder of NIfTI files, or of folders that hold them.
        pattern: of the names of the files to link to.
        allow_outside: take files that symlinks lead to outside of the folder, too.

    Raises:
        UserError: no such image, one outside, or two of one name.
    """
    cases = find_cases(None, studies, allow_outside=allow_outside, images=pattern)
    paths = [Path(str(case["image"])) for case in cases]
    beside = [path for suffix in IMAGES for path in studies.glob(suffix)]
    if beside and {*beside} == {path for path in paths if path.parent == studies}:
        return studies
    wanted = {path.name: path for path in paths}
    if clashes := [path for path in paths if path.name in wanted and wanted[path.name] != path]:
        raise UserError(f"{clashes[0]} and {wanted[clashes[0].name]} have one name; serve them from separate folders")
    folder = studies / "derivatives" / "monailabel"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()
    for name, path in wanted.items():
        (folder / name).symlink_to(path)
    return folder


def environment(code: Path) -> dict[str, str]:
    """Environment of the server: where its `custom` and its app lie, and what counts as an image."""
    settings = {
        "PYTHONPATH": os.pathsep.join([str(code), str(APP)]),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(IMAGES),
    }
    return {**os.environ, **settings}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    commands.run(sys.argv[1:], "label_app.serve", {"": "label_app.serve:serve"})
