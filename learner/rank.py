"""One rank of the learner: scored tables in, one optimizer step, new weights out.

    tables -> collate -> [log-probs -> reward -> loss -> backward] per micro-batch -> optimizer step -> publish

A plain class without Ray; each rank lives in a process of its own. All ranks must make the same calls in the
same order.
"""

import logging
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner.collate import PackedBatch, collate, pack
from learner.diagnostics import step_diagnostics
from learner.divergence import BatchDivergence, TeacherHead
from learner.export import export_student
from learner.facts import BatchFacts, StudentValues
from learner.loss import MicroBatchLoss, Objective
from learner.metrics import StepTokens, outcome_metrics, step_metrics, teacher_metrics
from learner.publisher import BucketMemory, WeightHistory, publish_weights
from learner.rank_checkpoint import RankCheckpoints
from learner.schedule import learning_rate
from learner.support import NotTriedError
from learner.weight_sender import WeightSender
from learner.window import Window, prepare_window
from records.checkpoints import WriteReport
from settings.run import RunConfig
from settings.teachers import share_of_source
from transport.batches import SAMPLED, TeacherSignal, save_batch
from transport.collective import Rendezvous
from transport.notes import Heartbeat, StepResult
from transport.parcels import tables_of_slots
from transport.stop_tokens import StopTokens
from transport.weights import WeightManifest

if TYPE_CHECKING:
    from learner.deepspeed_backend import DeepSpeedBackend
    from learner.log_ratio_gradient import LogRatioGradient

logger = logging.getLogger(__name__)

HEAD_LIMITS = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest mean difference between the chunked head and the model's own logits, by learner dtype."""


