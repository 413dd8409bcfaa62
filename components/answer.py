from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._step import step


@step
def answer(
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    policy: Input[Model],
    dataset: Input[Dataset],
    answers: Output[Dataset],
    metrics: Output[Metrics],
    share: int = 0,
) -> None:
    """Greedy answers to the evaluation sets; index is the policy's."""
    from isr_dpo import steps

    steps.execute(
        "answer",
        recipe,
        run_uri,
        run_id,
        index,
        {"policy": policy, "dataset": dataset},
        answers,
        metrics,
        share=share,
    )
