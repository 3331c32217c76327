"""Which accelerators a `Trainer` can use."""

from accelerate import Accelerator, DistributedType

_SPLITTING = (
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
)


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuses an accelerator that the trainer would handle wrongly.

    Raises:
        ValueError: if it splits the model over processes, is in use already, or names checkpoints itself.
    """
    kind = accelerator.distributed_type
    if kind in _SPLITTING:
        raise ValueError(
            f"`accelerator` must keep a whole copy of the model on every process; got {kind.value}. "
            "Choose multi-GPU or multi-CPU training in `accelerate config`."
        )
    if accelerator._optimizers:
        raise ValueError(
            "`accelerator` must not be in use for another training, whose optimiser would go into "
            "this one's checkpoints. Call accelerator.free_memory() first."
        )
    if accelerator.project_configuration.automatic_checkpoint_naming:
        raise ValueError(
            "`accelerator` must leave the naming of checkpoints to `output_dir`; build its "
            "ProjectConfiguration with automatic_checkpoint_naming=False."
        )
