"""The recipes by name: `imagenet`, `digits`, `finetune`.

Each is a config file in `configs/` beside this package, for reading and copying. A wheel has them
in this folder.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from xception_jax.errors import UsageError, nearest


def _folder() -> Path:
    here = Path(__file__).parent
    return here if (here / "imagenet.py").is_file() else here.parents[1] / "configs"


def names() -> list[str]:
    """The names of the recipes."""
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")


def path(name: str) -> Path:
    """The config file of a recipe.

    Raises:
      UsageError: there is no recipe of that name.
    """
    if name not in names():
        raise UsageError(
            f"no recipe {name!r}{nearest(name, names()) or ';'} There are: {', '.join(names())}; "
            f"for a config file of your own give its path, as ./{name}.py"
        )
    return _folder() / f"{name}.py"


def module(name: str) -> ModuleType:
    """A new import of a recipe's module; raises `UsageError` if there is no recipe of that name."""
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", path(name))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load(name: str, variant: str | None = None) -> ConfigDict:
    """The config of a recipe.

    Args:
      name: the recipe, see `names`.
      variant: for recipes with several variants, as `residual/without` of `experiments`.

    Raises:
      UsageError: there is no such recipe or variant.
    """
    get_config = module(name).get_config
    return get_config() if variant is None else get_config(variant)
