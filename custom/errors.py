"""Errors that a user can mend, and how a bundle run reports them: the sentence last, not buried in tracebacks."""

import sys
from types import TracebackType


class UserError(ValueError):
    """Something the user can mend; the message names the file, the rule, what was found and what to do."""


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain: what MONAI wraps in `Failed to instantiate` and `applying transform`."""
    seen = {id(error)}
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(cause))
        error = cause
    return error


def report_errors() -> None:
    """From here on, let an uncaught error end in one sentence on stderr; a `UserError` without any traceback.

    The bundles' configs call it first of all in `run`.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    cause = root_cause(error)
    if not isinstance(cause, UserError):
        sys.__excepthook__(kind, error, traceback)
    sys.stderr.write(f"error: {cause or type(cause).__name__}\n")
