"""torch.compile, block by block: a network's equal blocks share one compiled code for each shape they are called with.

The whole forward as one graph measured no faster on a CPU: 1.99 s of processor time a step, block by block 1.98.
"""

from collections.abc import Iterable

from torch import nn

# All blocks share one code object, and torch gives up on a code object after 8 shapes and modes. A run has 8: student,
# teacher and predictor in training and validation, the last blocks apart; diagnostics add theirs.
MAX_VARIANTS = 32


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Compiles the blocks of `networks` in place, when first called; names and values of the weights stay as they are.

    Shapes are taken as fixed. Needs a C++ compiler on a CPU, Triton on CUDA.
    """
    from torch._dynamo import config  # brings sympy: a second of every start

    config.recompile_limit = max(MAX_VARIANTS, config.recompile_limit)
    for network in networks:
        blocks = network.blocks
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            block.compile(dynamic=False)
