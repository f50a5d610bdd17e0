from pathlib import Path

import pytest

from data_setup.phantom_benchmark import BenchmarkSettings, write_benchmark
from pretraining.config import load_config
from pretraining.tasks.vjepa import VJEPATask

SMOKE = Path(__file__).parents[2] / "configs" / "smoke_test.yaml"


@pytest.mark.parametrize("strategy", ["random", "tube", "multiblock"])
def test_an_example_batch_is_what_the_loader_gives_but_for_its_content(tmp_path: Path, strategy: str):
    settings = BenchmarkSettings(num_volumes=8, image_size=(16, 64, 64))
    prepared = write_benchmark(tmp_path, settings, num_train=6, num_val=2)
    overrides = [
        "model.image_size=[16,64,64]", "data.source=prepared", f"data.root={tmp_path}", "data.max_samples=null",
        "batch.per_core_batch_size=3", "batch.global_batch_size=3", f"mask.strategy={strategy}", "mask.ratio=0.4",
    ]  # fmt: skip
    task = VJEPATask(load_config(SMOKE, overrides), prepared)
    loaded = next(iter(task.train_batches(rank=0, world_size=1, start_step=0, num_steps=1))).tensors()
    example = task.objective.example_batch(3).tensors()
    assert example.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert (example[name].shape, example[name].dtype) == (tensor.shape, tensor.dtype), name
        assert example[name].is_contiguous(), name
