from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def judge(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    responses: Input[Dataset],
    preferences: Output[Dataset],
    metrics: Output[Metrics],
    contexts: Input[Dataset] | None = None,
    share: int = 0,
) -> None:
    """The policy chooses between its two responses, with the visual context where there is one."""
    from isr_dpo import steps

    steps.execute(
        "judge",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset, "responses": responses, "contexts": contexts},
        preferences,
        metrics,
        share=share,
    )
