"""The one kind of error that is a person's to mend, and how a command ends because of it.

Raise :class:`UserError` with one sentence that names the file, the value and the way out. A command wrapped in
:func:`run_command` prints it without a traceback and exits with 2; a notebook shows the same single line.
"""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 75  # EX_TEMPFAIL, of a training that SIGTERM stopped at a checkpoint: the same command goes on from there


class Interrupted(SystemExit):
    """A training that was asked to stop (SIGTERM) and has written its checkpoint; a process that it ends exits with 75."""

    def __init__(self, message: str):
        super().__init__(INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserError(ValueError):
    """Something outside the program has to change; the message says what happened, the value and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks an exception for its own rendering: in a notebook, too, a mistake is one line."""
        return [f"{type(self).__name__}: {self}"]


def run_command(main: Callable[[], int | None]) -> None:
    """Run ``main`` as a process: exit 0, or what it returns; 2 with one line for a person's mistake; 75 where a
    training was asked to stop and can be continued; 130 on Ctrl-C."""
    threading.excepthook = _thread_failed
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _complain(error)
    except FileNotFoundError as error:
        code = _complain(f"{error.filename}: no such file or folder" if error.filename else error)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stdout = None
        code = 0
    except OSError as error:
        if not _disk_is_full(error):
            raise
        code = _complain(f"{error.filename or 'the output folder'}: the disk is full; free some space and run the same command again")
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        code = INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


def _disk_is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A full disk that a background thread (TensorBoard's) meets is said by the main one, in one line."""
    if not _disk_is_full(failure.exc_value):
        threading.__excepthook__(failure)


def _complain(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
