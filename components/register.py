from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def register(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    evaluation: Input[Dataset],
    registered: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """The policy becomes a version of the registered model; index is the policy's."""
    from isr_dpo import steps

    steps.execute(
        "register", recipe, run_uri, run_id, index, {"policy": policy, "evaluation": evaluation}, registered, metrics
    )
