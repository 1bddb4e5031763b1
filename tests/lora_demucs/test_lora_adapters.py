"""Adapters on every kind of layer: nothing changes at first, everything learns, merging and files are faithful."""

import json
from dataclasses import replace

import pytest
import torch
from stem_examples import STEMS, small

from music_training.errors import UserError
from music_training.lora_demucs import adapters, base, layers, ranks, stems
from music_training.lora_demucs.config import HtDemucs

KINDS = {"Linear", "Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d", "MultiheadAttention"}


def info_of(made, sources=None, rank=2, only=None, **more):
    sources = tuple(sources or made.base_sources)
    heads = tuple(stems.heads(made.model)) if sources != made.base_sources else ()
    found = [layer for layer in layers.adaptable(made.model, heads) if only is None or layer.kind == only]
    chosen = ranks.allocate(found, HtDemucs(lora_rank=rank, lora_rank_mode="uniform"))
    starts = stems.parents(sources, made.base_sources)
    return adapters.AdapterInfo(sources, chosen, parents=starts, heads=heads, base_sources=made.base_sources, digest=made.digest, **more)


def shake(made, amount=0.02):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.tensors().values():
            value.add_(amount * torch.randn(value.shape, generator=generator))


def run(model, mixture):
    model.eval()
    with torch.no_grad():
        return model(mixture)


def test_the_small_model_has_every_kind_of_layer_and_a_dilated_one(model):
    assert {layer.kind for layer in layers.adaptable(model)} == KINDS
    assert any(isinstance(module, torch.nn.Conv1d) and module.dilation == (2,) for module in model.modules())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_starts_without_effect_and_merges(model, mixture, kind):
    made = adapters.Adapters(model)
    before = run(model, mixture)
    made.add("one", info_of(made, only=kind), seed=1)
    assert torch.equal(run(model, mixture), before)
    shake(made)
    changed = run(model, mixture)
    assert not torch.equal(changed, before)
    made.merge()
    assert (run(model, mixture) - changed).abs().max() < 1e-5
    made.unmerge()
    assert torch.equal(run(model, mixture), changed)
    made.activate(None)
    assert torch.equal(run(model, mixture), before)


def test_the_update_is_alpha_times_the_product_of_the_factors(model):
    made = adapters.Adapters(model)
    made.add("one", info_of(made, alpha=0.5), seed=1)
    shake(made)
    dilated = next(
        name for name, module in model.named_modules() if isinstance(module, layers.Conv1d) and module.get_base_layer().dilation == (2,)
    )
    module = model.get_submodule(dilated)
    first, second = module.lora_A["one"].weight, module.lora_B["one"].weight
    wanted = 0.5 * torch.einsum("rik,or->oik", first, second[..., 0])
    assert torch.allclose(module.get_delta_weight("one"), wanted, atol=1e-7)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"])
def test_a_convolution_with_the_update_in_its_weights_is_that_of_both_factors_in_a_row(model, kind):
    """What LoRA is by definition: the layer's output plus the second factor's of the first factor's."""
    made = adapters.Adapters(model)
    made.add("one", info_of(made, only=kind, alpha=0.7), seed=1)
    shake(made)
    seen = 0
    for module in model.modules():
        if isinstance(module, layers.InWeights):
            base = module.get_base_layer()
            inputs = torch.randn(1, base.in_channels, *[24] * len(base.kernel_size), generator=torch.Generator().manual_seed(0))
            first, second = module.lora_A["one"], module.lora_B["one"]
            if "Transpose" not in kind:
                first.dilation = base.dilation
            wanted = base(inputs) + module.scaling["one"] * second(first(inputs))
            assert torch.allclose(module(inputs), wanted, atol=1e-5)
            seen += 1
    assert seen


def test_gradients_reach_every_tensor_and_no_other(model, mixture):
    made = adapters.Adapters(model)
    made.add("one", info_of(made, STEMS), seed=1)
    shake(made)
    model.train()
    model(mixture).square().mean().backward()
    trained = made.tensors()
    assert len(trained) > 100
    assert [name for name, value in trained.items() if value.grad is None or not value.grad.abs().sum() > 0] == []
    known = {id(value) for value in trained.values()}
    assert [name for name, value in model.named_parameters() if value.grad is not None and id(value) not in known] == []


