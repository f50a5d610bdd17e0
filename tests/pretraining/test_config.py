import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.config import ConfigError, RunConfig, load_as, load_config
from pretraining.multimodal_config import MultimodalRunConfig
from pretraining.vjepa_config import VJEPARunConfig

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = PROJECT / "configs" / "smoke_test.yaml"


@pytest.mark.parametrize("name", ["smoke_test", "pretrain_vjepa_single_domain", "pretrain_vjepa_multi_domain"])
def test_every_shipped_config_is_valid(name, tmp_path):
    config = load_config(PROJECT / "configs" / f"{name}.yaml", [f"data.root={tmp_path}"])
    assert config.name in name


def test_the_pretraining_configs_say_what_the_reports_used(tmp_path):
    for name in ("single", "multi"):
        config = load_config(PROJECT / "configs" / f"pretrain_vjepa_{name}_domain.yaml", [f"data.root={tmp_path}"])
        assert config.model.image_size == (64, 384, 384)
        assert config.batch.accumulation(world_size=16) == 2
        assert config.mask.ratio == 0.6
        assert (config.optim.base_lr, config.optim.schedule, config.optim.clip_norm) == (1e-4, "constant", 0.01)
        assert (config.train.epochs, config.train.drop_last, config.train.log_every_steps) == (150, True, 2)


def test_overrides_win_and_the_resolved_config_reads_back(tmp_path):
    config = load_config(SMOKE, ["train.max_steps=3", "optim.betas=[0.8,0.9]", "output_dir=somewhere"])
    assert (config.train.max_steps, config.optim.betas) == (3, (0.8, 0.9))
    assert config.checkpoint.ckpt_dir == "somewhere/checkpoints"
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("checkpoint.best_metric=val/loss", ["checkpoint.best_metric is 'val/loss'", "dead encoder", "null"]),
        ("diagnostics.every_steps=0", ["diagnostics.every_steps must be at least 1", "found 0"]),
        ("train.epoch=3", ["unknown key 'train.epoch'", "train.epochs"]),
        ("epochs=3", ["unknown key 'epochs'", "train.epochs"]),
        ("data.sorce=phantom", ["data.sorce", "data.source"]),
        ("train.epochs=many", ["train.epochs", "many"]),
        ("train.epochs=0", ["train.epochs", "at least 1", "found 0"]),
        ("data.source=bucket", ["data.source", "bucket", "phantom", "directory"]),
        ("data.source=directory", ["data.root", "folder"]),
        ("optim.base_lr=-1", ["optim.base_lr", "-1"]),
        ("optim.clip_norm=0", ["optim.clip_norm", "null"]),
        ("optim.schedule=cosine_restarts", ["optim.schedule", "cosine_restarts", "constant"]),
        ("model.image_size=[16,130,128]", ["axis H", "130", "128, 144"]),
        ("model.image_size=[16,128]", ["model.image_size: [16, 128] has 2 values, 3 are needed"]),
        ("model.image_size=64", ["model.image_size: 64 is no list; write [a,b,c]"]),
        ("data.formats=[dicom,jpeg]", ["data.formats: Invalid value in ['dicom', 'jpeg'], expected", "'heyex_vol'"]),
        ("mask.ratio=1.5", ["ratio", "1.5"]),
        ("mask.ratio=0.999", ["ratio"]),
        ("checkpoint.ckpt_dir=gs:/bucket/x", ["gs:/bucket/x"]),
        ("checkpoint.ckpt_dir=gs://None/x", ["None"]),
        ("data.max_bad_fraction=2", ["data.max_bad_fraction", "2"]),
        ("runtime.num_processes=2", ["runtime.num_processes", "cpu"]),
        ("train.max_steps", ["key=value"]),
    ],
)
def test_a_wrong_value_is_one_readable_message(override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(SMOKE, [override])
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert "\n" not in message.strip()


def test_a_missing_file_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"smoke_test\.yaml"):
        load_config(PROJECT / "configs" / "smoke.yaml")
    with pytest.raises(ConfigError, match=r"configs is no file; there are: .*smoke_test\.yaml"):
        load_config(PROJECT / "configs")


