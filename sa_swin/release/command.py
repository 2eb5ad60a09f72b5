"""`sa-swin release build | all | verify | inspect`: bundles as packages for the MONAI Model Zoo."""

import sys
import time
from pathlib import Path

from sa_swin.release.archive import read_package
from sa_swin.release.build import Options, build
from sa_swin.release.errors import ReleaseError
from sa_swin.release.inspection import inspect, is_read, report
from sa_swin.release.verification import verify

ROOT = Path(__file__).resolve().parents[2]


def build_command(
    bundle: str,
    weights: str,
    output: str = "dist",
    evaluation: str | None = None,
    settings: str | None = None,
    trained_on: str | None = None,
    url: str | None = None,
    onnx: bool = True,
) -> None:
    """Build OUTPUT/<bundle>.zip from the committed bundle and a checkpoint.

    Args:
        bundle: name or folder: sa_swin_segment, bundles/sa_swin_segment.
        weights: checkpoint, .pt or .safetensors.
        output: folder for the zip.
        evaluation: output folder of evaluate.yaml for these weights (cases.json, cases.csv); fills the model card.
        settings: JSON file of the settings of the training, for weights that do not carry them.
        trained_on: 'synthetic', or a sentence for the model card.
        url: address where the files of models/ will lie; writes large_files.yml.
        onnx: export the network as ONNX, too (needs sa-swin[release]).
    """
    options = Options(
        weights=Path(weights),
        evaluation=None if evaluation is None else Path(evaluation),
        settings=None if settings is None else Path(settings),
        trained_on=trained_on,
        url=url,
        onnx=onnx,
    )
    path = build(ROOT, Path(bundle).name, options, Path(output), _say)
    sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n")


def all_command(
    weights_dir: str = "demo",
    output: str = "dist",
    trained_on: str | None = None,
    url: str | None = None,
    onnx: bool = True,
) -> None:
    """Build every bundle from WEIGHTS_DIR/<task>/models/model.pt and, if there, WEIGHTS_DIR/<task>/evaluate.

    Args:
        weights_dir: as `make demo` leaves it: folders pretrain, classify, segment.
        output: folder for the zips.
        trained_on: as in `build`.
        url: as in `build`; the files of a bundle are looked for below URL/<bundle>.
        onnx: as in `build`.
    """
    tasks = [path.name.removeprefix("sa_swin_") for path in sorted((ROOT / "bundles").glob("sa_swin_*"))]
    folders = {task: Path(weights_dir) / task for task in tasks}
    weights = {task: folder / "models" / "model.pt" for task, folder in folders.items()}
    if missing := [str(path) for path in weights.values() if not path.is_file()]:
        raise ReleaseError(f"no weights to release: {', '.join(missing)}; run `make demo`, or give WEIGHTS_DIR")
    for task, folder in folders.items():
        bundle, evaluated = f"sa_swin_{task}", (folder / "evaluate" / "cases.json").is_file()
        build_command(
            bundle,
            str(weights[task]),
            output,
            evaluation=str(folder / "evaluate") if evaluated else None,
            trained_on=trained_on,
            url=url and f"{url.rstrip('/')}/{bundle}",
            onnx=onnx,
        )


def verify_command(package: str) -> None:
    """Check a package, zip or folder: checksums, weights of tensors alone, the code its configs were made for.

    Args:
        package: the zip, or its unpacked folder.
    """
    files = read_package(Path(package))
    if problems := verify(files):
        raise ReleaseError(f"{package} is not as it was built: " + "; ".join(problems))
    sys.stdout.write(f"{package}: {len(files)} files as they were built, weights of tensors alone\n")


def inspect_command(package: str) -> None:
    """List every callable and expression that the configs of a package would run. Nothing of it is run.

    Args:
        package: the zip, or its unpacked folder.
    """
    sys.stdout.write(report(inspect(read_package(Path(package), is_read))))


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
