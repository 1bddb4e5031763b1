"""Execute one notebook with papermill in a kernel of this very Python, and leave no process behind.

The executed copy takes its place whole, also that of a notebook that failed. What the cells print goes to a log, and
line by line to the terminal. The kernel and everything that it started end with the runner, however the runner ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from music_training import files, machine

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Waits until its standard input closes, which it does when the runner ends, and then ends the kernel, its process
# group, and every process that inherited the mark of this kernel (torchrun and the like start sessions of their own).
GUARD = """
read -r _
kill -KILL -- "-$1" 2>/dev/null
for file in $(grep -l "MUSIC_KERNEL=$2" /proc/[0-9]*/environ 2>/dev/null); do
  process=${file#/proc/}
  kill -KILL "${process%/environ}" 2>/dev/null
done
"""


def execute(source: Path, executed: Path, parameters: dict[str, Any], environment: dict[str, str], log: Path) -> str:
    """Run a notebook; its executed copy goes to ``executed``. Returns what went wrong, or nothing.

    Raises UserError where no kernel can be started (``KeyboardInterrupt`` and ``SystemExit`` pass through).
    """
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    log.parent.mkdir(parents=True, exist_ok=True)
    fault = ""
    print(f"  log: {log}", flush=True)
    with open(log, "w", encoding="utf-8") as stream, files.atomic(executed) as temporary:
        Kernel.handed, Kernel.raw_output = environment, stream
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The specified file")  # a temporary name has no .ipynb
                papermill.execute_notebook(
                    source,
                    temporary,
                    parameters=parameters,
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    cwd=source.parent,
                    stdout_file=Output(stream, show=True),
                    stderr_file=Output(stream, show=False),
                    kernel_manager_class=Kernel,
                    start_timeout=300,  # s; on a busy machine or a slow volume a kernel takes more than the usual minute
                    shutdown_kernel="immediate",
                    coalesce_streams=True,
                )
            fault = _left_early(temporary)
        except PapermillExecutionError as error:
            stream.write("\n".join(ANSI.sub("", line) for line in error.traceback) + "\n")
            fault = _explain(error)
        except DeadKernelError:
            fault = f"its kernel died; out of memory is the usual cause ({machine.memory_limit() / machine.GIB:.1f} GiB here)"
        finally:
            Kernel.end_all()
        if Kernel.asked_to_stop:
            raise SystemExit(128 + signal.SIGTERM)
    return f"{fault}\n  executed copy: {executed}\n  log: {log}" if fault else ""


def ask_to_stop() -> bool:
    """Pass a SIGTERM on to the notebook that is running, once; False where there is none or it was asked before."""
    if Kernel.asked_to_stop or not Kernel.running:
        return False
    Kernel.asked_to_stop = True
    with contextlib.suppress(ProcessLookupError):
        os.kill(Kernel.running, signal.SIGTERM)
    return True


class Kernel(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels are installed, with a guard beside it."""

    handed: dict[str, str] = {}  # the environment of the next kernel
    raw_output: Any = None  # where it writes what is no cell output (a crash)
    guards: list[subprocess.Popen] = []
    running = 0  # its process
    asked_to_stop = False

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Music training", language="python")

    async def start_kernel(self, **options: Any) -> None:
        mark = uuid.uuid4().hex
        options |= {"env": {**self.handed, "MUSIC_KERNEL": mark}, "stdout": self.raw_output, "stderr": self.raw_output}
        await super().start_kernel(**options)
        Kernel.running = self.provisioner.pid
        command = ["/bin/sh", "-c", GUARD, "guard", str(self.provisioner.pid), mark]
        self.guards.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))

    @classmethod
    def end_all(cls) -> None:
        """End every kernel and what it started, at once."""
        cls.running = 0
        while cls.guards:
            guard = cls.guards.pop()
            guard.stdin.close()
            guard.wait()


class Output:
    """A text stream that goes to the log and, where ``show`` is set, in whole, shortened lines to the terminal."""

    def __init__(self, log: Any, show: bool):
        self.log, self.show, self._rest = log, show, ""

    def write(self, text: str) -> None:
        self.log.write(text)
        if not self.show:
            return
        *lines, self._rest = (self._rest + ANSI.sub("", text)).split("\n")
        width = max(40, shutil.get_terminal_size((140, 24)).columns - 2)
        for line in lines:
            line = line.rpartition("\r")[2].rstrip()
            if line:
                print(f"  {line if len(line) <= width else line[: width - 1] + '…'}")

    def flush(self) -> None:
        self.log.flush()
        sys.stdout.flush()


def _explain(error: PapermillExecutionError) -> str:
    """The cell and its error; a person's mistake (which renders as a single line) stands for itself."""
    message = ANSI.sub("", str(error.evalue))
    if len(error.traceback) == 1 and error.traceback[0] == f"{error.ename}: {error.evalue}":
        return f"cell [{error.exec_count}]: {message}"
    return f"cell [{error.exec_count}]: {error.ename}: {message.splitlines()[0] if message else '(no message)'}"


def _left_early(executed: Path) -> str:
    """``exit()`` in a cell skips the cells after it; papermill takes that for success."""
    for cell in files.read_json(executed)["cells"]:
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip() and cell["execution_count"] is None:
            return "a cell ended the kernel before the last cell ran (exit() or SystemExit)"
        if any(output.get("ename") == "SystemExit" for output in cell.get("outputs", ())):
            return f"cell [{cell['execution_count']}] raised SystemExit: the cells after it did not run"
    return ""