def test_broken_yaml_is_a_config_error(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1, 2\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_config(broken)
    broken.write_bytes(b"DICM\xd6")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_config(broken)


def config_with(**batch: object) -> RunConfig:
    return load_config(SMOKE, [f"batch.{name}={value}" for name, value in batch.items()])


def test_accumulation_is_derived_from_the_devices():
    config = config_with(global_batch_size=32, per_core_batch_size=1)
    assert [config.batch.accumulation(world) for world in (1, 2, 16, 32)] == [32, 16, 2, 1]


@pytest.mark.parametrize(
    ("batch", "world", "remedies"),
    [
        ({"global_batch_size": 32, "per_core_batch_size": 3}, 1, ["30, 33", "[1, 2, 4, 8, 16, 32]"]),
        ({"global_batch_size": 32, "grad_accum_steps": 3}, 16, ["grad_accum_steps=2", "global_batch_size=48"]),
        ({"global_batch_size": 8}, 16, ["[16]"]),
    ],
)
def test_an_impossible_batch_names_the_values_that_work(batch, world, remedies):
    with pytest.raises(ConfigError) as caught:
        config_with(**batch).batch.accumulation(world)
    for remedy in remedies:
        assert remedy in str(caught.value)


@pytest.mark.parametrize("override", ["train.epoch=3", "batch.global_batch_size=3", "model.image_size=[16,130,128]"])
def test_the_command_exits_with_2_before_it_leaves_a_trace(override, tmp_path):
    overrides = [override, "batch.per_core_batch_size=2", f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "pretraining.train", str(SMOKE), "--device", "cpu", *overrides]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert override.split("=")[0].split(".")[-1] in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("momentum", "steps", "says"),
    [
        ("0.996", 800, "averages over 250 of this run's 800 updates"),
        ("0.996", 1001, ""),
        ("0.99", 800, ""),
        ("1.0", 800, "averages over 800 of"),
        ("0.996", 300, ""),  # a trial
        ("0.998", 100_000, ""),
    ],
)
def test_a_teacher_that_averages_over_most_of_the_run_is_spoken_of(momentum, steps, says):
    hint = load_config(SMOKE, [f"optim.ema_momentum={momentum}"]).optim.lagging_teacher(steps)
    assert says in hint
    assert bool(hint) == bool(says)
    if hint:
        assert "about 0.99 gives" in hint


UMBRELLA = PROJECT / "configs" / "umbrella_llava_train.yaml"


def test_task_chooses_what_a_file_may_say(tmp_path):
    config = load_config(UMBRELLA, [f"output_dir={tmp_path}"])
    assert isinstance(config, MultimodalRunConfig)
    assert load_config(SMOKE).task == "vjepa"
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    with pytest.raises(ConfigError, match=r"unknown key 'mask'"):
        load_config(UMBRELLA, ["mask.ratio=0.6"])
    with pytest.raises(ConfigError, match=r"task is 'vjepe'; allowed: vjepa, multimodal"):
        load_config(SMOKE, ["task=vjepe"])


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("trainer.learning_rate", "learning_rate as optim.base_lr"),
        ("dataset.train_size", "train_size, val_size, test_size as data.val_fraction"),
        ("data.T1.img_size", "did you mean data.T1.size?"),
    ],
)
def test_keys_of_the_original_umbrella_are_told_their_place(key, place):
    with pytest.raises(ConfigError, match="unknown key") as refused:
        load_config(UMBRELLA, [f"{key}=1"])
    assert place in str(refused.value)


def test_a_command_for_one_task_refuses_the_configuration_of_another():
    with pytest.raises(ConfigError, match="says task: multimodal, and this command is for task: vjepa only"):
        load_as(VJEPARunConfig, UMBRELLA)


def test_patches_that_do_not_divide_an_image_are_refused_with_sizes_that_fit():
    with pytest.raises(ConfigError, match=r"model\.T1: patch_size \[10, 8, 8\].* 8 or 16"):
        load_config(UMBRELLA, ["model.T1.patch_size=[10,8,8]"])


def test_policies_that_move_absent_branches_say_how_far():
    assert load_config(UMBRELLA).hint(100) == ""
    assert "times its norm" in load_config(UMBRELLA, ["inactive=tiny"]).hint(100)
    assert "decay takes" in load_config(UMBRELLA, ["inactive=zero"]).hint(100)


def test_a_rank_that_feeds_four_devices_is_one_device_with_four_times_the_batch():
    config = config_with(global_batch_size=16, per_core_batch_size=2)
    fed = config.fed_by_rank(4)
    assert fed.batch.per_core_batch_size == 8
    assert fed.batch.accumulation(1) == config.batch.accumulation(4) == 2
