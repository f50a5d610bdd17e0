"""Which rank trains on which sample, when: a pure function of the number of finished updates.

The position in the data is the number of samples trained on, all ranks together. Another number of devices, another
micro-batch or a resume in mid-epoch slices the same stream differently and changes nothing else.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data_setup.epoch_order import EpochOrder


@dataclass(frozen=True, order=True)
class SampleKey:
    """What a worker needs to make a sample: the pass over the data, and which sample."""

    epoch: int
    index: int


class ShardedBatchSampler:
    """Micro-batches of one rank. An update takes `grad_accum_steps` of them from each of `world_size` ranks.

    drop_last: the tail of an epoch that fills no global batch is left out; else it is filled up from the start of the
    same order, so that shapes stay. Raises ValueError where the samples fill no global batch and drop_last is set.
    """

    def __init__(
        self,
        *,
        order: EpochOrder,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        grad_accum_steps: int,
        drop_last: bool,
    ) -> None:
        self._order = order
        self.rank, self.world_size = rank, world_size
        self.micro_batch_size, self.grad_accum_steps = micro_batch_size, grad_accum_steps
        self.global_batch = micro_batch_size * world_size * grad_accum_steps
        num_samples = order.num_samples
        full, rest = divmod(num_samples, self.global_batch)
        self.steps_per_epoch = full if drop_last or not rest else full + 1
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{num_samples} training samples do not fill one global batch of {self.global_batch}: add data, set "
                f"batch.global_batch_size to at most {num_samples}, or train.drop_last=false to repeat samples"
            )

    def global_batch_at(self, step: int) -> list[SampleKey]:
        """The samples of update `step` (from 0), of all ranks, in their order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order.order(epoch)
        positions = torch.arange(place * self.global_batch, (place + 1) * self.global_batch) % len(order)
        return [SampleKey(epoch, index) for index in order[positions].tolist()]

    def micro_batches(self, start_step: int, num_steps: int) -> Iterator[list[SampleKey]]:
        """The rank's micro-batches of the updates [start_step, start_step + num_steps), across epochs."""
        size = self.micro_batch_size
        for step in range(start_step, start_step + num_steps):
            samples = self.global_batch_at(step)
            for micro_step in range(self.grad_accum_steps):
                first = (micro_step * self.world_size + self.rank) * size
                yield samples[first : first + size]

    def order_hash(self) -> str:
        """Changes with the samples' number, their domains' shares and the seed."""
        return hashlib.sha256(self._order.order(0).numpy().tobytes()).hexdigest()[:16]
