"""In MLflow a training is one run over its resumes, holds what a reader needs, and ends as what became of it."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import mlflow
import pytest
from ignite.engine import Events
from monai.handlers import MLFlowHandler, from_engine
from small_training import EPOCHS, STEPS, Training

from custom.training.tracking import TrackedRun, cohort_digest, knobs_of, sqlite_uri
from custom.training.tracking_record import add_to_runs

SETTINGS = {"batch_size": 2, "max_epochs": EPOCHS, "cohort": {"fold": 1}}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.MlflowClient(sqlite_uri(folder)).search_experiments()
    return folder / "mlruns.db"


@pytest.fixture
def output(tmp_path, empty_database):
    folder = tmp_path / "out put #1"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlruns.db")
    return folder


def handlers(output):
    """Those that `--tracking mlflow` puts into a bundle: of the trainer, and of the evaluator."""
    loss = {"tag_name": "train_loss", "output_transform": from_engine(["loss"], first=True)}
    both = {"tracking_uri": sqlite_uri(output), "experiment_name": "test"}
    return MLFlowHandler(**both, **loss, close_on_complete=True), MLFlowHandler(**both, iteration_log=False)


def tracked_training(output, resume="auto", **config):
    training = Training(output / "models", resume=resume)
    record = {"bundle": "sa_swin_test", "workflow": "train", "commit": "abc", "started": "now", "seed": 0}
    record |= {"versions": {"torch": "2"}, "settings": {**SETTINGS, **config}}
    (output / "run_train.json").write_text(json.dumps(record))
    own = handlers(output)
    for handler, engine in zip(own, (training.trainer, training.evaluator), strict=True):
        handler.attach(engine)
    artifacts = [output / "models" / "model.pt", output / "none.csv"]
    cases = [{"image": "/d/a.nii", "subject": "a"}]
    tracked = TrackedRun("train", own, output, cases, artifacts, bool(resume))
    return training, lambda: tracked.run(training.trainer, training.evaluator)


def runs(output):
    client = mlflow.MlflowClient(sqlite_uri(output))
    return client, client.search_runs([client.get_experiment_by_name("test").experiment_id])


def points(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_a_training_leaves_all_that_a_reader_needs(output):
    tracked_training(output, resume=False)[1]()
    client, (found,) = runs(output)
    assert found.info.status == "FINISHED"
    assert found.data.params.items() >= {"batch_size": "2", "cohort.fold": "1", "max_epochs": str(EPOCHS)}.items()
    assert found.data.tags.items() >= {"commit": "abc", "bundle": "sa_swin_test", "version.torch": "2"}.items()
    assert len(found.data.tags["cohort_digest"]) == 16
    epochs = list(range(1, EPOCHS + 1))
    assert [step for step, _ in points(client, found, "train_loss")] == epochs
    curve = points(client, found, "auc")
    assert [step for step, _ in curve] == epochs
    best_step, best = points(client, found, "best_auc")[0]
    assert best == max(value for _, value in curve) == dict(curve)[best_step]
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names == {"run_train.json", "model.pt"}
    assert {path.name for path in output.parent.iterdir()} == {output.name}  # no stray folder


@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS + 1))
def test_a_resumed_training_goes_on_with_its_run_and_no_point_is_there_twice(output, step):
    training, run = tracked_training(output)
    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=step), training.ask_to_leave)
    run()
    _, (found,) = runs(output)
    assert found.info.status == "KILLED"
    _, run = tracked_training(output, batch_size=7)
    run()
    client, (again,) = runs(output)
    assert again.info.run_id == found.info.run_id
    assert again.info.status == "FINISHED"
    for name in ("train_loss", "auc"):
        assert [at for at, _ in points(client, again, name)] == list(range(1, EPOCHS + 1))
    assert len(points(client, again, "best_auc")) <= 2  # at the stop, and where it became better since
    assert len({step for step, _ in points(client, again, "best_auc")}) == len(points(client, again, "best_auc"))
    assert again.data.params["batch_size"] == "2"
    assert again.data.tags["resumed_with.batch_size"] == "7"


def test_a_new_training_is_a_new_run(output):
    for resume in (False, False):
        tracked_training(output, resume=resume)[1]()
    assert [run.info.status for run in runs(output)[1]] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_fails_ends_failed_with_its_own_error(output, error, status):
    training, run = tracked_training(output)

    def fail():
        raise error("no")

    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=2), fail)
    with pytest.raises(error):
        run()
    assert [run.info.status for run in runs(output)[1]] == [status]


@pytest.mark.slow
def test_an_evaluation_that_is_terminated_ends_killed(output):
    """SIGTERM outside of a training: the exit code is that of ever."""
    script = """
        import os, signal, sys
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        from test_tracking import Events, TrackedRun, handlers, tracked_training
        output = Path(sys.argv[1])
        training, _ = tracked_training(output)
        (output / "run_evaluate.json").write_text((output / "run_train.json").read_text())
        own = handlers(output)[1]
        own.attach(training.evaluator)
        training.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: os.kill(os.getpid(), signal.SIGTERM))
        TrackedRun("evaluate", [own], output).run(training.evaluator)
    """
    words = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        str(output),
        *(str(folder) for folder in Path(__file__).parents[:2]),
    ]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert [run.info.status for run in runs(output)[1]] == ["KILLED"]


def test_without_a_tracker_it_only_runs(output):
    training = Training(output / "models")
    TrackedRun("train", [object()], output).run(training.trainer, training.evaluator)
    assert training.trainer.state.epoch == EPOCHS
    assert not (output / "mlflow_train.json").exists()


def test_a_report_is_added_to_the_runs_of_its_folder(output):
    tracked_training(output)[1]()
    (output / "report.html").write_text("a page")
    add_to_runs(output, output / "report.html")
    client, (found,) = runs(output)
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(found.info.run_id)}


def test_the_digest_is_of_who_is_in_the_cohort(tmp_path):
    def cohort(folder, sizes=(3, 4)):
        folder.mkdir()
        cases = [{"image": str(folder / f"{size}.nii"), "subject": f"{i}", "label": i} for i, size in enumerate(sizes)]
        for case, size in zip(cases, sizes, strict=True):
            Path(case["image"]).write_bytes(b"x" * size)
        return cases

    one, elsewhere, other = cohort(tmp_path / "a"), cohort(tmp_path / "b"), cohort(tmp_path / "c", (3, 5))
    assert cohort_digest(one) == cohort_digest(elsewhere[::-1])
    assert len({cohort_digest(cases) for cases in (one, other, one[:1], [one[0], one[1] | {"label": 0}])}) == 4


def test_a_group_of_knobs_has_names_with_dots():
    assert dict(knobs_of(SETTINGS)) == {"batch_size": 2, "max_epochs": EPOCHS, "cohort.fold": 1}
