"""AudioCraft's solvers in this project's run folders: models, losses and validation are upstream's, the updates ours.

Upstream computes a batch at once, in one precision, and asks nobody before the optimizer steps. Here a batch may be
computed in parts, the codec's codebooks learn from the whole batch of all processes, and :class:`~.loop.RunLoop` has
its say.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import flashy
import torch
from audiocraft.adversarial import AdversarialLoss
from audiocraft.solvers.builders import get_lr_scheduler
from audiocraft.solvers.compression import CompressionSolver
from audiocraft.solvers.musicgen import MusicGenSolver
from audiocraft.utils.utils import get_dataset_from_loader
from omegaconf import DictConfig
from torch.nn import functional

from .. import config, guard
from ..errors import UserError
from . import finetune
from .beginnings import begin_at_codes
from .captions import CaptionSettings
from .codebooks import codebooks_of, learn, revive, start_codebooks, unquantised, usage
from .examples import refine
from .loop import Averager, RunLoop
from .tokens import Tokens

Metrics = dict[str, torch.Tensor]


class CodecSolver(RunLoop, CompressionSolver):
    """Trains the codec; with a learning-rate schedule where ``schedule`` names one, which upstream's solver ignores."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        # The balancer is asked once for each part of a batch, with the gradients of a part; what it adds up is to be
        # that of the whole batch, in one process as in several.
        self.balancer.averager = Averager((cfg.balancer.ema_decay or 1.0) ** (1 / cfg.optim.accumulate))
        self.balancer.total_norm *= flashy.distrib.world_size()
        self.register_stateful("balancer.averager")
        self.use_scaler()
        self._weights = dict(self.balancer.weights)
        for name in cfg.later.losses:
            if name not in self.balancer.weights:
                raise UserError(f"later.losses.{name}: losses has no weight of that name{config.suggest(name, self.balancer.weights)}")
        self._each_epoch = guard.load(cfg.each_epoch, self.folder) if cfg.each_epoch and flashy.distrib.is_rank_zero() else None
        self.lr_scheduler = get_lr_scheduler(self.optimizer, cfg.schedule, self.total_updates)
        if self.lr_scheduler:
            self.register_stateful("lr_scheduler")

    def build_model(self) -> None:
        super().build_model()
        if self.cfg.living_codebooks:
            revive(self.model, deferred=True)
        self._compare_compiled = bool(self.cfg.compile)
        if self.cfg.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    def commit(self, save_checkpoints: bool = True) -> None:
        epoch = self.epoch
        super().commit(save_checkpoints)
        if self._each_epoch:
            self._each_epoch(epoch, self.model)

    @property
    def without_quantiser(self) -> bool:
        """Whether encoder and decoder train by themselves at this step."""
        return self.step < self.cfg.quantize_after and not self.cfg.continue_from

    def update(self, parts: list[torch.Tensor]) -> tuple[Metrics, bool]:
        """One update of the codec, and of its discriminators before it, from a batch ``[B, C, T]`` in parts."""
        if self.cfg.living_codebooks and not self.without_quantiser and not all(book.inited for book in codebooks_of(self.model)):
            start_codebooks(self.model, (part for group in self.batches(self.place.batch) for part in group))
            self.model.train()
        later = self.cfg.later.step is not None and self.step >= self.cfg.later.step  # not for good: a rewind may lead before it
        self.balancer.weights = {**self._weights, **(self.cfg.later.losses if later else {})}
        if self._compare_compiled:
            self._keep_compiled_if_the_same(parts[0].to(self.device))
        balance = self.balancer.averager.state_dict()
        adversarial = torch.rand(1, generator=self.rng).item() <= 1 / self.cfg.adversarial.every and len(self.adv_losses) > 0
        collected: list[Metrics] = []
        for number, part in enumerate(parts, start=1):
            real = part.to(self.device, non_blocking=True)
            with unquantised(self.model) if self.without_quantiser else nullcontext(), self.autocast:
                result = self.model(real)
            made = self.scaled(result.x.float())
            metrics = {"bandwidth": result.bandwidth.mean(), **result.metrics}
            if adversarial:
                metrics.update(self._train_discriminators(made.detach(), real, len(parts), last=number == len(parts)))
            metrics.update(self._backward(made, real, result.penalty, len(parts)))
            collected.append({name: torch.as_tensor(value).detach() for name, value in metrics.items()})
        flashy.distrib.sync_gradients(self.model.parameters())
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if not self.cfg.living_codebooks:  # upstream's codebooks learn in each process and are averaged
            flashy.distrib.average_tensors(self.model.buffers())
        metrics = {name: sum(each[name] for each in collected) / len(parts) for name in collected[0]}
        metrics["g_loss"] = metrics["g_loss"] * len(parts)  # the parts' losses were weighted for their sum
        rate = self.optimizer.param_groups[0]["lr"]
        losses = {"loss": metrics["g_loss"], **{name: metrics[name] for name in self.balancer.weights if name in metrics}}
        stepped, metrics["grad_norm"] = self.make_update(
            "generator", self.model, self.optimizer, losses, self.cfg.optim.max_norm, self.scaler
        )
        learn(self.model, wanted=stepped)
        if not stepped:  # what made the update unwanted would stay in the balancer's averages
            self.balancer.averager.load_state_dict(balance)
        if self.lr_scheduler:
            metrics["lr"] = rate
            self.lr_scheduler.step()
        return metrics, stepped

    def _keep_compiled_if_the_same(self, real: torch.Tensor) -> None:
        """Train without ``torch.compile`` where it makes other audio of the batch ``[B, C, T]``, or cannot compile."""
        self._compare_compiled = False
        encoder, decoder = self.model.encoder, self.model.decoder
        with self.autocast:
            plain = decoder.forward(encoder.forward(real)).detach().float()
            try:
                difference = float((decoder(encoder(real)).detach().float() - plain).norm() / plain.norm().clamp(min=1e-8))
                same, found = difference < (2e-2 if self.cfg.autocast else 1e-3), f"a relative difference of {difference:.1e} in the audio"
            except RuntimeError as error:  # no C++ compiler, or one that fails
                same, found = False, str(error).strip().splitlines()[0]
        if not same:
            encoder._compiled_call_impl = decoder._compiled_call_impl = None
        self.logger.info("compile: %s; training goes on %s it", found, "with" if same else "without")

    def _backward(self, made: torch.Tensor, real: torch.Tensor, penalty: torch.Tensor | None, parts: int) -> Metrics:
        """Add the gradients of a part of a batch to the model's; the losses by name."""
        balanced: Metrics = {}
        for name, adversary in self.adv_losses.items():
            balanced[f"adv_{name}"], balanced[f"feat_{name}"] = adversary(made, real)
        balanced.update({name: criterion(made, real) for name, criterion in self.aux_losses.items()})
        metrics = dict(balanced)
        if penalty is not None and penalty.requires_grad:
            metrics["penalty"] = penalty
            self.scaled(penalty / parts).backward(retain_graph=True)
        if not self.balancer.balance_grads:
            balanced = {name: loss / parts for name, loss in balanced.items()}
        metrics["g_loss"] = self.balancer.backward(balanced, made)
        metrics.update(self.balancer.metrics)
        with torch.no_grad():
            metrics.update({name: criterion(made, real) for name, criterion in self.info_losses.items()})
        for kind in ("adv", "feat"):
            found = [loss for name, loss in balanced.items() if name.startswith(f"{kind}_")]
            if found:
                metrics[kind] = torch.stack(found).sum()
        return metrics

    def _train_discriminators(self, made: torch.Tensor, real: torch.Tensor, parts: int, last: bool) -> Metrics:
        """Add a part's gradients to the discriminators', and with the last part update them; their losses by name."""
        losses: Metrics = {}
        for name, adversary in self.adv_losses.items():
            loss = discriminator_loss(adversary, made, real)
            (loss / parts).backward()
            losses[f"d_{name}"] = loss.detach()
            if last:
                flashy.distrib.sync_gradients(adversary.adversary.parameters())
                self.make_update("discriminator", adversary.adversary, adversary.optimizer, {"loss": losses[f"d_{name}"]})
        return {**losses, "d_loss": torch.stack(list(losses.values())).sum()}

    def _rewind(self, cause: str) -> None:
        learn(self.model, wanted=False)  # what the codebooks saw of the batch that is left out
        super()._rewind(cause)

    def more_metrics(self) -> dict[str, float]:
        return {**super().more_metrics(), **({} if self.without_quantiser else usage(self.model))}

    def score(self, valid: dict[str, float]) -> float:
        """The weighted sum of an epoch's validation losses, with the weights that the training ends with."""
        weights = {**self.balancer.weights, **self.cfg.later.losses}
        return sum(weight * valid[name] for name, weight in weights.items() if name in valid)


