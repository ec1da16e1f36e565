"""The process of a command: its standard streams, its interrupts, its exit code. No error of these is a traceback.

Importing the packages of a command takes a while. An interrupt in this time ends the process at once; inside
`interruptible`, it raises KeyboardInterrupt as usual. This file imports little, so that it is in control early.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

FAILED, WRONG, INTERRUPTED, TERMINATED = 1, 2, 130, 143

OUTPUT_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EBADF)
"""Errors of a standard output that cannot take more, such as a file on a full disk."""


def run(command: Callable[[], None]) -> None:
    """Run a command that ends with SystemExit, then exit."""
    _open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0  # the reader of standard output has closed it
    except OSError as error:
        code = output_failed(error)
    sys.exit(_flushed(code))


class interruptible:  # noqa: N801 - a context manager, as those of contextlib, which takes long to import
    """Inside this context an interrupt raises KeyboardInterrupt; before and after it, it ends the process."""

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is _end_at_once:
            signal.signal(signal.SIGINT, _end_at_once)


def output_failed(error: OSError) -> int:
    """Report that standard output could not be written, and return the exit code. Other errors are raised again."""
    if error.errno not in OUTPUT_ERRORS or error.filename is not None:
        raise error
    _discard(sys.stdout.fileno())
    try:
        print(f"polynya: cannot write to standard output: {error.strerror}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr.fileno())
    return FAILED


def _end_at_once(*_: object) -> None:
    os._exit(INTERRUPTED)


def _flushed(code: int) -> int:
    """Flush the output; an error of the flush at the end of the interpreter would be printed as a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout.fileno())
    except OSError as error:
        code = output_failed(error)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr.fileno())
    return code


def _discard(descriptor: int) -> None:
    """Let a standard descriptor lead nowhere, so that what is still buffered for it can be flushed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _open_standard_streams() -> None:
    """Open closed standard descriptors; otherwise a socket could get one and be read as standard input."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:
                return
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
