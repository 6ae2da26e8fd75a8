#!/usr/bin/env -S python3 -IS
"""Stands for gcloud, kubectl, sbatch and what they reach, under whose name it is called.

Each call is written to `$STAND_INS/calls.jsonl` as a list of words. What it answers is in
`$STAND_INS/answers.json`, `{pattern of the words: [[exit code, stdout, stderr], ...]}`: the answers
are given in turn, the last of them for ever. What is not there succeeds and says nothing.

ssh and scp do their work for real, in a folder for each machine, `$STAND_INS/machines/N`.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STAND_INS"])


def note(words: list[str]) -> int:
    """Writes a call down; returns how many like it there were before."""
    with (HERE / "calls.jsonl").open("a+") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.seek(0)
        before = [json.loads(line) for line in calls]
        calls.write(json.dumps(words) + "\n")
    return before.count(words)


def answer(words: list[str], before: int) -> int | None:
    """Gives the answer prepared for the call; its exit code, or None if there is none."""
    said = " ".join(words)
    for pattern, answers in json.loads((HERE / "answers.json").read_text()).items():
        if re.search(pattern, said):
            code, out, err = answers[min(before, len(answers) - 1)]
            sys.stdout.write(out)
            sys.stderr.write(err)
            return None if code == "go on" else code
    return None


def machine(words: list[str]) -> Path:
    """The home folder of the machine that an ssh or scp goes to."""
    worker = next((w.partition("=")[2] for w in words if w.startswith("--worker=")), None)
    if worker is None:
        place = [w for w in words if not w.startswith("-")]
        worker = place[3] if words[2] == "ssh" else place[-1].partition(":")[0]
    home = HERE / "machines" / worker
    home.mkdir(parents=True, exist_ok=True)
    return home


def ssh(words: list[str]) -> int:
    """Has a shell do what is behind --command, at home on the machine."""
    home = machine(words)
    command = next(w.partition("=")[2] for w in words if w.startswith("--command="))
    env = {**os.environ, "HOME": str(home)}
    return subprocess.run(["sh", "-c", command], cwd=home, env=env, check=False).returncode


def scp(words: list[str]) -> int:
    """Copies files to the machine."""
    *files, to = [w for w in words[words.index("scp") + 1 :] if not w.startswith("-")]
    for file in files:
        shutil.copy(file, machine(words) / to.partition(":")[2])
    return 0


def sbatch(words: list[str]) -> int:
    """Runs the script, as SLURM would on the first node, with its log where it was told."""
    script = next(i for i, w in enumerate(words) if w.endswith(".sbatch"))
    options = dict(w[2:].partition("=")[::2] for w in words[1:script])
    log = options["output"].replace("%j", "7").replace("%%", "%")
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": str(tasks)}
    if "cpus-per-task" in options:
        env["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
    with open(log, "a") as out:
        job = subprocess.Popen(["bash", *words[script:]], env=env, stdout=out, stderr=out)
    (HERE / "job").write_text(str(job.pid))
    print("7;cluster")
    return 0


def srun(words: list[str]) -> int:
    """Runs the tasks; as --kill-on-bad-exit says, one that fails ends the others."""
    command = words[next(i for i, w in enumerate(words) if i and not w.startswith("--")) :]
    tasks = []
    for number in range(int(os.environ["SLURM_NTASKS"])):
        env = {**os.environ, "SLURM_PROCID": str(number)}
        tasks.append(subprocess.Popen(command, env=env))
    (HERE / "tasks").write_text(json.dumps([task.pid for task in tasks]))
    codes = [task.wait() for task in tasks]
    return max(codes)


def uv(words: list[str]) -> int:
    """Makes the virtual environment, whose Python is `train`."""
    if words[1] == "venv":
        python = Path(words[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.symlink_to(Path(__file__).resolve())
    return 0


def train(words: list[str]) -> int:
    """Stands for training: says its lines, then ends with its code, or waits for SIGTERM.

    What it does is in `$STAND_INS/training.json`, by the machine's name or under "any".
    """
    plans = json.loads((HERE / "training.json").read_text())
    plan = plans.get(Path(os.environ["HOME"]).name, plans["any"])
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    for line in plan["lines"]:
        print(line, flush=True)
    if plan["code"] is not None:
        return plan["code"]
    while not stop:
        time.sleep(0.01)
    print("saved", flush=True)
    return 0


def main() -> int:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    code = answer(words, note(words))
    if code is not None:
        return code
    if "ssh" in words and words[0] == "gcloud":
        return ssh(words)
    if "scp" in words and words[0] == "gcloud":
        return scp(words)
    if words[0] == "uv":
        return uv(words)
    if words[0] == "python":
        return train(words)
    if words[0] == "sbatch":
        return sbatch(words)
    if words[0] == "srun":
        return srun(words)
    if words[0] == "scancel":
        for task in json.loads((HERE / "tasks").read_text()):
            os.kill(task, signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
