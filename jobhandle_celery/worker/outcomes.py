"""What a run ends with, as one value: to be written, handed to another process, or made plainer.

May import store and below. A database may refuse an outcome for good: its text, its size, a constraint. The
body has run all the same, so the row ends, with words that the database takes and that say what was left out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from .. import internal_errors, text
from ..errors import DatabaseUnavailableError, SchemaError
from ..models import Failure
from ..store import Run, Store

logger = logging.getLogger(__name__)

SHORT = 200
"""Characters that are kept of a message when a database refuses the whole of it."""

Verb = Literal["finish", "fail", "retry", "stop", "give_back"]

_WORDS = {"fail": 0, "retry": 3, "stop": 0, "give_back": 0}
"""Which argument of a verb is words, or a `Failure`, which is words alone."""

_NO_WORDS = Failure("system", "OutcomeNotStored", "the error could not be stored")


@dataclass(frozen=True)
class Outcome:
    """A verb of the store that ends a run, and what the verb takes beside the run."""

    run: Run
    verb: Verb
    arguments: tuple[Any, ...]

    def write(self, store: Store) -> Any:
        """Write it, plainer if the database refuses it; return what the verb returns.

        Raises:
            DatabaseUnavailableError, SchemaError: not now; it may be written again, in any process.
            Exception: what the database says to the plainest.
        """
        outcome = self
        while True:
            try:
                return getattr(store, outcome.verb)(outcome.run, *outcome.arguments)
            except (DatabaseUnavailableError, SchemaError):
                raise
            except Exception as error:
                if internal_errors.is_bug(error) and not isinstance(
                    error, ValueError
                ):  # which may be about a text
                    internal_errors.report("writing an outcome", error, "a plainer one is tried")
                outcome = outcome.plainer(error)

    def plainer(self, error: Exception) -> "Outcome":
        """Return the next plainer form of an outcome that the database refused; log what it leaves out.

        Raises:
            Exception: the error that was given, if there is none.
        """
        refusal = text.ascii(_said_by(error))[:SHORT]
        plain, without = self._plainer(refusal)
        if plain == self:
            raise error
        logger.warning(
            "job %s: the database refused its outcome (%s), which is written %s: %s",
            self.run.job_id,
            self.verb,
            without,
            refusal,
        )
        return plain

    def _plainer(self, refusal: str) -> tuple["Outcome", str]:
        escaped = self._with_words(_escaped)
        if escaped != self:
            return escaped, "as ASCII"
        match self.verb:
            case "finish":
                said = f"the body returned, and its result could not be stored: {refusal}"
                return self._failed(Failure("system", "ResultNotStored", said)), "without its result"
            case "retry":
                said = f"the retry could not be stored: {refusal}"
                return self._failed(Failure("system", "RetryNotStored", said)), "as an Error"
            case "fail" if self._with_words(_cut) == self:
                return self._failed(_NO_WORDS), "without its words"
        return self._with_words(_cut), f"without a traceback, and cut at {SHORT} characters"

    def _with_words(self, change: Callable[[Any], Any]) -> "Outcome":
        place = _WORDS.get(self.verb)
        changed = [change(value) if at == place else value for at, value in enumerate(self.arguments)]
        return replace(self, arguments=tuple(changed))

    def _failed(self, failure: Failure) -> "Outcome":
        return Outcome(self.run, "fail", (failure,))


def _escaped(words: Any) -> Any:
    if isinstance(words, Failure):
        return Failure(words.kind, *map(text.ascii, (words.type, words.message, words.traceback)))
    return text.ascii(words)


def _cut(words: Any) -> Any:
    if isinstance(words, Failure):
        return Failure(words.kind, words.type[:SHORT], words.message[:SHORT])
    return words[:SHORT]


def _said_by(error: Exception) -> str:
    # What the server said; SQLAlchemy's words have the whole statement among them.
    said = getattr(error, "orig", None) or error
    return f"{type(error).__name__}: {said}".strip()


@dataclass(frozen=True)
class Report:
    """What a body's process tells its worker's main process beside the result, in the runtime's place."""

    runtime: float | None
    unwritten: Outcome | None = None
    """The outcome that it could not write; the main process writes it."""
    revoked: str | None = None
    """Why the task is revoked, ``"revoked"`` or ``"expired"``; None if it is not."""
