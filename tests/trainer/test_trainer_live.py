"""A training on the Accelerate trainer in JupyterLab: its curves are drawn from its own rows."""

import re

from toy import Toy, ToySettings

from music_training import live, progress
from music_training.trainer import callbacks, command


def test_the_trainer_draws_its_curves(outputs, monkeypatch):
    panels = []

    class Panel:
        value = ""

        def __init__(self):
            panels.append(self)

    for module in (callbacks, progress):
        monkeypatch.setattr(module, "live", lambda: True)
    monkeypatch.setattr(progress, "_widget", lambda *_: None)
    monkeypatch.setattr(live, "_panel", Panel)
    outcome = command.train(Toy, ToySettings(), system="toy", run_name="one")
    (panel,) = panels
    assert re.findall(r'aria-label="(\w+): [\d.e-]+ at step (\d+)', panel.value) == [
        (name, "18") for name in ("loss", "val_loss", "gradient_norm", "learning_rate")
    ]
    assert f"step {outcome.step} of {outcome.step} (100%)" in panel.value and "steps/s" in panel.value
