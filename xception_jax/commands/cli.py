"""Shared by the commands: flags, help, and error handling.

Exit codes: 0 done; 2 bad usage, reported in one line; 130 Ctrl-C; 1 anything else.
"""

import gc
import inspect
import io
import itertools
import os
import platform
import re
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from xception_jax import recipes
from xception_jax.config import overrides
from xception_jax.errors import RunError, UsageError, of_system
from xception_jax.runtime import allocator, cache, ending, interrupts
from xception_jax.utils import imports, paths
from xception_jax.utils.text import printable, shell_join


class _PathParser(flags.ArgumentParser[Any]):
    """Parses a flag with a path. URLs with allowed schemes stay text."""

    def __init__(self, allowed: tuple[str, ...] = ()):
        super().__init__()
        self._allowed = allowed

    def parse(self, argument: Any) -> Any:
        """A `Path`, or the URL; raises `UsageError`, a `ValueError`, which absl reports."""
        path = paths.expanded(argument, self._allowed)
        return argument if "://" in str(argument) else path

    def flag_type(self) -> str:
        return "path"


class _WeightsParser(_PathParser):
    """Parses a flag with a path of weights, or their name, see `weights.remote`."""

    def parse(self, argument: Any) -> Any:
        """The name as it is, or a `Path`."""
        return argument if paths.is_weights_name(str(argument)) else super().parse(argument)

    def flag_type(self) -> str:
        return "path or name of weights"


# For `flags.DEFINE`. TFDS can read data from a bucket; all other paths are on a file system.
PATH = _PathParser()
WEIGHTS = _WeightsParser()
DATA_PATH = _PathParser(paths.BUCKETS)

_KEEP_MEMORY = flags.DEFINE_bool(
    "keep_freed_memory",
    True,
    "on CPU with glibc: keep freed memory in the process, in huge pages; a step takes up to a "
    "quarter less time, but the process never returns memory",
)


_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, in a run of several processes; by default the cluster's environment "
    "names it (Cloud TPU, GKE, SLURM, Open MPI)",
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "number of processes of the run, with --coordinator; without --coordinator, fail unless the "
    "environment names this number",
)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "number of this process, from 0 on, with --coordinator"
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "--nodistributed: run alone and ignore the environment; --distributed: join the environment's "
    "cluster, even one of a single process, and fail if there is none",
)


IMPORTS = flags.DEFINE_list(
    "imports",
    [],
    "your Python files or modules to import first, separated by commas: they register models, "
    "data sources, other parts, or TFDS builders; their code is run",
)

HELP = frozenset(("--help", "-h", "-help", "--helpshort"))

# The config fields that the command line sets, see `overrides`.
_CHANGES: dict[str, Any] = {}
_takes_changes = False


def define_config() -> flags.FlagHolder[Any]:
    """Defines the flag `--config`; a command that has it declares it as its own.

    `--config.FIELD=VALUE` changes its fields. `_parse` reads these flags, because ml_collections
    cannot unset a field; so ml_collections gets an empty command line.
    """
    flag: flags.FlagHolder[Any] = config_flags.DEFINE_config_file(
        "config",
        None,
        f"the config file, or a recipe by name ({', '.join(recipes.names())}); change its fields "
        f"with --config.FIELD=VALUE",
        sys_argv=[],
    )
    return flag


def take_changes() -> None:
    """Makes a command without `--config` take `--config.FIELD=VALUE`, see `changes`."""
    global _takes_changes
    _takes_changes = True


def changes() -> dict[str, Any]:
    """The config fields that the command line sets, by name."""
    return dict(_CHANGES)


# Flags of the commands that train or evaluate, which declare them as their own.
SHARED_FLAGS = (
    IMPORTS.name, "keep_freed_memory", "coordinator", "num_processes", "process_id", "distributed",
)  # fmt: skip


def run(command: ModuleType) -> NoReturn:
    """Parses the flags, runs a command and ends the process.

    Args:
      command: the command's module. Its `main` runs, with the arguments that are not flags if it
        has a parameter; `--help` shows its docstring and flags.
    """
    if HELP & set(sys.argv[1:]):
        print(f"{(command.__doc__ or '').strip()}\n\nflags:\n{flags.FLAGS.module_help(command)}")
        sys.exit(0)
    sys.excepthook = _show_traceback
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # LC_ALL=C cannot encode every name
            stream.reconfigure(errors="backslashreplace")
    # Orbax and TFDS log every operation at the levels INFO and WARNING.
    logging.set_verbosity(logging.ERROR)
    logging.set_stderrthreshold(logging.ERROR)

    takes_arguments = bool(inspect.signature(command.main).parameters)
    if takes_arguments:  # flags may stand after them
        flags.FLAGS.set_gnu_getopt()

    def guarded(argv: Sequence[str]) -> None:
        if argv[1:] and not takes_arguments:
            fail(f"unexpected argument {argv[1]!r}; flags start with --, see --help", 2)
        try:
            command.main(*([argv[1:]] if takes_arguments else []))
            sys.stdout.flush()
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _output_is_closed():
                sys.exit(128 + signal.SIGPIPE)  # as other programs before `| head`
            _end(error)

    with interrupts.ends("interrupted"):
        app.run(guarded, flags_parser=_parse)
    raise AssertionError("absl ends the process")


