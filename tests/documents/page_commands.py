"""The commands in the code blocks of README and docs, and what each would call."""

import inspect
import re
import runpy
import shlex
import sys
from ast import literal_eval
from pathlib import Path
from unittest.mock import patch

import yaml

from label_app.serve import serve
from sa_swin.__main__ import COMMANDS, OTHERWISE
from sa_swin.bundles import CONFIGS, bundle_folder, take, take_processes
from sa_swin.commands import command_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("bundles/*/docs/README.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MONAI_OPTIONS = {"bundle_root", "config_file", "meta_file", "logging_file", "tracking", "args_file", "workflow_type"}
"""What `monai.bundle run` takes besides the ids of a config; of those, the ones that a page may name."""
FOREIGN = {".", "monailabel", "unzip"}
"""First words of commands of others, which no test here can read."""


def blocks(page, language=""):
    """Code blocks of a page in a language; those of none are commands, or a picture of folders or rooms."""
    return [body for found, body in BLOCK.findall(page.read_text()) if found == language]


def commands(page):
    """The command lines of a page, as words, with its variables filled in."""
    variables, found = {}, []
    for line in "\n".join(blocks(page)).replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True) if is_command(line) else []
        if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assigned[1]] = assigned[2]
        elif words:
            found.append(words)
    return found


def is_command(line):
    """Whether a line of a block is one; the others draw folders and rooms, in columns."""
    return re.match(r"(sa-swin|python|torchrun|make|monailabel|unzip|\.) \S|[A-Z]+=\S", line)


def check(words):
    """Hold a command against what it would call, without calling it.

    Raises:
        AssertionError, TypeError, KeyError, AttributeError, ValueError: with what is not there.
    """
    while re.fullmatch(r"[A-Z]+=.*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "sa-swin":
        check_front_door(rest)
    elif program == "make":
        check_make(rest)
    elif program == "sbatch":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "torchrun":
        assert rest[1:4] == ["-m", "monai.bundle", "run"], words
        check_monai(rest[4:])
    elif program == "python":
        check_python(rest)
    else:
        assert program in FOREIGN, f"{program}: neither this project's nor known as another's"


def check_front_door(words):
    name, *rest = words
    assert name in COMMANDS, f"sa-swin {name}"
    if name in CONFIGS:
        options, _ = take("plan", take_processes(rest[1:])[0])
        folder = bundle_folder(rest[0])
        check_ids([folder / "configs" / f"{layer}.yaml" for layer in CONFIGS[name]], options)
    elif name == "label":
        check_call(serve, rest)
    else:
        targets, _ = COMMANDS[name]
        verb = "" if "" in targets else rest.pop(0) if rest[0] in targets else OTHERWISE[name]
        command_of(targets[verb], f"sa-swin {name}").arguments(rest)


def check_python(words):
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m" and words[1] == "monai.bundle":
        assert words[2] == "run", words
        check_monai(words[3:])
    elif words[0] == "-m" and words[1] == "sa_swin":
        check_front_door(words[2:])
    elif words[0] == "-m":
        with patch.object(sys, "argv", [words[1], *words[2:]]):
            check_call(*captured(lambda: runpy.run_module(words[1], run_name="__main__")), words[2:])
    else:
        assert (ROOT / words[0]).is_file(), words[0]


def check_make(words):
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, assigned, _ = word.partition("=")
        pattern = rf"^{name} \?=|\$\({name}\)" if assigned else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"make {word}"


def check_monai(words):
    options = dict(options_of(words))
    files = options["config_file"]
    files = literal_eval(files) if files.startswith("[") else [files]
    assert all((ROOT / file).is_file() for file in files), files
    check_ids([ROOT / file for file in files], words)


def check_ids(files, words):
    """That every option is an id of these configs, merged, or one of MONAI's own."""
    config = {}
    for file in files:
        config |= yaml.safe_load(file.read_text())
    for name, _ in options_of(words):
        first, *path = name.split("::")
        node = config.get(first, ...)
        for key in path:
            node = node[key] if isinstance(node, dict) and key in node else ...
        assert node is not ... or name in MONAI_OPTIONS, f"--{name}: no knob of {', '.join(map(str, files))}"


def options_of(words):
    """Name and value of each option; a lone one is true."""
    found = []
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            found.append((name, value if given else "True" if following.startswith("--") else following))
    return found


class Captured(Exception):  # noqa: N818  no error: how a command is stopped before it runs
    """Carries what a command line would call."""


def captured(run):
    """What `run` hands to `fire.Fire`, and the words that it is to be called with."""

    def fire(component, command=None, **_):
        raise Captured(component, command)

    with patch("fire.Fire", fire):
        try:
            run()
        except Captured as stop:
            return stop.args
    raise AssertionError("no command line was read")


def check_call(component, command, given=()):
    """That a component of a command line takes these words: its verbs, its options, and all that it needs."""
    words = list(command or given)
    positional = []
    while not inspect.isroutine(component):
        verb = words.pop(0)
        component = component[verb] if isinstance(component, dict) else getattr(component, verb)
    while words and not words[0].startswith("--"):
        positional.append(words.pop(0))
    inspect.signature(component).bind(*positional, **dict(options_of(words)))
