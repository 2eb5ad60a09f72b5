"""Errors that a user can mend, and how a bundle run reports them: the sentence last, not buried in tracebacks."""

import logging
import re
import sys
from collections.abc import Iterator
from types import TracebackType

_GO_ON = "a training goes on from its last checkpoint with --resume True"
_ADVICE = (
    (
        r"OutOfMemoryError|out of memory|not enough memory|can't allocate memory|MemoryError|STATUS_ALLOC_FAILED",
        "the memory is full: make batch_size, num_samples, roi_size or feature_size smaller, or let the activations be "
        "recomputed (--use_checkpoint True); in the host's memory, lower cache_rate or num_workers; on a "
        f"GPU half precision is the default already; {_GO_ON}",
    ),
    (
        r"DataLoader worker .*(exited unexpectedly|killed by signal)",
        "a data-loader worker was killed, most often because the host's memory is full: lower num_workers or "
        f"cache_rate, and ask the scheduler for more memory; {_GO_ON}",
    ),
    (
        r"Connection (closed|reset) by peer|[Gg]loo|NCCL|ProcessGroup|DistStoreError|DistNetworkError",
        "another process of this run has ended or does not answer: its own log, or the scheduler's, says why; all "
        f"processes must be started again together; {_GO_ON}",
    ),
)
"""What an error of torch looks like, and what a user can do; the first that fits, so the closer ones first."""


_OF_THE_ENGINES = r"(Engine|Current) run is terminating due to exception|Exception: "
_RAISED = r"(?ms)^(custom(?:\.\w+)+): (.*?)(?=\n\n(?:The above exception|During handling)|\Z)"
"""In a traceback: the class of an error of this project, and what it says."""


class UserError(ValueError):
    """Something the user can mend; the message names the file, the rule, what was found and what to do."""

    remedy = ""
    """What to do, where it is the same for many files: said once for all of them."""


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain: what MONAI wraps in `Failed to instantiate` and `applying transform`."""
    for item in chain_of(error):
        if isinstance(item, UserError):
            break
    return item


class OptionError(UserError):
    """An option that there is not, a value that is not of its kind, or a path that would not come as it was typed."""


class NumbersError(UserError):
    """Losses, gradients, weights or predictions that are not finite."""


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and so on to the first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def advice(error: BaseException) -> str:
    """What a user can do about an error of torch, by its words and those it was raised from; empty where unknown."""
    errors = [item for item in chain_of(error) if isinstance(item, RuntimeError | MemoryError)]
    text = "\n".join(f"{type(item).__name__}: {item}" for item in errors)
    return next((sentence for pattern, sentence in _ADVICE if re.search(pattern, text)), "")


def user_sentence(error: BaseException) -> str:
    """The sentence of the `UserError` behind an error; empty where there is none.

    Of an error in a data-loader worker torch hands on the text alone, its traceback in it.
    """
    from pydoc import locate  # there where something has failed

    for item in chain_of(error):
        if "in DataLoader worker process" in str(item):
            for name, sentence in re.findall(_RAISED, str(item)):
                if isinstance(kind := locate(name), type) and issubclass(kind, UserError):
                    return sentence.strip()
    cause = root_cause(error)
    return str(cause) if isinstance(cause, UserError) else ""


def report_errors() -> None:
    """From here on, let an uncaught error end in one sentence on stderr; a `UserError` without any traceback.

    Full memory and killed processes have a traceback, too, and a sentence with what helps. What the engines of MONAI
    and ignite log of a `UserError` on its way is left out of the log.

    The bundles' configs call it first of all in `run`.
    """
    sys.excepthook = _report
    engines = logging.getLogger("ignite.engine")
    engines.addHandler(_RELAY)
    engines.propagate = False


class _Relay(logging.Handler):
    """Pass on to the handlers of the root logger, to which MONAI adds some later, what is not told at the end."""

    def emit(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if error is None or not re.match(_OF_THE_ENGINES, record.getMessage()) or not user_sentence(error):
            logging.getLogger().handle(record)


_RELAY = _Relay()


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    cause = root_cause(error)
    sentence = user_sentence(error)
    if not sentence:
        sys.__excepthook__(kind, error, traceback)
        sentence = advice(error) or str(cause) or type(cause).__name__
    sys.stderr.write(f"error: {sentence}\n")