def _output_is_closed() -> bool:
    """Whether the reader of standard output is gone; then nothing more is written to it."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _end(error: Exception) -> NoReturn:
    """Ends the process and its run with one line; re-raises an error that needs a traceback."""
    code = 2 if isinstance(error, UsageError) else 1
    line = _with_lines(error) if isinstance(error, (UsageError, RunError)) else _line_of(error)
    if ending.watched() and not getattr(error, "raised_by_all", False):
        reason = (str(error).strip().splitlines() or [""])[0]
        lost = line is None and type(error).__name__ == "JaxRuntimeError"
        if lost:
            line = f"lost the other processes of this run, one of which may have ended: {reason}"
        elif line is None:
            _show_traceback(type(error), error, error.__traceback__)
            line = f"{type(error).__name__}: {reason}"
        ending.for_all(line, code, lost=lost)
    if line is None:
        raise error
    fail(line, code)


def _line_of(error: Exception) -> str | None:
    """The line for an error that is not a bug: a system error, or a lack of memory."""
    from xception_jax.utils import retry

    if retry.out_of_device_memory(error):
        return _out_of_memory(retry.wanted_memory(error))
    # With several processes the others show no traceback, so the line must be enough.
    if isinstance(error, OSError) and (retry.fault(error) or ending.watched()):
        return of_system(error)
    return None


def _out_of_memory(wanted: str) -> str:
    """The line for a lack of device memory, with the command that finds a batch that fits."""
    import jax

    from xception_jax.planning.tpu import chips

    kind, count = jax.local_devices()[0].device_kind, jax.device_count()
    slices = f"--topology={chips.like(kind, count)}"
    fit = ["python", "-m", "xception_jax.plan", *_config_arguments(), slices]
    return (
        f"out of memory on {kind}{f': {wanted}' if wanted else ''}; lower config.data.batch_size "
        f"or config.optimizer.microbatch, or set config.model.remat=True (evaluate: lower "
        f"--batch_size); for a TPU, {shell_join([*fit, '--fit'])} finds the largest batch"
    )


def settle(*, by_itself: bool = True) -> None:
    """Applies the shared flags. Call it after all imports, and before JAX finds its devices.

    Args:
      by_itself: join a cluster that only the environment names.
    """
    import jax

    from xception_jax.runtime import cluster

    cluster.join(
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        required=_DISTRIBUTED.value,
        by_itself=by_itself,
    )
    if _KEEP_MEMORY.value and jax.default_backend() == "cpu":
        allocator.keep_freed_memory()
    # The imports have made a million objects that stay: the garbage collector need not see them. A
    # start takes 6 % less processor time.
    gc.freeze()


def keep_compiled(asked: str = "") -> None:
    """Makes JAX store compiled programs, so that a resumed run does not compile again.

    They are native code, which JAX runs without checks. So they come from a folder that only the
    user can write to: never from one that a run's `config.json` names, nor from one beside a run.

    Args:
      asked: `compilation_cache` of a config that the user gave. The environment variable
        `JAX_COMPILATION_CACHE_DIR` overrides it.

    Raises:
      UsageError: other users can write to the requested folder. If they can write to the default
        folder, a note says so, and programs are not stored.
    """
    import jax

    if asked == "none":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            named = asked and paths.local("config.compilation_cache", asked)
            top = folder = named or cache.folder() / "compiled"
            if jax.default_backend() == "cpu":
                # A program compiled for one CPU may not run on another.
                folder /= platform.node()
            jax.config.update("jax_compilation_cache_dir", str(cache.make_private(folder)))
            cache.remove_old_programs(top)
        except UsageError as error:
            if asked:
                raise UsageError(f"config.compilation_cache: {error}") from None
            print(
                f"NOTE: compiled programs are not kept: {printable(error)}; to keep them, name a "
                f"folder that only you can write to: XDG_CACHE_HOME=FOLDER for all commands, or "
                f"--config.compilation_cache=FOLDER in training",
                file=sys.stderr,
            )


def _with_underscores(arg: str) -> str:
    """`--data-dir=a-b` as `--data_dir=a-b`; other arguments unchanged."""
    name, equals, value = arg.partition("=")
    inner = re.sub(r"(?<=\w)-(?=\w)", "_", name)
    return inner + equals + value if arg.startswith("--") else arg


def _with_recipes(argv: Sequence[str]) -> list[str]:
    """Replaces the name of a recipe by its path, in `--config=NAME:VARIANT`."""
    found = list(argv)
    for place, arg in enumerate(argv):
        flag, equals, value = arg.partition("=")
        if flag not in ("--config", "-config") or not (equals or place + 1 < len(argv)):
            continue
        name, colon, variant = (value if equals else argv[place + 1]).partition(":")
        if re.fullmatch(r"[A-Za-z]\w*", name):
            value = f"{recipes.path(name)}{colon}{variant}"
            found[place if equals else place + 1] = f"{flag}={value}" if equals else value
    return found


def _by_name() -> str:
    """A hint if a missing config file has the name of a recipe; else empty."""
    flag: Any = flags.FLAGS["config"]
    name = Path(flag.config_filename.partition(":")[0]).stem
    return f"; --config={name} takes the recipe of that name" if name in recipes.names() else ""


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags and the config; errors are reported in one line, exit code 2.

    In the name of a flag, `-` means `_`.
    """
    argv = [_with_underscores(arg) for arg in argv]
    try:
        argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
        # First the files that may add fields to the schema: those of --imports, and the imports of
        # the config file, which may be in its folder.
        argv = _parse_first("imports", argv)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # builders of TFDS import TensorFlow
        imports.load(IMPORTS.value)
        if "config" in flags.FLAGS:
            argv = _parse_first("config", _with_recipes(argv))
        if "config" in flags.FLAGS or _takes_changes:
            argv, given = overrides.take(argv)
            _CHANGES.update(given)
        rest = flags.FLAGS(list(argv))
    except UsageError as error:
        fail(error, 2)
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        # absl adds the traceback to a ValueError of a config file; the last line is the reason.
        traced = any(line.startswith("Traceback") for line in lines)
        fail(lines[-1].partition(": ")[2] if traced else lines[0], 2)
    except Exception as error:  # a config file is a program and may raise anything
        fail(_where(error) + (str(error).strip().splitlines() or [type(error).__name__])[0], 2)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
        config = flags.FLAGS["config"].value
        try:
            config.items()  # reads the file; only here a missing file raises
            overrides.apply(config, _CHANGES)
        except OSError as error:
            reason = str(error).splitlines()[-1].strip()
            fail(f"the config file cannot be read: {reason}{_by_name()}", 2)
        except UsageError as error:
            fail(_with_lines(error), 2)
    return rest