class LearnerRank:
    """A data-parallel rank of the learner.

    >>> rank = LearnerRank(config, rank=0, world_size=1, stops=stops, golden_token_ids=[5, 6, 7],
    ...                    vocab_size=151_669)
    >>> rank.setup(*rank.rendezvous())
    >>> rank.train_step(0, scored_table).metrics["reward/mean"]
    >>> *buckets, manifest = rank.publish(incarnation=0, version=1)
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        rank: int,
        world_size: int,
        stops: StopTokens,
        golden_token_ids: list[int],
        vocab_size: int,
        signal: TeacherSignal = SAMPLED,
        special_token_ids: Sequence[int] = (),
        is_local: bool = False,
    ) -> None:
        """Take settings only; `setup` does the work. Objective parameters must be validated and complete.

        `golden_token_ids` is a short sequence whose log-probs go along with every published version.
        Log-probs are over the first `vocab_size` ids; embedding rows beyond them are cut off. `signal` is what
        a scored table holds besides the rollout. `special_token_ids` are those of `masks.special_tokens`.
        If all processes of the run are on this machine (`is_local`), nothing listens to other machines.
        """
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.stops = stops
        self.golden_token_ids = golden_token_ids
        self.vocab_size = vocab_size
        self.signal = signal
        self.is_local = is_local
        self.teacher_head: TeacherHead | None = None
        self.objective = Objective.of(config, special_token_ids=special_token_ids)
        self.log_ratio_gradient = _log_ratio_gradient(config)
        weights = config.weights
        self.bucket_memory = BucketMemory()
        self.weight_history = WeightHistory(full_every=weights.full_every) if weights.delta else None
        self.weight_sender = WeightSender() if weights.is_broadcast and rank == 0 else None
        self.backend: DeepSpeedBackend

    def rendezvous(self) -> tuple[str, int]:
        """Return an address of this node and a free port; every rank is set up with the first rank's."""
        address = "127.0.0.1" if self.is_local else _node_address()
        with socket.socket() as listener:
            listener.bind((address, 0))
            return address, listener.getsockname()[1]

    def setup(self, master_address: str, master_port: int) -> None:
        """Meet the other ranks there, load the student, and check its head; blocks until every rank has come."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=master_address,
            MASTER_PORT=str(master_port),
        )
        torch.set_num_threads(self.config.learner.num_threads)
        random.seed(self.config.seed)
        np.random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        from learner.deepspeed_backend import DeepSpeedBackend, join_process_group

        self.ranks = join_process_group(
            rank=self.rank,
            world_size=self.world_size,
            timeout_s=self.config.cluster.step_timeout_s,
            address=master_address,
            port=master_port,
        )
        self.backend = DeepSpeedBackend(self.config, ranks=self.ranks, vocab_size=self.vocab_size)
        self.checkpoints = RankCheckpoints(self.config, ranks=self.ranks, backend=self.backend)
        with torch.no_grad():
            limit = HEAD_LIMITS[self.config.learner.dtype]
            self.backend.student.check_head(self._golden(), limit=limit)
            context = self.backend.student.context
            longest = min(self.config.rollout.engine.max_model_len or context, context)
            self.backend.student.check_packing(self._golden(), limit=limit, longest=longest)
        if self.signal.kind == "full":
            self.teacher_head = TeacherHead.load(
                self.config.teacher.model_path,
                dtype=self.signal.dtype,
                max_rows=self.vocab_size,
                device=self.ranks.device,
                trust_remote_code=self.config.teacher.trust_remote_code,
            )
            if self.ranks.is_first:
                self._check_teacher_head(self.teacher_head)
        logger.info("learner rank %d of %d is ready on %s", self.rank, self.world_size, self.ranks.device)

    def train_step(self, step: int, *tables: pa.Table, slots: Sequence[int] | None = None) -> StepResult:
        """Take one optimizer step on this rank's slots of `tables`, by default all, in the order given.

        `step` is the weight version before it.
        """
        tables = tuple(tables_of_slots(tables, slots))
        if self.config.logging.save_batches:
            save_batch(tables, self._batch_path(step))
        self.objective.begin_step(step, self.config.max_steps)
        window = prepare_window(
            self.objective,
            self._collate(tables),
            evaluate=lambda batch: self._values(
                batch, facts=self.objective.window_facts(batch, self.teacher_head)
            ),
            padding=pack([], signal=self.signal).to(self.ranks.device),
            ranks=self.ranks,
        )
        diagnostics, every = self.log_ratio_gradient, self.config.logging.diagnostics_every
        is_diagnosed = diagnostics is not None and step % every == 0
        log_ratio_norm = diagnostics.norm(window, self.backend) if diagnostics and is_diagnosed else {}
        losses = []
        for index, (batch, fixed) in enumerate(zip(window.batches, window.fixed, strict=True)):
            divergence = self.objective.divergence(batch, self.teacher_head)
            facts = self.objective.facts(batch, self.teacher_head, is_diagnosed=is_diagnosed)
            values = self._values(batch, divergence, facts)
            loss = self.objective.micro_batch_loss(
                batch,
                values.logp_T,
                values.entropy_T,
                values.divergence_T,
                counts=window.counts,
                statistics_S=window.statistics_S,
                fixed=fixed,
                facts=values.facts,
            )
            self.backend.backward(loss.loss, is_last=index == len(window.batches) - 1)
            losses.append(loss.detached())
        rate = learning_rate(self.config.learner, step=step, max_steps=self.config.max_steps)
        outcome = self.backend.step(learning_rate=rate)
        metrics = self._metrics(window, losses, step=step)
        metrics |= {"lr": rate, "grad_norm": outcome.grad_norm, **log_ratio_norm}
        return StepResult(
            metrics=metrics,
            was_skipped=outcome.was_skipped,
            is_vanishing=outcome.grad_norm < self.config.learner.eps * self.backend.student.num_parameters**0.5,
            staleness_max=int(metrics["staleness/max"]),
            staleness_mean=metrics["staleness/mean"],
            tokens_trained=int(metrics["tokens_trained"]),
        )

    def publish(self, incarnation: int, version: int) -> Iterator[np.ndarray | WeightManifest]:
        """Yield the weights as buckets and then their manifest (first rank), or nothing (others).

        With `weights.delta` a bucket may be followed by its difference. Every rank must exhaust it. The golden
        log-probs are those of the working weights in the learner's dtype: of exactly the published bytes, unless a
        float32 learner publishes rounded to bfloat16.
        """
        golden_log_probs = self._golden_log_probs()
        published = publish_weights(
            self.backend.student.causal_lm,
            gathered=self.backend.gathered,
            is_first_rank=self.ranks.is_first,
            incarnation=incarnation,
            version=version,
            dtype=self.config.engine_dtype,
            golden_token_ids=self.golden_token_ids,
            golden_log_probs=golden_log_probs,
            history=self.weight_history,
            memory=self.bucket_memory,
        )
        yield from published if self.weight_sender is None else self.weight_sender.keeping(published)

    def join_weight_group(self, rendezvous: Rendezvous) -> None:
        """Form a group that weights are broadcast in (first rank); blocks until all members have come."""
        self._sender().join(rendezvous)

    def send_weights(self, incarnation: int, version: int) -> float:
        """Broadcast the weights that were published last (first rank); returns the seconds it took."""
        return self._sender().send(incarnation, version)

    def forget_weights(self) -> None:
        """Free what is kept for a broadcast (first rank): it is not sent."""
        self._sender().forget()

    def begin_checkpoint(self, folder: str) -> None:
        """Take the learner's state as it is now; it is written to `folder` while training continues."""
        self.checkpoints.begin(folder)

    def written_checkpoint(self) -> WriteReport | None:
        """What this rank has written of the checkpoint begun last; None while it still writes."""
        return self.checkpoints.written()

    def load_checkpoint(self, path: str) -> float:
        """Restore weights, optimizer and random state; returns the seconds of a conversion for other ranks."""
        return self.checkpoints.load(path)

    def export(self, path: str) -> None:
        """Write the student as a Hugging Face folder with tokenizer, in the learner's dtype."""
        export_student(
            self.backend.student.causal_lm,
            path,
            gathered=self.backend.gathered,
            is_first_rank=self.ranks.is_first,
            model_path=self.config.student.model_path,
            stops=self.stops,
            rollout=self.config.rollout,
            trust_remote_code=self.config.student.trust_remote_code,
        )
        self.ranks.barrier()

    def fetch(self, *tables: pa.Table) -> None:
        """Do nothing: the call has brought the tables to this node, or has failed."""

    def ping(self) -> Heartbeat:
        """Show that the process runs; called beside the others, in a concurrency group of its own."""
        return Heartbeat(pid=os.getpid())

    def shutdown(self) -> None:
        """Leave the process group; the rank is of no use afterwards."""
        self.backend.shutdown()

    def _check_teacher_head(self, head: TeacherHead) -> None:
        """ValueError if the head that is used gives other golden log-probs than the teacher's own logits."""
        teacher = self.config.teacher
        if not Path(teacher.model_path).is_dir():
            return  # the whole model would have to be fetched from the hub
        limit = HEAD_LIMITS[self.signal.dtype]
        try:
            head.check(
                teacher.model_path,
                self.golden_token_ids,
                limit=limit,
                trust_remote_code=teacher.trust_remote_code,
            )
        except NotTriedError as error:
            logger.warning("%s", error)

    def _sender(self) -> WeightSender:
        assert self.weight_sender is not None, (
            "weights.transport is not a broadcast, or this is not the first rank"
        )
        return self.weight_sender

    def _batch_path(self, step: int) -> Path:
        run_path = Path(self.config.runs_path) / self.config.run_name
        return run_path / "batches" / f"step_{step}_rank_{self.rank}.arrow"

    def _collate(self, tables: Sequence[pa.Table]) -> list[PackedBatch]:
        batches = collate(
            tables,
            stop_mode=self.config.objective.stop_mode,
            stops=self.stops,
            max_tokens=self.config.learner.micro_batch_tokens,
            signal=self.signal,
            share_of_source=share_of_source(self.config),
            outcome_std=self.config.outcome.std,
        )
        batches = [batch.to(self.ranks.device) for batch in batches]
        if self.teacher_head is None:
            return batches
        chunk_tokens = self.config.learner.head_chunk_tokens
        return [self.teacher_head.with_log_probs(batch, chunk_tokens=chunk_tokens) for batch in batches]

    def _values(
        self, batch: PackedBatch, divergence: BatchDivergence | None = None, facts: BatchFacts | None = None
    ) -> StudentValues:
        """Run the student on one micro-batch; values carry gradient unless torch.no_grad is on."""
        logp_T, entropy_T, *further = self.backend.log_probs(batch, divergence, facts)
        return StudentValues(
            logp_T,
            entropy_T,
            divergence_T=None if divergence is None else further[0],
            facts={} if facts is None else facts.named(further[1]),
        )

    def _metrics(self, window: Window, losses: Sequence[MicroBatchLoss], *, step: int) -> dict[str, float]:
        """Everything that is reported of the tokens of a step, the same on every rank."""
        tokens = StepTokens(window.batches, losses, step=step)
        metrics = step_metrics(
            tokens,
            importance_cap=self.objective.importance_cap,
            ranks=self.ranks,
            has_divergence=self.objective.has_divergence,
            has_top_k=self.signal.kind == "topk",
        )
        metrics |= step_diagnostics(tokens, ranks=self.ranks)
        if self.config.teachers:
            metrics |= teacher_metrics(
                window.batches, tokens, names=list(self.config.teacher_of_role), ranks=self.ranks
            )
        if self.signal.has_outcome:
            metrics |= outcome_metrics(window.batches, ranks=self.ranks)
        return metrics

    def _golden(self) -> Tensor:
        return torch.tensor(self.golden_token_ids, device=self.ranks.device)

    def _golden_log_probs(self) -> list[float]:
        ids_N = self._golden()
        positions_N = torch.arange(len(ids_N) - 1, device=ids_N.device)
        with torch.no_grad():
            logp_N = self.backend.student(ids_N[:-1], positions_N, positions_N, ids_N[1:])[0]
        return logp_N.tolist()


def _log_ratio_gradient(config: RunConfig) -> "LogRatioGradient | None":
    if not config.logging.diagnostics_every:
        return None
    from learner.log_ratio_gradient import LogRatioGradient

    return LogRatioGradient(config)


def _node_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing; picks the interface of the default route
        except OSError:  # no network: all ranks are on this machine
            return "127.0.0.1"
        return probe.getsockname()[0]