def test_a_training_step_leaves_the_frozen_weights_bit_for_bit(model, mixture):
    made = adapters.Adapters(model)
    made.add("one", info_of(made), seed=1)
    shake(made)
    before = {name: value.clone() for name, value in adapters.plain_state(model).items()}
    model.train()
    for _ in range(3):
        model(mixture).square().mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in adapters.plain_state(model).items())


def test_new_stems_start_as_their_parents_and_retained_ones_stay(model, mixture):
    made = adapters.Adapters(model)
    before = run(model, mixture)
    made.add("five", info_of(made, STEMS), seed=1)
    after = run(model, mixture)
    assert after.shape[1] == 5 and model.sources == list(STEMS)
    for place, (name, parent) in enumerate(stems.parents(STEMS, made.base_sources).items()):
        assert torch.equal(after[:, place], before[:, made.base_sources.index(parent)]), name
    with made.disabled() as plain:
        assert plain.sources == list(made.base_sources) and torch.equal(run(plain, mixture), before)


def test_a_saved_adapter_reloads_to_the_same_output_and_swaps(tmp_path, mixture):
    made = adapters.Adapters(small())
    made.add("five", info_of(made, STEMS), seed=1)
    shake(made)
    wanted = run(made.model, mixture)
    made.save(tmp_path / "five")
    made.add("genre", info_of(made), seed=2)
    shake(made)
    other = run(made.model, mixture)
    made.save(tmp_path / "genre")
    again = adapters.Adapters(small())
    again.load(tmp_path / "five", "five")
    assert torch.equal(run(again.model, mixture), wanted)
    again.load(tmp_path / "genre", "genre")
    assert torch.equal(run(again.model, mixture), other)
    again.activate("five")
    assert torch.equal(run(again.model, mixture), wanted)
    plain = again.merged_model()
    assert type(plain).__name__ == "HTDemucs" and (run(plain, mixture) - wanted).abs().max() < 1e-5
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert json.loads((tmp_path / "five" / "adapter.json").read_text())["sources"] == list(STEMS)


def test_an_adapter_of_other_weights_is_refused(tmp_path):
    made = adapters.Adapters(small())
    made.add("one", info_of(made), seed=1)
    made.save(tmp_path / "one")
    with pytest.raises(UserError, match="other weights"):
        adapters.Adapters(small(seed=5)).load(tmp_path / "one")
    with pytest.raises(UserError, match="not an adapter"):
        adapters.read(tmp_path)


@pytest.mark.parametrize(
    "sources, message",
    [
        (("vocal", "drums"), "did you mean 'vocals'"),
        (("hi-hat", "drums"), "did you mean 'hihat'"),
        (("theremin", "drums"), "parents={theremin: other}"),
    ],
)
def test_names_that_are_nearly_right_are_caught(sources, message):
    with pytest.raises(UserError, match=message.replace("{", r"\{").replace("}", r"\}")):
        stems.parents(sources, ("drums", "bass", "other", "vocals"))


# Ranks


@pytest.fixture
def found(model):
    return layers.adaptable(model)


def test_uniform_and_growth(found):
    uniform = ranks.allocate(found, HtDemucs(lora_rank_mode="uniform", lora_rank=3))
    assert {rank for name, rank in uniform.items()} <= {1, 2, 3}
    grown = ranks.allocate(found, HtDemucs(lora_rank_mode="growth", base_rank=2, rank_growth=2.0))
    assert [grown[f"encoder.{depth}.rewrite"] for depth in range(3)] == [2, 4, 8]


def test_heuristic_ranges(found):
    for rank in (1, 4, 8, 32):
        chosen = ranks.allocate(found, HtDemucs(lora_rank=rank))
        assert 8 <= chosen["crosstransformer.layers.0.linear1"] <= 16
        assert 4 <= chosen["encoder.1.rewrite"] <= 8
        assert 2 <= chosen["decoder.2.rewrite"] <= 4


def test_patterns(found):
    settings = HtDemucs(lora_rank_mode="uniform", lora_rank=2, layer_ranks={"encoder.0.*": 5, "transformer.cross_attn.*": 3})
    chosen = ranks.allocate(found, settings)
    assert chosen["encoder.0.rewrite"] == chosen["tencoder.0.rewrite"] == 5
    assert chosen["crosstransformer.layers.1.cross_attn"] == 3
    assert chosen["crosstransformer.layers.0.self_attn"] == 2
    alone = ranks.allocate(found, settings.model_copy(update={"time_branch": False}))
    assert alone["tencoder.0.rewrite"] == 2
    with pytest.raises(UserError, match=r"'encodr.0.\*' matches no layer; did you mean 'encoder.0.\*'"):
        ranks.allocate(found, HtDemucs(layer_ranks={"encodr.0.*": 4}))


