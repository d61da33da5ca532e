"""Flags that all training scripts share: a script subclasses `TrainingConfig`."""

import dataclasses

from keras_mae.utils.distribution import STRATEGIES
from keras_mae.utils.flags import flag

_JIT_COMPILE = {"auto": "auto", "on": True, "off": False}


@dataclasses.dataclass
class TrainingConfig:
    """Flags of every training script."""

    dataset: str = flag(
        "training images: digits, photos, folder:PATH, tfrecord:GLOB, tfds:NAME, "
        "hf:NAME, hf:PATH or webdataset:GLOB",
        "digits",
    )
    held_out: str | None = flag(
        "validation images, named as for --dataset; default: the dataset's own "
        "validation split",
        None,
    )
    data_dir: str | None = flag(
        "folder of prepared data sets, for tfds:NAME and hf:NAME", None
    )
    num_channels: int | None = flag(
        "1 to read image files as grayscale, 3 as RGB; default: 3, or those of a "
        "built-in dataset",
        None,
    )
    exif_orientation: bool | None = flag(
        "turn images as their EXIF orientation says (JPEG, PNG, WebP); default: as the "
        "pretrained model's image processor, or else off",
        None,
    )
    output: str = flag("output folder of the run", "runs/training")
    config: str | None = flag(
        "JSON file to read flags from, such as a run's config.json; flags given "
        "beside it win",
        None,
    )
    resume: bool = flag(
        "continue the run in --output from its newest checkpoint; starts one if there "
        "is none",
        False,
    )
    overwrite: bool = flag("delete the run in --output and start anew", False)
    dry_run: bool = flag(
        "print flags, parameters, FLOPs and memory estimate, and exit", False
    )
    epochs: int = flag("training epochs", 100)
    warmup_epochs: int = flag("epochs of linear learning rate warmup", 5)
    batch_size: int = flag(
        "global batch size, summed over replicas and accumulation steps", 64
    )
    accumulation_steps: int = flag(
        "gradient accumulation: split each batch into this many steps", 1
    )
    blr: float = flag(
        "base learning rate; learning rate = blr * batch_size / 256", 1.5e-4
    )
    weight_decay: float = flag(
        "AdamW weight decay; biases and norms are not decayed", 0.05
    )
    clip_norm: float | None = flag(
        "clip gradients to this global norm; default: no clipping", None
    )
    strategy: str | None = flag(
        f"tf.distribute strategy: one of {', '.join(STRATEGIES)}; with "
        "KERAS_BACKEND=jax: cpu, gpu, data_parallel or model_parallel; default: gpu "
        "where there is one, else cpu",
        None,
    )
    replicas: int | None = flag(
        "copies of the model: devices of --strategy=mirrored or data_parallel, groups "
        "of --model_shards devices of model_parallel",
        None,
    )
    model_shards: int | None = flag(
        "devices that share a copy of the weights, for --strategy=model_parallel", None
    )
    tpu: str | None = flag("TPU name or address; default: the local TPU", None)
    precision: str | None = flag(
        "Keras dtype policy; default: float32, on TPUs mixed_bfloat16; a run's "
        "config.json names that of the run",
        None,
        ("float32", "bfloat16", "mixed_bfloat16"),
    )
    residual_dtype: str | None = flag(
        "dtype of the residual connections, as float32 under mixed_bfloat16; default: "
        "that of --model, or of --precision",
        None,
        ("float32",),
    )
    jit_compile: str = flag(
        "XLA compilation; auto: on GPUs and TPUs, and always with JAX",
        "auto",
        (*_JIT_COMPILE,),
    )
    rematerialize: bool = flag(
        "gradient checkpointing of transformer blocks: less memory, more compute", False
    )
    steps_per_execution: int = flag(
        "batches per compiled call, as in Keras's compile; for TPUs", 1
    )
    seed: int = flag("random seed of weights, shuffling and augmentation", 0)
    checkpoint_steps: int | None = flag("save a checkpoint every N steps", None)
    checkpoint_minutes: float | None = flag("save a checkpoint every N minutes", 10.0)
    keep: int = flag("number of checkpoints to keep", 3)
    keep_every: int | None = flag("keep a checkpoint for good every N epochs", None)
    log_every: int = flag("write TensorBoard scalars every N steps", 50)
    callback: str | None = flag(
        "your own Keras callbacks, as module:factory, several with commas between; "
        "factory(config) gets these flags and returns a keras.callbacks.Callback",
        None,
    )
    wandb: str | None = flag("Weights & Biases project to log the run to", None)
    mlflow: str | None = flag(
        "MLflow tracking URI to log the run to, such as http://localhost:5000", None
    )
    corrupt_limit: int = flag("unreadable images to skip before stopping", 100)

    def resolved(self, on_tpu=False):
        """Returns a config whose precision is set, by whether it is for a TPU."""
        if self.precision is not None:
            return self
        on_tpu = on_tpu or self.strategy == "tpu"
        precision = "mixed_bfloat16" if on_tpu else "float32"
        return dataclasses.replace(self, precision=precision)

    def compile_options(self):
        """Returns the arguments of `model.compile`, but for the optimizer."""
        return {
            "jit_compile": _JIT_COMPILE[self.jit_compile],
            "accumulation_steps": self.accumulation_steps,
            "clip_norm": self.clip_norm,
            "steps_per_execution": self.steps_per_execution,
        }


def ema_flag():
    """The flag of scripts whose optimizer can average weights."""
    return flag(
        "decay of an exponential moving average of the weights, say 0.9999, which is "
        "then evaluated, and saved in model.keras; default: none",
        None,
    )
