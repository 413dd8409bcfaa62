"""How the pipelines make their tasks: what all share, and stages fanned out over pods."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.train import train
from components.train_launch import train_launch
from isr_dpo.titles import title
from pipelines.placed import Placed


class Tasks:
    """Makes tasks that share the run's parameters. Caching is off: manifests are the only cache. `placed` says where
    they run; none: nothing is said of that."""

    def __init__(self, pods: int, *, placed: Placed | None = None, **shared: str | PipelineChannel) -> None:
        self._pods, self._placed, self._shared = pods, placed, shared
        self.barrier: PipelineTask | None = None
        """All tasks added from now on wait for this one."""

    def add(self, component: BaseComponent, **inputs: Any) -> PipelineTask:
        """A task of `component`."""
        task = component(**self._shared, **inputs).set_caching_options(False)
        task.set_display_name(title(component.name, inputs.get("index", 0)))
        if self._placed is not None:
            self._placed.put(task, component.name)
        return task if self.barrier is None else task.after(self.barrier)

    def train(self, **inputs: Any) -> PipelineTask:
        """A task of train; where it goes over several nodes, of train_launch, which creates them and waits."""
        pods = self._placed and self._placed.train_pods()
        return self.add(train_launch, pods=pods.to_json(), **inputs) if pods else self.add(train, **inputs)

    def fan_out(self, component: BaseComponent, *, after: PipelineTask | None = None, **inputs: Any) -> PipelineTask:
        """A task of `component`, whose parts are done before it by as many tasks as there are pods, side by side: it
        does what these may have left, and completes the output. With one pod it is alone."""
        waits = [] if after is None else [after]
        if self._pods > 1:
            name = title(component.name, inputs["index"])
            with dsl.ParallelFor(list(range(1, self._pods + 1)), name=f"{name} · shares") as number:
                share = self.add(component, share=number, **inputs).after(*waits).set_display_name(f"{name} · share")
            waits = [share]
        return self.add(component, **inputs).after(*waits)
