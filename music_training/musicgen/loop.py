"""The training loop of both solvers: continues after a kill at any step, and asks a guard before each update.

Everything random in an update follows from (seed, number of its batch), and the batch from (seed, epoch, number); what
is left to save is the state of the solver and its :class:`Place`. So a run that is continued from the checkpoint of any
step ends with the bits and the metrics of one that was never stopped (on a GPU: with ``deterministic=true``).
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flashy
import numpy
import torch
from audiocraft.modules.conditioners import DropoutModule
from audiocraft.utils.utils import get_dataset_from_loader
from omegaconf import DictConfig, OmegaConf
from torch import nn

from .. import files, guard, heartbeat, runs, signals
from ..errors import Interrupted, UserError
from . import checkpoints
from .batches import numbered_loader, seed_of
from .models import WEIGHTS, is_weights_folder, save_weights

CARRIED = ("model", "ema", "optimizer", "adv_losses", "balancer.averager")  # what another run's state gives to a new run


SHOWN = ("g_loss", "d_loss", "l1", "msspec", "ce", "ppl", "lr", "grad_norm")  # of a row of metrics, in the log


class Means:
    """Running means of metrics, summed on their device in double precision; asking for them waits for it."""

    def __init__(self):
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            value = value.detach().double() if torch.is_tensor(value) else float(value)
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class Place:
    """Where a training is: updates made, those of this epoch, batches of it that were left out, rows of metrics."""

    def __init__(self):
        self.step = self.done = self.skipped = self.rows = self.rewinds = 0
        self.means = Means()
        self._shared: list[dict[str, Any]] = []

    @property
    def batch(self) -> int:
        """The number, within the epoch, of the batch that comes next."""
        return self.done + self.skipped

    def begin_epoch(self) -> None:
        self.done = self.skipped = 0
        self.means = Means()

    def share(self) -> None:
        """Collect the means of all processes, for :meth:`state_dict`; every process calls it."""
        self._shared = _gather(self.means.state_dict())

    def state_dict(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("step", "done", "skipped", "rows", "rewinds")}
        return {**numbers, "means": self._shared or [self.means.state_dict()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            if name != "means":
                setattr(self, name, value)
        rank = flashy.distrib.rank()
        self.means = Means()
        self.means.load_state_dict(state["means"][rank if rank < len(state["means"]) else 0])


class Rewind(Exception):
    """The guard wants to go back to the last checkpoint."""


class StoppedInValidation(Exception):
    """SIGTERM came during a validation."""


class RunLoop:
    """A mixin before an AudioCraft solver, which gives it ``update(batches) -> (metrics, whether it was made)``."""

    def __init__(self, cfg: DictConfig):
        self.place = Place()
        self.guard = guard.load(cfg.guard, runs.folder() / cfg.run, OmegaConf.to_container(cfg.guard_options)) if cfg.guard else None
        self._rows: runs.Metrics | None = None
        self._clock = self._saved = time.monotonic()
        self._asked_to_stop = False
        self._indices: list[int] = []
        self.autocast_dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[cfg.autocast_dtype]
        super().__init__(cfg)
        self._heart = heartbeat.Heartbeat(self.folder)
        self.register_stateful("place", "guard")

    # What AudioCraft's solver asks

    def build_dataloaders(self) -> None:
        super().build_dataloaders()
        cfg, world = self.cfg, flashy.distrib.world_size()
        if "train" in self.dataloaders:
            loader = self.dataloaders["train"]
            size = cfg.dataset.batch_size * cfg.optim.accumulate
            if getattr(loader.dataset, "permutation_on_files", False):
                loader.dataset.num_samples *= cfg.optim.accumulate
            self.dataloaders["train"] = numbered_loader(loader, size, cfg.optim.accumulate, cfg.seed, flashy.distrib.rank(), world)

    def build_model(self) -> None:
        super().build_model()
        for name, module in list(self.model.named_children()):
            if isinstance(module, DropoutModule):
                setattr(self.model, name, EachByItself(module))

    def register_best_state(self, *names: str) -> None:
        self.best_state.dtype = None  # upstream would keep the best weights in the precision of autocast
        super().register_best_state(*names)

    def checkpoint_path(self, **_: Any) -> Path:
        return self.folder / runs.CHECKPOINTS / checkpoints.LAST

    def should_run_stage(self, stage_name: str) -> bool:
        """Upstream's schedule, for the stages whose data the configuration names."""
        return stage_name in self.dataloaders and super().should_run_stage(stage_name)

    # The run

    @property
    def step(self) -> int:
        """Updates made."""
        return self.place.step

    def run(self) -> None:
        """Train to the end, from the last checkpoint where there is one; :class:`Interrupted` on SIGTERM, all saved."""
        assert self.state_dict()
        with contextlib.ExitStack() as stack:
            if flashy.distrib.is_rank_zero():
                stack.enter_context(files.lock(self.folder / ".training.lock", f"training {self.folder.name}", wait=30))
            flashy.distrib.barrier()
            self.restore()
            if flashy.distrib.is_rank_zero():
                self._rows = runs.Metrics(self.folder, keep_through=self.step, keep_rows=self.place.rows)
                stack.callback(lambda: self._rows.close())
            stack.enter_context(signals.handled(self._ask_to_stop, signal.SIGTERM))
            if self.guard and not self.step:
                self.save()  # a rewind needs somewhere to go
            for _ in range(self.epoch, self.cfg.optim.epochs + 1):
                self.run_epoch()
                self.commit()
            if self._rows:
                self._heart.end()

    def train(self) -> dict[str, float]:
        """The updates of an epoch that are still to be made; returns the means over all of it."""
        self.model.train()
        place, updates = self.place, self.train_updates_per_epoch
        if self.guard and not place.done:
            self.guard.start_epoch(self.epoch, updates)
        while place.done < updates:
            try:
                self._train_from(place.batch)
            except Rewind as wanted:
                self._rewind(str(wanted))
        if self.guard:
            self.guard.end_epoch()
        values = place.means.values()
        return flashy.distrib.average_metrics(values, updates) if values else {}

    def _train_from(self, number: int) -> None:
        place, batches = self.place, self.batches(number)
        while place.done < self.train_updates_per_epoch:
            group = next(batches)
            self.seed("update")
            self._indices = self.dataloaders["train"].batch_sampler.examples(self.epoch, place.batch)
            metrics, made = self.update(group)
            place.step += 1
            place.done += 1
            if made:
                place.means.add(metrics)
                if self.ema is not None and place.step % self.cfg.optim.ema.updates == 0:
                    self.ema.step()
            if self.step % self.cfg.logging.every == 0:
                values = {name: float(value) for name, value in {**metrics, **self.more_metrics()}.items()}
                self._log("train", flashy.distrib.average_metrics(values))
            self._check_in()

    def batches(self, number: int) -> Iterator[list[Any]]:
        """This process's training batches from ``number`` on, each in its parts."""
        loader = self.dataloaders["train"]
        for other in self.dataloaders.values():
            get_dataset_from_loader(other).current_epoch = self.epoch
        loader.batch_sampler.epoch, loader.batch_sampler.start = self.epoch, number
        parts = iter(loader)
        while True:
            yield [next(parts) for _ in range(self.cfg.optim.accumulate)]

    def seed(self, what: str) -> None:
        """Put every source of randomness into the state that belongs to the batch that comes next."""
        key = (self.cfg.seed, what, self.epoch, self.place.batch)
        mine = seed_of(*key, flashy.distrib.rank())
        random.seed(mine)
        numpy.random.seed(mine)
        torch.manual_seed(mine)
        everyones = seed_of(*key)
        self.rng = torch.Generator().manual_seed(everyones)
        for module in self.model.modules():
            if isinstance(module, EachByItself):
                module.begin(everyones, flashy.distrib.rank() * self.cfg.dataset.batch_size * self.cfg.optim.accumulate)

    def valid(self) -> dict[str, float]:
        self.seed("valid")
        return super().valid()

    def run_step(self, idx: int, batch: Any, metrics: dict) -> dict:
        """A step of validation, as upstream's; one process can be stopped in it."""
        if self._asked_to_stop and not flashy.distrib.is_distributed() and self.current_stage == "valid":
            raise StoppedInValidation
        if self._rows:
            self._heart.beat(self.step)
        return super().run_step(idx, batch, metrics)

    def more_metrics(self) -> dict[str, float]:
        """What a logged row holds beside the update's metrics."""
        return {"rewinds": self.place.rewinds} if self.place.rewinds else {}

    # Updates

    def use_scaler(self) -> None:
        """Have losses scaled where gradients are computed in fp16, on any device: upstream's scaler knows CUDA alone."""
        wanted = bool(self.cfg.autocast) and self.autocast_dtype is torch.float16 and not self.cfg.fsdp.use
        self.scaler = torch.amp.GradScaler(self.device) if wanted else None
        if self.scaler and "scaler" not in self.stateful.sources:
            self.register_stateful("scaler")

    def scaled(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` itself, whose gradient is multiplied by the factor of the fp16 scaler where there is one."""
        return _Scaled.apply(value, self.scaler.scale(value.new_ones(()))) if self.scaler else value

    def make_update(
        self,
        part: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Mapping[str, torch.Tensor],
        max_norm: float = 0.0,
        scaler: Any = None,
    ) -> tuple[bool, torch.Tensor]:
        """Let the optimizer step, unless the guard says otherwise; returns whether it did and the norm of the gradients.

        The gradients are complete (synchronised, unscaled). UserError where they are not finite and nobody looks after
        the training, or where the guard stops it; :class:`Rewind` where it wants to go back.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        decision = guard.Decision()
        overflow = scaler is not None and not norm.isfinite()
        if self.guard:
            values = flashy.distrib.average_metrics({name: float(value) for name, value in losses.items()})
            number = self.step + 1
            named = module.named_parameters
            decision = self.guard.before_step(
                guard.Update(part, number, self.epoch, values, float(norm), named, optimizer, self.batch_files, overflow)
            )
        elif not overflow and not norm.isfinite():
            raise UserError(
                f"the gradients of the {part} are not finite at step {self.step + 1}; its batch: {', '.join(self.batch_files()[:8])}; "
                "check these files (training_checks/preflight.py), lower the learning rate, or train with a guard"
            )
        if decision.action in ("rewind", "stop"):
            optimizer.zero_grad()
            if scaler:
                scaler.update()  # it may not be asked to unscale twice
        if decision.action == "rewind":
            raise Rewind(decision.cause)
        if decision.action == "stop":
            raise UserError(f"the guard stopped the training at step {self.step + 1}: {decision.cause}")
        made = decision.action != "skip"
        limit = min(bound for bound in (max_norm, decision.max_norm if decision.action == "clip" else 0, math.inf) if bound)
        if made:
            if limit < math.inf:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            with _scaled_rate(optimizer, decision.lr_scale):
                scaler.step(optimizer) if scaler else optimizer.step()
        if scaler:
            scaler.update()
        optimizer.zero_grad()
        return made and not overflow, norm

    def batch_files(self) -> list[str]:
        """The files of the batch that is being computed, in all processes; every process must call it, or none."""
        dataset = get_dataset_from_loader(self.dataloaders["train"])
        returned, dataset.return_info = dataset.return_info, True
        try:
            found = [str(dataset[index][1].meta.path) for index in self._indices]
        finally:
            dataset.return_info = returned
        return [files.relative(path) for part in _gather(found) for path in part]

    # Checkpoints

    def save(self) -> None:
        """Write the state after the updates made so far; every process calls it."""
        self.place.share()
        if flashy.distrib.is_rank_zero():
            if self._rows:
                self._rows.flush()
                self.place.rows = self._rows.rows
            folder = self.folder / runs.CHECKPOINTS
            checkpoints.save(folder, self.step, self.state_dict(), self.cfg.checkpoint.keep_last)
        self._saved = time.monotonic()
        flashy.distrib.barrier()

    def _check_in(self) -> None:
        """After an update: save where it is time to, and stop where SIGTERM came."""
        if self._rows:
            self._heart.beat(self.step)
        every = self.cfg.checkpoint
        timed = every.every_minutes and flashy.distrib.is_rank_zero() and time.monotonic() - self._saved > 60 * every.every_minutes
        stop, due = _any_process(self._asked_to_stop, bool(timed))
        if stop or due or (every.every_steps and self.step % every.every_steps == 0):
            self.save()
        if stop:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped by SIGTERM after step {self.step}; the same command continues {self.folder.name}")

    def run_epoch(self) -> None:
        try:
            super().run_epoch()
        except StoppedInValidation:  # the averaged weights were in place there; the trained ones are back by now
            self._pending_metrics.clear()
            self.save()
            raise self._interrupted() from None

    def commit(self, save_checkpoints: bool = True) -> None:
        """Note the epoch's metrics, keep its weights and save."""
        epoch, stages = self.epoch, dict(self._pending_metrics)
        if "valid" in stages:
            self._log("valid", {name: value for name, value in stages["valid"].items() if name != "duration"})
        self.history.append(self._pending_metrics)
        self.place.begin_epoch()
        if flashy.distrib.is_rank_zero():
            self._keep_weights(epoch)
        self.save()
        self._start_epoch()
        if flashy.distrib.is_rank_zero():
            self.xp.link.update_history(self.history)

    def restore(self, *_: Any, **__: Any) -> bool:
        """Go on from the run's newest state, or begin from what ``continue_from`` names; whether there was one."""
        path = checkpoints.newest(self.folder / runs.CHECKPOINTS)
        if path:
            self.logger.info("continuing from %s", path)
            self.load_state_dict(checkpoints.load(path))
            return True
        source = self.cfg.continue_from or ""
        if source.startswith("//pretrained/"):
            return super().restore()
        if source:
            self._begin_from(source)
        return bool(source)

    def _begin_from(self, source: str) -> None:
        """Take weights, their average and the optimizers' state from another run; schedule, data and metrics begin anew.

        ``source`` is a run or a state of one; of a weights folder there are only the weights. The learning rate and the
        other settings of the optimizers are this run's.
        """
        from safetensors.torch import load_file

        found = [path for path in (runs.folder() / source, files.absolute(source)) if path.exists()]
        path = found[0] if found else None
        if path and (path / runs.CHECKPOINTS).is_dir():
            path = checkpoints.newest(path / runs.CHECKPOINTS)
        if not path or not (path.is_file() or is_weights_folder(path)):
            raise UserError(f"continue_from={source}: neither a run with a checkpoint, nor a training state, nor a weights folder")
        state = {"model": load_file(path / WEIGHTS)} if path.is_dir() else checkpoints.load(path)
        state = {name: state[name] for name in CARRIED if name in state and name in self.stateful.sources}
        if self.ema is None:
            state.pop("ema", None)
        if "optimizer" in state:
            state["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]
        for name, value in state.get("adv_losses", {}).items():
            if name.endswith("optimizer"):
                value["param_groups"] = self.adv_losses.state_dict()[name]["param_groups"]
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"continue_from={source}: of another model than this run's ({str(error).splitlines()[0]})") from None
        if "ema" not in state and self.ema is not None:
            self.initialize_ema()
        with self.swap_ema_state():
            self.best_state.update("model", self.stateful.sources["model"])
        self.logger.info("begun from %s: %s", path, ", ".join(state))

    def _rewind(self, cause: str) -> None:
        number, rewinds = self.place.batch, self.place.rewinds + 1
        path = checkpoints.newest(self.folder / runs.CHECKPOINTS)
        state = checkpoints.load(path)
        del state["guard"]  # what it knows is what keeps this from happening again
        self.load_state_dict(state)
        self.place.skipped, self.place.rewinds = number + 1 - self.place.done, rewinds
        self.model.train()
        if self._rows:
            self._rows.close()
            self._rows = runs.Metrics(self.folder, keep_rows=self.place.rows)
        self.logger.warning("back to step %d, and on with batch %d: %s", self.step, number + 1, cause)

    # Metrics and weights

    def _log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        self._rows.append(self.step, epoch=self.epoch, stage=stage, seconds=round(seconds, 3), **metrics)
        every = max(1, self.train_updates_per_epoch // max(1, self.log_updates))
        if stage == "train" and self.step % every < self.cfg.logging.every:
            shown = " | ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name in SHOWN)
            self.logger.info("epoch %d | step %d/%d | %s", self.epoch, self.step, self.total_updates, shown)

    def _keep_weights(self, epoch: int) -> None:
        """Weights of the epoch (averaged where there is an average) every so often, and the best ones when they change."""
        folder, keep = self.folder / runs.CHECKPOINTS, self.cfg.checkpoint
        if self._new_best_state:
            save_weights(folder / "best", self.best_state.state_dict()["model"], self.cfg)
        if epoch % keep.keep_weights_every == 0 or epoch == self.cfg.optim.epochs:
            state = self.ema.state_dict()["state"]["model"] if self.ema else self.model.state_dict()
            save_weights(folder / f"epoch_{epoch}", state, self.cfg)
        if keep.keep_best:
            kept = sorted(int(path.name.removeprefix("epoch_")) for path in folder.glob("epoch_*"))
            good = sorted(kept, key=lambda number: self.score(self.history[number - 1]["valid"]))[: keep.keep_best]
            for number in set(kept) - set(good) - {epoch}:
                shutil.rmtree(folder / f"epoch_{number}")

    def score(self, valid: Mapping[str, float]) -> float:
        """How bad an epoch is, from its validation metrics."""
        return valid[self.best_metric_name]

    def _ask_to_stop(self, _: int) -> None:
        self._asked_to_stop = True


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(factor)
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (factor,) = context.saved_tensors
        return gradient * factor, None


class EachByItself(nn.Module):
    """A dropout of conditions that decides for each example by itself, and the same however a batch is divided.

    Upstream's decides for a whole batch at once.
    """

    def __init__(self, dropout: DropoutModule):
        super().__init__()
        self.dropout = dropout
        self._seed = self._next = 0

    def begin(self, seed: int, first: int) -> None:
        """Before a batch, of which this process has the examples from ``first`` on."""
        self._seed, self._next = seed, first

    def forward(self, samples: list[Any]) -> list[Any]:
        dropped = []
        for sample in samples:
            self.dropout.rng.manual_seed(seed_of(self._seed, self._next))
            self._next += 1
            dropped += self.dropout([sample])
        return dropped


class Averager:
    """The moving average of :func:`flashy.averager`, the same in all processes and saved with the checkpoint."""

    def __init__(self, beta: float):
        self.beta = beta
        self.totals: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def __call__(self, metrics: dict[str, Any], weight: float = 1.0) -> dict[str, float]:
        values = flashy.distrib.average_metrics({key: float(value) for key, value in metrics.items()})
        for key, value in values.items():
            self.totals[key] = self.totals.get(key, 0.0) * self.beta + weight * float(value)
            self.weights[key] = self.weights.get(key, 0.0) * self.beta + weight
        return {key: total / self.weights[key] for key, total in self.totals.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"totals": dict(self.totals), "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals, self.weights = dict(state["totals"]), dict(state["weights"])


@contextlib.contextmanager
def _scaled_rate(optimizer: torch.optim.Optimizer, scale: float) -> Iterator[None]:
    """Multiply an optimizer's learning rate by ``scale`` within the block."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * scale if scale != 1 else rate
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _gather(value: Any) -> list[Any]:
    """The values of all processes, on every one."""
    if not flashy.distrib.is_distributed():
        return [value]
    values: list[Any] = [None] * flashy.distrib.world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _any_process(*flags: bool) -> list[bool]:
    """Flags that are true once they are in any process."""
    if not flashy.distrib.is_distributed():
        return list(flags)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    together = torch.tensor([int(flag) for flag in flags], device=device)
    torch.distributed.all_reduce(together, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]
