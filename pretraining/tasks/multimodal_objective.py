"""What the multi-modal trainer trains, without its data: vision tower, projector, language model, absent branches."""

from collections.abc import Sequence

import torch
from torch import nn

from data_setup.neuro.modalities import MODALITIES, TEXT
from data_setup.neuro.tokenizer import image_token_ids, load_tokenizer
from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import TRUNK, Inactive
from oct_foundation.models.compiled import compile_blocks
from oct_foundation.models.flops import block_flops
from oct_foundation.models.remat import Remat, num_recomputed, recompute
from oct_foundation.models.vision_language import TokenIds, VisionLanguageModel
from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Runtime
from oct_foundation.shares import sum_over_shares
from pretraining.branch_norms import BranchNorms, Drift
from pretraining.config import ConfigError
from pretraining.multimodal_config import MultimodalRunConfig
from pretraining.tasks.task import COUNT, SUM, Objective


class MultimodalObjective(Objective):
    """Model, loss and the policy for absent branches.

    aligned: all ranks hold the same modalities at every update, so that nobody has to ask.
    """

    def __init__(self, config: MultimodalRunConfig) -> None:
        self.config, self.network = config, config.network
        self.aligned = config.data.sampling.mode == "aligned"
        try:
            self.tokenizer = load_tokenizer(config.model.hf_name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.hf_name={config.model.hf_name}: {error}") from None
        self.inactive: Inactive | None = None
        self.absent: frozenset[str] = frozenset()  # from the last update, on all ranks
        self.finds_unused = config.inactive == "find_unused"

    def build_model(self) -> nn.Module:
        """Equal on all ranks by the seed; raises ConfigError for a language model that cannot be used."""
        torch.manual_seed(self.config.seed)
        tokens = TokenIds(
            vocabulary_size=len(self.tokenizer), image=image_token_ids(self.tokenizer), end=self.tokenizer.eos_token_id
        )
        try:
            model = VisionLanguageModel(self.network, tokens)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.hf_name={self.config.model.hf_name}: {error}") from None
        length, new = self.config.data.max_length, self.config.answers.max_new_tokens
        if length + new > (most := model.language_model.max_tokens):
            raise ConfigError(
                f"data.max_length={length} and answers.max_new_tokens={new} make rows of {length + new} tokens, the "
                f"language model reads {most}: lower them, or pool more patches (model.T1.pool); the tiny Llama takes "
                "model.language.max_tokens"
            )
        recompute((model.vision_tower,), self.config.train.remat)
        if self.config.train.compile:
            compile_blocks((model.vision_tower,))
        return model

    def placed(self, model: nn.Module, runtime: Runtime) -> None:
        """Lists the branches, which sharding has replaced, and puts the dummy where this runtime needs one.

        Raises ConfigError where XLA would make a program of every mix of rows.
        """
        assert isinstance(model, VisionLanguageModel)
        if runtime.kind == "xla" and not self.aligned:
            raise ConfigError(
                f"data.sampling.mode={self.config.data.sampling.mode} mixes rows by chance, and XLA compiles a program "
                "for every mix; set data.sampling.mode=aligned, one program for each set of modalities"
            )
        alone = runtime.world_size * runtime.cores == 1
        sharded = self.config.train.sharding == "full"
        model.runs_absent = sharded and not self.aligned
        anchored = not (alone or sharded or (self.aligned and runtime.kind == "xla"))
        self.inactive = Inactive(model.branches(), self.config.inactive, trunk=model.trunk(), anchored=anchored)
        self.inactive.watch(model)
        self._norms, self._drift = BranchNorms(model, self.inactive.branches), Drift(self.inactive.branches)
        self._used, self._logged = set[str](), False

    def branches(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Disjoint lists of what one modality alone owns; everything else is shared."""
        assert isinstance(model, VisionLanguageModel)
        return {**model.branches(), TRUNK: model.trunk()}

    def loss(self, model: nn.Module, batch: ConversationBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean over the rows; to log: each kind's sum and number of rows, 0 for kinds that the batch lacks.

        In evaluation the loss is logged by sum and number, too: batches there hold unequal numbers of rows that count.
        """
        if self.inactive is not None and torch.is_grad_enabled():
            self.inactive.see(batch.present)
        found = model(batch.images, batch.input_ids, batch.attention_mask, batch.labels, batch.rows)
        zero = torch.zeros((), device=found.loss.device)
        extra: dict[str, torch.Tensor] = {}
        for name in (*self.network.modalities, TEXT):
            extra[f"{SUM}loss/{name}"] = found.sums.get(name, zero)
            extra[f"{COUNT}loss/{name}"] = found.counts.get(name, zero)
        if not torch.is_grad_enabled():
            extra[f"{SUM}loss"] = torch.stack([*found.sums.values()]).sum()
            extra[f"{COUNT}loss"] = torch.stack([*found.counts.values()]).sum()
        elif self.inactive is not None and self.inactive.dummy_loss is not None:
            extra["dummy_loss"] = self.inactive.dummy_loss
        return found.loss, extra

    def before_update(self, model: nn.Module, runtime: Runtime) -> None:
        """Takes the gradients of branches away that no rank has used in this update."""
        assert self.inactive is not None
        anyone = None if self.aligned else lambda activity: runtime.max_over_ranks(activity)
        self.absent = self.inactive.drop(anyone)
        self._used |= set(self.inactive.branches) - self.absent

    def of_update(self, model: nn.Module, optimizer: AdamW, runtime: Runtime) -> dict[str, float]:
        """Norms of gradients (before the clip) and of updates, by branch; how far idle branches moved since a log."""
        assert self.inactive is not None
        measured = {
            id(weight): norm for weight, norm in zip(optimizer.guard.measured, optimizer.guard.norms, strict=True)
        }
        zero, weights = torch.zeros_like(optimizer.guard.norm), [weight.parameter for weight in self._norms.weights]
        gradients = [measured.get(id(weight), zero) for weight in weights]
        updates = [
            _size(optimizer.last_update(weight), weight) if id(weight) in measured else zero for weight in weights
        ]
        drift = self._moved_while_idle()
        values = torch.stack([*gradients, *updates, *drift.values()])
        runtime.end_step()  # else the copies of branches would be in the next step's program
        found = iter(values.tolist())
        sizes = [next(found) for _ in gradients]
        named = self._norms.named(sizes, self.absent)
        moved = self._norms.named([next(found) for _ in updates], self.absent)
        named |= {
            name.replace("grad/", "update/", 1): value for name, value in moved.items() if name.startswith("grad/")
        }
        return named | {f"drift/[inactive]/{name}": next(found) for name in drift}

    def _moved_while_idle(self) -> dict[str, torch.Tensor]:
        """Of branches that no update has used since the last log; takes new copies of the others."""
        assert self.inactive is not None
        found: dict[str, torch.Tensor] = {}
        if self._logged:
            self._drift.note(set(self.inactive.branches) - self._used)
            found = self._drift.measure()
        self._drift.note(self.inactive.branches)
        self._used, self._logged = set(), True
        return found

    def kinds(self) -> Sequence[str]:
        """The sets of the aligned sampler: those that the configuration weighs, else each modality by itself."""
        return tuple(self.config.data.sampling.weights) or tuple(self.network.modalities)

    def example_batch(self, num_samples: int, kind: str = "") -> ConversationBatch:
        """Rows of a set such as `T1` or `T1+dMRI`, shared out as the aligned sampler does it; zeros for images."""
        chosen = (kind or self.kinds()[0]).split("+")
        network, length = self.network, self.config.data.max_length
        ids = image_token_ids(self.tokenizer)
        kinds = [name for name in MODALITIES if name in chosen] or [TEXT]
        whole, rest = divmod(num_samples, len(kinds))
        rows = {name: whole + (number < rest) for number, name in enumerate(kinds)}
        input_ids = torch.full((num_samples, length), int(self.tokenizer.pad_token_id))
        labels = torch.full_like(input_ids, -100)
        labels[:, -1] = input_ids[:, -1]
        images, first = {}, 0
        for name, count in rows.items():
            if name != TEXT:
                layout = network.modalities[name]
                input_ids[first : first + count, : layout.num_image_tokens] = ids[name]
                images[name] = torch.zeros(count, *layout.shape)
            first += count
        return ConversationBatch(
            images=images, input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=labels, rows=rows
        )

    def sample_flops(self, kind: str = "") -> float:
        """The tower over the patches of an image, the mean of a set's kinds, and the language model over the row."""
        network = self.network
        language = block_flops(self.config.data.max_length, network.language.width, network.language.depth)
        return 3 * (self._tower_flops(kind, network.depth) + language)

    def remat_flops(self, remat: Remat, kind: str = "") -> float:
        """Of the tower; the language model has a setting of its own (model.language.gradient_checkpointing)."""
        return self._tower_flops(kind, num_recomputed(self.network.depth, remat))

    def _tower_flops(self, kind: str, depth: int) -> float:
        """A forward of so many blocks over one image, the mean of a set's kinds; text has none."""
        network, chosen = self.network, (kind or self.kinds()[0]).split("+")
        patches = [network.modalities[name].num_patches for name in chosen if name in network.modalities]
        return sum(block_flops(number, network.width, depth) for number in patches) / len(chosen)


def _size(tensor: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
    """Norm of what this device has of a tensor that is split as `weight` is: float32 0-d, of the whole."""
    return sum_over_shares(tensor.float().square().sum(), weight).sqrt()
