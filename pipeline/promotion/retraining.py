"""Retrain: whatever changed is fetched, reproduced, published, judged, and promoted or kept, in one idempotent command."""

from enum import IntEnum


class Outcome(IntEnum):
    """The exit codes of `pipeline retrain`, which a scheduler can tell apart. 2 is wrong usage."""

    DONE = 0  # nothing to do, or promoted
    FAILURE = 1
    HELD = 10
    REJECTED = 11
    PENDING = 12  # `pipeline approve` promotes
    BUSY = 13  # another retraining is running
    DATA_FAULT = 14  # the source, or what is in it
    UNFINISHED = 15  # the DVC remote or MLflow was away; the next run makes up for it
