from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def retrospect(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    contexts: Output[Dataset],
    metrics: Output[Metrics],
    previous: Input[Dataset] | None = None,
    share: int = 0,
) -> None:
    """The visual context of every video, refined from the previous round's where there is one."""
    from isr_dpo import steps

    steps.execute(
        "retrospect",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset, "previous": previous},
        contexts,
        metrics,
        share=share,
    )
