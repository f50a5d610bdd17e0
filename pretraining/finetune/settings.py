"""What decides a fine-tuning, checked when it is built; saved with its result."""

from dataclasses import dataclass
from typing import Literal

from oct_foundation.models.head import HeadKind
from pretraining.sections import check_least, check_range

Init = Literal["pretrained", "random"]


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """How the encoder is fine-tuned.

    lr: of the head, after a linear warm-up over `warmup_share` of the updates; it falls to 0 along a cosine. Each layer
    below learns `layer_decay` times as fast as the one above. freeze: train the head alone. mirror: show each volume
    mirrored along B-scans and along width at random; wrong for labels that know left from right. init=random: the
    control, the same network untrained. num_folds: 0 holds out one part instead.
    """

    epochs: int = 20
    lr: float = 2e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    head: HeadKind = "linear"
    freeze: bool = False
    mirror: bool = False
    init: Init = "pretrained"
    batch_size: int = 8
    num_folds: int = 0
    val_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("--epochs", self.epochs, 1)
        check_least("--batch-size", self.batch_size, 1)
        for option, value, low, high in (
            ("--lr", self.lr, 1e-9, 10.0),
            ("--layer-decay", self.layer_decay, 0.0, 1.0),
            ("--weight-decay", self.weight_decay, 0.0, 10.0),
            ("--val-fraction", self.val_fraction, 0.01, 0.9),
            ("--seed", self.seed, 0, 2**32 - 1),
        ):
            check_range(option, value, low, high)
        if self.num_folds == 1 or self.num_folds < 0:
            raise ValueError(f"--folds must be 0 (one held-out part) or at least 2; found {self.num_folds}")
