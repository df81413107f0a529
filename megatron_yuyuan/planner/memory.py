"""Bytes that a rank holds at the worst moment of a training step, from the configuration alone: a step
played on paper.

The rank takes the actions of its pipeline schedule, block by block; what each block keeps, needs and
leaves behind weighs what `sizes.py` says. The peak is the largest sum of what lives at once. It counts
tensors: what a GPU takes beside them, its context, NCCL's buffers and the gaps of the allocator, is not
in it.
"""

import math
from collections import Counter
from dataclasses import dataclass

from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.parallel.stages import plan_stages, runs_as
from megatron_yuyuan.planner.actions import actions
from megatron_yuyuan.planner.sizes import Sizes, Unit

FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors that live on one rank at the peak of a training step, by part."""

    weights: int = 0
    """At rest, float32, this data rank's share."""
    gradients: int = 0
    """Of parameters: accumulated, being reduced, or this data rank's share, float32."""
    moments: int = 0
    """AdamW's two."""
    gathered: int = 0
    """Weights that FSDP2 holds gathered, in the dtype of computation."""
    activations: int = 0
    """What the forwards of all micro batches that are alive keep for their backwards."""
    received: int = 0
    """What the pipeline receives into: hidden states and their gradients, of all micro batches."""
    loss: int = 0
    """The head: one chunk of logits, and the gradients that it keeps."""
    working: int = 0
    """What the backward of one layer needs beside all that."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def predict_memory(config: Config, ranks: int, pipeline_rank: int = 0) -> Memory:
    """Predict the memory of a rank at `pipeline_rank` in a job of so many ranks. The configuration must be valid, with
    global_batch_size and vocab_size known."""
    step = _Step(config, ranks, pipeline_rank)
    step.play()
    return Memory(**step.most)


def fullest_rank(config: Config, ranks: int, capacity: float = math.inf) -> Memory:
    """The memory of the pipeline rank that holds most, or of the first that holds more than `capacity` bytes."""
    fullest = predict_memory(config, ranks, 0)
    for rank in range(1, config.parallel.pipeline_model_parallel_size):
        if fullest.total > capacity:
            break
        memory = predict_memory(config, ranks, rank)
        fullest = max(fullest, memory, key=lambda memory: memory.total)
    return fullest


class _Stage:
    """One of the rank's stages: what it holds, and what of it lives."""

    def __init__(self, config: Config, sizes: Sizes, number: int):
        plan = plan_stages(config)
        self.is_first, self.is_last = number == 0, number == len(plan) - 1
        self.layers = len(plan.layers[number])
        self.block, self.ends = sizes.block_unit(), sizes.ends_unit(self.is_first, self.is_last)
        self.units = [self.ends] + [self.block] * self.layers
        self.runs = recomputed_runs(self.layers, config.parallel)
        """Runs of blocks: how many, and whether they are computed again as one."""
        kept = sum(sizes.stream if again else run * sizes.block for run, again in self.runs)
        ends = sizes.embedded if self.is_first else -sizes.stream  # what is received counts once
        ends += sizes.norm if self.is_last else sizes.stream  # what is sent is kept
        self.kept = kept + ends
        """Bytes that a forward of a micro batch keeps."""
        self.received = (2 - self.is_first - self.is_last) * sizes.stream * sizes.micro_batches
        """Bytes that the pipeline receives into: a place for each micro batch of a step."""
        self.is_gathered = self.has_gradients = False