def discriminator_loss(adversary: AdversarialLoss, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """How badly a discriminator tells codec output from the real audio ``[B, C, T]``, over its scales."""
    on_made, _ = adversary.get_adversary_pred(made)
    on_real, _ = adversary.get_adversary_pred(real)
    losses = [adversary.loss_fake(fake) + adversary.loss_real(true) for fake, true in zip(on_made, on_real, strict=True)]
    return torch.stack(losses).sum() / (len(losses) if adversary.normalize else 1)


class LanguageModelSolver(RunLoop, MusicGenSolver):
    """Trains MusicGen's language model on the codec's tokens: from the token cache, or encoded on the way."""

    def build_model(self) -> None:
        super().build_model()
        self.use_scaler()
        finetune.begin(self)
        books = codebooks_of(self.compression_model)[: self.model.n_q]
        new = not self.cfg.start_from and not self.cfg.fsdp.use  # whose weights are in pieces
        if self.cfg.begin_at_codes and self.tokens and new and len(books) == self.model.n_q:
            begin_at_codes(self.model, torch.stack([book.embed for book in books]), self.tokens.frequencies("train").to(self.device))
            self.logger.info("begins at the codec's code vectors and the frequencies of the codes")

    def build_dataloaders(self) -> None:
        super().build_dataloaders()
        self.tokens = tokens = Tokens(self.cfg.token_cache) if self.cfg.token_cache else None
        captions = CaptionSettings(**self.cfg.captions) if self.cfg.captions else None
        for split, loader in self.dataloaders.items():
            cached = tokens if split in ("train", "valid") else None
            refine(get_dataset_from_loader(loader), captions, self.cfg.seed, cached, self.cfg.transformer_lm.card)

    def _prepare_tokens_and_attributes(self, batch: Any, check_synchronization_points: bool = False) -> Any:
        """Conditions, tokens ``[B, K, T]`` and the mask of those that count, as upstream's; cached tokens are not encoded."""
        codes, infos = batch
        if codes.is_floating_point():  # audio
            return super()._prepare_tokens_and_attributes(batch, check_synchronization_points)
        codes = codes.to(self.device, non_blocking=True)
        attributes = [info.to_condition_attributes() for info in infos]
        tokenized = self.model.condition_provider.tokenize(self.model.att_dropout(self.model.cfg_dropout(attributes)))
        with self.autocast:
            conditions = self.model.condition_provider(tokenized)
        return conditions, codes, codes != self.model.special_token_id

    def cross_entropy(self, codes: torch.Tensor, mask: torch.Tensor, conditions: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Upstream's figures for tokens ``[B, K, T]``, nats per token where ``mask`` is set: their mean, and each codebook's ``[K]``.

        Upstream puts the logits into the order of the codes, and copies them twice for it; here the codes, which are
        ``card`` times smaller, are put into the order of the logits.
        """
        model, none = self.model, self.model.special_token_id
        pattern = model.pattern_provider.get_pattern(codes.shape[-1])
        heard, wanted = (
            pattern.build_pattern_sequence(each.contiguous(), none, keep_only_valid_steps=True)[0]
            for each in (codes, codes.masked_fill(~mask, none))
        )
        wanted = functional.pad(wanted[..., 1:], (0, 1), value=none)
        with self.autocast:
            logits = (model if model._fsdp is None else model._fsdp)(heard, [], conditions)  # [B, K, S, card]
        losses = functional.cross_entropy(logits.float().flatten(0, 2), wanted.flatten(), ignore_index=none, reduction="none")
        each = losses.view_as(wanted).sum(dim=(0, 2)) / (wanted != none).sum(dim=(0, 2))
        return each.mean(), each.detach()

    def update(self, parts: list[Any]) -> tuple[Metrics, bool]:
        """One update from a batch in parts, each as the data loader gives it."""
        collected: list[Metrics] = []
        eager = self.cfg.optim.eager_sync and len(parts) == 1
        for part in parts:
            conditions, codes, mask = self._prepare_tokens_and_attributes(part)
            loss, by_codebook = self.cross_entropy(codes, mask, conditions)
            if part[0].is_floating_point() and not part[0].isfinite().all():
                loss = loss * math.nan  # a codec makes tokens of anything: who looks after the training is to see that this is no audio
            with flashy.distrib.eager_sync_gradients(self.model.parameters()) if eager else nullcontext():
                self.scaled(loss / len(parts)).backward()
            metrics = {"ce": loss.detach(), "ppl": loss.detach().exp()}
            for number, each in enumerate(by_codebook, start=1):
                metrics |= {f"ce_q{number}": each, f"ppl_q{number}": each.exp()}
            collected.append(metrics)
        if not eager:
            flashy.distrib.sync_gradients(self.model.parameters())
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        metrics = {name: sum(each[name] for each in collected) / len(parts) for name in collected[0]}
        metrics["lr"] = torch.tensor(self.optimizer.param_groups[0]["lr"])
        losses = {"loss": metrics["ce"]}
        stepped, metrics["grad_norm"] = self.make_update(
            "lm", self.model, self.optimizer, losses, self.cfg.optim.max_norm, scaler=self.scaler
        )
        if self.lr_scheduler:
            self.lr_scheduler.step()
        if self.scaler:
            metrics["grad_scale"] = torch.tensor(self.scaler.get_scale())
        return metrics, stepped


SOLVERS = {"compression": CodecSolver, "musicgen": LanguageModelSolver}
