from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def train_launch(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    pods: str,
    policy: Input[Model],
    dataset: Input[Dataset],
    trained: Output[Model],
    metrics: Output[Metrics],
    preferences: Input[Dataset] | None = None,
    initial: Input[Model] | None = None,
) -> None:
    """As train, by a TrainJob on several nodes. It needs no GPU and waits; pods says what its nodes are."""
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
        pods=pods,
    )