def test_gradient_mode_spends_the_budget_where_the_energy_is(found):
    spectra = {layer.name: [1e-3] * layer.full_rank for layer in found}
    spectra["encoder.1.rewrite"] = [10.0, 9.0, 8.0, 7.0, 6.0] + [0.0] * 20
    settings = HtDemucs(lora_rank_mode="gradient", lora_rank=2, min_rank=1, max_rank=5)
    chosen = ranks.allocate(found, settings, spectra)
    assert chosen["encoder.1.rewrite"] == 5
    budget = ranks.cost(found, {layer.name: 2 for layer in found})
    assert 0.9 * budget < ranks.cost(found, chosen) <= budget
    assert all(1 <= rank <= 5 for rank in chosen.values())


@pytest.mark.parametrize("mode", ["uniform", "heuristic", "growth"])
def test_a_budget_scales_every_mode(found, mode):
    budget = ranks.cost(found, {layer.name: 3 for layer in found})
    spent = ranks.cost(found, ranks.allocate(found, HtDemucs(lora_rank_mode=mode, budget=budget)))
    assert 0.75 * budget < spent <= budget


def test_the_table_counts_what_is_there(model, found):
    made = adapters.Adapters(model)
    made.add("one", replace(info_of(made, rank=4)), seed=1)
    rows = ranks.table(found, made.known["one"].ranks)
    assert sum(row["parameters"] for row in rows) == sum(value.numel() for value in made.tensors().values())


@pytest.fixture(scope="module")
def full():
    """The architecture of the published htdemucs, weights random, layer scales so large that gradients can be told from zero."""
    from demucs.htdemucs import HTDemucs
    from demucs.transformer import LayerScale

    torch.manual_seed(0)
    model = HTDemucs(["drums", "bass", "other", "vocals"], bottom_channels=512, dconv_mode=3, segment=39 / 5)
    for module in model.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.constant_(module.scale, 0.1)
    return model


@pytest.mark.long
def test_full_size_shares(full):
    whole = sum(value.numel() for value in full.parameters())
    assert whole == pytest.approx(42e6, rel=0.01)
    for given in (HtDemucs(lora_rank=4), HtDemucs(lora_rank=8), HtDemucs(lora_rank_mode="growth")):
        assert ranks.cost(layers.adaptable(full), ranks.allocate(layers.adaptable(full), given)) < 0.05 * whole


@pytest.mark.long
def test_full_size_gradients_and_file(full, tmp_path):
    whole = sum(value.numel() for value in full.parameters())
    made = adapters.Adapters(full)
    chosen = ranks.allocate(layers.adaptable(full, tuple(stems.heads(full))), HtDemucs(lora_rank=8))
    made.add("one", replace(info_of(made, STEMS), ranks=chosen), seed=1)
    shake(made)
    full.train()
    full(0.1 * torch.randn(1, 2, 22050, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    trained = made.tensors()
    assert [name for name, value in trained.items() if value.grad is None or not value.grad.abs().sum() > 0] == []
    assert sum(value.numel() for value in trained.values()) < 0.05 * whole
    folder = made.save(tmp_path / "adapter")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 0.05 * 4 * whole


# Base models


@pytest.mark.parametrize("suffix", [".safetensors", ".th"])
def test_a_model_file_reads_back_and_demucs_reads_it_too(tmp_path, model, mixture, suffix):
    path = tmp_path / f"small{suffix}"
    (base.write if suffix == ".safetensors" else base.write_package)(model, path)
    wanted = run(model, mixture)
    assert torch.equal(run(base.load(str(path)), mixture), wanted)
    if suffix == ".safetensors":
        from demucs.hf import load_safetensors_model

        theirs = load_safetensors_model(path)
    else:
        from demucs.pretrained import get_model

        theirs = get_model("small", tmp_path)
    assert torch.equal(run(theirs, mixture), wanted) and theirs.sources == model.sources


def test_a_file_with_code_in_it_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"klass": Trap()}, tmp_path / "bad.th")
    with pytest.raises(UserError, match="without executing"):
        base.load(str(tmp_path / "bad.th"))
