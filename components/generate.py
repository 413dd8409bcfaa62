from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def generate(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    responses: Output[Dataset],
    metrics: Output[Metrics],
    share: int = 0,
) -> None:
    """Two responses a row, drawn from the current policy."""
    from isr_dpo import steps

    steps.execute(
        "generate",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset},
        responses,
        metrics,
        share=share,
    )
