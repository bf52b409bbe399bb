"""MLflow: a server, or a database in the current folder (MLFLOW_TRACKING_URI; by default sqlite:///mlflow.db)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib import metadata

from vivace.training.recording.trackers.backend import PROJECT, Status, Tracked, TrackedRun

__all__ = ["MlflowBackend"]

STATUSES: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# what a request may hold, and a value
MAX_PARAMS, MAX_CHARACTERS = 100, 6000


class MlflowBackend:
    """A run of the experiment "vivace", or of MLFLOW_EXPERIMENT_NAME."""

    def start(self, run: TrackedRun) -> Tracked:
        # it reports its use to its makers by default
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # a server that is away is asked again for minutes by default
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow.tracking import MlflowClient

        # a page about the tables of a new database
        for name in ("mlflow.store.db", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        place = f"run {run.name!r} of experiment {name!r} in {self._client.tracking_uri}"
        if run.known_as is not None and self._continued(run.known_as):
            self._run_id = run.known_as
            return Tracked(run_id=self._run_id, place=place, is_continued=True)
        version = metadata.version("vivace")
        tags = {"mlflow.source.name": "vivace", "vivace.version": version, "vivace.run": str(run.folder)}
        created = self._client.create_run(self._experiment_id(name), run_name=run.name, tags=tags)
        self._run_id = created.info.run_id
        self._log_params(run)
        return Tracked(run_id=self._run_id, place=place, is_continued=False)

    def _continued(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # another run may have been faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log_params(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:MAX_CHARACTERS]) for name, value in run.params.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(
            self._run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def finish(self, figures: Mapping[str, float], step: int, status: Status) -> None:
        if figures:
            self.log(figures, step)
        self._client.set_terminated(self._run_id, status=STATUSES[status])
