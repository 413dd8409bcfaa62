from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components._step import step


@step
def report(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    assessed: Input[Dataset],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """The page on the run so far; index is the latest policy's, assessed what came of it last."""
    from isr_dpo import steps

    steps.execute("report", recipe, run_uri, run_id, index, {"assessed": assessed}, page, metrics)
