import json

import pytest
import yaml

from sa_swin.release.errors import ReleaseError
from sa_swin.release.inspection import Runnable, inspect, is_familiar, report

CONFIG = {
    "imports": ["$import os", "$from pathlib import Path"],
    "network_def": {"_target_": "custom.networks.SASwinUNETR", "in_channels": "@in_channels", "size": "$1 + 1"},
    "in_channels": 1,
    "name": "a $ in the middle is text",
    "handlers": [
        {"_target_": "StatsHandler", "inner": {"deep": [{"_target_": "os.system", "command": "touch /tmp/pwned"}]}},
        {"_target_": "$__import__('os').system", "_disabled_": "$not @in_channels"},
    ],
}


def files(config, name="configs/train.yaml"):
    return {name: yaml.safe_dump(config).encode()}


def test_every_callable_and_expression_is_found_with_its_place():
    assert inspect(files(CONFIG)) == sorted(
        [
            Runnable("callable", "custom.networks.SASwinUNETR", "configs/train.yaml", "network_def"),
            Runnable("callable", "StatsHandler", "configs/train.yaml", "handlers::0"),
            Runnable("callable", "os.system", "configs/train.yaml", "handlers::0::inner::deep::0"),
            Runnable("callable", "$__import__('os').system", "configs/train.yaml", "handlers::1"),
            Runnable("expression", "__import__('os').system", "configs/train.yaml", "handlers::1::_target_"),
            Runnable("expression", "not @in_channels", "configs/train.yaml", "handlers::1::_disabled_"),
            Runnable("expression", "1 + 1", "configs/train.yaml", "network_def::size"),
            Runnable("import", "import os", "configs/train.yaml", "imports::0"),
            Runnable("import", "from pathlib import Path", "configs/train.yaml", "imports::1"),
        ]
    )


def test_nothing_is_run(tmp_path):
    target = tmp_path / "touched"
    config = {"a": f"$open({str(target)!r}, 'w')", "b": {"_target_": "pathlib.Path.touch", "self": str(target)}}
    report(inspect(files(config)))
    assert not target.exists()


def test_a_yaml_tag_that_makes_objects_is_refused():
    with pytest.raises(ReleaseError, match=r"configs/train.yaml cannot be read"):
        inspect({"configs/train.yaml": b"a: !!python/object/apply:os.system ['true']"})


def test_a_json_twin_is_listed_once_and_one_that_differs_is_listed_too():
    both = {**files(CONFIG), "configs/train.json": json.dumps(CONFIG).encode()}
    assert inspect(both) == inspect(files(CONFIG))
    both["configs/train.json"] = json.dumps({**CONFIG, "more": "$exit()"}).encode()
    assert Runnable("expression", "exit()", "configs/train.json", "more") in inspect(both)
    alone = {"configs/train.json": json.dumps(CONFIG).encode()}
    assert len(inspect(alone)) == len(inspect(files(CONFIG)))


def test_the_metadata_and_the_logging_are_looked_at():
    found = inspect(
        {
            "configs/metadata.json": b'{"version": "$exit()"}',
            "configs/logging.conf": b"[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\n",
            "large_files.yml": b"large_files: ['$exit()']",
        }
    )
    assert {(f.kind, f.value) for f in found} == {
        ("expression", "exit()"),
        ("logging", "class=StreamHandler"),
        ("logging", "args=(sys.stdout,)"),
    }


def test_callables_from_elsewhere_are_marked():
    findings = inspect(files({**CONFIG, "more": {"_target_": "eval", "source": "1"}}))
    assert {f.value for f in findings if not is_familiar(f)} == {"os.system", "$__import__('os').system", "eval"}
    text = report(findings)
    assert "! os.system\n      train.yaml handlers::0::inner::deep::0\n" in text
    assert "  custom.networks.SASwinUNETR\n" in text
    assert text.splitlines()[-1].startswith("3 things from elsewhere than monai, torch")


def test_a_config_that_cannot_be_read_is_named():
    with pytest.raises(ReleaseError, match=r"configs/train.json cannot be read"):
        inspect({"configs/train.json": b"{"})
