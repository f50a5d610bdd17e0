"""Operations of a training step by arithmetic, multiply-add = 2: what a share of a chip's peak is measured against.

Whatever a kernel or a compiler really executes (recomputed scores, rematerialised blocks) counts nothing here.
"""

from oct_foundation.models.vjepa3d import PRESETS, VJEPA3DConfig


def block_flops(num_tokens: int, width: int, depth: int) -> float:
    """`depth` transformer blocks forward on one sample: 24 n E^2 in linear layers, 4 n^2 E in attention, each."""
    return depth * (24.0 * num_tokens * width**2 + 4.0 * num_tokens**2 * width)


def step_flops(config: VJEPA3DConfig, *, num_context: int, num_target: int) -> float:
    """One volume's training step: teacher forward; context encoder and predictor forward and, twice that, backward.

    Patch embedding, norms and optimizer count nothing; what is left out of the predictor's last block counts.
    """
    sizes = PRESETS[config.preset]
    teacher = block_flops(config.grid.num_patches, sizes.width, sizes.depth)
    context = block_flops(num_context, sizes.width, sizes.depth)
    predictor = block_flops(num_context + num_target, sizes.predictor_width, sizes.predictor_depth)
    return teacher + 3 * (context + predictor)
