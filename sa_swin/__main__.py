"""The front door: `sa-swin COMMAND ...`, or `python -m sa_swin COMMAND ...`. Research only, not for clinical use."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from custom.support.errors import report_errors
from sa_swin.commands import run

COMMANDS: dict[str, tuple[str | dict[str, str], str]] = {
    "cohort": (
        {verb: f"sa_swin.cohort.command:{verb}_command" for verb in ("build", "check", "leakage", "dicom")},
        "datalists from a BIDS folder or a table, checks of files, the leakage guard, DICOM in",
    ),
    "prepare": ({"": "sa_swin.prepare.cohort:prepare_command"}, "align a whole cohort once, with contact sheets"),
    "plan": ({"": "sa_swin.plan.command:plan_command"}, "settings of a training that fit a cohort and a device"),
    "phantom": (
        {"cohort": "sa_swin.phantom.cohort:phantom_command", "tissues": "sa_swin.phantom.tissues:tissues_command"},
        "painted lesions, on painted or real heads; tissue maps to paint from",
    ),
    "asymmetry": (
        {verb: f"sa_swin.asymmetry.command:{verb}_command" for verb in ("norm", "map")},
        "maps of what differs between the halves, without any training",
    ),
    "app": ({"": "sa_swin.app.command:app_command"}, "the BIDS App: a BIDS folder in, maps, masks and pages out"),
    "train": ("sa_swin.bundles", "train a bundle"),
    "evaluate": ("sa_swin.bundles", "measure trained weights on a test list"),
    "predict": ("sa_swin.bundles", "what trained weights say of a folder of images"),
    "report": ({"": "sa_swin.report.page:report_command"}, "one HTML page on what a bundle's run left"),
    "study": (
        {
            "run": "sa_swin.study.command:run",
            "worth": "sa_swin.study.command:run_worth",
            "coverage": "sa_swin.study.coverage:write_coverage",
            "evidence": "sa_swin.study.command:make_evidence",
        },
        "a grid of trainings, and the page of evidence",
    ),
    "weights": (
        {verb: f"sa_swin.weights:{verb}" for verb in ("convert", "pack", "calibrate")},
        "published weights under this project's names, weights to hand on; intervals and sets with a coverage",
    ),
    "release": (
        {verb: f"sa_swin.release.command:{verb}_command" for verb in ("build", "all", "verify", "inspect")},
        "packages for the MONAI Model Zoo",
    ),
    "label": ("sa_swin.label", "the MONAI Label server"),
}
"""Name to the functions that do it (`sa_swin.commands.run`) or the module whose `main` does, and what it is for."""
OTHERWISE = {"phantom": "cohort", "release": "build", "study": "run"}
"""The verb of a command that is meant where none is given."""


def overview() -> str:
    """What `sa-swin --help` prints."""
    lines = (f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items())
    return "\n".join([__doc__.strip(), "", *lines, "", "sa-swin COMMAND --help tells the options of each."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an unknown one ends with exit code 2 and the nearest name."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
        return
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"sa-swin: unknown command {name!r}{hint} One of: {', '.join(COMMANDS)}\n")
        sys.exit(2)
    report_errors()
    targets, _ = COMMANDS[name]
    if isinstance(targets, dict):
        code = 2 if name in ("cohort", "asymmetry") else 1
        run(arguments[1:], f"sa-swin {name}", targets, OTHERWISE.get(name), code=code)
    else:
        import_module(targets).main(arguments if targets == "sa_swin.bundles" else arguments[1:])


if __name__ == "__main__":
    main()
