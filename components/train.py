from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def train(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    trained: Output[Model],
    metrics: Output[Metrics],
    preferences: Input[Dataset] | None = None,
    initial: Input[Model] | None = None,
) -> None:
    """DPO from policy to the next one; round 0 trains on the dataset's seed preferences."""
    from isr_dpo import steps

    steps.execute(
        "train",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset, "preferences": preferences, "initial": initial},
        trained,
        metrics,
    )
