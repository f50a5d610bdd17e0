"""DummyLossTrainer: transformers.Trainer for batches that lack modalities; absent branches stay where they are.

The collator's nested batches enter Trainer's own loop, optimizer, clip and checkpoints. Added: dummy inside forward,
the removal of absent gradients before clip and update, losses by modality, norms, answers to fixed samples.

Backends: one process, and DDP (torchrun). Others are refused, since there an absent branch would move, or ranks hang,
without an error. DeepSpeed ZeRO-1/2 fills gradients that are None with zeros: it would need a parameter group per
branch, lr and decay 0 in updates without it, which keeps the weights but not the moments, and `safe_get_full_grad` on
all ranks for the norms. ZeRO-3 gathers weights in each module's forward, too: every rank must run every branch
(VisionLanguageModel.runs_absent), or all must hold the same modalities. FSDP and XLA: the project's own loop has them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from data_setup.neuro.collate import joined, rows_by_sample
from data_setup.neuro.dataset import ConversationDataset
from data_setup.neuro.modalities import MODALITIES, TEXT
from data_setup.neuro.samples import Sample
from data_setup.sampler import SampleKey
from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import Activity, Inactive, Policy, drift_warning
from oct_foundation.models.vision_language import NO_ANSWER, ConversationLoss, VisionLanguageModel, check_places
from pretraining.branch_norms import BranchNorms, Drift
from pretraining.hf_answers import AnswerLog
from pretraining.hf_backend import arguments_for, with_open_config

log = logging.getLogger(__name__)
_KINDS = (*MODALITIES, TEXT)

Inputs = Mapping[str, Mapping[str, torch.Tensor]] | ConversationBatch


@dataclass(frozen=True, kw_only=True)
class MultimodalSettings:
    """What TrainingArguments has no field for.

    policy: what becomes of absent branches (losses/inactive.py). fixed_samples are answered every `generate_every`
    updates; max_new_tokens: of these answers, and of the predictions that compute_metrics gets.
    """

    policy: Policy = "skip"
    generate_every: int = 50
    fixed_samples: Sequence[Sample] = ()
    max_new_tokens: int = 16


class _Measured(NamedTuple):
    """What an update that will be logged leaves on the device: gradient norms, and the modalities it lacked."""

    norms: torch.Tensor
    absent: frozenset[str]


class DummyLossTrainer(Trainer):
    """Trainer for a VisionLanguageModel (or a module with its forward, branches() and trunk()).

    The loss is the mean over answer tokens of all ranks and micro-batches, as Trainer counts them. Logged beside
    Trainer's own values: `grad/...` and `ratio/active_inactive` (before the clip, without biases), `dummy_loss`,
    `loss/<kind>` (mean over rows since the last log) and `share/<kind>`, `drift/[inactive]/<modality>`. Raises
    ValueError for a backend that it would be wrong on.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *arguments: Any,
        multimodal: MultimodalSettings | None = None,
        **named: Any,
    ) -> None:
        """All but `multimodal` as Trainer takes it; data_collator: a ConversationCollator."""
        self.multimodal = multimodal or MultimodalSettings()
        args = arguments_for(args or TrainingArguments(output_dir="tmp_trainer"), self.multimodal.policy)
        self._followed: nn.Module | None = None
        self._measured: _Measured | None = None
        super().__init__(None if model is None else with_open_config(model), args, *arguments, **named)
        self.model_accepts_loss_kwargs = True  # its forward has num_items_in_batch, if no **kwargs
        self._follow(self.model)
        settings = self.multimodal
        self.add_callback(
            AnswerLog(
                settings.fixed_samples,
                self.data_collator,
                self.processing_class,
                every=settings.generate_every,
                max_new_tokens=settings.max_new_tokens,
            )
        )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """What model_init makes, with a config that Trainer can write to."""
        return with_open_config(super().call_model_init(trial))

    def _follow(self, model: nn.Module) -> VisionLanguageModel:
        """The module inside wrappers; watches its branches, and anew where model_init has made another one."""
        inner: VisionLanguageModel = self.accelerator.unwrap_model(model)
        if inner is not self._followed:
            branches = inner.branches()
            self.inactive = Inactive(branches, self.multimodal.policy, trunk=inner.trunk())
            self.inactive.watch(inner)
            self._norms, self._drift = BranchNorms(inner, branches), Drift(branches)
            self._totals = torch.zeros(2, len(_KINDS), device=self.args.device)  # sums of row losses, rows
            self._followed = inner
            warning = drift_warning(
                self.multimodal.policy,
                learning_rate=self.args.learning_rate,
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
            if warning:
                log.warning("%s", warning)
        return inner

    def _prepare_inputs(self, inputs: Inputs) -> ConversationBatch:
        """Rows of all modalities in one batch on the device."""
        return (inputs if isinstance(inputs, ConversationBatch) else joined(inputs)).to(self.args.device)

    def _get_num_items_in_batch(self, batch_samples: Sequence[Inputs], device: torch.device) -> torch.Tensor | None:
        """Answer tokens of all micro-batches of all ranks; Trainer looks for `labels` at the top of a batch only."""
        labels = [part for inputs in batch_samples for part in _labels(inputs)]
        counted = super()._get_num_items_in_batch([{"labels": part, "shift_labels": part} for part in labels], device)
        return counted.clamp(min=1) if isinstance(counted, torch.Tensor) else counted

    def _compute_dummy_gradient(
        self, model: nn.Module, active_modality: str, modalities: Sequence[str] = MODALITIES
    ) -> torch.Tensor:
        """float32 0-d on the model's device: the dummy of those of `modalities` that a batch of one modality lacks.

        In training it is added inside forward, where DDP wants it. One that is switched off has no branch and adds
        nothing. Raises ValueError for a name that is no modality, and for an active one without a branch.
        """
        self._follow(model)
        branches = self.inactive.branches.keys()
        if unknown := ({active_modality} - branches) | (set(modalities) - branches - set(MODALITIES)):
            raise ValueError(f"the model has no branch for {', '.join(sorted(unknown))}; it has {', '.join(branches)}")
        return self.inactive.dummy({active_modality, *(branches - set(modalities))})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ConversationLoss]:
        """Sum over the answer tokens divided by num_items_in_batch, or, without it, the mean over rows."""
        batch = self._prepare_inputs(inputs)
        inner = self._follow(model)
        if torch.is_grad_enabled():
            if self.state.global_step == 0:  # it waits for the device; a collator that is wrong is so from the first on
                check_places(batch, inner.config, inner.tokens)
            self.inactive.see(batch.present)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # DDP takes the mean over ranks of what is to be a sum; the loss times ranks would scale the dummy, too.
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
        outputs = model(
            batch.images, batch.input_ids, batch.attention_mask, batch.labels, batch.rows, num_items_in_batch
        )
        if torch.is_grad_enabled():
            for kind, row_losses in outputs.sums.items():
                self._totals[0, _KINDS.index(kind)] += row_losses
                self._totals[1, _KINDS.index(kind)] += outputs.counts[kind]
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward; after the last micro-batch of an update absent gradients go, before clip and update."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            absent = self.inactive.drop(self._over_ranks if self.accelerator.num_processes > 1 else None)
            self._drift.note(absent)
            if self._logs_this_update():
                scaler = self.accelerator.scaler  # of float16: the clip undoes it, later
                norms = self._norms.measure()
                self._measured = _Measured(norms if scaler is None else norms / scaler.get_scale(), absent)
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Loss of a batch of any kinds of rows; for compute_metrics also generated answers and labels.

        The loss is the mean over the rows that Trainer keeps: so its eval_loss is the mean over all questions, each
        counting once, whatever the batches and ranks. Answers: int64 [R, max_new_tokens], not logits: what the model
        says to the question, without the answer before its eyes. Labels: int64 [R, L]. Both in the order of the
        samples, not of the sorted rows: Trainer cuts off the end of the last batch, which repeats other samples.
        """
        batch = self._prepare_inputs(inputs)
        found = None if isinstance(inputs, ConversationBatch) else rows_by_sample(inputs)
        order = (torch.arange(batch.num_samples) if found is None else found).to(batch.labels.device)
        labels = batch.labels.clone()
        labels[order[self._num_kept(batch.num_samples) :]] = NO_ANSWER
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, replace(batch, labels=labels))
            assert isinstance(loss, torch.Tensor)
            if prediction_loss_only:
                return loss, None, None
            answers = self._follow(model).generate(batch, self.multimodal.max_new_tokens)
        return loss, answers[order], batch.labels[order]

    def _num_kept(self, num_rows: int) -> int:
        """How many samples of this rank's batch Trainer counts: in the last one accelerate repeats samples, on the last
        ranks, to make all alike.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return num_rows
        return min(max(state.remainder - self.args.process_index * self.args.eval_batch_size, 0), num_rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the update has left, in one fetch; called by every rank."""
        if self._measured is not None:
            logs |= self._fetch(self._measured)
            self._measured = None
        super().log(logs, start_time)

    def _fetch(self, measured: _Measured) -> dict[str, float]:
        """Norms, drift, dummy and losses by name of the log; the last two over all ranks."""
        drift = self._drift.measure()
        dummy = self.inactive.dummy_loss
        own = torch.zeros(1, device=self._totals.device) if dummy is None else dummy.reshape(1)
        totals = torch.cat([self._totals.flatten(), own])
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        self._totals.zero_()
        values = iter(torch.cat([measured.norms, *(value.reshape(1) for value in drift.values()), totals]).tolist())
        found = self._norms.named([next(values) for _ in self._norms.weights], measured.absent)
        found |= {f"drift/[inactive]/{name}": next(values) for name in drift}
        sums, rows = ([next(values) for _ in _KINDS] for _ in range(2))
        for kind, total, count in zip(_KINDS, sums, rows, strict=True):
            if count:
                found |= {f"loss/{kind}": total / count, f"share/{kind}": total / sum(sums) if sum(sums) else 0.0}
        return found | {"dummy_loss": next(values) / self.accelerator.num_processes + 0.0}  # no -0.0

    def _over_ranks(self, activity: Activity) -> Activity:
        """Ranks that hold each modality."""
        counts = torch.tensor(list(activity.values()), device=self.args.device)
        return dict(zip(activity, self.accelerator.reduce(counts, reduction="sum").tolist(), strict=True))

    def _logs_this_update(self) -> bool:
        """What Trainer will decide once the update is done, when the gradients are gone."""
        step = self.state.global_step + 1
        if step == 1 and self.args.logging_first_step:
            return True
        match self.args.logging_strategy:
            case "steps":
                return step % self.state.logging_steps == 0
            case "epoch":
                return bool(self.accelerator.gradient_state.end_of_dataloader) or step >= self.state.max_steps
        return False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As Trainer's; tied weights of a language model are written twice, since safetensors refuses shared memory."""
        found = self.model.state_dict() if state_dict is None else state_dict
        seen: set[int] = set()
        own: dict[str, torch.Tensor] = {}
        for name, tensor in found.items():
            own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        super()._save(output_dir, own)


class NumberedSamples(Dataset[Sample]):
    """A ConversationDataset by plain numbers, as Trainer's samplers count; epochs decide what training varies."""

    def __init__(self, samples: ConversationDataset) -> None:
        self._samples, self._epoch = samples, 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[SampleKey(self._epoch, index)]

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer's loader before each epoch; worker processes must not outlive one."""
        self._epoch = epoch


def _labels(inputs: Inputs) -> list[torch.Tensor]:
    """int64 [rows, L - 1]: the tokens that the model predicts; the first of a row is none."""
    if isinstance(inputs, ConversationBatch):
        return [inputs.labels[:, 1:]]
    return [entry["labels"][:, 1:] for entry in inputs.values() if "labels" in entry]
