"""The registry: every policy a version of one registered model in MLflow.

Aliases, not stages: `challenger` is the best policy of the newest run by dev accuracy and moves by itself; `champion`
is what users get and moves only by `promote` and `rollback`; `previous` is the champion before. Weights stay where the
run wrote them: a version's source is the policy's URI, and the small `MLmodel` file among its files lets
`mlflow.pyfunc.load_model("models:/NAME@champion")` load it from there.

    registration.py   a policy becomes a version, with tags and a model card (card.py)
    evidence.py       candidate and champion on the same questions, from the files of their runs; what is missing, as
                      commands (submissions.py)
    gate.py           what speaks against a promotion
    champion.py       decide, promote, rollback
"""

from isr_dpo.registry.champion import Decision, Promotion, decide, promote, rollback
from isr_dpo.registry.evidence import Flip, Match, Side, flips
from isr_dpo.registry.registration import Candidate, Registered, check_source, register
from isr_dpo.registry.submissions import Submission
from isr_dpo.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Version, source_of

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "Candidate",
    "Decision",
    "Flip",
    "Match",
    "Promotion",
    "Registered",
    "Side",
    "Submission",
    "Version",
    "check_source",
    "decide",
    "flips",
    "promote",
    "register",
    "rollback",
    "source_of",
]
