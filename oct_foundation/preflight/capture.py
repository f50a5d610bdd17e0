"""Records the programs that a step would run on n chips, as HLO, without running them.

Works on the CPU device of torch_xla in a process of its own. A private name of torch_xla that is missing in another
version shows in tests/preflight.
"""

import gc
import hashlib
from dataclasses import dataclass

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, kw_only=True)
class Program:
    """One recorded graph.

    digest: equal for graphs that torch_xla compiles once; hlo: an HLO module, serialized; donated: numbers of its
    parameters that an output replaces, donated_bytes: their size.
    """

    kind: str
    digest: str
    hlo: bytes
    donated: tuple[int, ...]
    donated_bytes: int


def pretend_replicas(num_replicas: int) -> torch.device:
    """The device of a process that believes to be one of so many (CPU_NUM_DEVICES says how many there are).

    Must come before anything asks for the world size, which torch_xla remembers: with 1 there are no reductions, and
    the program is not the slice's.
    """
    device = torch_xla.device()
    if num_replicas > 1:
        xm.set_replication(device, xm.get_xla_supported_devices())
    if xr.world_size() != num_replicas:
        raise RuntimeError(f"torch_xla sees {xr.world_size()} replicas instead of {num_replicas}")
    return device


class Recorder:
    """Stands where torch_xla would run what is pending: `record` takes it down as a program, `settle` forgets it.

    programs: the distinct ones, by digest; runs: the digest of each run, in their order.
    """

    def __init__(self) -> None:
        gc.freeze()  # hundreds of thousands of imported objects, none a tensor of ours: the walks leave them out
        self.programs: dict[str, Program] = {}
        self.runs: list[str] = []
        self._known = WeakTensorKeyDictionary()

    def settle(self) -> None:
        """Makes every tensor look as if its value had been computed, as torch_xla.sync() leaves it, sharded as it is.

        torch_xla puts placeholders without memory in place of what is pending: no value is ever read.
        """
        torch_xla._XLAC._clear_pending_irs(str(torch_xla.device()))
        # Reductions are kept in order by a token that is no tensor and would carry this step's graph into the next.
        torch_xla._XLAC._set_all_reduce_token(str(torch_xla.device()), None)
        live = _live()
        # The Python object survives an update in place, torch_xla's number of the tensor does not.
        self._known = WeakTensorKeyDictionary({tensor: _inputs([tensor])[0] for tensor in live})
        for tensor in live:  # a look at its sharding hands it on to the placeholder that `_inputs` has made a node of
            torch_xla._XLAC._get_xla_sharding_spec(tensor)

    def record(self, kind: str) -> None:
        """Takes down what is pending as one program, as a sync would run it, and settles."""
        outputs = _pending()
        digest = hashlib.sha256(torch_xla._XLAC._get_graph_hash(outputs)).hexdigest()[:16]
        self.runs.append(digest)
        if digest not in self.programs:
            self.programs[digest] = self._program(kind, digest, outputs)
        del outputs
        self.settle()

    def _program(self, kind: str, digest: str, outputs: list[torch.Tensor]) -> Program:
        """torch_xla donates the buffer of a tensor that is an input and, under the same name, an output."""
        parameter_of = {number: position for position, number in enumerate(_inputs(outputs))}
        replaced = {
            parameter_of[self._known[tensor]]: tensor.numel() * tensor.element_size()
            for tensor in outputs
            if self._known.get(tensor) in parameter_of
        }
        return Program(
            kind=kind,
            digest=digest,
            hlo=torch_xla._XLAC._get_xla_tensors_hlo_proto(outputs),
            donated=tuple(sorted(replaced)),
            donated_bytes=sum(replaced.values()),
        )


def _live() -> list[torch.Tensor]:
    """Every tensor on an XLA device that Python or a `.grad` can reach, each storage once, in the order of their birth.

    The garbage collector knows them all, also those that no list of ours would name (an optimizer's state that is born
    in step 1, a metric that someone keeps): a sync takes them all, too.
    """
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor) and found.is_xla]
    tensors += [found.grad for found in tensors if found.is_leaf and found.grad is not None]
    by_number = {torch_xla._XLAC._xla_get_tensor_id(found): found for found in tensors}
    return [by_number[number] for number in sorted(by_number)]


def _pending() -> list[torch.Tensor]:
    """Those of `_live` whose value has not been computed."""
    tensors = _live()
    needed = torch_xla._XLAC._check_tensor_need_materialization(tensors) if tensors else []
    return [tensor for tensor, pending in zip(tensors, needed, strict=True) if pending]


def _inputs(tensors: list[torch.Tensor]) -> list[int]:
    """torch_xla's numbers of the data that the graph of `tensors` reads, in the order of the program's parameters."""
    numbers, _data = torch_xla._XLAC._get_tensors_xla_device_data_node(tensors)
    return list(numbers)
