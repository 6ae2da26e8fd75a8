"""The decisions of a fine-tuning: made once, kept in its folder, and used whenever it continues."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.config.fields import Duration
from xception_jax.data import parts, splits
from xception_jax.errors import RunError, UsageError
from xception_jax.finetuning import choice, gathering
from xception_jax.training.checkpoint import manifest
from xception_jax.training.trained import Trained
from xception_jax.utils import seal
from xception_jax.utils.files import write_atomically

NAME = "finetune.json"


@dataclass(frozen=True)
class Decisions:
    """What a fine-tuning does.

    Attributes:
      dataset: the config's `data.dataset`.
      weights: the initial weights, as the user named them.
      folds: of a cross-validation; 0: none.
      given: config fields that the user set.
      fields: all config fields that are not at their defaults, with `given`.
      reasons: lines about the data and about each choice.
      test: the split that is read once, at the end; empty: there is none.
      digest: see `gathering.digest`, of the weights.
      result: of the finished fine-tuning; None before.
      settings: `settings_of` the run of the result; empty before.
      checkpoint: `best_checkpoint` of the result; empty before.
      readings: how often the test set was read.
    """

    dataset: str
    weights: str
    folds: int
    given: Mapping[str, Any]
    fields: Mapping[str, Any]
    reasons: tuple[str, ...]
    test: str
    digest: str = ""
    result: Mapping[str, Any] | None = None
    settings: str = ""
    checkpoint: str = ""
    readings: int = 0
    version: int = field(default=1)

    def config(self, fold: int = 0) -> ConfigDict:
        """The config of the run, or of the run of a fold."""
        config = config_lib.default()
        changes = {**self.fields, "data.fold": fold} if self.folds else dict(self.fields)
        config.update_from_flattened_dict(changes)
        return config


def settings_of(config: ConfigDict, *further: Any) -> str:
    """A SHA-256, in hexadecimal, of a config and of further JSON."""
    fields = config_lib.portable(config_lib.flatten(config))
    return hashlib.sha256(seal.canonical([fields, *further]).encode()).hexdigest()


def best_checkpoint(workdir: Path) -> str | None:
    """The step and a digest of a run's best checkpoint.

    None: there are no checkpoints. Empty: one is damaged, or none was evaluated.
    """
    if not manifest.steps(workdir / "checkpoints"):
        return None
    try:
        trained = Trained.find(workdir, "best")
    except (RunError, UsageError):  # training moves a damaged one away, and says what is wrong
        return ""
    digests = seal.canonical(trained.meta.digests)
    return f"{trained.step} {hashlib.sha256(digests.encode()).hexdigest()}"


def decide(dataset: str, weights: str, folds: int, given: Mapping[str, Any]) -> Decisions:
    """Makes the decisions.

    Args:
      dataset: a config's `data.dataset`.
      weights: a name or a file.
      folds: of a cross-validation; 0: none.
      given: config fields that the user sets.

    Raises:
      UsageError: the data, the weights or a field is not valid.
      RunError: the weights cannot be downloaded.
    """
    config = config_lib.default()
    base = {"data.dataset": dataset, "init_from": weights, "data.folds": folds}
    config.update_from_flattened_dict({**base, **given})
    config_lib.check_fields(config)
    found = gathering.find_splits(config, given)
    config.update_from_flattened_dict({**found.fields, **given})
    train = splits.open_training(config)
    test = gathering.check_test(config, found.test)
    selecting = len(splits.open_split(config, config.data.eval_split))
    facts = gathering.data_facts(train)
    chosen = choice.choose(
        facts,
        gathering.machine_facts(given),
        gathering.weights_facts(weights, given),
        given,
    )
    by = f"{selecting:,} held out of training" if config.data.eval_split == parts.HELD_OUT else (
        f"the {selecting:,} of {config.data.eval_split!r}")  # fmt: skip
    line = (
        f"data: {facts.train:,} training pictures of {facts.classes:,} classes; {by} select the "
        f"checkpoint; {_told_end(found.test, test, folds)}"
    )
    fields = {**base, **found.fields, **chosen.fields, "init_from": gathering.pinned(weights)}
    if folds:
        fields = _in_steps(fields, facts.train)
    return Decisions(dataset, weights, folds, dict(given), fields,
                     (line, *map(str, chosen.reasons)), found.test,
                     gathering.digest(weights))  # fmt: skip


def _in_steps(fields: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The fields with the same number of steps in all folds, which then share a program."""
    size = {"batch_size": fields["data.batch_size"], "epoch": epoch}
    return fields | {
        name: f"{Duration.parse(fields[name]).steps(**size)} steps"
        for name in ("duration", "optimizer.warmup")
    }


