"""The loop against a bare PyTorch loop, its callbacks, and what it writes."""

import math
import zipfile

import numpy
import pytest
import torch
from torch.nn import functional
from toy import Toy, ToySettings

from music_training import config, runs
from music_training.errors import UserError
from music_training.trainer import checkpoints, command, optimizers
from music_training.trainer.callbacks import Callback, CallbackRegistry, EarlyStopping, FeatureRedraw
from music_training.trainer.config import Scheduler, Training
from music_training.trainer.loop import Trainer
from music_training.trainer.losses import LossRegistry, WeightedLoss, focal_bce
from music_training.trainer.system import Batches, _Examples

PLAIN = {"optimizer": {"type": "sgd", "lr": 0.01}, "scheduler": {"type": "constant"}, "gradient_clipping": None}


class Calm(Toy):
    """The toy without any randomness but the order of its examples."""

    def __init__(self, settings):
        super().__init__(settings)
        self.model[2].p = 0.0

    def example(self, index, rng):
        return self.data[index], self.data[index].sum()


def toy_settings(**training) -> ToySettings:
    return config.load(
        ToySettings, {"training": {"epochs": 2, "batch_size": 4, "logging": {"interval": 1, "tensorboard": False}, **training}}
    )


def fit(settings, kind=Toy, name=None, callbacks=()):
    system = kind(settings)
    return system, Trainer(system, settings.training, runs.create("toy", run_name=name), callbacks).fit()


def vector(system) -> torch.Tensor:
    return torch.cat([value.flatten() for value in system.model.state_dict().values()])


