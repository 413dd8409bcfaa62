"""The compiled pipeline: what may run side by side, and what a cluster is given."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from isr_dpo import config
from isr_dpo.config import Recipe
from pipelines import recipe_files
from pipelines.isr_dpo import build

SMOKE = recipe_files.load("smoke")
MAX_BYTES = 750_000
RUN_ID = {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}


def changed(**sections: Any) -> Recipe:
    return config.parse(yaml.safe_dump({**SMOKE.model_dump(mode="json"), **sections}))


def context(design: str, *, iterations: int = 4) -> Recipe:
    return changed(retrospect={"context": design}, iterations=iterations)


class Graph:
    """Tasks of a compiled pipeline by their titles."""

    def __init__(self, recipe: Recipe, folder: Path, **options: Any) -> None:
        package = folder / "package.yaml"
        compiler.Compiler().compile(build(recipe, **options), str(package))
        self.text = package.read_text()
        self.spec = yaml.safe_load(self.text)
        tasks = self.spec["root"]["dag"]["tasks"]
        title = {name: task["taskInfo"]["name"] for name, task in tasks.items()}
        assert len(set(title.values())) == len(title)
        self.tasks = {title[name]: task for name, task in tasks.items()}
        self.waits_for = {title[n]: {title[d] for d in t.get("dependentTasks", ())} for n, t in tasks.items()}
        self.component = {t: task["componentRef"]["name"].removeprefix("comp-") for t, task in self.tasks.items()}
        self.source = {
            t: {key: title[a["taskOutputArtifact"]["producerTask"]] for key, a in artifacts(task).items()}
            for t, task in self.tasks.items()
        }

    def before(self, title: str) -> set[str]:
        """All that must be done before the task."""
        waits = self.waits_for[title]
        return waits.union(*(self.before(other) for other in waits))

    def independent(self, one: str, other: str) -> bool:
        return one not in self.before(other) and other not in self.before(one)


def artifacts(task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = task["inputs"].get("artifacts", {})
    return found


@pytest.fixture
def smoke(tmp_path: Path) -> Graph:
    return Graph(SMOKE, tmp_path)


def test_generate_and_retrospect_do_not_wait_for_each_other(smoke: Graph) -> None:
    for index in (1, 2):
        assert smoke.independent(f"round {index} · generate", f"round {index} · retrospect")
        assert {f"round {index} · generate", f"round {index} · retrospect"} <= smoke.before(f"round {index} · judge")


def test_evaluation_and_the_next_round_do_not_wait_for_each_other(smoke: Graph) -> None:
    for index in (1, 2):
        for assessment in ("answer", "evaluate", "register", "report"):
            for step in ("generate", "retrospect", "judge", "train"):
                assert smoke.independent(f"policy-{index:02d} · {assessment}", f"round {index} · {step}")


def test_policies_are_registered_and_reported_in_order(smoke: Graph) -> None:
    for index in (2, 3):
        register = f"policy-{index:02d} · register"
        earlier = f"policy-{index - 1:02d}"
        assert {f"{earlier} · register", f"{earlier} · report"} <= smoke.before(register)
        assert register in smoke.before(f"policy-{index:02d} · report")


def test_round_t_reads_policy_t_and_writes_the_next(smoke: Graph) -> None:
    assert smoke.source["seed DPO"] == {"policy": "preflight", "dataset": "prepare"}
    producer = {1: "seed DPO", 2: "round 1 · train", 3: "round 2 · train"}
    for index in (1, 2):
        for step in ("generate", "retrospect", "judge", "train"):
            assert smoke.source[f"round {index} · {step}"]["policy"] == producer[index]
    for index in (1, 2, 3):
        assert smoke.source[f"policy-{index:02d} · answer"]["policy"] == producer[index]
        assert smoke.source[f"policy-{index:02d} · register"]["policy"] == producer[index]


@pytest.mark.parametrize("design", ["retrospective", "shuffled"])
def test_contexts_are_refined_from_the_previous_rounds(design: str, tmp_path: Path) -> None:
    graph = Graph(context(design), tmp_path)
    assert "previous" not in graph.source["round 1 · retrospect"]
    assert graph.source["round 3 · retrospect"]["previous"] == "round 2 · retrospect"
    assert graph.source["round 3 · judge"]["contexts"] == "round 3 · retrospect"


def test_renewed_contexts_have_no_previous_ones(tmp_path: Path) -> None:
    graph = Graph(context("renew"), tmp_path)
    assert all("previous" not in graph.source[f"round {index} · retrospect"] for index in (1, 2, 3))
    assert graph.source["round 3 · judge"]["contexts"] == "round 3 · retrospect"


def test_fixed_contexts_are_those_of_round_one(tmp_path: Path) -> None:
    graph = Graph(context("fixed"), tmp_path)
    assert [t for t in graph.tasks if "retrospect" in t] == ["round 1 · retrospect"]
    assert {graph.source[f"round {index} · judge"]["contexts"] for index in (1, 2, 3)} == {"round 1 · retrospect"}


def test_without_context_nothing_is_described(tmp_path: Path) -> None:
    graph = Graph(context("none"), tmp_path)
    assert not [t for t in graph.tasks if "retrospect" in t]
    assert "contexts" not in graph.source["round 3 · judge"]


def test_only_an_initial_reference_is_handed_to_training(tmp_path: Path) -> None:
    assert "initial" not in Graph(SMOKE, tmp_path).source["round 2 · train"]
    anchored = Graph(changed(train={"reference": "initial"}), tmp_path)
    assert anchored.source["round 2 · train"]["initial"] == "seed DPO"
    assert "initial" not in anchored.source["seed DPO"]


def test_in_order_a_round_waits_for_the_report_on_its_policy(tmp_path: Path) -> None:
    graph = Graph(SMOKE, tmp_path, in_order=True)
    for index in (1, 2):
        for step in ("generate", "retrospect"):
            assert f"policy-{index:02d} · report" in graph.before(f"round {index} · {step}")


def fused(design: str = "retrospective", *, iterations: int = 4) -> Recipe:
    return changed(retrospect={"context": design}, iterations=iterations, engine={"fused": True})


@pytest.mark.parametrize("name", sorted(path.stem for path in recipe_files.FOLDER.glob("*.yaml")))
def test_every_packaged_recipe_compiles(name: str, tmp_path: Path) -> None:
    recipe = recipe_files.load(name)
    tasks = Graph(recipe, tmp_path).tasks
    if recipe.is_benchmark:
        assert "seed DPO" not in tasks
        return
    assert (f"round {recipe.iterations - 1} · prefer" in tasks) == (recipe.engine.kind == "vllm")


def test_a_benchmark_asks_grades_and_reports_and_nothing_else(tmp_path: Path) -> None:
    graph = Graph(changed(iterations=0), tmp_path)
    assert set(graph.tasks) == {
        "preflight",
        "prepare",
        "policy-00 · answer",
        "policy-00 · evaluate",
        "policy-00 · report",
    }
    assert graph.source["prepare"] == {"policy": "preflight"}
    assert graph.source["policy-00 · answer"] == {"policy": "preflight", "dataset": "prepare"}
    assert graph.source["policy-00 · evaluate"] == {"answers": "policy-00 · answer", "dataset": "prepare"}
    assert graph.source["policy-00 · report"] == {"assessed": "policy-00 · evaluate"}


def test_a_benchmark_of_several_pods_shares_its_answers_unless_they_stand_in_files(tmp_path: Path) -> None:
    shares = "policy-00 · answer · shares"
    assert shares in Graph(changed(iterations=0, engine={"pods": 3}), tmp_path).tasks
    files = {name: f"{name}.jsonl" for name in SMOKE.data.sets}
    imported = changed(iterations=0, engine={"pods": 3}, model={}, answer={"predictions": files})
    assert shares not in Graph(imported, tmp_path).tasks


def test_the_packaged_benchmark_has_all_ten_test_files_each_by_its_protocol() -> None:
    recipe = recipe_files.load("benchmarks")
    official = {"msvd-official", "msrvtt-official", "tgif-official"}
    caption = {"actnet", "vidal", "webvid", "msvd", "msrvtt", "tgif", "ssv2"}
    assert {name: recipe.protocol(name) for name in recipe.data.sets} == {
        **dict.fromkeys(caption, "caption"),
        **dict.fromkeys(official, "official"),
    }
    assert recipe.sets_at(0) == sorted(caption | official)


def test_a_fused_round_is_one_task_before_training(tmp_path: Path) -> None:
    graph = Graph(fused(), tmp_path)
    assert len(graph.tasks) == 3 + 4 * 4 + 2 * 3
    for index in (1, 2, 3):
        prefer = f"round {index} · prefer"
        producer = "seed DPO" if index == 1 else f"round {index - 1} · train"
        assert graph.source[prefer]["policy"] == producer
        assert graph.source[f"round {index} · train"]["preferences"] == prefer


def test_in_a_fused_round_the_dev_set_is_answered_once_and_graded_while_training_goes_on(tmp_path: Path) -> None:
    graph = Graph(fused(), tmp_path)
    for index in (1, 2, 3):
        assert f"round {index} · prefer" in graph.waits_for[f"policy-{index:02d} · answer"]
        for assessment in ("answer", "evaluate", "register", "report"):
            assert graph.independent(f"policy-{index:02d} · {assessment}", f"round {index} · train")
    assert not [title for title in graph.before("policy-04 · answer") if "round 4" in title]


@pytest.mark.parametrize(
    ("design", "key", "source"),
    [
        ("retrospective", "previous", "round 2 · prefer"),
        ("shuffled", "previous", "round 2 · prefer"),
        ("fixed", "contexts", "round 1 · prefer"),
        ("renew", None, None),
        ("none", None, None),
    ],
)
def test_a_fused_round_takes_the_contexts_of_its_design(
    design: str, key: str | None, source: str | None, tmp_path: Path
) -> None:
    graph = Graph(fused(design), tmp_path)
    given = {name: task for name, task in graph.source["round 3 · prefer"].items() if name in ("previous", "contexts")}
    assert given == ({key: source} if key else {})
    assert not {"previous", "contexts"} & set(graph.source["round 1 · prefer"])


def test_in_order_fused_rounds_are_trained_after_the_report_on_their_policy(tmp_path: Path) -> None:
    graph = Graph(fused(), tmp_path, in_order=True)
    for index in (1, 2, 3):
        assert f"policy-{index:02d} · report" in graph.before(f"round {index} · train")
        assert f"policy-{index:02d} · report" not in graph.before(f"round {index} · prefer")


def test_with_several_pods_a_stage_follows_a_loop_over_its_shares(tmp_path: Path) -> None:
    graph = Graph(changed(engine={"pods": 5}, iterations=3), tmp_path)
    shared = [f"round {index} · {stage}" for index in (1, 2) for stage in ("generate", "retrospect", "judge")]
    shared += [f"policy-{index:02d} · answer" for index in (1, 2, 3)]
    loops = {title: task for title, task in graph.tasks.items() if "parameterIterator" in task}
    assert set(loops) == {f"{title} · shares" for title in shared}
    for title in shared:
        loop = loops[f"{title} · shares"]
        assert yaml.safe_load(loop["parameterIterator"]["items"]["raw"]) == [1, 2, 3, 4, 5]
        assert f"{title} · shares" in graph.waits_for[title]
        (inner,) = graph.spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"].values()
        whole = graph.tasks[title]
        assert inner["inputs"]["artifacts"].keys() == whole["inputs"]["artifacts"].keys()
        assert inner["inputs"]["parameters"]["share"] == {
            "componentInputParameter": loop["parameterIterator"]["itemInput"]
        }
        assert "share" not in whole["inputs"]["parameters"]
        run_id = inner["inputs"]["parameters"]["run_id"]  # the lock is the run's, whoever of its pods asks for it
        assert run_id == whole["inputs"]["parameters"]["run_id"] == RUN_ID
        assert not inner["cachingOptions"].get("enableCache", False)
    assert graph.independent("round 1 · generate · shares", "round 1 · retrospect · shares")
    assert {"round 1 · generate", "round 1 · retrospect"} <= graph.before("round 1 · judge · shares")


def test_the_longest_run_on_several_pods_is_still_a_small_package(tmp_path: Path) -> None:
    assert len(Graph(changed(engine={"pods": 64}, iterations=9), tmp_path).text.encode()) < MAX_BYTES


def test_one_pod_needs_no_loop(smoke: Graph) -> None:
    assert "parameterIterator" not in smoke.text


@pytest.mark.parametrize("iterations", range(1, 10))
def test_every_length_compiles_to_a_small_package(iterations: int, tmp_path: Path) -> None:
    graph = Graph(changed(iterations=iterations), tmp_path)
    assert len(graph.tasks) == 3 + 4 * iterations + 4 * (iterations - 1)
    assert len(graph.text.encode()) < MAX_BYTES


def test_the_run_uri_is_the_only_parameter_without_default(smoke: Graph) -> None:
    parameters = smoke.spec["root"]["inputDefinitions"]["parameters"]
    assert [name for name, p in parameters.items() if "defaultValue" not in p] == ["run_uri"]
    recipe = config.parse(parameters["recipe"]["defaultValue"])
    assert recipe == SMOKE
    assert parameters["recipe_digest"]["defaultValue"] == recipe.digest()
    assert sum(len(str(p.get("defaultValue", ""))) for p in parameters.values()) < 10_000  # KFP's limit in bytes


def test_preflight_is_given_the_digest_to_check_the_recipe_against(smoke: Graph) -> None:
    given = smoke.tasks["preflight"]["inputs"]["parameters"]
    assert given["recipe"] == {"componentInputParameter": "recipe"}
    assert given["recipe_digest"] == {"componentInputParameter": "recipe_digest"}


def test_the_job_id_is_a_constant_of_every_task_where_a_backend_fills_it_in(smoke: Graph) -> None:
    for task in smoke.tasks.values():
        assert task["inputs"]["parameters"]["run_id"] == RUN_ID


def test_caching_is_off_nothing_is_installed_and_there_is_no_exit_task(smoke: Graph) -> None:
    for task in smoke.tasks.values():
        assert not task["cachingOptions"].get("enableCache", False)
        assert "triggerPolicy" not in task
        assert "iterator" not in "".join(task)
    assert "pip install" not in smoke.text
    for executor in smoke.spec["deploymentSpec"]["executors"].values():
        assert "env" not in executor["container"]


def test_no_path_of_this_machine_is_in_the_package(smoke: Graph) -> None:
    assert str(Path.cwd()) not in smoke.text
    assert str(Path.home()) + "/" not in smoke.text
    assert str(Path(config.__file__).parents[1]) not in smoke.text
