"""What can go wrong in a stage and shows before any stage has run: found on shapes alone, so that no training is lost to it."""

import importlib.util

import jax
from etils import epath

from memjax.checkpoints import CheckpointError, transplant
from memjax.config import Config, ConfigError
from memjax.data import open_attributions
from memjax.interop.huggingface_settings import PREFIX
from memjax.models import build
from memjax.sharding import check_rows
from memjax.training.encode_corpus import check_frozen
from memjax.training.optimizer import make_optimizer, split
from memjax.training.pretrained import start_pretrained
from memjax.training.start import abstract_params


def check_stages(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Builds every stage of the run on abstract arrays.

    Raises:
      ConfigError: a batch does not divide over the devices, a rule matches nothing it must, Muon is given something that is no matrix,
        or Weights & Biases is asked for and not installed.
      CheckpointError: what `init_from` or `init_part` names is not there or does not fit.
    """
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"config.wandb_project={config.wandb_project!r} needs Weights & Biases: pip install 'memjax[wandb]'")
    platform = mesh.devices.flat[0].platform
    if config.model.attention == "splash" and platform != "tpu":
        raise ConfigError(
            f"config.model.attention='splash' is a kernel for TPUs, and these devices are {platform}; use 'auto' or 'xla'"
        )
    for name in config.curriculum + config.controls:
        stage = config.stages[name]
        check_rows(stage.rows, stage.microbatches, mesh, f"config.stages.{name}.rows")
        module, key = build(config, stage), f"config.stages.{name}.trainable"
        params = abstract_params(module, config)
        trainable, _ = split(abstract_params(module, config, stage, key), stage.trainable, key)
        if not trainable:
            raise ConfigError(f"{key} leaves no parameter to train")
        check_frozen(config, name, trainable)
        make_optimizer(config.optimizer, stage, trainable)
        if config.data.attributions:
            open_attributions(config.data.attributions)
        if stage.init_from in config.stages:
            source = abstract_params(build(config, config.stages[stage.init_from]), config)
            fill_layers = "untrained_layers" in stage.compat
            transplant(params, source, stage.init_part, f"config.stages.{stage.init_from}", fill_layers)
        elif stage.init_from.startswith(PREFIX):
            start_pretrained(config, name, params)
        elif stage.init_from and not (epath.Path(stage.init_from) / "checkpoints").is_dir():
            raise CheckpointError(
                f"config.stages.{name}.init_from={stage.init_from!r} holds no checkpoints;"
                " give the folder of a stage, like runs/NAME/stages/STAGE"
            )
