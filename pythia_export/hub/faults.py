"""What goes wrong on the way to the hub: tried again where it passes by itself, told as errors of ours where not."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from ..base.errors import PythiaExportError, ResourceError, SourceError
from ..base.progress import SILENT, Progress
from ..model.suite import suggestion

T = TypeVar("T")

ATTEMPTS = 6
UNREACHABLE_ATTEMPTS = 2  # a name that does not resolve or a refused connection seldom mends itself
LONGEST_WAIT = 310.0  # seconds: the hub counts requests in windows of five minutes
_PASSING = (408, 429, 500, 502, 503, 504)
_CUT = {"ChunkedEncodingError", "RemoteProtocolError", "ReadError", "ReadTimeout", "IncompleteRead"}
_WRITE_TOKEN = (
    "HF_TOKEN, or `hf auth login`, gives a token that may write there: https://huggingface.co/settings/tokens. "
    "The name's first half must be yours, or an organisation's that you belong to."
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def again(call: Callable[[], T], what: str, progress: Progress = SILENT) -> T:
    """What `call` returns. Faults that pass are tried again, after the wait that the hub asks for or a growing one."""

    def stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return state.attempt_number >= (ATTEMPTS if error is None or _answered(error) else UNREACHABLE_ATTEMPTS)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = None if error is None else _asked_to_wait(error)
        return min(LONGEST_WAIT, 0.5 * 2**state.attempt_number if asked is None else asked)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        seconds = state.next_action.sleep if state.next_action is not None else 0
        progress.note(f"{what}: {_first_line(error)}; trying again in {seconds:.0f} s")

    retrying = Retrying(retry=retry_if_exception(passes), stop=stop, wait=wait, before_sleep=tell, reraise=True)
    return retrying(call)


@contextmanager
def told(repo: str, revision: str, *, writing: bool = False) -> Iterator[None]:
    """What the client raises, as errors of ours that say what to do."""
    try:
        yield
    except PythiaExportError:
        raise
    except Exception as e:  # the client raises the errors of requests, httpx or httpx2, by its version
        if isinstance(e, OSError) and e.errno in _NO_SPACE:
            raise ResourceError(
                f"{repo} at {revision}: no space left for the download ({_first_line(e)})",
                hint="Free disk space, or point HF_HOME at a larger disk. What came so far is kept and resumed.",
            ) from e
        if isinstance(e, OSError) and isinstance(e.filename, str):
            raise SourceError(
                f"{repo} at {revision}: the cache cannot be used: {e.strerror}: {e.filename}",
                hint="Mend its permissions, or point HF_HOME at another folder.",
            ) from e
        if writing and _status(e) in (401, 403, 404):
            raise SourceError(f"{repo}: the hub refuses to be written ({_first_line(e)})", hint=_WRITE_TOKEN) from e
        raise SourceError(f"{repo} at {revision}: {_problem(e)}", hint=_hint(e, repo)) from e


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The chain, and errors that others hold: urllib3's `reason`, requests' first argument. Innermost first."""
    seen: list[BaseException] = []
    left = list(_chain(error))
    while left:
        one = left.pop(0)
        if one in seen:
            continue
        seen.append(one)
        left += [x for x in (getattr(one, "reason", None), *one.args) if isinstance(x, BaseException)]
        left += _chain(one.__cause__ or one.__context__)
    return reversed(seen)


def _status(error: BaseException) -> int | None:
    return next((status for e in _chain(error) if (status := _own_status(e)) is not None), None)


def _own_status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _cut(error: BaseException) -> bool:
    """A connection that broke after it had been made, or a body that ended too early."""
    return any(type(e).__name__ in _CUT or "Consistency check failed" in str(e) for e in _chain(error))


def _answered(error: BaseException) -> bool:
    return _status(error) is not None or _cut(error)


def passes(error: BaseException) -> bool:
    """Return whether a fault may be gone at the next try."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return False
    names = {base.__name__ for e in _chain(error) for base in type(e).__mro__}
    return _cut(error) or bool(names & {"ConnectionError", "Timeout", "TransportError"})


def _asked_to_wait(error: BaseException) -> float | None:
    """Seconds that a 429 or 503 names: `Retry-After`, or the `t=` of the hub's `RateLimit`."""
    for e in _chain(error):
        headers = getattr(getattr(e, "response", None), "headers", None)
        if headers is None:
            continue
        named = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", "")) or re.search(
            r"\bt=(\d+)", headers.get("RateLimit", "")
        )
        if named:
            return float(named[1])
    return None


def _problem(error: Exception) -> str:
    names = {
        "RepositoryNotFoundError": "no such repository, or it is private",
        "RevisionNotFoundError": "no such revision",
        "EntryNotFoundError": "a file is missing",
        "RemoteEntryNotFoundError": "a file is missing",
        "GatedRepoError": "access must be requested",
        "HFValidationError": "not the name of a repository",
    }
    known = next((names[type(e).__name__] for e in _chain(error) if type(e).__name__ in names), None)
    if known is None and _status(error) in (401, 403):
        known = "the hub refuses access"
    return f"{known} ({_first_line(error)})" if known else f"the hub cannot be read: {_first_line(error)}"


def _hint(error: Exception, repo: str) -> str:
    kinds = {type(e).__name__ for e in _chain(error)}
    if "RevisionNotFoundError" in kinds:
        return "Pythia's training checkpoints are branches: step0, step1, step2, ... step512, step1000, ... step143000."
    if "RepositoryNotFoundError" in kinds:
        return suggestion(repo)
    if "HFValidationError" in kinds:
        return "A repository is owner/name; a directory is read as a checkpoint where it exists."
    if "GatedRepoError" in kinds or _status(error) in (401, 403):
        return "HF_TOKEN, or `hf auth login`, gives a token that may read it: https://huggingface.co/settings/tokens."
    return "Check the connection and HF_ENDPOINT; what was pulled before is used with --offline."


def _first_line(error: BaseException | None) -> str:
    """What the hub answered, where the client wraps it in an error of its own."""
    answer = next((e for e in _chain(error) if _own_status(e) is not None), None)
    if answer is None:  # no answer: what the system said, which requests wraps in a page of its own objects
        answer = next((e for e in _causes(error) if isinstance(e, OSError) and e.strerror), error)
        if isinstance(answer, OSError) and answer.strerror:
            return answer.strerror
    return next(iter(str(answer).strip().splitlines()), type(answer).__name__)
