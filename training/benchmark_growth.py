"""Plot time and memory of a pretraining step against batch size, image size and more.

Run: python training/benchmark_growth.py --preset=mae_base --out=growth

Each point is a run of benchmark.py. `growth.png` plots time and peak memory of a step
against batch size, image size, mask ratio, depth and replicas on logical CPU devices;
`growth.json` holds the numbers; a table of the cost of gradient checkpointing and
accumulation is printed. The mask ratio 0.01 stands for 0, which has no loss.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_mae.presets import preset_sizes
from keras_mae.utils.flags import flag, run_script
from keras_mae.visualization.plots import plot_scaling


@dataclasses.dataclass
class GrowthConfig:
    """Flags of this script."""

    preset: str = flag("model size, as for pretrain.py", "mae_base")
    batch_size: int = flag("images per step, except on the batch size axis", 16)
    precision: str = flag(
        "Keras dtype policy", "mixed_bfloat16", ("float32", "mixed_bfloat16")
    )
    repeats: int = flag("steps per point", 5)
    axes: str = flag(
        "what to vary, separated by commas",
        "batch_size,image_size,mask_ratio,depth,replicas,memory",
    )
    out: str = flag("path of the output files, without extension", "growth")


def axis_values(axis, config):
    """Returns the benchmark flags of each point of an axis."""
    sizes = preset_sizes(config.preset)
    patch, side, depth = sizes["patch_size"], sizes["image_size"], sizes["depth"]
    batch = config.batch_size
    values = {
        "batch_size": [max(1, batch // 4), max(1, batch // 2), batch, 2 * batch],
        # multiples of the patch size
        "image_size": [side * part // (4 * patch) * patch for part in (2, 3, 4, 6)],
        "mask_ratio": [0.01, 0.5, 0.75, 0.9],
        "depth": [max(1, depth // 4), max(1, depth // 2), depth, 2 * depth],
        "replicas": [1, 2, 4],
    }
    if axis == "memory":
        return [
            {"accumulation_steps": steps, **again}
            for again in ({}, {"rematerialize": True})
            for steps in (1, 4)
        ]
    if axis not in values:
        raise ValueError(
            f"axes must be among {', '.join(values)}, memory. Received: {axis!r}"
        )
    return [{axis: value} for value in values[axis]]


def measure(config, settings):
    """Benchmarks a point; returns its flags, seconds and peak memory."""
    flags = {
        "preset": config.preset,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "repeats": config.repeats,
        **settings,
    }
    command = [sys.executable, str(Path(__file__).with_name("benchmark.py"))]
    for name, value in flags.items():
        command.append(f"--{name}" if value is True else f"--{name}={value}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        command.append(f"--out={out}")
        if subprocess.run(command, stdout=subprocess.PIPE).returncode:
            raise ValueError(f"Benchmark failed: {' '.join(command)}")
        (row,) = json.loads(out.read_text())["rows"]
    seconds, peak = statistics.median(row["seconds"]), row["peak_memory"]
    print(settings, f"{seconds:.2f} s, {peak / 2**30:.2f} GiB", flush=True)
    return {**settings, "seconds": seconds, "peak_memory": peak}


def memory_table(rows):
    """Formats the memory axis as a Markdown table, times relative to the first row."""
    lines = ["| rematerialize | accumulation steps | time | peak memory |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        time = row["seconds"] / rows[0]["seconds"]
        lines.append(
            f"| {'yes' if row.get('rematerialize') else 'no'} "
            f"| {row['accumulation_steps']} | {time:.2f} "
            f"| {row['peak_memory'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def main(config):
    """Benchmarks every point; writes results, plot and table."""
    plans = {axis: axis_values(axis, config) for axis in config.axes.split(",")}
    rows = {
        axis: [measure(config, settings) for settings in plan]
        for axis, plan in plans.items()
    }
    document = {"config": dataclasses.asdict(config), "rows": rows}
    Path(f"{config.out}.json").write_text(json.dumps(document, indent=1) + "\n")
    if "memory" in rows:
        print(memory_table(rows.pop("memory")))
    if rows:
        plot_scaling(rows).save(f"{config.out}.png")


if __name__ == "__main__":
    run_script(main, GrowthConfig, __doc__)