class _Step:
    """One training step of a rank that has taken others before."""

    def __init__(self, config: Config, ranks: int, pipeline_rank: int):
        self.sizes, self.config, self.rank = Sizes(config, ranks), config, pipeline_rank
        mine = plan_stages(config).of_rank(pipeline_rank)
        self.stages = [_Stage(config, self.sizes, number) for number in mine]
        self.briefly = self.sizes.strategy == "optim_grads_params"
        self.being_reduced = 0
        """Bytes of the last unit's gradients on their way, which are held until the next unit's."""
        self.now: Counter[str] = Counter()
        """Part -> bytes that live."""
        self.most: Counter[str] = Counter()
        """The same at the peak."""

    def hold(self, **parts: int) -> None:
        """Hold so much more of some parts from now on; negative: less."""
        self.now.update(parts)
        if self.now.total() > self.most.total():
            self.most = self.now.copy()

    def look(self, **parts: int) -> None:
        """A moment in which so much more is held."""
        self.hold(**parts)
        self.now.subtract(parts)

    def play(self) -> None:
        """Take the step."""
        units = [unit for stage in self.stages for unit in stage.units]
        self.hold(
            weights=FLOAT32 * sum(unit.share for unit in units),
            moments=2 * FLOAT32 * sum(unit.learned_share for unit in units),
            received=sum(stage.received for stage in self.stages),
        )
        parallel, micro_batches = self.config.parallel, self.sizes.micro_batches
        if parallel.pipeline_model_parallel_size > 1:
            self.play_schedule(parallel.pipeline_model_parallel_size)
            return
        [stage], alike = self.stages, min(micro_batches, 3)  # those between first and last are
        for i in range(alike):
            self.forward(stage)
            self.backward(stage, reduces=i == alike - 1)

    def play_schedule(self, pipeline: int) -> None:
        """Take the actions of the pipeline's schedule, and reduce all gradients after them."""
        micro_batches = self.sizes.micro_batches
        schedule = runs_as(self.config.parallel, micro_batches)
        if schedule not in ("GPipe", "LoopedBFS") and micro_batches % pipeline == 0:
            micro_batches = min(micro_batches, 4 * pipeline)  # from there on it repeats itself
        order = actions(schedule, pipeline, len(self.stages), micro_batches, self.rank)
        for kind, number, _ in order:
            take = {"F": self.forward, "B": self.backward, "I": self.halve, "W": self.finish}[kind]
            take(self.stages[number])
        for stage in self.stages:
            for unit in stage.units:
                self.reduce(unit, FLOAT32 * unit.learned)

    def forward(self, stage: _Stage) -> None:
        """A micro batch through a stage."""
        sizes = self.sizes
        block = sizes.width * stage.block.whole
        arrives = block if sizes.shards > 1 and not stage.is_gathered else 0
        if not stage.is_gathered:
            blocks = stage.layers
            if self.briefly:  # of the stage that computes
                others = any(other.is_gathered for other in self.stages)
                blocks = 0 if others else min(blocks, 1 + (sizes.shards > 1))
            self.hold(gathered=sizes.width * stage.ends.whole + blocks * block)
            stage.is_gathered = True
        self.hold(activations=stage.kept)
        self.last_block(stage)
        if stage.is_last:
            self.look(loss=sizes.loss, gathered=-block if self.briefly else arrives)
            self.hold(loss=sizes.head)
        else:
            self.look(gathered=0 if self.briefly else arrives)

    def last_block(self, stage: _Stage) -> None:
        """Two moments in the forward of the last block: its attention, and its last dropout."""
        sizes = self.sizes
        self.look(working=sizes.dropping)
        if sizes.attention_weights:
            ends = sizes.norm if stage.is_last else sizes.stream
            missing = sizes.after_attention + sizes.core_kept + ends
            self.look(activations=-missing, working=sizes.attending)

    def halve(self, stage: _Stage) -> None:
        """The backward for the input alone: all is kept for the weights', with the gradients that meet them.
        The first stage has no use for it, and goes back whole later."""
        if stage.is_first:
            return
        if stage.is_last:
            self.look(loss=self.sizes.head_backward)
            self.hold(loss=self.sizes.head_gradient)
        self.hold(working=stage.layers * self.sizes.block_halved)

    def finish(self, stage: _Stage) -> None:
        """The backward for the weights."""
        if stage.is_first:
            self.backward(stage)
            return
        self.hold(working=-stage.layers * self.sizes.block_halved)
        if stage.is_last:
            self.hold(loss=-self.sizes.head)
        self.backward_blocks(stage, reduces=False)

    def backward(self, stage: _Stage, reduces: bool = False) -> None:
        """A micro batch back through a stage."""
        if stage.is_last:
            self.look(loss=self.sizes.head_backward)
            self.hold(loss=self.sizes.head_gradient - self.sizes.head)
        self.backward_blocks(stage, reduces)

    def backward_blocks(self, stage: _Stage, reduces: bool) -> None:
        """From the last block to the embeddings."""
        sizes = self.sizes
        if stage.is_last:
            self.hold(activations=-sizes.norm)
        for run, again in reversed(stage.runs):
            if again:  # but for its input, which was kept
                self.hold(activations=run * sizes.block - sizes.stream)
            for _ in range(run):
                self.look(working=sizes.block_backward)
                self.attention_backward(again)
                self.hold(activations=-sizes.block)
                self.leave(stage.block, stage.has_gradients, reduces)
        ends = sizes.embedded if stage.is_first else -sizes.stream
        self.hold(activations=-ends - (0 if stage.is_last else sizes.stream))
        if stage.is_first:  # the embedding's gradient, and its sum with the head's
            copies = 2 if stage.is_last else 1
            self.look(working=sizes.stream + copies * sizes.head_gradient)
        if stage.is_last:
            self.hold(loss=-sizes.head_gradient)
        self.leave(stage.ends, stage.has_gradients, reduces)
        stage.has_gradients = True

    def attention_backward(self, again: bool) -> None:
        """The moment in a block's backward when its attention is computed again, or else its gradients."""
        sizes = self.sizes
        if sizes.attention_weights:
            again = again or self.config.parallel.recomputed == "selective"
            core = sizes.attending - sizes.core_kept if again else sizes.attention_gradients
            self.look(activations=-sizes.after_attention, working=sizes.stream + core)

    def leave(self, unit: Unit, accumulated: bool, reduces: bool) -> None:
        """The gradients of a unit after its backward: summed up whole in float32, or reduced."""
        fresh = self.sizes.width * unit.learned
        if reduces and not accumulated:
            self.hold(gradients=fresh)
            self.reduce(unit, fresh)
            return
        if self.sizes.width < FLOAT32:
            self.look(working=fresh)
        if not accumulated:
            self.hold(gradients=FLOAT32 * unit.learned)
        if reduces:
            self.reduce(unit, FLOAT32 * unit.learned)

    def reduce(self, unit: Unit, held: int) -> None:
        """Copy a unit's gradients, of which so many bytes are held, together, and keep this rank's share
        of their sum. Its weights are given back before."""
        whole, share = FLOAT32 * unit.learned, FLOAT32 * unit.learned_share
        given_back = 0 if self.briefly else self.sizes.width * unit.whole
        self.hold(gathered=-given_back, gradients=whole - self.being_reduced)
        self.hold(gradients=share - held)
        self.being_reduced = whole


def recomputed_runs(layers: int, parallel: ParallelConfig) -> list[tuple[int, bool]]:
    """The blocks of a stage in runs, as `Recomputation.runs` has them, which imports torch: how many, computed
    again as one?"""
    together = parallel.recompute_num_layers
    if parallel.recomputed != "full":
        return [(layers, False)]
    if parallel.recompute_method == "block":
        first = min(together, layers)
        return [(1, True)] * first + [(layers - first, False)]
    starts = range(0, layers, together)
    return [(min(together, layers - start), True) for start in starts]
