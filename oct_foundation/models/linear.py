"""nn.Linear whose bias is a step of its own under torch.compile on a CPU, so that it melts into what comes after."""

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """The same layer. On a CPU `addmm` first copies the bias over its whole output: 3 % of a profiled step."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each token by itself: float [..., in_features] -> [..., out_features]."""
        if not torch.compiler.is_compiling() or tokens.device.type != "cpu":
            return super().forward(tokens)
        product = F.linear(tokens, self.weight)
        return product + self.bias.to(product.dtype)
