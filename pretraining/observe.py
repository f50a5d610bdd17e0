"""The networks of a V-JEPA3D, looked at through volumes that they never train on -> an Observation.

What this takes on a device are programs of its own, compiled once: the training step gains nothing and loses nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oct_foundation.diagnostics.observation import Observation
from oct_foundation.losses.latent import latent_loss, normalize_targets
from oct_foundation.models.encoder import gather_tokens
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Precision, Runtime
from oct_foundation.shares import is_split, share, sum_over_shares
from pretraining.held_out import NUM_VIEWS, HeldOut, Look

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The middle layer of patches of this rank's volumes, h x w of them, for pictures.

    numbers: which held-out volumes; features, predictions: float [K, h * w, E]; hidden: bool [K, h * w].
    """

    numbers: list[int]
    features: torch.Tensor
    predictions: torch.Tensor
    hidden: torch.Tensor


class VJEPAObserver:
    """Looks at the model of one rank; the ranks share the volumes, each takes every world_size-th."""

    def __init__(self, held_out: HeldOut, runtime: Runtime, *, batch_size: int, precision: Precision) -> None:
        self._held_out, self._runtime, self._precision = held_out, runtime, precision
        self._batch_size = batch_size
        self._mine = self._share(held_out.num_volumes)

    def _share(self, num_volumes: int) -> list[int]:
        """Which of the first `num_volumes` this rank looks at: whole batches, the last one filled by repetition."""
        world = self._runtime.world_size
        rounds = math.ceil(num_volumes / (self._batch_size * world))
        return [(self._runtime.rank + n * world) % num_volumes for n in range(rounds * self._batch_size)]

    def unreadable(self) -> list[str]:
        """Volumes of this rank that cannot be opened any more."""
        return self._held_out.unreadable(self._mine)

    @torch.no_grad()
    def observe(self, model: VJEPA3D) -> tuple[Observation, Layer]:
        """Of all ranks together, the same on every rank; and the middle layer of this rank's."""
        found = self._look_at_all(model)
        num_compared = len(self._held_out.compared)
        tokens = ("targets", "predictions", "hidden")
        compared = {name: value[:, :num_compared] if name in tokens else value for name, value in found.items()}
        views = self._views(model)
        parts = self._runtime.gather((self._mine, compared, views))
        layer = Layer(
            numbers=self._mine,
            features=found["targets"][:, num_compared:],
            predictions=found["predictions"][:, num_compared:],
            hidden=found["hidden"][:, num_compared:],
        )
        return self._joined(parts), layer

    def _look_at_all(self, model: VJEPA3D) -> Tensors:
        """Of this rank's volumes, on the host."""
        found: list[Tensors] = []
        for look in self._runtime.batches(self._held_out.looks(self._mine, self._batch_size)):
            with self._runtime.autocast(self._precision):
                values = look_at(model, look)
            self._runtime.end_step()
            found.append({name: value.cpu() for name, value in values.items()})
        merged = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        positions = torch.from_numpy(self._held_out.positions)
        hidden = [torch.from_numpy(self._held_out.hidden(number))[positions] for number in self._mine]
        tissue = [torch.from_numpy(self._held_out.foreground(number)) for number in self._mine]
        compared = torch.from_numpy(self._held_out.compared)
        foreground = torch.stack([one[compared] for one in tissue])
        return merged | {"hidden": torch.stack(hidden), "foreground": foreground}

    def _views(self, model: VJEPA3D) -> tuple[list[int], torch.Tensor]:
        """Which volumes, and their pooled student features under other masks: float [Mv, q, E].

        As many volumes as LiDAR needs for E dimensions: M (q - 1) > E.
        """
        numbers = self._share(min(model.embed_dim // (NUM_VIEWS - 1) + 1, self._held_out.num_volumes))
        pooled: list[torch.Tensor] = []
        for start in range(0, len(numbers), self._batch_size):
            few = numbers[start : start + self._batch_size]
            volume = self._held_out.volumes(few).to(self._runtime.device)
            views = []
            for context_idx in self._held_out.views(few):
                with self._runtime.autocast(self._precision):
                    features = model.context_encoder(volume, context_idx.to(self._runtime.device))
                mean = features.float().mean(dim=1)
                self._runtime.end_step()
                views.append(mean.cpu())
            pooled.append(torch.stack(views, dim=1))
        return numbers, torch.cat(pooled)

    def _joined(self, parts: list[tuple[list[int], Tensors, tuple[list[int], torch.Tensor]]]) -> Observation:
        """In the order of the volumes, each once, whatever the number of ranks was."""
        values = {name: torch.cat([tensors[name] for _, tensors, _ in parts]) for name in parts[0][1]}
        order = _first_places([number for numbers, _, _ in parts for number in numbers])
        views = torch.cat([pooled for _, _, (_, pooled) in parts])
        view_order = _first_places([number for _, _, (numbers, _) in parts for number in numbers])
        return Observation(
            **{name: value[list(order.values())] for name, value in values.items()},
            views=views[list(view_order.values())],
            domains=tuple(self._held_out.domains[number] for number in order),
        )

    def gradient_norms(self, model: VJEPA3D) -> dict[str, float]:
        """By maker: norm of the loss's gradient on a batch of that maker's held-out volumes, the mean over ranks.

        Nothing where all volumes come from one maker. Leaves no gradient behind. Of weights in shares only the mean of
        the ranks' gradients can be had: there all ranks take the same batch.
        """
        domains = sorted(set(self._held_out.domains))
        if len(domains) < 2:
            return {}
        norms: dict[str, float] = {}
        trained = model.trainable_parameters()
        first = 0 if is_split(trained[0]) else self._runtime.rank * self._batch_size
        for domain in domains:
            theirs = [number for number, other in enumerate(self._held_out.domains) if other == domain]
            numbers = [theirs[(first + n) % len(theirs)] for n in range(self._batch_size)]
            look = self._held_out.look(numbers).to(self._runtime.device)
            with self._runtime.autocast(self._precision):
                loss, _, _ = model(look.volume, look.volume, context_idx=look.context_idx, target_idx=look.target_idx)
            norm = _norm(_gradients(loss, trained))
            self._runtime.end_step()
            norms |= self._runtime.fetch({domain: norm})
        return self._runtime.mean_over_ranks(norms)


def look_at(model: VJEPA3D, look: Look) -> Tensors:
    """What the three networks say of one batch: Observation's fields of that name, float32, on the device.

    targets and predictions: float [B, n, E] at look.positions.
    """
    kind = model.config.loss
    features = model.target_encoder(look.volume).float()
    targets = normalize_targets(features)
    context = model.context_encoder(look.volume, look.context_idx)
    predictions = model.predictor(context, look.context_idx, look.target_idx).float()
    hidden = gather_tokens(targets, look.target_idx)
    losses = [latent_loss(prediction, target, kind) for prediction, target in zip(predictions, hidden, strict=True)]
    tissue = look.foreground + (look.foreground.sum(dim=1, keepdim=True) == 0)  # all tokens where there is none
    return {
        "pooled": features.mean(dim=1),
        "pooled_online": model.context_encoder(look.volume).float().mean(dim=1),
        "pooled_foreground": ((tissue / tissue.sum(dim=1, keepdim=True)).unsqueeze(-1) * features).sum(dim=1),
        "targets": gather_tokens(targets, look.positions),
        "predictions": gather_tokens(predictions, look.slots),
        "losses": torch.stack(losses),
    }


@torch.no_grad()
def movements(model: VJEPA3D, optimizer: AdamW) -> Tensors:
    """0-d float32, on the device: by part of the encoder `ema_gap/<part>`, norm(student - teacher) / norm(student); for
    encoder and predictor `update_ratio/<network>`, norm of the last update / norm of the weights; `finite`, 0 where the
    guard has skipped that update.
    """
    teacher = dict(model.target_encoder.named_children())
    found: Tensors = {"finite": optimizer.guard.finite}
    for part, student in model.context_encoder.named_children():
        if weights := list(student.parameters()):
            averages = list(teacher[part].parameters())
            gaps = [weight - average for weight, average in zip(weights, averages, strict=True)]
            found[f"ema_gap/{part}"] = _norm(gaps) / _norm(weights)
    for name, network in (("encoder", model.context_encoder), ("predictor", model.predictor)):
        weights = list(network.parameters())
        updates = [optimizer.last_update(weight) for weight in weights]
        found[f"update_ratio/{name}"] = _norm(updates, shared_as=weights[0]) / _norm(weights)
    return found


@torch.no_grad()
def input_statistics(views: torch.Tensor, runtime: Runtime) -> dict[str, float]:
    """Of a training batch on the device, uint8 [B, 1, D, H, W] on each rank: `input_mean` and `input_std` of its grey
    levels, 0 to 1, and `input_distinct`, the share of its volumes that no other one equals (with 2 volumes at least).
    """
    voxels = views.flatten(1).float() / 255
    found = torch.stack([voxels.mean(dim=1), voxels.std(dim=1)], dim=1)
    runtime.end_step()
    volumes = [tuple(volume) for part in runtime.gather(found.cpu().tolist()) for volume in part]
    means, stds = zip(*volumes, strict=True)
    values = {"input_mean": sum(means) / len(volumes), "input_std": sum(stds) / len(volumes)}
    if len(volumes) > 1:
        values["input_distinct"] = sum(volumes.count(volume) == 1 for volume in volumes) / len(volumes)
    return values


def _gradients(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.Tensor]:
    """Of this rank's loss. FSDP, whose shares are not in the loss's graph, gives the ranks' mean only, by backward."""
    if not is_split(parameters[0]):
        return torch.autograd.grad(loss, parameters)
    loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def _norm(tensors: Sequence[torch.Tensor], shared_as: torch.Tensor | None = None) -> torch.Tensor:
    """Of all tensors together; shared_as: the tensor that is split over devices as they are, when they don't tell."""
    squares = torch.stack([share(tensor).float().square().sum() for tensor in tensors]).sum()
    return sum_over_shares(squares, tensors[0] if shared_as is None else shared_as).sqrt()


def _first_places(numbers: list[int]) -> dict[int, int]:
    """Each number once, rising, with the first place where it stands."""
    places: dict[int, int] = {}
    for place, number in enumerate(numbers):
        places.setdefault(number, place)
    return dict(sorted(places.items()))
