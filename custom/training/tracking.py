"""Runs in MLflow: one for each training, over all its resumes, with all that a reader needs to make it again.

`--tracking mlflow` puts MONAI's `MLFlowHandler` into a bundle's handlers; `TrackedRun` gives them one run, fills it,
and ends it as what became of it. Without them it does nothing but run.
"""

import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.handlers import MLFlowHandler
from monai.utils import path_to_uri

from custom.data.case import Case, image_paths, subject_of
from custom.support.errors import UserError
from custom.support.files import json_text, write_whole
from custom.training.tracking_record import record_path

logger = logging.getLogger(__name__)

DATABASE = "mlruns.db"
LONGEST = 500
"""Characters of a parameter's value that a database of MLflow takes at least."""


def sqlite_uri(output_dir: str | Path) -> str:
    """MLflow's database in a folder, which is made: as it is where SQLAlchemy reads it so, else as that quotes it.

    MLflow makes a folder of the name that stands in the URI, quoted or not.

    Raises:
        UserError: a path that this version of SQLAlchemy cannot name.
    """
    from sqlalchemy.engine import URL, make_url  # MLflow's, and only where it is asked for

    path = os.path.abspath(Path(output_dir) / DATABASE)
    plain = f"sqlite:///{path}"
    uri = plain if make_url(plain).database == path else URL.create("sqlite", database=path).render_as_string()
    if make_url(uri).database != path:
        raise UserError(f"MLflow's database cannot lie at {path}: take an --output_dir of letters and digits")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return uri


