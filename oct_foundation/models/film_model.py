"""The brain/stimulus autoencoder with its loss and the statistics that its loss is measured in, as one module.

`forward` gives the loss, for it is all that DDP wraps; the statistics are buffers, so a checkpoint knows its units.
"""

from collections.abc import Mapping

import torch
from torch import nn

from oct_foundation.film import AUDIO, CONTINUOUS, FilmBatch, FilmShape, TargetStatistics
from oct_foundation.losses.balance import BalanceKind, GradNorm, build_balance, gradient_norms, shares
from oct_foundation.losses.normalized import FilmLoss, constant_costs, cross_entropy, squared_error
from oct_foundation.models.brain_autoencoder import BrainAutoencoder, BrainOutput
from oct_foundation.models.brain_config import BrainAutoencoderConfig


class FilmModel(nn.Module):
    """network: the autoencoder. film_loss: made of the same `statistics`; raises ValueError where those are of films of
    another shape.
    """

    def __init__(
        self,
        config: BrainAutoencoderConfig,
        film_loss: FilmLoss,
        statistics: TargetStatistics,
        balance: BalanceKind = "fixed",
    ) -> None:
        super().__init__()
        check_statistics(statistics, config.shape)
        self.network = BrainAutoencoder(config)
        self.balance = build_balance(balance, film_loss.settings.weights)
        self.film_loss = film_loss
        self.num_trs, self.variance, self.std = statistics.num_trs, statistics.variance, statistics.std
        for name in CONTINUOUS:
            self.register_buffer(f"mean_{name}", statistics.mean[name].clone())
        self.register_buffer("unigram", statistics.unigram.clone())
        scales = [[statistics.variance[name], statistics.std[name]] for name in CONTINUOUS]
        self.register_buffer("scales", torch.tensor(scales))

    @property
    def statistics(self) -> TargetStatistics:
        """Those of the training TRs, on the model's device."""
        return TargetStatistics(
            mean={name: self.get_buffer(f"mean_{name}") for name in CONTINUOUS},
            variance=self.variance,
            std=self.std,
            unigram=self.get_buffer("unigram"),
            num_trs=self.num_trs,
        )

    def forward(
        self,
        video: torch.Tensor,
        video_target: torch.Tensor,
        audio: torch.Tensor,
        text: torch.Tensor,
        fmri: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The fields of a FilmBatch -> the loss to minimise, 0-d, and what is to be logged of it, detached 0-d."""
        batch = FilmBatch(video=video, video_target=video_target, audio=audio, text=text, fmri=fmri)
        output = self.network(video, audio, text, fmri)
        found = self.film_loss(output, batch)
        if isinstance(self.balance, GradNorm) and torch.is_grad_enabled():
            self.balance.update(found.losses, gradient_norms(found.losses, [output.bottleneck]))
        balanced = self.balance(found.losses)
        return balanced.total, found.metrics | named_shares(balanced.parts)

    def losses(self, batch: FilmBatch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Each modality's part of the loss as weighed now, with its graph, and the bottleneck all come through."""
        output = self.network(batch.video, batch.audio, batch.text, batch.fmri)
        losses = self.film_loss(output, batch).losses
        parts, tiny = self.balance(losses).parts, torch.finfo(torch.float32).tiny
        weighed = {name: loss * (parts[name] / loss.detach().clamp(min=tiny)) for name, loss in losses.items()}
        return weighed, output.bottleneck

    def audio_costs(self, output: BrainOutput, codes: torch.Tensor) -> torch.Tensor:
        """What the model's word costs for these codes, int64 [B, places], in each TR: [B]."""
        if self.film_loss.audio_output == "codes":
            return cross_entropy(output.audio_recon.float(), codes)
        return squared_error(output.audio_recon, codes, AUDIO)

    def constant_costs(self, codes: torch.Tensor) -> torch.Tensor:
        """The same for one who knows the frequencies of the training."""
        return constant_costs(codes, self.get_buffer("unigram"), self.film_loss.audio_output)


def named_shares(parts: Mapping[str, torch.Tensor], of: str = "share") -> dict[str, torch.Tensor]:
    """`share/<modality>`, of what all add up to."""
    return {f"{of}/{name}": share for name, share in shares(parts).items()}


def check_statistics(statistics: TargetStatistics, shape: FilmShape) -> None:
    """Raises ValueError where they are of films of another shape."""
    wanted = {"video": shape.frame_dim, "text": shape.text_dim, "fmri": shape.voxels}
    for name, size in wanted.items():
        if tuple(statistics.mean[name].shape) != (size,):
            raise ValueError(f"statistics of {name} are {list(statistics.mean[name].shape)}, the model needs [{size}]")
    if tuple(statistics.unigram.shape) != (shape.codebooks, shape.num_codes):
        raise ValueError(
            f"frequencies of codes are {list(statistics.unigram.shape)}, the model needs "
            f"[{shape.codebooks}, {shape.num_codes}]"
        )


def neutral_statistics(shape: FilmShape) -> TargetStatistics:
    """Means 0, variances 1, all codes alike: for a step without data."""
    return TargetStatistics(
        mean={
            "video": torch.zeros(shape.frame_dim),
            "text": torch.zeros(shape.text_dim),
            "fmri": torch.zeros(shape.voxels),
        },
        variance=dict.fromkeys(CONTINUOUS, 1.0),
        std=dict.fromkeys(CONTINUOUS, 1.0),
        unigram=torch.full((shape.codebooks, shape.num_codes), 1 / shape.num_codes),
        num_trs=1,
    )
