"""Log writers for Weights & Biases and MLflow. A continued run also continues there."""

import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from xception_jax.training.telemetry.writers import LogWriter, RunInfo, register

_PROJECT = "xception_jax"


@register("wandb", needs="wandb", install="xception_jax[wandb]")
class WandbWriter(LogWriter):
    """Weights & Biases, configured by its environment variables (WANDB_MODE, WANDB_PROJECT etc.).

    The step is logged as a metric: W&B ignores repeated values of its own step after a kill.
    """

    def __init__(self, info: RunInfo):
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=info.workdir.name,
            id=info.recall("wandb", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=info.workdir,
            config=dict(info.config),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",  # do not capture the run's output
                silent=True,
                finish_timeout=50,
                x_transaction_log_flush_interval=1.0,  # seconds of data lost by a kill, offline
            ),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.place = str((not self._run.offline and self._run.url) or info.workdir / "wandb")

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in metrics.items()} | {"step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@register("mlflow", needs="mlflow", install="xception_jax[mlflow]")
class MlflowWriter(LogWriter):
    """MLflow: the server at MLFLOW_TRACKING_URI, else files in `workdir/mlruns`."""

    def __init__(self, info: RunInfo):
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # Without this, MLflow 3.17 refuses files. One run does not need a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (info.workdir / "mlruns").absolute().as_uri()
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._id = info.recall("mlflow", lambda: self._new_run(info))
        self._client.update_run(self._id, status="RUNNING")
        self.place = uri

    def _new_run(self, info: RunInfo) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        run: Any = self._client.create_run(experiment, run_name=info.workdir.name).info
        params = [Param(key, str(value)) for key, value in info.config.items()]
        for first in range(0, len(params), 100):  # MLflow's limit per call
            self._client.log_batch(run.run_id, params=params[first : first + 100])
        return str(run.run_id)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(f"{kind}/{name}", value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
