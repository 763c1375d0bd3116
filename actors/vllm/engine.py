"""The vLLM engine behind a worker: stepped by one thread of ours, so weights change exactly between two steps.

    asyncio (worker)                     engine thread
    ----------------                     -------------
    generate / score  -- call(add) -->   add requests together
                                         step, step, step ...   each token stamped with the weight version
    results           <-- finished --    outputs of finished requests
    load_weights      -- call(load) -->  preempt + clear KV cache, load, verify on the golden sequence, go on

Because a batch of requests is added between two steps, the same requests on an idle engine always meet the same
schedule: with per-request seeds the same tokens come out again.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine import EngineSettings, Generation, GenerationRequest, LoadReport, Sampling
from actors.vllm.staging import staged_file
from actors.vllm.translate import engine_args, generation, prompt_log_probs, sampling_params, scoring_params
from cluster.weights import WeightManifest, check_buckets, check_golden

logger = logging.getLogger(__name__)

T = TypeVar("T")
Deliver = Callable[[RequestOutput | BaseException], None]


class VllmEngine:
    """One vLLM engine in this process. `settings` say which model; `__init__` blocks until it is loaded."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine = LLMEngine.from_engine_args(engine_args(settings))
        self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._deliver: dict[str, Deliver] = {}
        self._is_serving = False
        self._is_stopping = False
        self._num_scored = 0
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    # -- asyncio side ---------------------------------------------------------------------------------

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """Yield responses in finish order; closing the iterator aborts what is unfinished."""
        if not self._is_serving:
            raise RuntimeError("the engine holds no verified weights")
        stops = self._settings.stop_token_ids
        added = [(r.request_id, r.prompt_token_ids, sampling_params(sampling, r.seed, stops)) for r in requests]
        async with aclosing(self._outputs(added)) as outputs:
            async for output in outputs:
                yield generation(output)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the log-prob of every token but the first of each sequence: float32 [len - 1]."""
        first = self._num_scored
        self._num_scored += len(sequences)
        ids = [f"score-{first + i}" for i in range(len(sequences))]
        added = [(i, list(s), scoring_params()) for i, s in zip(ids, sequences, strict=True)]
        scores = {output.request_id: prompt_log_probs(output) async for output in self._outputs(added)}
        return [scores[request_id] for request_id in ids]

    async def load_weights(self, manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> LoadReport:
        """Check, stage and load one weight set, then reproduce its golden log-probs before anything is delivered.

        Raises ValueError on a damaged bucket (nothing was loaded) or a failed verification: then every request
        in flight fails too, and the engine serves again only after a successful load.
        """
        start = time.perf_counter()
        await asyncio.to_thread(check_buckets, manifest, buckets)
        staging = staged_file(manifest, buckets)
        update = await asyncio.to_thread(staging.__enter__)
        try:
            check_s = time.perf_counter() - start
            return await self.call(lambda: self._load(manifest, update, check_s))
        finally:
            staging.__exit__(None, None, None)

    def serve_own_weights(self) -> None:
        """Serve the model as loaded from its folder, as version 0."""
        self._engine.set_weight_version("0")
        self._is_serving = True

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the engine thread, between two steps."""
        future: Future[T] = Future()
        self._commands.put((function, future))
        if not self._thread.is_alive():
            raise RuntimeError("the engine thread has ended")
        return await asyncio.wrap_future(future)

    def shutdown(self) -> None:
        """Stop stepping and free the engine; unfinished requests are failed."""
        self._is_stopping = True
        self._commands.put((lambda: None, Future()))
        self._thread.join(timeout=30)
        self._engine.engine_core.shutdown()

    async def _outputs(
        self, added: list[tuple[str, list[int], SamplingParams]]
    ) -> AsyncGenerator[RequestOutput, None]:
        loop, results = asyncio.get_running_loop(), asyncio.Queue[RequestOutput | BaseException]()
        unfinished = {request_id for request_id, _, _ in added}

        def deliver(item: RequestOutput | BaseException) -> None:
            loop.call_soon_threadsafe(results.put_nowait, item)

        try:
            await self.call(lambda: self._add(added, deliver))
            while unfinished:
                item = await results.get()
                if isinstance(item, BaseException):
                    raise RuntimeError(f"the engine failed with requests in flight: {item}") from item
                unfinished.discard(item.request_id)
                yield item
        finally:
            if unfinished and self._thread.is_alive():
                abandoned = sorted(unfinished)
                self._commands.put((lambda: self._abort(abandoned), Future()))

    # -- engine thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._run_commands()
                if self._engine.has_unfinished_requests():
                    self._finish(self._engine.step())
        except BaseException as error:
            logger.exception("the engine thread failed")
            self._fail_all(error)
        else:
            self._fail_all(RuntimeError("the engine was shut down"))

    def _run_commands(self) -> None:
        is_idle = not self._engine.has_unfinished_requests()
        while is_idle or not self._commands.empty():
            function, future = self._commands.get()
            is_idle = False
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - raised where the command was called
                future.set_exception(error)
            else:
                future.set_result(result)

    def _add(self, added: list[tuple[str, list[int], SamplingParams]], deliver: Deliver) -> None:
        for request_id, token_ids, params in added:
            self._engine.add_request(request_id, {"prompt_token_ids": token_ids}, params)
            self._deliver[request_id] = deliver

    def _abort(self, request_ids: list[str]) -> None:
        self._engine.abort_request([i for i in request_ids if self._deliver.pop(i, None) is not None])

    def _finish(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            deliver = self._deliver.pop(output.request_id, None) if output.finished else None
            if deliver is not None:
                deliver(output)

    def _fail_all(self, error: BaseException) -> None:
        for deliver in set(self._deliver.values()):
            deliver(error)
        self._deliver.clear()
        while not self._commands.empty():
            self._commands.get()[1].set_exception(RuntimeError(f"the engine has ended: {error}"))

    def _load(self, manifest: WeightManifest, update: dict, check_s: float) -> LoadReport:
        try:
            report = self._replace_weights(manifest, update, check_s)
        except BaseException as error:
            self._is_serving = False
            self._engine.abort_request(list(self._deliver))
            self._fail_all(error)
            raise
        self._is_serving = True
        return report

    def _replace_weights(self, manifest: WeightManifest, update: dict, check_s: float) -> LoadReport:
        start = time.perf_counter()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        paused = time.perf_counter()
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=(update,))
        self._engine.collective_rpc("finish_weight_update")
        self._engine.set_weight_version(str(manifest.version))
        loaded = time.perf_counter()
        difference = self._verify(manifest)
        return LoadReport(
            incarnation=manifest.incarnation,
            version=manifest.version,
            check_s=check_s,
            pause_s=paused - start,
            load_s=loaded - paused,
            verify_s=time.perf_counter() - loaded,
            golden_difference=difference,
        )

    def _verify(self, manifest: WeightManifest) -> float:
        """Score the golden sequence; outputs of other requests are held back until it has passed."""
        request_id = f"golden-{manifest.incarnation}-{manifest.version}"
        self._engine.add_request(
            request_id, {"prompt_token_ids": list(manifest.golden_token_ids)}, scoring_params()
        )
        held: list[Any] = []
        golden = None
        while golden is None:
            outputs = self._engine.step()
            golden = next((o for o in outputs if o.request_id == request_id), None)
            held += [o for o in outputs if o.request_id != request_id]
        difference = check_golden(manifest, list(prompt_log_probs(golden)), dtype=self._settings.dtype)
        self._finish(held)
        return difference
