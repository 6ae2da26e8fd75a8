"""What the commands share: flags, help, and how errors end them.

Exit codes: 0 done; 2 bad usage, told in one line; 1 anything else.
"""

import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from xception_jax import allocator, cache
from xception_jax import config as config_lib
from xception_jax.errors import RunError, UsageError, nearest

_KEEP_MEMORY = flags.DEFINE_bool(
    "keep_freed_memory",
    True,
    "on CPU with glibc: keep freed memory in the process, in huge pages; a step takes up to a "
    "quarter less time, and the process as much memory as it ever used",
)


def run(main: Callable[[], None], doc: str) -> None:
    """Parses the flags, runs the command and ends the process.

    Args:
      main: the command; its flags are in `flags.FLAGS`.
      doc: the command's module docstring, shown by `--help` above the flags.
    """
    if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
        print(f"{doc.strip()}\n\nflags:\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
    # Orbax and TFDS tell of their every move at the level of INFO and WARNING.
    logging.set_verbosity(logging.ERROR)
    logging.set_stderrthreshold(logging.ERROR)

    def guarded(argv: Sequence[str]) -> None:
        if argv[1:]:
            fail(f"what is {argv[1]!r}? Flags start with --; see --help", 2)
        try:
            main()
        except UsageError as error:
            fail(error, 2)
        except RunError as error:
            fail(error, 1)

    app.run(guarded, flags_parser=_parse)


def settle_memory() -> None:
    """Does what `--keep_freed_memory` says; to be called before the first large array is made."""
    import jax

    if _KEEP_MEMORY.value and jax.default_backend() == "cpu":
        allocator.keep_freed_memory()


def compilation_cache() -> Path:
    """Where compiled programs are kept, so that a run that continues need not compile again.

    A folder for each host, since what is compiled for one CPU may not run on another.
    """
    return cache.folder() / "compiled" / platform.node()


def _with_underscores(arg: str) -> str:
    """`--data-dir=a-b` as `--data_dir=a-b`; what is no flag as it is."""
    name, equals, value = arg.partition("=")
    inner = re.sub(r"(?<=\w)-(?=\w)", "_", name)
    return inner + equals + value if arg.startswith("--") else arg


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags and the config; what cannot be parsed is told in one line, exit code 2.

    In the name of a flag, `-` is as good as `_`.
    """
    argv = [_with_underscores(arg) for arg in argv]
    for arg in argv[1:]:
        override = re.match(r"--?(?:no)?config\.([\w.]+)", arg)
        if override and override[1] not in config_lib.SCHEMA:
            fail(f"config has no field {override[1]!r}{nearest(override[1], config_lib.SCHEMA)}", 2)
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        # Around a ValueError of a config file absl puts its traceback; the reason is its last line.
        traced = any(line.startswith("Traceback") for line in lines)
        fail(lines[-1].partition(": ")[2] if traced else lines[0], 2)
    except Exception as error:  # a config file is a program and may raise anything
        fail(_where(error) + (str(error).strip().splitlines() or [type(error).__name__])[0], 2)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
        try:
            flags.FLAGS["config"].value.items()  # a file that is not there is only missed here
        except OSError as error:
            fail(f"the config file cannot be read: {str(error).splitlines()[-1].strip()}", 2)
    return rest


def _where(error: Exception) -> str:
    """The line of the config file that raised, as `configs/mine.py:12: `."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno}: " for frame in frames if frame.name == "get_config"]
    return lines[-1] if lines else ""


def fail(message: object, code: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
