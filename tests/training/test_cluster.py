"""training/cluster: Slurm and Kubernetes files start the script with valid flags."""

import dataclasses
import json
import os
import stat
import subprocess

import pytest

from tests.scripts import ROOT, load

CLUSTER = ROOT / "training/cluster"


@pytest.fixture
def commands(tmp_path):
    """Stand-ins for Slurm with two nodes, and a python that shows its input."""
    scripts = {
        "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$@"',
        # the highest code of all tasks
        "srun": 'shift; highest=0; for index in 0 1; do SLURM_PROCID=$index "$@"; '
        "code=$?; [ $code -gt $highest ] && highest=$code; done; exit $highest",
        "python": 'echo "$TF_CONFIG"; echo "$@"; codes=($CODES); '
        'exit "${codes[SLURM_PROCID]}"',
    }
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


@pytest.mark.parametrize(
    "codes, ended",
    [
        ("0 0", 0),
        ("0 2", 2),
        ("75 75", 75),
        # one's own error, after which the others are left alone, would come again
        ("2 75", 2),
        ("75 3", 3),
        ("75 1", 70),
        ("137 75", 137),
    ],
)
def test_slurm_sets_tf_config_of_each_node(commands, codes, ended):
    finished = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "--preset=mae_base", "--held_out=folder:/a b"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": "7",
            "CODES": codes,
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == ended, finished.stderr
    text = finished.stdout
    decoder = json.JSONDecoder()
    for index in range(2):
        config, end = decoder.raw_decode(text)
        assert config["cluster"]["worker"] == ["node1:23456", "node2:23456"]
        assert config["task"] == {"type": "worker", "index": index}
        line, _, text = text[end:].lstrip().partition("\n")
        assert line == (
            "training/pretrain.py --strategy=multiworker --resume --preset=mae_base "
            "--held_out=folder:/a b"
        )
    # put back into the queue where all that failed ask for it
    assert text == ("requeue 7\n" if ended == 75 else "")


def test_slurm_s_signal_reaches_the_training_which_ends_in_its_own_time(commands):
    """Slurm sends it to the shell around it too, which must not end before."""
    (commands / "python").write_text(
        "#!/usr/bin/env bash\nkill -TERM $PPID; sleep 0.2; exit 75\n"
    )
    finished = subprocess.run(
        ["bash", CLUSTER / "slurm.sh"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_JOB_ID": "7",
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 75, finished.stderr


def test_the_kubernetes_job_names_flags_that_exist():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((CLUSTER / "gke-tpu.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = load(container["command"][1])
    flags = {field.name for field in dataclasses.fields(script.PretrainConfig)}
    named = {flag.removeprefix("--").partition("=")[0] for flag in container["args"]}
    assert {"strategy", "resume", "output"} <= named <= flags
    ignored, failed = job["spec"]["podFailurePolicy"]["rules"]
    assert ignored["onExitCodes"]["values"] == [75]
    assert failed["onExitCodes"]["values"] == [2, 3]