class TrackedRun:
    """What a bundle runs, in MLflow where it is asked for.

    Parameters: every knob. Tags: bundle, workflow, commit, versions, digest of the cohort. Metrics: those of the
    engines, by epoch, and the best. Artefacts: the configuration, and files that are there at the end. A finished run
    is `FINISHED`, one that failed `FAILED`, one that was asked to leave `KILLED`; a training that is resumed goes on
    with its run.

    Args:
        workflow: `train`, `evaluate` or `inference`; `custom.support.run_record.record_run` has written its record.
        handlers: of all engines of the run.
        output_dir: of the run.
        cases: of the cohort, those of the training first.
        artifacts: files to keep.
        resumed: whether a training goes on.
    """

    def __init__(
        self,
        workflow: str,
        handlers: Sequence[Any],
        output_dir: str | Path,
        cases: Sequence[Case] = (),
        artifacts: Sequence[str | Path] = (),
        resumed: bool = False,
    ) -> None:
        self.workflow = workflow
        self.handlers = [handler for handler in handlers if isinstance(handler, MLFlowHandler)]
        self.output_dir = Path(output_dir)
        self.cases = cases
        self.artifacts = artifacts
        self.resumed = resumed
        self.logged: dict[str, int] = {}

    def run(self, engine: Workflow, evaluator: Engine | None = None) -> None:
        """Run an engine; the evaluator is that of a training."""
        if not self.handlers:
            engine.run()
            return
        client, run_id = self.begin(engine)
        status = "FAILED"
        try:
            with terminable():
                engine.run()
            preemption = getattr(engine.state, "preemption", None)
            status = "KILLED" if preemption and preemption.requested else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            self.end(client, run_id, status, evaluator or engine)

    def begin(self, engine: Engine) -> tuple[Any, str]:
        """Start or take up the run, and give it to MONAI's handlers before anything is logged."""
        first = self.handlers[0]
        if first.client.tracking_uri == sqlite_uri(self.output_dir):  # MONAI would take %20 for a part of the name
            first.artifact_location = path_to_uri(self.output_dir / "mlruns")
        first._set_experiment()
        record = json.loads((self.output_dir / f"run_{self.workflow}.json").read_text())
        run_id = self.known(first.client) if self.resumed else None
        if run_id is None:
            name = first.run_name or f"{record['bundle']} {self.workflow} {time.strftime('%Y-%m-%d %H:%M:%S')}"
            run_id = first.client.create_run(first.experiment.experiment_id, run_name=name).info.run_id
        first.client.update_run(run_id, status="RUNNING")
        for handler in self.handlers:
            handler.experiment, handler.cur_run = first.experiment, first.client.get_run(run_id)
            handler.epoch_logger = self.log_epoch
            # by epoch alone: a second curve of the same name, by step, would lie over the first
            if engine.has_event_handler(handler.iteration_completed, Events.ITERATION_COMPLETED):
                engine.remove_event_handler(handler.iteration_completed, Events.ITERATION_COMPLETED)
        content = {"tracking_uri": first.client.tracking_uri, "run_id": run_id}
        write_whole(record_path(self.output_dir, self.workflow), json_text(content))
        self.describe(record)
        return first.client, run_id

    def known(self, client: Any) -> str | None:
        """The run that a resumed training belongs to, and what it has of each metric."""
        try:
            content = json.loads(record_path(self.output_dir, self.workflow).read_text())
            run = client.get_run(content["run_id"])
        except Exception as error:  # no such file, another server, a run that was deleted
            logger.warning("a new run in MLflow, as that of the training before is not found: %s", error)
            return None
        for name in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            self.logged[name] = max(steps)
        return run.info.run_id

    def describe(self, record: Mapping[str, Any]) -> None:
        """Every knob as a parameter; where a resumed training has another value, a tag says so."""
        handler, run_id = self.handlers[0], self.handlers[0].cur_run.info.run_id
        before = handler.cur_run.data.params
        knobs = {name: str(value)[:LONGEST] for name, value in knobs_of(record["settings"])}
        new = {name: value for name, value in knobs.items() if name not in before}
        names = list(new)
        for start in range(0, len(names), 100):  # MLflow takes no more at once
            handler._log_params({name: new[name] for name in names[start : start + 100]})
        tags = {name: str(record[name]) for name in ("bundle", "workflow", "commit", "started", "seed")}
        tags |= {f"version.{name}": value for name, value in record["versions"].items()}
        tags |= {f"resumed_with.{name}": value for name, value in knobs.items() if before.get(name, value) != value}
        tags["cohort_digest"] = cohort_digest(self.cases)
        tags["cohort_cases"] = str(len(self.cases))
        for name, value in tags.items():
            handler.client.set_tag(run_id, name, value)
        handler.client.log_artifact(run_id, str(self.output_dir / f"run_{self.workflow}.json"))

    def log_epoch(self, engine: Engine) -> None:
        """The scalars of an engine's metrics, by epoch; what a resumed training does again is there already."""
        epoch = engine.state.epoch
        scalars = {name: value for name, value in engine.state.metrics.items() if isinstance(value, int | float)}
        new = {name: value for name, value in scalars.items() if self.logged.get(name, -1) < epoch}
        if new:
            self.handlers[0]._log_metrics(new, step=epoch)
            self.logged |= dict.fromkeys(new, epoch)

    def end(self, client: Any, run_id: str, status: str, evaluator: Engine) -> None:
        """The best metric, the files, and how it ended; an error here hides none of the run's own."""
        try:
            epoch = getattr(evaluator.state, "best_metric_epoch", -1)
            name = f"best_{getattr(evaluator.state, 'key_metric_name', '')}"
            if self.workflow == "train" and epoch > max(0, self.logged.get(name, -1)):
                client.log_metric(run_id, name, evaluator.state.best_metric, step=epoch)
            for path in self.artifacts:
                if Path(path).is_file():
                    client.log_artifact(run_id, str(path))
            client.set_terminated(run_id, status)
        except Exception:
            logger.exception("MLflow's record of this run is not complete")
        for handler in self.handlers:
            handler.cur_run = None
            handler.close()


def knobs_of(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The knobs of a run, groups of them by names with dots."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", part) for inner, part in value.items())
        else:
            yield name, value


def cohort_digest(cases: Sequence[Case]) -> str:
    """A hash of who is in a cohort, with which labels, and of the images' names and sizes; the same at any place."""
    rows = []
    for case in cases:
        paths = [Path(path) for path in image_paths(case)]
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        label = Path(str(case.get("label"))).name
        rows.append(json.dumps([subject_of(case), [path.name for path in paths], sizes, label, case.get("healthy")]))
    return hashlib.sha256("\n".join(sorted(rows)).encode(errors="surrogatepass")).hexdigest()[:16]


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the process by `SystemExit`, with the exit code of ever, so that what is open is closed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
