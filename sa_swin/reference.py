"""`python -m sa_swin.reference`: the tables of docs/reference.md, from the YAML, the front door and the recipes.

A table stands between the lines `<!-- made: NAME -->` and `<!-- end -->`; what is written by hand around them stays.
"""

import re
import sys
from pathlib import Path

import fire

from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.__main__ import COMMANDS
from sa_swin.cohort.recipes import names, read_recipe

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("pretrain", "classify", "segment")
KNOB = re.compile(r"(?P<name>[a-z]\w*): +(?P<value>\S.*?)(?: +# (?P<meaning>.*))?$")
MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def knobs(config: Path) -> dict[str, tuple[str, str]]:
    """Name to default and comment of what a user sets in a config, in its order.

    A config of its own (train, inference) has them from `# ---- knobs` to `# ---- run`; a thin layer (evaluate,
    multi_gpu_train) has them on top, up to the first line that is none.

    Raises:
        UserError: when none is found.
    """
    lines = config.read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("# ---- knobs")]
    found: dict[str, tuple[str, str]] = {}
    for line in lines[starts[0] + 1 :] if starts else [line for line in lines if not line.startswith("#")]:
        match = KNOB.match(line)
        if line.startswith("# ---- run") or (not starts and not match):
            break
        if match:
            found[match["name"]] = (match["value"], match["meaning"] or "")
    if not found:
        raise UserError(
            f"{config}: no knobs; expected `name: value  # meaning` lines, after `# ---- knobs` if it is whole"
        )
    return found


def knob_table(workflow: str) -> str:
    """One row per knob of a workflow's config, with its default in each bundle that has it."""
    own = {bundle: knobs(ROOT / "bundles" / f"sa_swin_{bundle}" / "configs" / f"{workflow}.yaml") for bundle in BUNDLES}
    names = dict.fromkeys(name for found in own.values() for name in found)
    rows = []
    for name in names:
        having = [bundle for bundle in BUNDLES if name in own[bundle]]
        defaults = [_code(own[bundle][name][0]) if bundle in having else "" for bundle in BUNDLES]
        rows.append([f"`{name}`", *defaults, _meaning({bundle: own[bundle][name][1] for bundle in having})])
    return _table(["knob", *BUNDLES, "meaning"], rows)


def command_table() -> str:
    """The commands of `sa-swin`, and what each is for."""
    return _table(["command", "for"], [[f"`sa-swin {name}`", purpose] for name, (_, purpose) in COMMANDS.items()])


def recipe_table() -> str:
    """The public data sets that `sa-swin cohort build --recipe` knows."""
    recipes = {name: read_recipe(name) for name in names()}
    rows = [[f"`{name}`", recipe.title, recipe.source, recipe.licence] for name, recipe in recipes.items()]
    return _table(["recipe", "data set", "had from", "licence"], rows)


def _code(value: str) -> str:
    """A default as it is set; a path made of another as `<that>/...`."""
    joined = re.fullmatch(r"\$@(\w+) \+ '(.*)'", value)
    return f"`<{joined[1]}>{joined[2]}`" if joined else f"`{value}`"


def _meaning(comments: dict[str, str]) -> str:
    """What the bundles' comments say of a knob, once where they agree or one says more than the other."""
    said: dict[str, list[str]] = {}
    for bundle, comment in comments.items():
        fullest = max((other for other in comments.values() if other.startswith(comment)), key=len)
        said.setdefault(fullest, []).append(bundle)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(bundles)}: {words}" for words, bundles in said.items())


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def _escaped(cell: str) -> str:
    """Text that a table's cell can hold; `<` is HTML outside of code."""
    parts = cell.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def filled(page: str) -> str:
    """The page with every table between its marks made anew.

    Raises:
        UserError: when a mark names no table.
    """
    makers = {"commands": command_table, "recipes": recipe_table}
    makers |= {
        name: lambda name=name: knob_table(name) for name in ("train", "evaluate", "inference", "multi_gpu_train")
    }
    if unknown := [name for _, name, _ in MADE.findall(page) if name not in makers]:
        raise UserError(f"no table {unknown[0]}; a mark names one of {', '.join(makers)}")
    return MADE.sub(lambda mark: f"{mark[1]}{makers[mark[2]]()}{mark[3]}", page)


def write(page: str = str(ROOT / "docs" / "reference.md")) -> None:
    """Fill the tables of the reference.

    Args:
        page: the Markdown file, changed in place.
    """
    try:
        write_whole(Path(page), filled(Path(page).read_text()))
    except UserError as error:
        sys.exit(f"sa_swin.reference: {error}")


if __name__ == "__main__":
    fire.Fire(write)
