"""Where a language model begins: the distances of the codec's code vectors, the spread of random weights, the codes' frequencies."""

import json

import numpy
import pytest
from safetensors.torch import load_file

from music_training import files
from music_training.musicgen import audiocraft_compat, tokens

audiocraft_compat.install()

import torch  # noqa: E402
from audiocraft.models import builders  # noqa: E402

from music_training.musicgen.beginnings import SPREAD, begin_at_codes  # noqa: E402
from music_training.musicgen.train import compose  # noqa: E402


@pytest.mark.parametrize("depth", [6, 200])  # fewer and more than the model's own dimensions
@pytest.mark.parametrize("bias", [True, False])
def test_codes_that_are_alike_begin_alike(depth, bias, outputs):
    torch.manual_seed(0)
    model = builders.get_lm_model(
        compose(["solver=musicgen", "model=lm_tiny", "device=cpu", f"transformer_lm.bias_proj={str(bias).lower()}"])
    )
    vectors = 5 + torch.randn(model.n_q, model.card, depth) * torch.tensor([0.5**k for k in range(model.n_q)])[:, None, None]
    frequencies = torch.rand(model.n_q, model.card)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    begin_at_codes(model, vectors, frequencies)
    after = model.state_dict()
    touched = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched == {name for name in before if name.startswith(("emb.", "linears."))}

    spread = [sum(state[f"emb.{k}.weight"].var() for k in range(model.n_q)) for state in (before, after)]
    assert spread[1] == pytest.approx(SPREAD**2 * float(spread[0]), rel=0.05)
    ratios = []
    for k in range(model.n_q):
        linear, embedding = after[f"linears.{k}.weight"], after[f"emb.{k}.weight"]
        assert linear.std() == pytest.approx(SPREAD * float(before[f"linears.{k}.weight"].std()), rel=1e-4)
        assert torch.equal(embedding[model.card], before[f"emb.{k}.weight"][model.card])  # the padding is no code
        true = torch.pdist(vectors[k])
        for made in (torch.pdist(embedding[: model.card]), torch.pdist(linear)):
            if depth < model.dim:  # an isometry
                torch.testing.assert_close(made / made.mean(), true / true.mean(), rtol=1e-3, atol=1e-3)
            else:
                assert numpy.corrcoef(made, true)[0, 1] > 0.3
        ratios.append(float(torch.pdist(embedding[: model.card]).mean() / true.mean()))
        if bias:
            torch.testing.assert_close(after[f"linears.{k}.bias"], frequencies[k].log())
    assert ratios == pytest.approx([ratios[0]] * model.n_q, rel=0.1)  # together the embeddings are the codec's latent


@pytest.mark.parametrize("wanted", [True, False])
def test_a_training_begins_there(wanted, egs, codec, forked, language_model_overrides):
    cache = tokens.encode("tones", codec, "test").result["tokens"]
    asked = [*language_model_overrides, f"compression_model_checkpoint={codec}", f"token_cache={cache}"]
    codes, output = forked(
        *asked, f"begin_at_codes={str(wanted).lower()}", "optim.epochs=1", "optim.updates_per_epoch=1", "optim.lr=0", "run=begun"
    )
    assert codes == [0], output
    state = load_file(files.outputs_root() / "training/begun/ckpt/best/model.safetensors")
    rows = [json.loads(line) for line in (files.outputs_root() / cache / "tokens.jsonl").read_text().splitlines()[1:]]
    shards = {row["shard"]: load_file(files.outputs_root() / cache / row["shard"]) for row in rows}
    trained = [shards[row["shard"]][str(row["number"])].numpy() for row in rows if row["split"] == "train"]
    assert 0 < len(trained) < len(rows)
    books = [value for name, value in sorted(load_file(files.absolute(codec) / "model.safetensors").items()) if name.endswith(".embed")]
    for number, book in enumerate(books):
        bias = state[f"linears.{number}.bias"].numpy()
        likeness = numpy.corrcoef(torch.pdist(state[f"linears.{number}.weight"]), torch.pdist(book))[0, 1]
        if wanted:
            seen = numpy.concatenate([part[number] for part in trained])
            counts = numpy.array([1 + (seen == code).sum() for code in range(len(bias))])
            numpy.testing.assert_allclose(bias, numpy.log(counts / counts.sum()), rtol=1e-5)
            assert likeness > 0.99
        else:
            assert not bias.any() and abs(likeness) < 0.5
