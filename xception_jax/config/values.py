"""Configs and their values: made, flattened, checked by the schema, and compared.

A config file starts from `default()`, changes what it wants, and returns it from `get_config()`.
The command line changes fields further with `--config.FIELD=VALUE`.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from xception_jax.config.schema import ADDED, FIXED, SCHEMA
from xception_jax.errors import UsageError, nearest

# What a `config.json` means that was written before a field was there: what runs did then.
_BEFORE: dict[str, Any] = {
    "data.image_size": 299, "data.eval_preset": "area", "data.eval_crop": 1.0, "data.exif": "on",
    "data.white_level": 65_535, "data.folder_rules": 1, "model.matmul_precision": "default",
}  # fmt: skip


def default() -> ConfigDict:
    """A config with every field at its default, locked against misspelt names."""
    nested: dict[str, Any] = {}
    for path, field in SCHEMA.items():
        *sections, name = path.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        unset = field.default is None
        section[name] = config_dict.placeholder(field.kind) if unset else field.default
    return ConfigDict(nested).lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The config as `{"data.batch_size": 64, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def from_flat(flat: dict[str, Any]) -> ConfigDict:
    """The inverse of `flatten`, for a complete config such as `config.json` holds.

    Where one lacks a field, it is of an older version, and gets what that did.
    """
    config = default()
    unknown(flat)
    config.update_from_flattened_dict(complete(flat))
    return config


def complete(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config with all fields; one of an older version gets what that version did."""
    return {**flatten(default()), **_BEFORE, **flat}


def portable(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config as `config.json` holds it, for any machine and any program.

    The fields of one machine are at their defaults: a `config.json` may be a stranger's, and what
    lies in the compilation cache is run. Added fields at their defaults are left out, unless the
    run's own model or optimizer has added them: without the others it can be read.
    """
    owners = {
        f"{kind} {flat.get(field)}"
        for kind, field in (
            ("model", "model.name"), ("optimizer", "optimizer.name"),
            ("schedule", "optimizer.schedule"),
        )
    }  # fmt: skip
    used = {
        name: value
        for name, value in flat.items()
        if name not in ADDED
        or ADDED[name] in owners
        or _plain(value) != _plain(SCHEMA[name].default)
    }
    return {**used, "compilation_cache": SCHEMA["compilation_cache"].default}


def unknown(names: Any) -> None:
    """Raises `UsageError` for the first name that is no field."""
    for name in names:
        if name not in SCHEMA:
            raise UsageError(f"config has no field {name!r}{nearest(name, SCHEMA)}")


def check_fields(config: ConfigDict) -> None:
    """Checks every field by itself; raises `UsageError`."""
    flat = flatten(config)
    unknown(flat)
    for name, field in SCHEMA.items():
        if name not in flat and name in ADDED:  # since the config was made, see `add_missing`
            continue
        if name not in flat:
            raise UsageError(f"config lacks {name}; start from xception_jax.config.default()")
        complaint = field.check(flat[name])
        if complaint:
            raise UsageError(f"config.{name} {complaint}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the fields in which two flat configs differ, in the schema's order."""
    names = [*SCHEMA, *(name for name in {**old, **new} if name not in SCHEMA)]
    return [name for name in names if _plain(old.get(name)) != _plain(new.get(name))]


def may_change(name: str, config: dict[str, Any]) -> bool:
    """Whether a field may differ in a run that has begun: no step's result depends on it.

    (But for the rounding of sums and, with `optimizer.microbatch`, the dropout's draws.)

    Args:
      name: of the field.
      config: flat. The duration may change where the learning rate does not depend on it.
    """
    held = {
        fixed
        for (field, choice), fields in FIXED.items()
        if config.get(field) == choice
        for fixed in fields
    }
    return name in SCHEMA and SCHEMA[name].harmless and name not in held


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def add_missing(config: ConfigDict) -> None:
    """Gives a config the fields, at their defaults, that were added after it was made."""
    flat = flatten(config)
    with config.unlocked():
        for name in ADDED.keys() - flat.keys():
            section, _, field = name.partition(".")
            config[section][field] = SCHEMA[name].default
