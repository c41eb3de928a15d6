"""The one error tree.

RexError
├── UserError                 bad input: exit code 2, nothing was changed
│   ├── SpecError             (ValueError) a job file or recipe says something that cannot be meant
│   ├── NotFoundError         (LookupError) no such job, checkpoint, attempt or log
│   └── ConflictError         the job's state does not allow what was asked
├── IllegalTransition         an event that the transition table does not know in this state
├── IntegrityError            content that is not what its manifest says (definite: evidence was read)
│   ├── CorruptCheckpoint     missing, truncated or altered bytes
│   └── UnknownManifest       a manifest of a version that this code does not know
├── FencedError               an attempt that a newer one has replaced: it must not write
├── AlreadyExistsError        a create-only write found its key taken
├── ObjectNotFound            (LookupError) the store says definitely that it has no such object
├── UnsafeStore               an object store on which no commit protocol is safe: exit code 3, nothing was queued
├── StackError                something on this machine or cluster could not be brought up: exit code 3
└── RetryableError            not knowing: try again, conclude nothing
    ├── StoreUnavailable      object store: time-out, 5xx, throttled, permission
    ├── ClusterUnreachable    Ray, a node or an agent does not answer
    └── TrackingUnavailable   MLflow does not answer

Each message has three parts: what failed, what was seen, what to do.
"""

from __future__ import annotations


class RexError(Exception):
    """Base of all our errors: one sentence of what failed and was seen, and a hint of what to do."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class UserError(RexError):
    """What was asked for cannot be done as asked; nothing was changed."""

    exit_code = 2


class SpecError(UserError, ValueError):
    """A job file or recipe with an unknown key, a wrong type or an impossible value."""


class NotFoundError(UserError, LookupError):
    """A job, attempt, checkpoint, file or log that does not exist."""


class ConflictError(UserError):
    """The job's state does not allow what was asked."""


class IllegalTransition(RexError):
    """The transition table has no entry for this (state, event)."""


class IntegrityError(RexError):
    """Bytes were read and are not what they should be."""


class CorruptCheckpoint(IntegrityError):
    """A manifest or one of its files is missing, truncated or altered."""


class UnknownManifest(IntegrityError):
    """A manifest of a newer version than this code reads."""


class FencedError(RexError):
    """A newer attempt exists; this one must not write."""


class AlreadyExistsError(RexError):
    """A create-only write found its key taken."""


class ObjectNotFound(RexError, LookupError):
    """The store answered, and has no object of that key."""


class UnsafeStore(RexError):
    """The store doctor was answered, and no commit protocol is safe on what it saw."""


class StackError(RexError):
    """A part that rexctl runs itself (Ray, MLflow, control plane) could not be brought up."""


class RetryableError(RexError):
    """The answer is not known; asking again may tell."""


class StoreUnavailable(RetryableError):
    """The object store did not answer, or refused without evidence about the object."""


class ClusterUnreachable(RetryableError):
    """Ray, a node or an agent did not answer."""


class TrackingUnavailable(RetryableError):
    """MLflow did not answer."""