def test_same_weights_as_a_bare_loop():
    settings = toy_settings(**PLAIN)
    trained, _ = fit(settings, Calm)
    bare = Calm(settings)
    optimizer = torch.optim.SGD(bare.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        for indices in Batches(bare, settings.training, 0, 1, pin=False).plan(epoch):
            optimizer.zero_grad()
            inputs = bare.data[indices]
            functional.mse_loss(bare.model(inputs).squeeze(-1), inputs.sum(1)).backward()
            optimizer.step()
    assert torch.equal(vector(trained), vector(bare))


def test_accumulated_small_batches_equal_a_large_one():
    """Also at the end of an epoch, where 22 examples leave a smaller update."""
    large, _ = fit(toy_settings(**PLAIN, batch_size=4).model_copy(update={"size": 22}), Calm)

    class Cut(Calm):
        def plan(self, batch_size, rng):
            return [half for batch in super().plan(4, rng) for half in (batch[:3], batch[3:]) if half]

    small, _ = fit(toy_settings(**PLAIN, gradient_accumulation_steps=2).model_copy(update={"size": 22}), Cut)
    assert torch.allclose(vector(large), vector(small), atol=1e-6)
    assert not torch.allclose(vector(large), vector(Calm(toy_settings())), atol=1e-3)


def test_workers_change_nothing():
    here, _ = fit(toy_settings())
    there, _ = fit(toy_settings(performance={"num_workers": 2}))
    assert torch.equal(vector(here), vector(there))


def test_averaged_weights_follow_their_formula_and_are_what_is_validated():
    class Watch(Callback):
        seen = []

        def on_step_end(self, trainer, step, metrics):
            self.seen.append(vector(trainer.system).clone())

    settings = toy_settings(ema=0.9, optimizer={"lr": 0.02})
    start = vector(Toy(settings)).clone()
    trained, outcome = fit(settings, callbacks=[Watch()])
    average = start
    for step, weights in enumerate(Watch.seen):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    best = Toy(settings)
    checkpoints.load_weights(best.model, checkpoints.find(outcome.run, ("last",)), averaged=True)
    assert torch.allclose(vector(best), average, atol=1e-6)
    assert not torch.allclose(average, vector(trained), atol=1e-4)
    error = sum((best.model.eval()(row) - row.sum()).pow(2).item() for row in best.data) / len(best.data)
    assert outcome.metrics["val_loss"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_rates_equal_those_of_transformers(kind):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    peer = get_scheduler(kind if kind != "constant" else "constant_with_warmup", optimizer, num_warmup_steps=10, num_training_steps=100)
    settings = Scheduler(type=kind, warmup_steps=10)
    for step in range(100):
        assert optimizers.learning_rate(settings, 0.3, step, 100) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


def test_the_logged_rate_is_the_schedules():
    _, outcome = fit(toy_settings(scheduler={"type": "linear", "warmup_steps": 3, "min_lr": 1e-6}))
    rates = [row["learning_rate"] for row in runs.read_metrics(outcome.run) if "learning_rate" in row]
    expected = [optimizers.learning_rate(Scheduler(type="linear", warmup_steps=3, min_lr=1e-6), 1e-2, step, 12) for step in range(12)]
    assert rates == pytest.approx(expected)


def test_rates_by_parameter_name_and_frozen_parameters():
    system = Toy(toy_settings())
    system.model[0].weight.requires_grad = False
    optimizer = optimizers.build(system.model, Training(optimizer={"rates": {r"^3\.": 0.1}}).optimizer)
    assert sorted((group["scale"], len(group["params"])) for group in optimizer.param_groups) == [(0.1, 2), (1.0, 1)]
    with pytest.raises(UserError, match="no parameter's name matches"):
        optimizers.build(system.model, Training(optimizer={"rates": {"backbone": 0.1}}).optimizer)


class Fixed(Toy):
    """Validates to a given series of values."""

    series = [5.0, 4.0, 4.5, 3.95, 4.1, 4.2, 4.3, 3.0]

    def validate(self, trainer):
        return {"val_loss": self.series[trainer.step // 6 - 1]}


def test_early_stopping_counts_from_the_last_improvement():
    stop = {"patience": 3, "min_delta": 0.1}
    _, outcome = fit(toy_settings(epochs=8, early_stopping=stop), Fixed)
    assert outcome.step == 30 and "3 validations" in outcome.reason  # 5, 4*, 4.5, 3.95 (within min_delta), 4.1
    _, outcome = fit(toy_settings(epochs=8, early_stopping={**stop, "min_epochs": 7}), Fixed)
    assert outcome.step == 42
    assert checkpoints.find(outcome.run).name == "best"
    assert runs.read_metadata(outcome.run)["best"] == {"val_loss": 3.95}


def test_best_checkpoint_is_the_best_and_old_ones_go():
    _, outcome = fit(toy_settings(epochs=5, checkpoint={"save_total_limit": 1}), Fixed)
    from music_training import files

    about = {path.name: files.read_json(path / "checkpoint.json")["step"] for path in (outcome.run / "ckpt").iterdir()}
    assert about == {"best": 24, "last": 30, "step_00000030": 30}


def test_callbacks_run_in_their_order_and_can_stop():
    calls = []

    class Late(Callback):
        order = 95

        def on_step_end(self, trainer, step, metrics):
            calls.append(("late", step, float(metrics["loss"])))

    class Early(Callback):
        order = 1

        def on_step_end(self, trainer, step, metrics):
            calls.append(("early", step, float(metrics["loss"])))
            if step == 3:
                trainer.stop("seen enough")

        def on_epoch_end(self, trainer, epoch, metrics):
            raise AssertionError("the epoch was not finished")

    CallbackRegistry.register("early", Early)
    _, outcome = fit(toy_settings(), callbacks=[Late(), CallbackRegistry.create("early")])
    assert outcome.step == 3 and outcome.reason == "seen enough"
    assert [call[0] for call in calls] == ["early", "late"] * 3
    assert [call[1] for call in calls[::2]] == [1, 2, 3]


def test_a_stability_monitor_sees_losses_and_gradients_and_keeps_its_state():
    class Monitor(Callback):
        order = 60

        def __init__(self):
            self.losses, self.norms = [], []

        def on_gradients(self, trainer):
            self.norms.append(float(trainer.gradient_norm))

        def on_step_end(self, trainer, step, metrics):
            self.losses.append(float(metrics["loss"]))
            if not math.isfinite(self.losses[-1]):
                trainer.stop("the loss is not finite")

        def state_dict(self):
            return {"losses": self.losses, "norms": self.norms}

        def load_state_dict(self, state):
            self.losses, self.norms = state["losses"], state["norms"]

    settings, monitor = toy_settings(max_steps=9), Monitor()
    run = fit(settings, callbacks=[monitor])[1].run
    assert len(monitor.losses) == len(monitor.norms) == 9 and min(monitor.norms) > 0
    again = Monitor()
    assert Trainer(Toy(settings), settings.training, run, [again]).fit(resume=True).step == 9
    assert again.losses == monitor.losses

    class Broken(Toy):
        def loss(self, model, batch):
            return {"loss": super().loss(model, batch)["loss"] * float("nan")}

    outcome = fit(settings, Broken, callbacks=[Monitor()])[1]
    assert outcome.step == 1 and outcome.reason == "the loss is not finite"
    assert runs.read_metrics(outcome.run)[0]["loss"] is None


def test_feature_redraw_is_a_function_of_seed_and_step():
    class Random(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("features", torch.zeros(4))
            self.drawn = 0

        def redraw_features(self, generator):
            self.features.copy_(torch.randn(4, generator=generator))
            self.drawn += 1

        def forward(self, inputs):
            return inputs

    class Performer(Toy):
        def __init__(self, settings):
            super().__init__(settings)
            self.model.append(Random())

    one, _ = fit(toy_settings(feature_redraw_interval=4), Performer)
    two, _ = fit(toy_settings(feature_redraw_interval=4), Performer)
    assert one.model[4].drawn == 3 and torch.equal(one.model[4].features, two.model[4].features) and one.model[4].features.any()
    fixed, _ = fit(toy_settings(feature_redraw_interval=4, fixed_projection=True), Performer)
    assert fixed.model[4].drawn == 0
    assert FeatureRedraw.order < EarlyStopping.order


def test_losses_by_name_with_smoothing_and_auxiliary_ones():
    outputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = WeightedLoss(Training(loss={"label_smoothing": 0.1, "auxiliary": {"norm_reg": 0.5}}).loss)(outputs, targets)
    expected = functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert loss["cross_entropy"] == pytest.approx(expected.item())
    assert loss["loss"].item() == pytest.approx(expected.item() + 0.5 * outputs.pow(2).mean().item(), rel=1e-6)
    LossRegistry.register("twice", lambda: lambda outputs, targets: 2 * outputs.sum())
    assert WeightedLoss(Training(loss={"main": "twice"}).loss)(outputs, targets)["loss"] == 2 * outputs.sum()
    with pytest.raises(UserError, match="did you mean 'cross_entropy'"):
        LossRegistry.create("crossentropy")
    with pytest.raises(UserError, match="has no option 'label_smoothing'"):
        WeightedLoss(Training(loss={"main": "mse", "label_smoothing": 0.1}).loss)


def test_focal_loss_equals_torchvisions_formula():
    logits, targets = torch.randn(50), (torch.rand(50) > 0.7).float()
    probability = torch.sigmoid(logits)
    right = torch.where(targets > 0, probability, 1 - probability)
    expected = -((1 - right) ** 2) * torch.log(right) * torch.where(targets > 0, 3.0, 1.0)
    assert torch.allclose(focal_bce(logits, targets, 2.0, 3.0), expected, atol=1e-5)


def test_init_from_takes_the_weights_and_a_new_schedule(capsys):
    settings = toy_settings()
    first = command.train(Toy, settings, system="toy", run_name="phase1")
    second = command.train(Toy, toy_settings(optimizer={"lr": 1e-9}, epochs=1), system="toy", run_name="phase2", init_from="phase1")
    assert second.step == 6 and runs.read_metadata(second.run)["init_from"] == "phase1"
    start, end = Toy(settings), Toy(settings)
    checkpoints.load_weights(start.model, first.run / "ckpt" / "best", averaged=True)
    checkpoints.load_weights(end.model, second.run / "ckpt" / "last")
    assert torch.allclose(vector(start), vector(end), atol=1e-6)

    class Wider(Toy):
        def __init__(self, settings):
            super().__init__(settings)
            self.model[3] = torch.nn.Linear(16, 2)

    with pytest.raises(UserError, match="does not fit the model"):
        checkpoints.load_weights(Wider(settings).model, first.run / "ckpt" / "best")
    assert checkpoints.load_weights(Wider(settings).model, first.run / "ckpt" / "best", partial=True) == ["3.weight", "3.bias"]


def test_metrics_rows_tensorboard_and_their_filter():
    _, outcome = fit(toy_settings(logging={"interval": 3, "log_metrics": ["loss"]}))
    rows = runs.read_metrics(outcome.run)
    assert [row["step"] for row in rows] == [3, 6, 6, 9, 12, 12]
    assert set(rows[0]) == {"step", "epoch", "loss"} and set(rows[2]) == {"step", "epoch", "val_loss"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(outcome.run / "logs"))
    events.Reload()
    assert [item.step for item in events.Scalars("train/total_loss")] == [3, 6, 9, 12]
    assert events.Scalars("val/total_loss")[-1].value == pytest.approx(outcome.metrics["val_loss"])


def test_interval_of_validation_and_the_rest_of_the_plan():
    _, outcome = fit(toy_settings(validation={"interval": 4}))
    assert [row["step"] for row in runs.read_metrics(outcome.run) if "val_loss" in row] == [4, 8, 12]


def test_validation_every_second_epoch_and_at_the_end():
    _, outcome = fit(toy_settings(epochs=3, validation={"epochs": 2}))
    assert [row["step"] for row in runs.read_metrics(outcome.run) if "val_loss" in row] == [12, 18]


def test_seeds_change_the_training():
    assert not torch.equal(vector(fit(toy_settings())[0]), vector(fit(toy_settings(random_seed=1))[0]))


def test_every_fault_of_a_configuration_at_once():
    with pytest.raises(config.ConfigError) as caught:
        config.load(ToySettings, {"training": {"optimzer": {}, "epochs": 0, "scheduler": {"type": "cosin"}, "mixed_precision": "fp8"}})
    text = str(caught.value)
    assert "did you mean 'optimizer'" in text and "training.epochs" in text and "scheduler.type" in text and "mixed_precision" in text
    assert config.load(ToySettings, {}, ["training.optimizer.lr=1e-3"]).training.optimizer.lr == 1e-3
    with pytest.raises(config.ConfigError, match="min_lr"):
        Training_ = {"training": {"scheduler": {"min_lr": 1.0}}}
        config.load(ToySettings, Training_)


def test_what_cannot_run_says_so():
    with pytest.raises(UserError, match="needs a GPU"):
        fit(toy_settings(mixed_precision="fp16"))
    with pytest.raises(UserError, match="torchrun --nproc_per_node 8"):
        fit(toy_settings(distributed={"world_size": 8}))
    with pytest.raises(UserError, match="not among the validation's.*did you mean 'val_loss'"):
        fit(toy_settings(checkpoint={"metric": "valloss"}))


def test_bf16_trains_and_leaves_the_model_as_it_was():
    system, outcome = fit(toy_settings(mixed_precision="bf16"))
    assert outcome.step == 12 and system.model(torch.zeros(1, 5)).dtype == torch.float32


def test_batch_size_search():
    for wanted in (1, 2, 7, 64, 100):
        assert command.largest(lambda size, wanted=wanted: size <= wanted, 100) == wanted
    with pytest.raises(UserError, match="not even one"):
        command.largest(lambda size: False, 100)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="GPU"):
            command.find_batch_size(Toy, toy_settings())


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_example_once_whatever_the_number_of_processes(processes):
    settings = toy_settings(batch_size=3, gradient_accumulation_steps=2).model_copy(update={"size": 23})
    system = Calm(settings)
    for done in (0, 3):
        seen, total = [], []
        for process in range(processes):
            batches = Batches(system, settings.training, process, processes, pin=False)
            for _, own in batches.updates(0, done):
                seen += [row.tolist() for (inputs, _), weight in own if weight for row in inputs]
            total.append(sum(1 for _ in batches.updates(0, done)))
        expected = [system.data[index].tolist() for batch in batches.plan(0)[done:] for index in batch]
        assert sorted(seen) == sorted(expected) and len(set(total)) == 1


def test_weights_of_an_update_make_the_mean_over_its_examples():
    settings = toy_settings(batch_size=3, gradient_accumulation_steps=2).model_copy(update={"size": 23})
    for update in zip(
        *(list(Batches(Calm(settings), settings.training, process, 2, False).updates(0, 0)) for process in range(2)), strict=True
    ):
        parts = [(len(batch[0]), weight) for _, own in update for batch, weight in own]
        total = sum(size for size, weight in parts if weight)
        assert all(weight in (0.0, pytest.approx(2 * size / total)) for size, weight in parts)


def test_every_example_has_its_own_randomness():
    examples = _Examples(type("Draw", (), {"example": staticmethod(lambda index, rng: rng.random(3).tolist())}), 42)
    drawn = {key: examples[key] for key in [(0, 1), (1, 0), (0, 0), (1, 1)]}
    assert len({tuple(value) for value in drawn.values()}) == 4
    assert all(examples[key] == value for key, value in drawn.items())
    numbers = numpy.concatenate([examples[3, index] for index in range(3000)])
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(numpy.corrcoef(numbers[:-3], numbers[3:])[0, 1]) < 0.05


def test_a_state_is_written_without_check_sums_and_read_as_ever(tmp_path):
    state = {"weights": torch.arange(1000.0), "step": 3}
    usual = torch.serialization.get_crc32_options()
    checkpoints.write_state(state, tmp_path / "state.pt")
    assert torch.serialization.get_crc32_options() == usual
    torch.save(state, tmp_path / "usual.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert found["step"] == 3 and torch.equal(found["weights"], state["weights"])
    sums = [{entry.CRC for entry in zipfile.ZipFile(tmp_path / name).infolist()} for name in ("state.pt", "usual.pt")]
    assert len(sums[0]) < len(sums[1])