def _parse_first(name: str, argv: Sequence[str]) -> list[str]:
    """Parses one flag of the arguments; returns the others."""
    own, rest = [], list(argv[:1])
    others = iter(argv[1:])
    for arg in others:
        flag, equals, _ = arg.partition("=")
        if arg == "--":
            rest += [arg, *others]
        elif flag not in (f"--{name}", f"-{name}"):
            rest.append(arg)
        else:
            own += [arg] if equals else [arg, *itertools.islice(others, 1)]
    if name == "config" and own:
        value = own[-1].partition("=")[2] if own[-1].startswith("-") else own[-1]
        imports.find_beside(Path(value.partition(":")[0]))
    flags.FLAGS([*argv[:1], *own])
    return rest


def _config_arguments() -> list[str]:
    """The config of this command and its changes, as arguments for another command."""
    if "config" not in flags.FLAGS or not flags.FLAGS["config"].present:
        return ["--config=CONFIG"]
    flag: Any = flags.FLAGS["config"]
    changes = [f"--config.{name}={value}" for name, value in _CHANGES.items()]
    imported = [f"--imports={','.join(IMPORTS.value)}"] if IMPORTS.value else []
    return [*imported, f"--config={flag.config_filename}", *changes]


def _with_lines(error: Exception) -> str:
    """The error, with the lines of the config file that set the fields in its message."""
    if "config" not in flags.FLAGS or not flags.FLAGS["config"].present:
        return str(error)
    flag: Any = flags.FLAGS["config"]
    path = flag.config_filename.partition(":")[0]
    return overrides.told_where(str(error), path, list(_CHANGES))


def _where(error: Exception) -> str:
    """The line of the config file, or of its imports, that raised: `configs/mine.py:12: `."""
    frames = traceback.extract_tb(error.__traceback__)
    for name in ("get_config", "<module>"):
        for frame in reversed(frames):
            if frame.name == name:
                return f"{frame.filename}:{frame.lineno}: "
    return ""


def fail(message: object, code: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As Python's own, with control characters escaped: messages may quote untrusted text."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printable(text, keep="\n\t"), end="", file=sys.stderr)
