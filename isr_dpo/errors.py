"""Every failure this project names.

    IsrDpoError                 exit  what helps
    ├── RecipeError               2   mend the recipe
    ├── DataError                 3   mend the data
    ├── StaleOutput               4   another run URI, or delete what the message names
    ├── CorruptOutput             4   delete what the message names, run again
    ├── RunBusy                   5   wait for the other run, or stop it
    ├── GuardTripped              6   look at the trend; the loop is dying
    ├── ModelError                7   another model, or smaller settings
    ├── OutsideError              8   run again: a store, MLflow or a grader was away (retry = True)
    │   ├── WorkerDied            8   the same: a process of the step was killed
    │   ├── KeyRefused            8   a key that the endpoint takes (retry = False)
    │   ├── BudgetSpent           8   a higher ceiling, or more credit; what was bought is kept (retry = False)
    │   └── ClusterRefused        8   rights, or an object that the cluster takes (retry = False)
    └── StoreError                9   mend the store: space, permissions, bucket or credentials

`retry` says whether the same call can succeed later without a change by the user.
"""

from __future__ import annotations


class IsrDpoError(Exception):
    """The root. `str(error)` is one message for a person: the value, the place, the way out."""

    exit_code = 1
    retry = False


class RecipeError(IsrDpoError):
    """The recipe says something impossible."""

    exit_code = 2


class DataError(IsrDpoError):
    """A dataset row or a video cannot be used; names file and line."""

    exit_code = 3


class StaleOutput(IsrDpoError):
    """A finished output was made from another recipe section, other inputs or other prompts."""

    exit_code = 4


class CorruptOutput(IsrDpoError):
    """A file differs from its manifest."""

    exit_code = 4


class RunBusy(IsrDpoError):
    """Another run owns the run URI."""

    exit_code = 5


class GuardTripped(IsrDpoError):
    """A guard stopped a loop that is dying; the message shows the trend."""

    exit_code = 6


class ModelError(IsrDpoError):
    """A policy cannot be loaded, or does not fit."""

    exit_code = 7


class OutsideError(IsrDpoError):
    """An outside service did not answer within the retries."""

    exit_code = 8
    retry = True


class WorkerDied(OutsideError):
    """A process that worked for this one ended without a word: killed, often because memory ran out."""


class KeyRefused(OutsideError):
    """An endpoint refuses the key."""

    retry = False


class BudgetSpent(OutsideError):
    """A ceiling of the recipe is reached, or the endpoint's account has no credit left."""

    retry = False


class ClusterRefused(OutsideError):
    """A Kubernetes cluster answers and refuses: rights, admission, a kind that it does not know."""

    retry = False


class StoreError(IsrDpoError):
    """A store answers and refuses: full, read-only, no such bucket, wrong credentials."""

    exit_code = 9
