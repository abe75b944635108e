"""Leave the process of a worker as it was before a training function ran in it."""

import ctypes
import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil

# A process that a trial left has this long to handle SIGTERM before it is killed.
_TERMINATE_TIMEOUT_S = 2.0
# Processes of Python and torch that serve all trials, by a part of their command line.
_SHARED_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker")
# From linux/prctl.h: orphaned descendants become children of this process.
_PR_SET_CHILD_SUBREAPER = 36
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

# Reads a setting of the process, and writes it.
_Setting = tuple[Callable[[], Any], Callable[[Any], object]]


@contextmanager
def preserved_process(log: Callable[[str], None]) -> Iterator[None]:
    """Restore settings of this process at the end, and end the processes that were started meanwhile.

    Settings are the working folder, environment, standard streams, signal handlers and timers, locale, random states,
    logging, and the defaults of multiprocessing and torch. Nothing is restored outside of the main thread, which alone
    can set signal handlers. What an imported module keeps for itself is not restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _adopt_orphans()
    earlier = {child.pid for child in psutil.Process().children()}
    with ExitStack() as stack:
        stack.callback(_end_children, earlier, log)
        stack.enter_context(_preserved_settings())
        stack.enter_context(_preserved_streams())
        stack.enter_context(warnings.catch_warnings())
        yield


def _adopt_orphans() -> None:
    """Let the children of a child that ends become children of this process, where the system can do that."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_children(earlier: set[int], log: Callable[[str], None]) -> None:
    """End the children of this process that are not among the earlier ones, with their descendants."""
    children = [child for child in psutil.Process().children() if child.pid not in earlier]
    left = [process for child in children if not _is_shared(child) for process in _running_tree(child)]
    names = [process.name() for process in left]
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=_TERMINATE_TIMEOUT_S)[1]:
        with suppress(psutil.Error):
            process.kill()
    # Those that had ended are waited for, too.
    psutil.wait_procs([*children, *left], timeout=_TERMINATE_TIMEOUT_S)
    if names:
        log(f"ended what the training function had left running: {', '.join(names)}")


def _is_shared(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(part in " ".join(process.cmdline()) for part in _SHARED_PROCESSES)
    return False


def _running_tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants, without those that have ended."""
    with suppress(psutil.Error):
        tree = [process, *process.children(recursive=True)]
        return [each for each in tree if each.status() != psutil.STATUS_ZOMBIE]
    return []


@contextmanager
def _preserved_settings() -> Iterator[None]:
    settings = [*_SETTINGS, *_numpy_settings(), *_torch_settings()]
    saved = []
    for read, write in settings:
        # The working folder can have been deleted.
        with suppress(OSError):
            saved.append((read, write, read()))
    try:
        yield
    finally:
        _release_torch()
        for read, write, value in saved:
            with suppress(Exception):
                if _has_changed(read, value):
                    write(value)


def _has_changed(read: Callable[[], Any], value: Any) -> bool:  # noqa: ANN401 - of any type.
    try:
        return bool(read() != value)
    except (OSError, RuntimeError, TypeError, ValueError):
        # The working folder was deleted; arrays and tensors are not compared as a whole.
        return True


@contextmanager
def _preserved_streams() -> Iterator[None]:
    """Restore standard input, output and error: the descriptors, and the objects in `sys`."""
    copies = []
    for descriptor in range(3):
        with suppress(OSError):
            copies.append((descriptor, os.dup(descriptor)))
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    try:
        yield
    finally:
        for descriptor, copy in copies:
            os.dup2(copy, descriptor)
            os.close(copy)
        for descriptor, (name, stream) in enumerate(streams.items()):
            if stream is not None and stream.closed:
                mode = "r" if name == "stdin" else "w"
                stream = open(descriptor, mode, errors="backslashreplace", closefd=False)  # noqa: PLW2901, SIM115
            setattr(sys, name, stream)


def _release_torch() -> None:
    """Leave the process group, of which a process can have one, and free memory of the GPU that cycles hold."""
    torch = sys.modules.get("torch")
    with suppress(Exception):
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if torch is not None and torch.cuda.is_initialized():
            gc.collect()


def _write_environment(value: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _write_handlers(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        # None is a handler that was not installed by Python, and that of SIGKILL cannot be set.
        if handler is not None and number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, handler)


def _read_timers() -> list[tuple[float, float]]:
    return [signal.getitimer(timer) for timer in _TIMERS]


def _write_timers(values: list[tuple[float, float]]) -> None:
    for timer, value in zip(_TIMERS, values, strict=True):
        signal.setitimer(timer, *value)


def _write_logging(value: tuple[int, int, list[logging.Handler]]) -> None:
    logging.disable(value[0])
    logging.root.setLevel(value[1])
    logging.root.handlers[:] = value[2]


_SETTINGS: tuple[_Setting, ...] = (
    (os.getcwd, os.chdir),
    (lambda: dict(os.environ), _write_environment),
    (lambda: list(sys.argv), lambda value: sys.argv.__setitem__(slice(None), value)),
    (lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
    (lambda: (sys.excepthook, threading.excepthook), lambda value: _write_hooks(*value)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (_read_umask, os.umask),
    (_read_timers, _write_timers),
    (_read_handlers, _write_handlers),
    (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda value: signal.pthread_sigmask(signal.SIG_SETMASK, value),
    ),
    (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    (lambda: decimal.getcontext().copy(), decimal.setcontext),
    (random.getstate, random.setstate),
    (lambda: (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)), _write_logging),
    (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda value: multiprocessing.set_start_method(value, force=True),
    ),
)


def _write_hooks(excepthook: Any, thread_excepthook: Any) -> None:  # noqa: ANN401 - of any type.
    sys.excepthook, threading.excepthook = excepthook, thread_excepthook


def _numpy_settings() -> list[_Setting]:
    """Return the settings of NumPy, if it is imported."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return []
    return [(numpy.random.get_state, numpy.random.set_state), (numpy.geterr, lambda value: numpy.seterr(**value))]


def _torch_settings() -> list[_Setting]:
    """Return the settings of torch, if it is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    cudnn = torch.backends.cudnn
    settings: list[_Setting] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
        (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
        # The device None costs operations less than the CPU, which is the same.
        (torch.get_default_device, lambda value: torch.set_default_device(None if value.type == "cpu" else value)),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_initialized():
        settings.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return settings
