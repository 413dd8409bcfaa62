"""Can the grader be reached? Asked before a run begins, by one call that costs nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from isr_dpo.config import Evaluate
from isr_dpo.endpoint import Endpoint
from isr_dpo.errors import IsrDpoError, RecipeError
from isr_dpo.evaluate.openai import open_endpoint

if TYPE_CHECKING:
    from openai import APIStatusError

log = logging.getLogger("isr_dpo")

_SHOWN = 5


def check_endpoint(settings: Evaluate) -> None:
    """Asks for the model's description. A server that describes none, a key that may not ask, and, unless
    evaluate.required, a server that is away are no findings.

    Raises:
        KeyRefused: the key is refused.
        RecipeError: there is no usable key, or no such model.
        OutsideError: evaluate.required, and the server is away.
    """
    from openai import APIStatusError

    endpoint = open_endpoint(settings, max_retries=1)
    try:
        with endpoint.translated():
            endpoint.client.models.retrieve(settings.model)
    except IsrDpoError as error:
        cause = error.__cause__
        if isinstance(cause, APIStatusError) and not error.retry:
            _judge(cause, error, settings, endpoint)
        elif settings.required:
            raise
        else:
            log.warning("%s; evaluations are pending until it is back", error)


def _judge(said: APIStatusError, error: IsrDpoError, settings: Evaluate, endpoint: Endpoint) -> None:
    """What a refusal means for the run."""
    if said.status_code == 401 and "scope" not in said.message.lower():  # OpenAI's, of a key that may only grade
        raise error
    listed = _listed(endpoint) if said.status_code == 404 else None
    if said.code == "model_not_found" or (listed is not None and settings.model not in listed):
        named = f", it has {', '.join(listed[:_SHOWN])}" if listed else ""
        more = f" and {len(listed) - _SHOWN} more" if listed and len(listed) > _SHOWN else ""
        raise RecipeError(f"evaluate.model: {endpoint.where} has no {settings.model!r}{named}{more}") from said
    if listed is None:
        log.info("%s does not say whether it has %s", endpoint.where, settings.model)


def _listed(endpoint: Endpoint) -> list[str] | None:
    """Its models by name; None: it lists none, or not all."""
    try:
        with endpoint.translated():
            names = sorted(model.id for model in endpoint.client.models.list())
    except (IsrDpoError, TypeError, AttributeError):  # a list in another form
        return None
    return None if any("*" in name for name in names) else names
