from kfp.dsl import Metrics, Model, Output

from components._step import step


@step
def preflight(
    recipe: str,
    recipe_digest: str,
    run_uri: str,
    run_id: str,
    policy: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Refuses a bad run before it costs anything; hands on the starting model as policy-00."""
    from isr_dpo import steps

    steps.execute("preflight", recipe, run_uri, run_id, 0, {}, policy, metrics, expected_digest=recipe_digest)
