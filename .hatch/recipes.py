"""Puts a copy of configs/ into the wheel, as xception_jax/recipes."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Recipes(BuildHookInterface):
    """Of an editable install they would be stale copies, and hide that a checkout has moved."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["configs"] = "xception_jax/recipes"
