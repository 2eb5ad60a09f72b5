import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from custom.support.errors import UserError
from sa_swin import label
from sa_swin.__main__ import COMMANDS, main
from sa_swin.bundles import (
    ROOT,
    bundle_command,
    bundle_folder,
    checkpoint_at,
    pythonic,
    quick_start,
    take_processes,
    take_weights,
)
from sa_swin.commands import command_of

SEGMENT = ROOT / "bundles" / "sa_swin_segment"


def test_every_command_has_its_module():
    for targets, _ in COMMANDS.values():
        for target in targets.values() if isinstance(targets, dict) else [targets]:
            module, _, function = target.partition(":")
            assert find_spec(module)
            assert not function or command_of(target, "it").about


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_neither_torch_nor_monai(words):
    code = f"import sys; from sa_swin.__main__ import main\ntry: main({words})\n"
    code += "except SystemExit as ended: assert ended.code == 0\n"
    code += "assert not {'torch', 'monai', 'fire', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "sa-swin" in done.stdout


def test_help_of_a_workflow_tells_its_knobs_and_paths(capsys):
    main(["predict", "segment", "--help"])
    knobs, (own,) = capsys.readouterr().out, (SEGMENT / "configs").glob("inference.yaml")
    assert knobs.splitlines()[0] == "sa-swin predict sa_swin_segment [--option value ...]"
    assert str(own) in knobs
    assert "\nmin_volume_ml: 0.1 " in knobs
    assert "\ncheckpoint: $@ckpt_dir" in knobs
    assert "network_def" not in knobs


@pytest.mark.parametrize("words", [["study", "run"], ["release", "build"]])
def test_help_of_the_verb_that_is_meant_without_one_tells_its_options(words, capsys):
    main([*words, "--help"])
    assert capsys.readouterr().out.startswith(f"sa-swin {' '.join(words)} [--option value ...]")
    main([words[0], "--help"])
    assert f"sa-swin {' '.join(words)}: " in capsys.readouterr().out


def test_who_reads_the_first_lines_of_help_gets_no_traceback():
    command = f"{sys.executable} -m sa_swin train segment --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("sa-swin train sa_swin_segment [--option value ...]\n", "")


def test_a_bundle_starts_with_the_checkouts_own_site(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert quick_start() == {"PYTHONPATH": f"{ROOT}{os.pathsep}/mine"}


def test_an_unknown_command_is_refused_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pepare"])
    assert ended.value.code == 2
    assert "unknown command 'pepare'; did you mean prepare?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["segment", "sa_swin_segment", str(SEGMENT)])
def test_a_bundle_is_found_by_name_or_folder(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert bundle_folder(name) == SEGMENT


def test_an_unknown_bundle_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "segmentation"])
    assert ended.value.code == 2
    assert "no bundle 'segmentation': expected classify, pretrain, segment" in capsys.readouterr().err


def test_the_door_is_monais_command():
    configs = SEGMENT / "configs"
    options = ["--dataset_dir", "study 1", "--fold", "0"]
    assert bundle_command("predict", SEGMENT, options) == [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs / "inference.yaml"),
        "--bundle_root", str(SEGMENT), *options,
    ]  # fmt: skip
    layered = bundle_command("evaluate", SEGMENT, [])
    assert layered[5] == f"['{configs / 'train.yaml'}', '{configs / 'evaluate.yaml'}']"


def test_several_processes_go_through_torchrun_and_the_layer_for_them():
    options, processes = take_processes(["--dataset_dir", "D", "--processes", "2", "--fold=1"])
    assert (options, processes) == (["--dataset_dir", "D", "--fold=1"], 2)
    command = bundle_command("train", SEGMENT, options, processes)
    assert command[1:5] == ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m"]
    assert "multi_gpu_train.yaml" in command[command.index("--config_file") + 1]
    command = bundle_command("evaluate", SEGMENT, options, processes)
    assert command[command.index("--config_file") + 1].endswith("multi_gpu_evaluate.yaml']")


@pytest.mark.parametrize("words", [["--processes", "none"], ["--processes=0"], ["--processes"]])
def test_a_number_of_processes_must_be_one(words):
    with pytest.raises(ValueError, match="--processes must be a number of 1 or more"):
        take_processes(words)


def test_several_weights_become_the_checkpoint_of_the_bundle(tmp_path):
    for place in ("fold0/model.pt", "package/models/model.pt", "one.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    first, package, file = (str(tmp_path / name) for name in ("fold0", "package", "one.pt"))
    assert take_weights(["--weights", first, "--redo", "True"]) == [
        "--redo",
        "True",
        "--checkpoint",
        f"{first}/model.pt",
    ]
    found = [f"{first}/model.pt", f"{package}/models/model.pt", file]
    assert take_weights(["--images", "*.nii", f"--weights={first}", package, file]) == [
        "--images", "*.nii", "--checkpoint", repr(found),
    ]  # fmt: skip
    assert take_weights(["--checkpoint", file]) == ["--checkpoint", file]
    for nothing in (["--weights"], ["--weights", "--redo", "True"], ["--weights", ""], ["--weights="],
                    ["--weights", first, ""]):  # fmt: skip
        with pytest.raises(UserError, match="--weights has an empty value"):
            take_weights(nothing)
    (tmp_path / "package.zip").touch()
    with pytest.raises(UserError, match=r"no weights at .*package\.zip: expected a package"):
        checkpoint_at(tmp_path / "package.zip")


@pytest.mark.parametrize("words", [["--weights", "model.pt"], ["--weights=model.pt"], ["--weights"]])
def test_a_training_does_not_take_weights_but_pretrained_ones(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "segment", *words])
    assert ended.value.code == 2
    assert "to start from weights give --pretrained" in capsys.readouterr().err


def test_without_its_environment_the_label_server_says_how_to_make_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LABEL_VENV", str(tmp_path))
    with pytest.raises(SystemExit):
        label.main(["--studies", "DIR"])
    assert "run `make label-setup`" in capsys.readouterr().err


def test_the_label_server_takes_folders_as_they_were_typed_and_its_own_weights_by_default(monkeypatch, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    monkeypatch.setenv("LABEL_VENV", "venv")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("os.execv", lambda python, words: seen.append((python, words, os.getcwd())))
    label.main(["scans", "--weights", "mine", "--images=*_FLAIR.nii", "--allow-outside"])
    monkeypatch.chdir(tmp_path)
    label.main(["--studies=scans"])
    (python, words, place), (_, fewer, _) = seen
    assert (python, place) == (tmp_path / "venv" / "bin" / "python", str(ROOT))
    assert command_of("label_app.serve:serve", "it").arguments(words[3:]) == {
        "studies": str(tmp_path / "scans"), "weights": str(tmp_path / "mine"), "images": "*_FLAIR.nii",
        "allow_outside": True,
    }  # fmt: skip
    assert fewer[3:] == [f"--studies={tmp_path / 'scans'}"]  # so the weights are the default's, in the repository


def test_truth_values_may_be_written_as_in_the_yaml_and_paths_stay():
    given = "--align false --redo=true --dataset_dir true --datalist=false --untrusted found --fold True"
    read = "--align False --redo=True --dataset_dir true --datalist=false --untrusted found --fold True"
    assert pythonic(given.split()) == read.split()
