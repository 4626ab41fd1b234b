"""Why a sweep ends early, and the exit code that says so."""

from __future__ import annotations

from enum import IntEnum

from cadloc.contract import CadlocError, InputError, MissingSystemLibrary


class ExitCode(IntEnum):
    """What the command line answers: one number per kind of ending."""

    FINISHED = 0
    INTERNAL = 1
    BAD_INPUT = 2
    TRIALS_FAILED = 3
    INTERRUPTED = 4
    UNREACHABLE = 5
    STATE_CORRUPT = 6
    LOCKED = 7
    OUT_OF_RESOURCES = 8


class SweepError(CadlocError):
    """A sweep cannot start or go on; `exit_code` says which kind of reason."""

    exit_code = ExitCode.INTERNAL


class ExecutorUnreachable(SweepError):
    """The cluster does not answer."""

    exit_code = ExitCode.UNREACHABLE


class StateCorrupt(SweepError):
    """What is on disk about this sweep contradicts itself and cannot be put right from the trials' results."""

    exit_code = ExitCode.STATE_CORRUPT


class SweepLocked(SweepError):
    """Another living process drives this sweep."""

    exit_code = ExitCode.LOCKED


class OutOfResources(SweepError):
    """The disk is full, or a trial asks for more than the executor has."""

    exit_code = ExitCode.OUT_OF_RESOURCES


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of an error that ended the program."""
    match error:
        case InputError():
            return ExitCode.BAD_INPUT
        case MissingSystemLibrary():
            return ExitCode.UNREACHABLE
        case SweepError():
            return error.exit_code
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.INTERNAL
