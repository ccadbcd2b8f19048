"""The engine behind the `vllm` judge: vLLM in this process, the reference judge of FG-CE.

Qwen3-Omni-30B-A3B-Instruct is used on text only, so that its image and audio towers are not loaded; any chat model
that vLLM serves will do. Requests are batched as they come, and the prefix cache holds what the sentences of an
explanation share. An engine that has died stays dead: readiness goes red, and the server has to be started anew.
"""

import logging
import os
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fgce.judges.base import Answer, JudgeError
from fgce.judges.protocols import Completion, ProtocolName, Query, TokenChoice
from fgce.schema import MissingReason, Usage

logger = logging.getLogger(__name__)

_ALTERNATIVES = 20  # log-probabilities asked for; more than the scale has digits


class VllmConfig(BaseModel):
    """Settings of the `vllm` judge.

    `tensor_parallel` GPUs hold one copy of the model and `data_parallel` copies share the requests out; for a model
    that fits on one GPU copies are faster. `max_model_len` is in tokens and bounds prompt and answer together.
    """

    model_config = ConfigDict(extra="forbid")
    backend: Literal["vllm"]
    model: str = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
    revision: str | None = None
    protocol: ProtocolName = "fast"
    tensor_parallel: Annotated[int, Field(gt=0)] = 1
    data_parallel: Annotated[int, Field(gt=0)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_model_len: Annotated[int, Field(gt=0)] = 8192
    max_num_seqs: Annotated[int, Field(gt=0)] = 256
    dtype: str = "auto"
    enforce_eager: bool = False


class VllmEngine:
    """Implements `fgce.judges.model.Engine` over vLLM's AsyncLLM.

    Raises:
        ModuleNotFoundError: vLLM is not installed (`pip install ca-emer[vllm]`).
    """

    def __init__(self, config: VllmConfig) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        logger.info("loading %s into vLLM", config.model)
        arguments = AsyncEngineArgs(
            model=config.model,
            revision=config.revision,
            tensor_parallel_size=config.tensor_parallel,
            data_parallel_size=config.data_parallel,
            gpu_memory_utilization=config.gpu_memory_utilization,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            dtype=config.dtype,
            enforce_eager=config.enforce_eager,
            seed=0,
            enable_prefix_caching=True,
            language_model_only=True,
            # Probabilities over what the constraint allows, which is what confidence and expected score are made of.
            logprobs_mode="processed_logprobs",
            max_logprobs=_ALTERNATIVES,
            # Without this a JSON answer can be legal white space until it runs out of tokens.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        )
        self._llm = AsyncLLM.from_engine_args(arguments)
        self._tokenizer: Any = self._llm.get_tokenizer()

    async def complete(self, query: Query) -> Completion:
        """Raises JudgeError when the prompt is too long or the engine is dead."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        text = self._tokenizer.apply_chat_template(query.messages, add_generation_prompt=True, tokenize=False)
        prompt = {"prompt_token_ids": self._tokenizer.encode(text, add_special_tokens=False)}
        final: Any = None
        try:
            async for output in self._llm.generate(prompt, self._sampling(query), uuid.uuid4().hex):
                final = output
        except ValueError as error:
            raise JudgeError(MissingReason.TOO_LARGE, str(error)) from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise JudgeError(MissingReason.JUDGE_ERROR, f"vLLM: {error!r}") from error
        return _read(final, with_tokens=bool(query.choices))

    async def aclose(self) -> None:
        """Ends the engine's processes."""
        self._llm.shutdown()

    def _sampling(self, query: Query) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        constraint = (
            StructuredOutputsParams(choice=list(query.choices))
            if query.choices
            else StructuredOutputsParams(json=query.schema)
        )
        return SamplingParams(
            temperature=0.0,
            max_tokens=query.max_tokens,
            logprobs=_ALTERNATIVES if query.choices else None,
            structured_outputs=constraint,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _read(output: Any, *, with_tokens: bool) -> Completion:
    generated = output.outputs[0]
    usage = Usage(
        prompt=len(output.prompt_token_ids or ()),
        completion=len(generated.token_ids),
        cached=output.num_cached_tokens or 0,
    )
    tokens = []
    if with_tokens:
        for token, alternatives in zip(generated.token_ids, generated.logprobs or (), strict=False):
            top = {entry.decoded_token or "": entry.logprob for entry in alternatives.values()}
            tokens.append(TokenChoice(alternatives[token].logprob, top))
    return Completion(Answer(generated.text, usage), tuple(tokens))
