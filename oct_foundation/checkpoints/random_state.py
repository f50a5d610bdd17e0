"""The random states of this process that live on the host: python, numpy (global generator), torch CPU.

As tensors, ints and floats only, because checkpoints are read with weights_only=True, which refuses numpy
arrays. A device's generator belongs to its runtime.
"""

import random
from typing import Any

import numpy as np
import torch

_PYTHON_VERSION = 3  # first entry of random.getstate(): the layout that CPython has used since 3.2
_NUMPY_GENERATOR = "MT19937"


def seed_host(seed: int) -> None:
    """Starts all three from `seed`: whatever a library draws from them, two equal runs draw the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, Any]:
    """The present states: {"python": {...}, "numpy": {...}, "torch": uint8 [n]}. Nothing is drawn."""
    version, words, gauss_next = random.getstate()
    generator, key, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    if version != _PYTHON_VERSION or generator != _NUMPY_GENERATOR:
        raise ValueError(
            f"random states of layout python {version}, numpy {generator} cannot be saved; "
            f"known: python {_PYTHON_VERSION}, numpy {_NUMPY_GENERATOR}"
        )
    return {
        "python": {"words": torch.tensor(words, dtype=torch.int64), "gauss_next": gauss_next},
        "numpy": {
            "key": torch.from_numpy(np.asarray(key).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "torch": torch.get_rng_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Sets what `capture_random_state` returned, so that every later draw repeats bit for bit.

    Raises ValueError when `state` lacks one of the three generators; none is set then.
    """
    if missing := {"python", "numpy", "torch"} - state.keys():
        raise ValueError(f"random state lacks {sorted(missing)}; found {sorted(state)}")
    python, numpy = state["python"], state["numpy"]
    random.setstate((_PYTHON_VERSION, tuple(python["words"].tolist()), python["gauss_next"]))
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state((_NUMPY_GENERATOR, key, numpy["position"], numpy["has_gauss"], numpy["cached_gaussian"]))
    torch.set_rng_state(state["torch"])