def _told_end(test: str, count: int, folds: int) -> str:
    if folds:
        return f"each of {folds} folds is predicted by a model that has not seen it"
    if test:
        return f"the {count:,} of {test!r} are read once, at the end"
    return "there is no test set, so they also measure the result"


def read(workdir: Path) -> Decisions | None:
    """The decisions of the fine-tuning in a folder; None: there are none.

    Raises:
      UsageError: the file is damaged.
    """
    path = workdir / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        stored_fields = seal.parse(text)
        seal.check(stored_fields)
        del stored_fields[seal.NAME]
        found = Decisions(**stored_fields)
        fields, given = (_with_tuples(one) for one in (found.fields, found.given))
        stored = replace(found, fields=fields, given=given, reasons=tuple(found.reasons))
        stored.config()
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged: {reason}; use another --workdir") from None
    return stored


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they are in a config: JSON has lists for tuples."""
    config_lib.unknown(fields)
    return {key: tuple(value) if isinstance(value, list) else value
            for key, value in fields.items()}  # fmt: skip


def write(workdir: Path, decisions: Decisions) -> None:
    """Keeps the decisions, if they are not kept; raises `UsageError` if that is not possible."""
    if read(workdir) == decisions:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(seal.sealed(asdict(decisions)), indent=1, allow_nan=False)
        write_atomically(workdir / NAME, f"{text}\n")
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def settle(
    workdir: Path, dataset: str, weights: str, folds: int, given: Mapping[str, Any]
) -> tuple[Decisions, bool]:
    """The decisions of a fine-tuning that begins or continues; see `decide`.

    Returns:
      The decisions, and whether they were made before.

    Raises:
      UsageError: the folder has another run, or a field cannot be changed in a run that has begun.
    """
    stored = read(workdir)
    begun = any(manifest.steps(one / "checkpoints") for one in (workdir, *workdir.glob("fold*")))
    begun |= stored is not None and stored.result is not None
    if stored is None and begun:
        raise UsageError(f"{workdir} has a run that finetune did not start; use another --workdir")
    if stored is not None:
        same = (stored.dataset, stored.weights, stored.folds) == (dataset, weights, folds)
        if begun and not same:
            of = f" of {stored.folds} folds" if stored.folds else ""
            raise UsageError(
                f"{workdir} has a fine-tuning{of} on {stored.dataset} from {stored.weights}; use "
                f"another --workdir"
            )
        if same and (begun or stored.given == dict(given)):
            return _changed(workdir, stored, given), True
    decisions = decide(dataset, weights, folds, given)
    write(workdir, decisions)
    return decisions, False


def _changed(workdir: Path, stored: Decisions, given: Mapping[str, Any]) -> Decisions:
    """The decisions of a run, or of folds, that has begun, with what the user now gives.

    Raises:
      UsageError: a step depends on a field that is changed, or the test set would be read.
    """
    new = {name: value for name, value in given.items() if stored.given.get(name, ...) != value}
    if not new:
        return stored
    now = replace(stored, given={**stored.given, **new}, fields={**stored.fields, **new})
    config_lib.check_fields(now.config())
    before, after = (config_lib.flatten(one.config()) for one in (stored, now))
    changed = config_lib.differences(before, after)
    if refused := [name for name in changed if not config_lib.may_change(name, after)]:
        listed = ", ".join(f"{name} was {before[name]!r}, is {after[name]!r}" for name in refused)
        raise UsageError(
            f"{workdir} has a fine-tuning with another config: {listed}; leave that out, or use "
            f"another --workdir"
        )
    if "eval.also" in changed:
        gathering.check_test(now.config(), now.test)
    return now
