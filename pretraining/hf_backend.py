"""What transformers.Trainer must be told of this project: settings it needs or must not have, a config it can use."""

import copy
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env  # type: ignore[import-untyped]
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import is_torch_xla_available

from oct_foundation.losses.inactive import Policy

if TYPE_CHECKING:
    from transformers import TrainingArguments


def arguments_for(args: "TrainingArguments", policy: Policy) -> "TrainingArguments":
    """A copy with what this trainer needs: no NaN is hidden, no column of a sample lost, DDP searches for unused
    parameters under `find_unused` alone. Raises ValueError for what it would be wrong with.
    """
    check_backend(args)
    searches = policy == "find_unused"
    if searches and args.ddp_find_unused_parameters is False:
        raise ValueError(
            "policy find_unused adds no dummy, so DDP must search: ddp_find_unused_parameters is False; leave it unset"
        )
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config.dispatch_batches cuts every tensor of a batch alike for the ranks, though kinds differ "
            "in rows and images; set it to False: each rank reads its own"
        )
    args = copy.copy(args)
    args.accelerator_config = copy.copy(args.accelerator_config)
    args.accelerator_config.dispatch_batches = False  # None would be True for an IterableDataset
    args.logging_nan_inf_filter = False
    args.remove_unused_columns = False
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = searches
    return args


def check_backend(args: "TrainingArguments") -> None:
    """Raises ValueError unless this is one process or DDP, on CPU or CUDA."""
    if is_torch_xla_available():
        raise ValueError(
            "torch_xla is installed, so Trainer puts the model on an XLA device, where this trainer is not built to "
            "run; set USE_TORCH_XLA=0 before Python starts, or train on XLA with run_tpu_xla.sh"
        )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > args.world_size:
        raise ValueError(
            "torchrun has started several processes, and by these TrainingArguments each would train alone: on a "
            "machine without a GPU set use_cpu=True"
        )
    if args.deepspeed or args.deepspeed_plugin is not None:
        raise ValueError(
            "DeepSpeed fills the gradients of absent branches with zeros, so that decay and momentum move them: no "
            "policy keeps its promise, and the gradient norms would be empty; start with torchrun (DDP) instead"
        )
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "FSDP with different modalities on two ranks mixes up their weights without an error; start with torchrun "
            "(DDP), or train sharded in the project's own loop (train.sharding=full)"
        )
    if args.torch_compile:
        raise ValueError("torch_compile would freeze one set of modalities into the program; set it to False")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, and DataParallel cuts images and rows apart; start with torchrun "
            "--nproc_per_node, or show one GPU (CUDA_VISIBLE_DEVICES=0)"
        )


class OpenConfig(PreTrainedConfig):
    """The fields of a frozen config as Trainer and its reporters want one: Trainer writes `use_cache` and the numbers
    of the tokenizer's special tokens into the model's config, W&B and TensorBoard ask it for plain values.
    """

    def __init__(self, frozen: Any) -> None:
        super().__init__()
        self._values = asdict(frozen)
        for field in fields(frozen):
            setattr(self, field.name, getattr(frozen, field.name))

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the fields."""
        return self._values


def with_open_config(model: nn.Module) -> nn.Module:
    """The same model, its `config` open where it was a frozen dataclass."""
    config = getattr(model, "config", None)
    if is_dataclass(config) and not isinstance(config, PreTrainedConfig):
        model.config = OpenConfig(config)
    return model
