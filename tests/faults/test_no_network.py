"""At run time nothing goes over the network, and nobody is told that something runs."""

import contextlib
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from mlflow.telemetry import utils as telemetry
from monai.bundle import ConfigWorkflow

from custom.networks.classifier import SASwinClassifier
from custom.weights.settings import carrying
from sa_swin.cohort.command import check_command
from sa_swin.prepare import cohort as prepare
from sa_swin.report import page as report

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "sa_swin_classify"
TINY = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 32], "num_workers": 0}


@contextlib.contextmanager
def guarded(monkeypatch):
    """Refuse every connection but to this machine, and every look-up of a name; yields what was tried."""
    tried = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_local(host):
        return host in (None, "", b"", "localhost", "::1", socket.gethostname()) or str(host).startswith("127.")

    def guarded_connect(self, address):
        if isinstance(address, tuple) and not is_local(address[0]):
            tried.append(address)
            raise OSError("no network at run time")
        return connect(self, address)

    def guarded_look_up(host, *arguments, **options):
        if not is_local(host):
            tried.append(host)
            raise socket.gaierror("no network at run time")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield tried


@pytest.fixture
def offline(monkeypatch):
    with guarded(monkeypatch) as tried:
        yield
    assert tried == []


def workflow(names, kind, cohort, output, **options):
    made = ConfigWorkflow(
        [str(BUNDLE / "configs" / f"{name}.yaml") for name in names],
        logging_file=False,
        workflow_type=kind,
        **TINY,
        align=False,
        device="$torch.device('cpu')",
        dataset_dir=str(cohort),
        output_dir=str(output),
        bundle_root=str(BUNDLE),
        ckpt_dir=str(output),
        **options,
    )
    made.initialize()
    return made.run()


def test_training_evaluation_inference_and_tools_stay_off_the_network(offline, tiny_cohort, tmp_path):
    training = {"max_epochs": 1, "val_interval": 1, "batch_size": 2, "warmup_epochs": 0, "cache_rate": 0.0}
    workflow(["train"], "train", tiny_cohort, tmp_path, **training)
    assert (tmp_path / "model.pt").is_file()
    workflow(["train", "evaluate"], "train", tiny_cohort, tmp_path, **training)
    images = tmp_path / "in"
    images.mkdir()
    shutil.copy(tiny_cohort / "sub-1.nii.gz", images)
    state = SASwinClassifier(feature_size=12, window_size=4).state_dict()
    torch.save(carrying(state, settings={"modality": "MR", "in_channels": 1}), tmp_path / "other.pt")
    workflow(["inference"], "infer", images, tmp_path / "out", checkpoint=str(tmp_path / "other.pt"))
    assert (tmp_path / "out" / "cases.csv").is_file()
    report.report_command(str(tmp_path / "out"))
    check_command(str(tiny_cohort / "datalists" / "segment.json"), workers=1)
    prepare.prepare_command(
        str(tmp_path / "prepared"), str(tiny_cohort), spacing=6.0, spatial_size=[32, 40, 32], untrusted="as_it_lies"
    )


def test_the_guard_sees_what_it_is_to_see(monkeypatch):
    with guarded(monkeypatch) as tried, pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.com", 80), timeout=1)
    assert tried == ["example.com"]


def test_mlflow_which_monai_imports_tells_nobody(monkeypatch):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for name in ("_IS_IN_CI_ENV_OR_TESTING", "_IS_MLFLOW_DEV_VERSION"):
        monkeypatch.setattr(telemetry, name, False)
    assert telemetry.is_telemetry_disabled()
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    assert not telemetry.is_telemetry_disabled()
