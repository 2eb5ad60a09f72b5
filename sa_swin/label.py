"""`sa-swin label --studies DIR ...`: the MONAI Label server, in the environment that `make label-setup` made."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sa_swin.commands import HELP, command_of, say

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> None:
    """Become the server; without its environment, say how it is made and end with exit code 2."""
    if set(HELP) & set(arguments):
        sys.path.append(str(ROOT))
        say(command_of("label_app.serve:serve", "sa-swin label").help())
        return
    python = Path(os.environ.get("LABEL_VENV", ROOT / ".venv-label")).absolute() / "bin" / "python"
    if not python.exists():
        sys.stderr.write(
            f"sa-swin label: MONAI Label is not installed in {python.parents[1]}; run `make label-setup`\n"
        )
        sys.exit(2)
    os.chdir(ROOT)
    os.execv(python, [str(python), "-m", "label_app.serve", *arguments])
