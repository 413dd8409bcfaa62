from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def prepare(
    recipe: str,
    run_uri: str,
    run_id: str,
    policy: Input[Model],
    dataset: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Reads the rows and decodes every video once."""
    from isr_dpo import steps

    steps.execute("prepare", recipe, run_uri, run_id, 0, {"policy": policy}, dataset, metrics)
