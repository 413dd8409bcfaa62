from kfp.dsl import Dataset, Input, Metrics, Output

from components._step import step


@step
def evaluate(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    answers: Input[Dataset],
    dataset: Input[Dataset],
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """The grader scores the answers; index is the policy's. The only step that needs its key."""
    from isr_dpo import steps

    steps.execute(
        "evaluate", recipe, run_uri, run_id, index, {"answers": answers, "dataset": dataset}, evaluation, metrics
    )
