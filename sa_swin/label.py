"""`sa-swin label --studies DIR ...`: the MONAI Label server, in the environment that `make label-setup` made."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sa_swin.commands import HELP, Command, command_of, in_a_sentence, say

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("studies", "weights", "models")
"""Options that are folders."""


def main(arguments: Sequence[str]) -> None:
    """Become the server; without its environment, say how it is made and end with exit code 2."""
    sys.path.append(str(ROOT))
    command = command_of("label_app.serve:serve", "sa-swin label")
    if set(HELP) & set(arguments):
        say(command.help())
        return
    python = Path(os.environ.get("LABEL_VENV", ROOT / ".venv-label")).absolute() / "bin" / "python"
    if not python.exists():
        sys.stderr.write(
            f"sa-swin label: MONAI Label is not installed in {python.parents[1]}; run `make label-setup`\n"
        )
        sys.exit(2)
    with in_a_sentence("sa-swin label", 2):
        words = from_anywhere(command, arguments)
    os.chdir(ROOT)
    os.execv(python, [str(python), "-m", "label_app.serve", *words])


def from_anywhere(command: Command, words: Sequence[str]) -> list[str]:
    """The words of a command line whose folders mean the same in any working directory.

    Raises:
        OptionError: what the command does not take.
    """
    given = command.arguments(words)
    given |= {name: os.path.abspath(given[name]) for name in FOLDERS if given.get(name)}
    return [f"--{name}={value}" for name, value in given.items()]
