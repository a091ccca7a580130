"""What a user can cause, one class an exit code. A message says what was found, what was expected and where;
`hint` says what to do next."""

from __future__ import annotations

EXIT_GATE = 10  # a gate of the recipe failed: a verdict, not an error
EXIT_SWEEP = 11  # jobs of a sweep are left
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# Every exit code of the command line; docs/reference/exit-codes.md has the same table, with what belongs to each.
EXIT_CODES = {
    0: "done",
    1: "a fault of this program",
    2: "usage or recipe",
    3: "source",
    4: "integrity",
    5: "numerics",
    6: "environment",
    7: "resources",
    8: "output",
    EXIT_GATE: "gate",
    EXIT_SWEEP: "a sweep with jobs left",
    75: "interrupted between layers",
    EXIT_INTERRUPTED: "interrupted",
    143: "ended by SIGTERM",
}


class PythiaExportError(Exception):
    """Base of every error that the command line prints without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RecipeError(PythiaExportError):
    """Usage or recipe: an unknown key, a value out of range, a name that does not resolve."""

    exit_code = 2


class SourceError(PythiaExportError):
    """The checkpoint or the text is missing, unreachable, or not what it says."""

    exit_code = 3


class IntegrityError(PythiaExportError):
    """Bytes that contradict their own description: truncated, wrong shape, wrong hash."""

    exit_code = 4


class NumericsError(PythiaExportError):
    """A NaN, an infinity, a Hessian that no allowed damping makes positive definite."""

    exit_code = 5


class EnvironmentProblem(PythiaExportError):
    """A package that is missing, doubled or of the wrong version."""

    exit_code = 6


class ResourceError(PythiaExportError):
    """Not enough memory or disk."""

    exit_code = 7


class OutputError(PythiaExportError):
    """The output directory exists, is read-only or is a link."""

    exit_code = 8


class Interrupted(PythiaExportError):
    """Ctrl-C, after the layer at hand was finished: what is done is kept, and `--resume` goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
