"""Trainings in forked processes of one that has imported what is heavy, stopped where a test wants them stopped.

Reads jobs as JSON lines ({"argv", "outputs", "log", "ranks", "kill_at", "term_at", "port"}) and answers each with the exit
codes of its processes. ``kill_at`` and ``term_at`` are steps at whose end the first process gets SIGKILL or SIGTERM.
"""

import json
import os
import signal
import sys
import traceback

from music_training.musicgen import audiocraft_compat

audiocraft_compat.install()
import audiocraft.solvers  # noqa: E402, F401
import torch  # noqa: E402

from music_training.errors import run_command  # noqa: E402
from music_training.musicgen import loop, solvers, train  # noqa: E402, F401


def send_at(step: int, number: int) -> None:
    """Send this process a signal when ``step`` is done, before anything is saved for it."""
    upstream = loop.RunLoop._check_in

    def check_in(self):
        if self.step == step:
            os.kill(os.getpid(), number)
        upstream(self)

    loop.RunLoop._check_in = check_in


def child(job: dict, rank: int) -> None:
    os.environ.update(MUSIC_OUTPUTS=job["outputs"], AUDIOCRAFT_DORA_DIR=job["outputs"])
    ranks = job.get("ranks", 1)
    if ranks > 1:
        address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), **address)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    for name, number in (("kill_at", signal.SIGKILL), ("term_at", signal.SIGTERM)):
        if job.get(name) and rank == 0:
            send_at(job[name], number)
    run_command(lambda: train.main(job["argv"]))


def forked(job: dict, rank: int) -> int:
    """Start :func:`child` in a process of its own, which never comes back here."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        child(job, rank)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


for line in sys.stdin:
    wanted = json.loads(line)
    children = [forked(wanted, number) for number in range(wanted.get("ranks", 1))]
    codes, left = {}, set(children)
    while left:
        process, status = os.wait()
        codes[process] = os.waitstatus_to_exitcode(status)
        left.discard(process)
        if codes[process] < 0:  # the others would wait for ever for one that was killed
            for other in left:
                os.kill(other, signal.SIGKILL)
    print(json.dumps([codes[process] for process in children]), flush=True)
