"""The schema's defaults as a config file: the tests say the rest on the command line."""

from xception_jax.config import default as get_config

__all__ = ["get_config"]
