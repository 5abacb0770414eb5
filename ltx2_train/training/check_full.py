"""What must be right where the weights themselves are trained (train.what = full); each is refused by its setting."""

from __future__ import annotations

from ..config import RunConfig
from ..errors import ConfigError
from ..optim import OPTIMIZERS, find_optimizer
from .regularizers.table import REGULARIZERS


def check_full(config: RunConfig) -> None:
    """Raise ConfigError for settings that do not go with it; needs no file. Other runs pass."""
    if config.train.what != "full":
        return
    quant, memory, train = config.quant, config.memory, config.train
    if quant.format not in ("auto", "none"):
        raise ConfigError(
            f"train.what is full and quant.format is {quant.format}: weights in few bits cannot be trained. Set it to "
            "none, or train a LoRA."
        )
    if memory.blocks_to_swap:
        raise ConfigError(
            f"train.what is full and memory.blocks_to_swap is {memory.blocks_to_swap}: blocks that are copied from RAM "
            "each time are never written back. Leave it out, train fewer weights (full.include_patterns), or train a "
            "LoRA."
        )
    if config.model.precision == "fp16":
        raise ConfigError("train.what is full and model.precision is fp16, which is too coarse for it. Choose bf16.")
    if config.full.release_gradients and (train.clip_norm or train.accumulation > 1):
        raise ConfigError(
            f"full.release_gradients is on, train.clip_norm is {train.clip_norm:g} and train.accumulation is "
            f"{train.accumulation}: both need all gradients of a step together. Set clip_norm to 0 and accumulation to "
            "1, or switch release_gradients off."
        )
    if config.full.release_gradients and train.processes > 1:
        raise ConfigError(
            f"full.release_gradients is on, and there are {train.processes} processes: a gradient waits for those of "
            "the others. Switch it off; memory.shard shares gradients out over the cards."
        )
    asking = [f"regularizers.{name}" for name in config.regularizers.wanted if REGULARIZERS.get(name).asks_the_base]
    if asking:
        raise ConfigError(
            f"{' and '.join(asking)} {'needs' if len(asking) == 1 else 'need'} the model without the LoRA, and with "
            "train.what = full the base changes itself. Set the weight to 0, or train a LoRA."
        )
    name = config.optimizer.name
    kind = None if name == "auto" else find_optimizer(name)
    if kind is not None and (kind.one_rate or kind.averages):
        why = "finds one rate for all weights together" if kind.one_rate else "saves a mean of its steps"
        raise ConfigError(
            f"train.what is full, which moves each weight by itself, and optimizer.name = {name} {why}. Choose adamw, "
            "adamw8bit, adamw_bf16, adafactor or came."
        )

    if memory.shard and kind is not None and not kind.by_number:
        fitting = [one for one in OPTIMIZERS if OPTIMIZERS.get(one).by_number]
        raise ConfigError(
            f"train.what is full, memory.shard shares the weights out, and optimizer.name = {name} looks at more of a "
            f"weight than one card holds. Choose {' or '.join(fitting)}, or switch memory.shard off."
        )


def require_plain(config: RunConfig, name: str, stored: str) -> None:
    """Raise ConfigError where the weights are trained or shared out, and the file `name` has them in few bits, as
    `stored` says."""
    if config.memory.shard and stored != "none":
        raise ConfigError(
            f"memory.shard is on, and {name} is {stored}: only weights as they are can be shared out. Use the bf16 "
            "checkpoint, or switch memory.shard off, so that each card holds the base whole."
        )
    if config.train.what == "full" and stored != "none":
        raise ConfigError(
            f"train.what is full, and {name} is {stored}: weights in few bits cannot be trained. Use the bf16 "
            "checkpoint, or train a LoRA."
        )
