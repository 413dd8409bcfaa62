"""The arguments of manifests/serving are arguments of this vLLM."""

from __future__ import annotations

import pytest

from isr_dpo import config
from tests.manifests.kustomized import built, of_kind

pytest.importorskip("vllm.sampling_params", reason="`make test-vllm` makes the environment for this")


def test_the_champions_server_takes_its_arguments() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    pod = of_kind(built("prod"), "Deployment")["isr-dpo-serving"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    given = [argument.replace("$(MODEL_NAME)", "m") for argument in server["args"]]
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
    validate_parsed_serve_args(parsed)
    defaults = config.VLLM()
    assert parsed.model == pod["initContainers"][0]["args"][1], "what the init container fetches"
    assert (parsed.max_model_len, parsed.max_num_batched_tokens, parsed.gpu_memory_utilization) == (
        defaults.context_tokens,
        defaults.batch_tokens,
        defaults.memory_fraction,
    )
    assert parsed.port == server["ports"][0]["containerPort"]
    assert parsed.allowed_media_domains == ["none.invalid"], "the server fetches nothing for anyone"
