"""Creates, flattens, checks and compares configs.

A config file starts from `default()`, changes fields, and returns the config from `get_config()`.
The command line changes fields with `--config.FIELD=VALUE`.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from xception_jax.config.schema import ADDED, FIXED, HALF, SCHEMA
from xception_jax.errors import UsageError, nearest

# The values of fields that are missing in an older `config.json`: what runs did at that time.
_BEFORE: dict[str, Any] = {
    "data.image_size": 299, "data.eval_preset": "area", "data.eval_crop": 1.0, "data.exif": "on",
    "data.mean": HALF, "data.std": HALF, "data.white_level": 65_535, "data.folder_rules": 1,
    "model.matmul_precision": "default",
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
    """The inverse of `flatten`, for the content of `config.json`.

    If a field is missing, the config is of an older version, and the field gets its behaviour.
    """
    config = default()
    unknown(flat)
    config.update_from_flattened_dict(complete(flat))
    return config


def complete(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config with all fields; missing ones get the behaviour of older versions."""
    return {**flatten(default()), **_BEFORE, **flat}


def portable(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config for `config.json`, independent of the machine and of other extensions.

    `compilation_cache` is reset to its default: a `config.json` can come from someone else, and the
    programs in the cache are run. Added fields at their defaults are left out, unless the run's own
    model, optimizer or schedule has added them. So other extensions are not needed to read it.
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
    """Raises `UsageError` for the first name that is not a field."""
    for name in names:
        if name not in SCHEMA:
            raise UsageError(f"config has no field {name!r}{nearest(name, SCHEMA)}")


def check_fields(config: ConfigDict) -> None:
    """Checks every field separately; raises `UsageError`."""
    flat = flatten(config)
    unknown(flat)
    for name, field in SCHEMA.items():
        if name not in flat and name in ADDED:  # added later, see `add_missing`
            continue
        if name not in flat:
            raise UsageError(f"config has no {name}; start from xception_jax.config.default()")
        complaint = field.check(flat[name])
        if complaint:
            raise UsageError(f"config.{name} {complaint}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the fields in which two flat configs differ, in the schema's order."""
    names = [*SCHEMA, *(name for name in {**old, **new} if name not in SCHEMA)]
    return [name for name in names if _plain(old.get(name)) != _plain(new.get(name))]


def may_change(name: str, config: dict[str, Any]) -> bool:
    """Whether a field may change in a started run, because no step's result depends on it.

    Exceptions are the rounding of sums and, with `optimizer.microbatch`, the random dropout.

    Args:
      name: the field's name.
      config: flat. The duration may change if the learning rate does not depend on it.
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
    """Adds the fields that were registered after the config was created, with their defaults."""
    flat = flatten(config)
    with config.unlocked():
        for name in ADDED.keys() - flat.keys():
            section, _, field = name.partition(".")
            config[section][field] = SCHEMA[name].default
