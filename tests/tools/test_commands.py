import sys

import pytest

from sa_swin.__main__ import main
from sa_swin.commands import Command, Option, OptionError, command_of, run


def option(kind, default="0"):
    return Option("value", kind, default, "")


PATHS = ("2026_11_28", "1e3", "0x10", "True", "None", "[a]", "study#2", "$x", "~", "-a", "a b", "Köln")


@pytest.mark.parametrize("text", PATHS)
@pytest.mark.parametrize("kind", ["str", "str | None", "Path", "str | tuple[float, float, float]"])
def test_text_is_taken_as_it_was_typed(kind, text):
    assert option(kind).read(text) == text


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "3", 3),
        ("float", "1e-3", 0.001),
        ("int | None", "None", None),
        ("bool", "False", False),
        ("bool", None, True),
        ("float | Sequence[float]", "3", 3.0),
        ("tuple[float, float] | None", "30,90", (30.0, 90.0)),
        ("tuple[float, float] | None", "30", (30.0,)),
        ("tuple[float, float] | None", "None", None),
        ("int | Sequence[int]", "64", 64),
        ("Sequence[int]", "[64, 32, 32]", (64, 32, 32)),
    ],
)
def test_numbers_and_truth_values_are_read(kind, text, value):
    found = option(kind).read(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"), [("int", "3.5"), ("bool", "maybe"), ("float", "x"), ("Sequence[int]", "1,b")]
)
def test_what_is_not_of_its_kind_is_refused(kind, text):
    with pytest.raises(OptionError, match=f"--value takes .*, got '{text}'"):
        option(kind).read(text)


@pytest.mark.parametrize("command", ["cohort check", "cohort leakage", "prepare", "asymmetry map", "study run"])
def test_no_command_takes_fewer_than_one_worker(command, capsys):
    name, *verb = command.split()
    with pytest.raises(SystemExit) as ended:
        main([name, *verb, "--workers", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"sa-swin {name}: --workers must be 1 or more, got 0\n"


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [("lesion_ml", "30", "lesion_ml must be smallest,largest"), ("shares", "0.5", "shares must be three")],
)
def test_one_number_where_there_should_be_several_is_refused(tmp_path, option, value, sentence):
    with pytest.raises(SystemExit, match=f"sa-swin phantom: {sentence} .*; got \\({value}.*,\\)"):
        main(["phantom", "--output", str(tmp_path / "out"), f"--{option}", value])


COMMAND = Command("tool", "Does it.", (option("str", None), Option("num_classes", "int", "2", "of masks")))


def test_words_without_a_name_fill_up_in_order():
    expected = {"value": "a", "num_classes": 3}
    for words in (["a", "3"], ["--num_classes", "3", "a"], ["--value=a", "--num-classes=3"]):
        assert COMMAND.arguments(words) == expected
    assert COMMAND.arguments(["--value", "-a"]) == {"value": "-a"}


@pytest.mark.parametrize("words", [["a", "b c"], ["a,b c"], ["a", "b c", "--num_classes", "3"]])
def test_an_option_of_many_takes_all_words_up_to_the_next(words):
    command = Command("tool", "Does it.", (*COMMAND.options, Option("labels", "Sequence[str]", "()", "")))
    found = command.arguments(["x", "--labels", *words])
    assert found["labels"] == ("a", "b c")
    assert command.arguments(["--labels=a", "x"]) == {"labels": ("a",), "value": "x"}


def test_a_path_with_a_comma_that_is_there_stays_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold 0,1").mkdir()
    command = Command("tool", "Does it.", (Option("weights", "Sequence[str]", "()", ""),))
    found = ("fold 0,1", "a", "b")
    assert command.arguments(["--weights", "fold 0,1", "a,b"]) == {"weights": found}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "--num_class", "3"], "--num_class is no option of tool: did you mean --num_classes"),
        (["a", "--xyzzy"], "--xyzzy is no option of tool; it takes --value, --num_classes"),
        ([], "tool needs --value"),
        (["a", "3", "b"], "'b' is one word too many for tool"),
        (["--value", "--num_classes", "3"], "--value needs a value"),
    ],
)
def test_a_wrong_command_line_is_refused(words, sentence):
    with pytest.raises(OptionError, match=sentence):
        COMMAND.arguments(words)


MODULE = '''"""A tool."""
import pathlib

raise_at_import = 1 / int(pathlib.Path(__file__).with_name("works").exists())


def build(output: str, workers: int = 2, *, seed: int = 0) -> None:
    """Build it.

    More of it.

    Args:
        output: folder of what
            is built.
        workers: processes.
        seed: of it.
    """
    print(repr(output), workers)
'''


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The functions of a module that cannot be imported."""
    (tmp_path / "tool_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"build": "tool_of_a_test:build"}
    sys.modules.pop("tool_of_a_test", None)


def test_help_and_refusals_come_without_an_import(tool, capsys):
    run(["build", "--help"], "tool", tool)
    text = capsys.readouterr().out
    assert text.startswith("tool build [--option value ...]\n\nBuild it.\n\nMore of it.\n")
    assert "  --output  (str; needed)\n      folder of what is built.\n" in text
    assert "  --workers  (int; default 2)\n      processes.\n" in text
    for words, sentence in ((["build", "--outptu", "x"], "did you mean --output"), (["bild"], "did you mean build")):
        with pytest.raises(SystemExit) as ended:
            run(words, "tool", tool)
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err


def test_a_command_is_run_with_what_was_typed(tool, tmp_path, capsys):
    (tmp_path / "works").touch()
    run(["build", "2026_11_28", "--workers", "3"], "tool", tool)
    assert capsys.readouterr().out == "'2026_11_28' 3\n"


def test_a_parameter_of_every_command_is_told_of():
    found = command_of("sa_swin.cohort.command:check_command", "check")
    assert found.options[0].name == "datalist"
    assert all(option.about for option in found.options)
