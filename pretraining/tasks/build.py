"""A configuration -> its data made ready, then its task. The one place that knows all tasks."""

from pathlib import Path

from data_setup.index import PreparedSet
from pretraining.config import RunConfig
from pretraining.run_folder import RunFolder
from pretraining.tasks.task import Objective, Task
from pretraining.vjepa_config import VJEPARunConfig


def prepare_data(config: RunConfig, folder: RunFolder) -> Path | None:
    """Before any device is touched: volumes of the working size on this host's disk. None where nothing is prepared.

    Raises TooManyBadFiles, ValueError, StopPreparing as pretraining/tasks/vjepa_data.py says.
    """
    if isinstance(config, VJEPARunConfig):
        from pretraining.tasks.vjepa_data import prepare_volumes

        return prepare_volumes(config, folder)
    return None


def build_task(config: RunConfig, prepared: Path | None) -> Task:
    """On a rank; `config` as that rank sees it. Raises ConfigError where there is nothing to train on."""
    if isinstance(config, VJEPARunConfig):
        from pretraining.tasks.vjepa import VJEPATask

        assert prepared is not None
        return VJEPATask(config, PreparedSet.load(prepared))
    from pretraining.multimodal_config import MultimodalRunConfig
    from pretraining.tasks.multimodal import MultimodalTask

    assert isinstance(config, MultimodalRunConfig)
    return MultimodalTask(config)


def build_objective(config: RunConfig) -> Objective:
    """What a task trains, without its data."""
    if isinstance(config, VJEPARunConfig):
        from pretraining.tasks.vjepa_objective import VJEPAObjective

        return VJEPAObjective(config)
    from pretraining.multimodal_config import MultimodalRunConfig
    from pretraining.tasks.multimodal_objective import MultimodalObjective

    assert isinstance(config, MultimodalRunConfig)
    return MultimodalObjective(config)
