"""The vLLM engine behind a worker: stepped by one thread of ours, so weights change exactly between two steps.

    asyncio (worker)                     engine thread
    ----------------                     -------------
    generate / score  -- call(add) -->   add requests together
                                         step, step, step ...   each token stamped with the weight version
    results           <-- finished --    outputs of finished requests
    load_weights      -- call(load) -->  preempt + clear KV cache, load, verify on the golden sequence, continue

(call = `Commands.call`: the engine thread runs what is queued between two steps.)

Because a batch of requests is added between two steps, the same requests on an idle engine always meet the same
schedule: with per-request seeds the same tokens come out again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine import EngineSettings, Generation, GenerationRequest, Sampling, TokenScores, Vitals
from actors.vllm.commands import Commands
from actors.vllm.staging import Staged, WeightCache, stage_in_place
from actors.vllm.translate import (
    engine_args,
    executor,
    generation,
    pooling_params,
    prompt_log_probs,
    sampling_params,
    scoring_params,
    token_scores,
)
from records.events import reason_of
from transport.notes import LoadReport
from transport.weight_sources import WeightSource
from transport.weights import WeightManifest, check_golden

logger = logging.getLogger(__name__)

Output = RequestOutput | PoolingRequestOutput
Params = SamplingParams | PoolingParams
Deliver = Callable[[Output | BaseException], None]

FIRST = -1
"""Scheduling priority of the golden sequence: before every other request (they have 0)."""


class VllmEngine:
    """One vLLM engine in this process. `settings` say which model; `__init__` blocks until it is loaded."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine = LLMEngine.from_engine_args(engine_args(settings))
        if settings.signal.kind != "full":
            self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        is_shared = settings.shares_weights or executor(settings.config) is not None
        self._cache = WeightCache() if is_shared else None  # used by the loader only
        self._commands = Commands()
        self._loader = ThreadPoolExecutor(1, "vllm-loader")  # one load after the other, in the order of the calls
        self._deliver: dict[str, Deliver] = {}
        self._held = (-1, -1)  # (incarnation, version) of the newest load, successful or not
        self._is_serving = False
        self._is_stopping = False
        self._num_scored = 0
        self._num_finished = 0
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    # -- asyncio side ---------------------------------------------------------------------------------

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield responses in finish order; closing the iterator aborts what is unfinished."""
        params = {r.request_id: sampling_params(self._settings, sampling, r.seed) for r in requests}
        added = [(r.request_id, r.prompt_token_ids, params[r.request_id]) for r in requests]
        async with aclosing(self._outputs(added)) as outputs:
            async for output in outputs:
                yield generation(output)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Return what the engine's signal holds of every token but the first of each sequence."""
        signal = self._settings.signal
        params = pooling_params() if signal.kind == "full" else scoring_params(signal.k)
        first = self._num_scored
        self._num_scored += len(sequences)
        ids = [f"score-{first + i}" for i in range(len(sequences))]
        added = [(i, list(s), params) for i, s in zip(ids, sequences, strict=True)]
        async with aclosing(self._outputs(added)) as outputs:
            scores = {output.request_id: token_scores(output, signal) async for output in outputs}
        return [scores[request_id] for request_id in ids]

    async def load_weights(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        """Fetch, check and load one weight set, then reproduce its golden log-probs before anything is delivered.

        Raises ValueError on a damaged bucket or on weights older than those held (nothing was loaded), or on a
        failed verification: then every request in flight fails too, and the engine serves again only after a
        successful load. Cancelling the call does not stop a load that has begun.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loader, self._stage_and_load, manifest, source)

    def serve_own_weights(self) -> None:
        """Serve the model as loaded from its folder, as version 0; RuntimeError once others were loaded."""
        self._commands.call(self._serve_own_weights).result()

    def vitals(self) -> Vitals:
        """Engine health; progress counts finished requests and the tokens of the others."""
        states = list(self._engine.output_processor.request_states.values())
        made = (state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)
        return Vitals(self._num_finished + sum(made), len(self._deliver), self._failure)

    def shutdown(self) -> None:
        """Stop stepping and free the engine; unfinished requests are failed."""
        self._is_stopping = True
        with suppress(RuntimeError):  # the thread may have ended already
            self._commands.call(lambda: None)
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._thread.join(timeout=30)
        if self._cache is not None:
            self._cache.close()
        self._engine.engine_core.shutdown()

    async def _outputs(self, added: Sequence[tuple[str, list[int], Params]]) -> AsyncGenerator[Any, None]:
        loop, results = asyncio.get_running_loop(), asyncio.Queue[Output | BaseException]()
        unfinished = {request_id for request_id, _, _ in added}

        def deliver(item: Output | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(results.put_nowait, item)

        try:
            await asyncio.wrap_future(self._commands.call(lambda: self._add(added, deliver)))
            while unfinished:
                item = await results.get()
                if isinstance(item, BaseException):
                    raise RuntimeError(f"the engine failed with requests in flight: {item}") from item
                unfinished.discard(item.request_id)
                yield item
        finally:
            if unfinished:
                abandoned = sorted(unfinished)
                with suppress(RuntimeError):  # the engine has ended, and the requests with it
                    self._commands.call(lambda: self._abort(abandoned))

    def _stage_and_load(self, manifest: WeightManifest, source: WeightSource) -> LoadReport:
        self._check_is_not_older(manifest)
        staged = (stage_in_place if self._cache is None else self._cache.stage)(manifest, source)
        return self._commands.call(lambda: self._load(manifest, staged)).result()

    def _check_is_not_older(self, manifest: WeightManifest) -> None:
        new = (manifest.incarnation, manifest.version)
        if new < self._held:
            raise ValueError(
                f"weights v{new[1]} of incarnation {new[0]} are older than the engine's: "
                f"v{self._held[1]} of incarnation {self._held[0]}"
            )

    # -- engine thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        reason: BaseException = RuntimeError("it was shut down")
        try:
            while not self._is_stopping:
                self._commands.run(wait=not self._engine.has_unfinished_requests())
                if self._engine.has_unfinished_requests():
                    self._finish(self._engine.step())
        except BaseException as error:
            logger.exception("the engine thread failed")
            reason = error
        self._failure = reason_of(reason)
        self._commands.close(reason)
        self._fail_requests(reason)

    def _add(self, added: Sequence[tuple[str, list[int], Params]], deliver: Deliver) -> None:
        if not self._is_serving:
            raise RuntimeError("the engine holds no verified weights")
        for request_id, token_ids, params in added:
            self._deliver[request_id] = deliver
            try:
                self._engine.add_request(request_id, TokensPrompt(prompt_token_ids=token_ids), params)
            except Exception as error:  # of a class of vLLM's, which not every process can import
                raise ValueError(f"request {request_id}: {error}") from error

    def _abort(self, request_ids: list[str]) -> None:
        self._engine.abort_request([i for i in request_ids if self._deliver.pop(i, None) is not None])

    def _finish(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            deliver = self._deliver.pop(output.request_id, None) if output.finished else None
            if deliver is not None:
                self._num_finished += 1
                deliver(output)

    def _fail_requests(self, error: BaseException) -> None:
        for deliver in set(self._deliver.values()):
            deliver(error)
        self._deliver.clear()

    def _serve_own_weights(self) -> None:
        if self._held != (-1, -1):
            raise RuntimeError("the engine no longer holds its folder's weights")
        self._engine.set_weight_version("0")
        self._is_serving = True

    def _load(self, manifest: WeightManifest, staged: Staged) -> LoadReport:
        self._held = (manifest.incarnation, manifest.version)
        self._is_serving = False
        golden_id = f"golden-{manifest.incarnation}-{manifest.version}"
        try:
            report = self._replace_weights(manifest, staged, golden_id)
        except BaseException as error:
            self._engine.abort_request([golden_id, *self._deliver])
            self._fail_requests(error)
            raise
        self._is_serving = True
        return report

    def _replace_weights(self, manifest: WeightManifest, staged: Staged, golden_id: str) -> LoadReport:
        start = time.perf_counter()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        paused = time.perf_counter()
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=(staged.update,))
        self._engine.collective_rpc("finish_weight_update")
        self._engine.set_weight_version(str(manifest.version))
        loaded = time.perf_counter()
        difference = self._verify(manifest, golden_id)
        return LoadReport(
            incarnation=manifest.incarnation,
            version=manifest.version,
            fetch_s=staged.fetch_s,
            check_s=staged.check_s,
            pause_s=paused - start,
            load_s=loaded - paused,
            verify_s=time.perf_counter() - loaded,
            bytes_fetched=staged.bytes_fetched,
            golden_difference=difference,
        )

    def _verify(self, manifest: WeightManifest, golden_id: str) -> float:
        """Score the golden sequence first; outputs of other requests are held back until it has passed."""
        prompt = TokensPrompt(prompt_token_ids=list(manifest.golden_token_ids))
        self._engine.add_request(golden_id, prompt, scoring_params(), priority=FIRST)
        held: list[Any] = []
        golden: Any = None
        while golden is None:
            outputs = self._engine.step()
            golden = next((o for o in outputs if o.request_id == golden_id), None)
            held += [o for o in outputs if o.request_id != golden_id]
        given, settings = list(prompt_log_probs(golden)), self._settings
        difference = check_golden(manifest, given, dtype=settings.dtype, limit=settings.golden_limit)
        self._finish(held)
        return difference
