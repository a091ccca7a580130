"""What a user can cause, one class an exit code. A message says what was found, what was expected and where;
`hint` says what to do next."""

from __future__ import annotations

EXIT_GATE = 10  # a gate of the recipe failed: a verdict, not an error


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
