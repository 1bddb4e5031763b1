"""A guard that follows a plan: decisions by step, told what it saw in ``logs/guard.jsonl``."""

import json
import math
from pathlib import Path

from music_training.guard import Decision, Update


class Planned:
    """Decides at the given steps, once each; remembers in its state what it has decided."""

    def __init__(self, run: Path, plan: dict, part: str):
        self.path, self.part = run / "logs" / "guard.jsonl", part
        self.plan = {int(step): decision for step, decision in plan.items()}
        self.decided: list[int] = []

    def start_epoch(self, epoch: int, steps: int) -> None:
        self.note(epoch=epoch, steps=steps)

    def before_step(self, update: Update) -> Decision:
        sizes = [float(value.grad.norm()) for _, value in update.named_parameters() if value.grad is not None]
        same = math.isclose(math.sqrt(sum(size**2 for size in sizes)), update.gradient_norm, rel_tol=1e-3)
        self.note(step=update.step, part=update.part, loss=update.losses["loss"], same=same, files=update.files())
        key = update.step
        if update.part != self.part or key not in self.plan or key in self.decided:
            return Decision()
        self.decided.append(key)
        return Decision(**self.plan[key], cause="planned")

    def end_epoch(self) -> None:
        self.note(end=True)

    def state_dict(self) -> dict:
        return {"decided": list(self.decided)}

    def load_state_dict(self, state: dict) -> None:
        self.decided = list(state["decided"])

    def note(self, **values) -> None:
        with open(self.path, "a") as stream:
            stream.write(json.dumps(values) + "\n")


def planned(run: Path, plan: dict, part: str = "lm") -> Planned:
    return Planned(run, plan, part)
