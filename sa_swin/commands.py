"""Commands from functions: a function's parameters are the options, its docstring is the help.

Values are taken as they were typed, since paths are text; only what is declared a number or a truth value is read as
one. An option that is none is refused with the nearest name. All of this is read from the function's source, so that
help and refusals come at once; the function's module is imported when there is something to do.
"""

import ast
import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from custom.support.errors import OptionError, UserError

HELP = ("--help", "-h")
LEAST = {"workers": 1}
"""Least values of options that are one thing in all commands."""
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        name: of the function's parameter.
        kind: its annotation, as text.
        default: as it stands in the source; None where the option must be given.
        about: from the docstring.
    """

    name: str
    kind: str
    default: str | None
    about: str

    @property
    def many(self) -> bool:
        """Whether it takes all words up to the next option, as BIDS Apps have it; a word may be a list with commas."""
        return self.kind.startswith("Sequence[str]")

    def read(self, text: str | None) -> Any:
        """The value that was typed; None stands for an option without one.

        Raises:
            OptionError: not of the option's kind.
        """
        kinds = set(re.findall(r"\w+", self.kind))
        if text is None and "bool" in kinds:
            return True
        if text is None:
            raise OptionError(f"--{self.name} needs a value")
        if self.many:  # a path may hold a comma
            return (text,) if os.path.exists(text) else tuple(part for part in text.split(",") if part)
        if kinds & {"str", "Path"}:
            return text
        if "None" in kinds and text == "None":
            return None
        try:
            value = _TRUTH[text.lower()] if "bool" in kinds else self._numbers(text, kinds)
        except (KeyError, ValueError) as error:
            raise OptionError(f"--{self.name} takes {self.kind}, got {text!r}") from error
        if self.name in LEAST and value < LEAST[self.name]:
            raise OptionError(f"--{self.name} must be {LEAST[self.name]} or more, got {text}")
        return value

    def _numbers(self, text: str, kinds: set[str]) -> Any:
        """A number, or a tuple of them; of one alone, where the kind has none but tuples, too."""
        number = float if "float" in kinds else int
        if not kinds & {"Sequence", "tuple", "list"}:
            return number(text)
        parts = tuple(number(part) for part in text.strip("[]()").split(",") if part.strip())
        single = {"int", "float"} & {kind.strip() for kind in self.kind.split("|")}
        return parts[0] if single and len(parts) == 1 else parts


@dataclass(frozen=True)
class Command:
    """A command as its source tells of it.

    Args:
        name: as it is typed, `sa-swin cohort build`.
        about: the docstring without its arguments.
        options: in the order of the parameters.
    """

    name: str
    about: str
    options: tuple[Option, ...]

    def help(self) -> str:
        """What `--help` prints."""
        lines = [f"{self.name} [--option value ...]", "", self.about, ""]
        for option in self.options:
            default = "needed" if option.default is None else f"default {option.default}"
            lines += [f"  --{option.name}  ({option.kind}; {default})", f"      {option.about}"]
        return "\n".join(lines)

    def arguments(self, words: Sequence[str]) -> dict[str, Any]:
        """Arguments of the function from the words of a command line; those without a name fill up in order.

        Raises:
            OptionError: an option that there is not, one too many, one that is missing, or a wrong value.
        """
        known = {option.name: option for option in self.options}
        given: dict[str, Any] = {}
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("--"):
                name, equals, text = word[2:].partition("=")
                name = name.replace("-", "_")
                if name not in known:
                    raise OptionError(f"--{name} is no option of {self.name}{_nearest(name, known)}")
                takes_next = not equals and bool(rest) and not rest[0].startswith("--")
                given[name] = known[name].read(text if equals else rest.pop(0) if takes_next else None)
                while known[name].many and not equals and rest and not rest[0].startswith("--"):
                    given[name] += known[name].read(rest.pop(0))
            else:
                free = next((name for name in known if name not in given), None)
                if free is None:
                    raise OptionError(f"{word!r} is one word too many for {self.name}; options begin with --")
                given[free] = known[free].read(word)
        if missing := [o.name for o in self.options if o.default is None and o.name not in given]:
            raise OptionError(f"{self.name} needs --{' and --'.join(missing)}")
        return given


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f": did you mean --{near[0]}" if near else f"; it takes --{', --'.join(known)}"


def command_of(target: str, name: str) -> Command:
    """A command from the source of its function.

    Args:
        target: `module:function`.
        name: as it is typed.
    """
    module, _, function = target.partition(":")
    tree = ast.parse(Path(str(find_spec(module).origin)).read_text())
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    about, _, texts = (ast.get_docstring(node) or "").partition("\n\nArgs:\n")
    described = {found[1]: " ".join(found[2].split()) for found in re.finditer(_ARGUMENT, texts)}
    arguments = [*node.args.args, *node.args.kwonlyargs]
    values = [*[None] * (len(node.args.args) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    defaults = [value and ast.unparse(value) for value in values]
    options = (
        Option(a.arg, ast.unparse(a.annotation) if a.annotation else "str", default, described.get(a.arg, ""))
        for a, default in zip(arguments, defaults, strict=True)
    )
    return Command(name, about, tuple(options))


_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def run(
    words: Sequence[str], name: str, targets: Mapping[str, str], otherwise: str | None = None, code: int = 1
) -> None:
    """Run one of a group's commands; what a user can mend ends in one sentence, wrong options with exit code 2.

    Args:
        words: of the command line, behind the group's name.
        name: of the group, `sa-swin cohort`.
        targets: verb to `module:function`; a single one under the empty verb.
        otherwise: the verb that is meant where there is none.
        code: exit code of what a user can mend.
    """
    words = list(words)
    given = words.pop(0) if words and words[0] in targets else None
    verb = "" if "" in targets else given or otherwise
    if verb is None or (verb and not given and words[:1] in (["--help"], ["-h"])):
        _no_verb(words, name, targets)
        return
    command = command_of(targets[verb], f"{name} {verb}".rstrip())
    if set(HELP) & set(words):
        say(command.help())
        return
    with in_a_sentence(name, 2):
        arguments = command.arguments(words)
    module, _, function = targets[verb].partition(":")
    with in_a_sentence(name, code):
        getattr(import_module(module), function)(**arguments)


def say(text: str) -> None:
    """Print; to whoever reads the first lines only (`| head`) no more than these."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end


@contextmanager
def in_a_sentence(name: str, code: int) -> Iterator[None]:
    """End with one sentence on stderr, and an exit code, on what the user can mend."""
    for stream in (sys.stdout, sys.stderr):  # a subject's name in JSON may be what no terminal can show
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        if code == 1 and not isinstance(error, OptionError):
            sys.exit(f"{name}: {error}")
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(2 if isinstance(error, OptionError) else code)


def _no_verb(words: Sequence[str], name: str, targets: Mapping[str, str]) -> None:
    """Help of a group; exit code 2 where a verb was expected."""
    for verb, target in targets.items():
        print(f"{name} {verb}: {command_of(target, verb).about.splitlines()[0]}")
    if words and words[0] not in HELP:
        near = difflib.get_close_matches(words[0], targets, 1)
        sys.stderr.write(f"{name}: no {words[0]!r}{f'; did you mean {near[0]}' if near else ''}\n")
    if not (words and words[0] in HELP):
        sys.exit(2)
