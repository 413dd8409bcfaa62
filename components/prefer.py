from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def prefer(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    preferences: Output[Dataset],
    metrics: Output[Metrics],
    previous: Input[Dataset] | None = None,
    contexts: Input[Dataset] | None = None,
    share: int = 0,
) -> None:
    """A round's generate, retrospect and judge in one, and its policy's answers to the dev set."""
    from isr_dpo import steps

    steps.execute(
        "prefer",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset, "previous": previous, "contexts": contexts},
        preferences,
        metrics,
        share=share,
    )
