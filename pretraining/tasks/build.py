"""A configuration -> its data made ready, then its task. The one place that knows all tasks."""

from pathlib import Path

from data_setup.index import PreparedSet
from pretraining.config import RunConfig
from pretraining.run_folder import RunFolder
from pretraining.tasks.task import Objective, Task
from pretraining.vjepa_config import VJEPARunConfig


def prepare_data(config: RunConfig, folder: RunFolder) -> Path | None:
    """Before any device is touched: volumes of the working size on this host's disk, or the arrays of a film in their
    cache. None where the ranks need no place.

    Raises TooManyBadFiles, ValueError, StopPreparing as pretraining/tasks/vjepa_data.py says.
    """
    match config.task:
        case "vjepa":
            from pretraining.tasks.vjepa_data import prepare_volumes

            assert isinstance(config, VJEPARunConfig)
            return prepare_volumes(config, folder)
        case "autoencoder":
            from pretraining.autoencoder_config import AutoencoderRunConfig
            from pretraining.tasks.autoencoder import opened

            assert isinstance(config, AutoencoderRunConfig)
            opened(config)
            return None
        case "multimodal":
            return None


def build_task(config: RunConfig, prepared: Path | None) -> Task:
    """On a rank; `config` as that rank sees it. Raises ConfigError where there is nothing to train on."""
    match config.task:
        case "vjepa":
            from pretraining.tasks.vjepa import VJEPATask

            assert isinstance(config, VJEPARunConfig)
            assert prepared is not None
            return VJEPATask(config, PreparedSet.load(prepared))
        case "multimodal":
            from pretraining.multimodal_config import MultimodalRunConfig
            from pretraining.tasks.multimodal import MultimodalTask

            assert isinstance(config, MultimodalRunConfig)
            return MultimodalTask(config)
        case "autoencoder":
            from pretraining.autoencoder_config import AutoencoderRunConfig
            from pretraining.tasks.autoencoder import AutoencoderTask

            assert isinstance(config, AutoencoderRunConfig)
            return AutoencoderTask(config)


def build_objective(config: RunConfig) -> Objective:
    """What a task trains, without its data."""
    match config.task:
        case "vjepa":
            from pretraining.tasks.vjepa_objective import VJEPAObjective

            assert isinstance(config, VJEPARunConfig)
            return VJEPAObjective(config)
        case "multimodal":
            from pretraining.multimodal_config import MultimodalRunConfig
            from pretraining.tasks.multimodal_objective import MultimodalObjective

            assert isinstance(config, MultimodalRunConfig)
            return MultimodalObjective(config)
        case "autoencoder":
            from pretraining.autoencoder_config import AutoencoderRunConfig
            from pretraining.tasks.autoencoder_objective import AutoencoderObjective

            assert isinstance(config, AutoencoderRunConfig)
            return AutoencoderObjective(config)
