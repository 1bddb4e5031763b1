"""Every patch is needed: without it what it mends fails, with it it works, and a real package is left alone.

One process imports what is heavy and forks a child for each case, so that no patch of one case reaches another.
"""

import importlib.machinery
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from music_training import files
from music_training.musicgen import audiocraft_compat

SERVER = """
import json, os, sys, traceback
import numpy, omegaconf, soundfile, torch, torchmetrics, transformers
from transformers import T5EncoderModel, T5Tokenizer
from music_training.musicgen import audiocraft_compat

folder = sys.argv[1]
torch.set_num_threads(1)


def case(name, skip, code):
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as stream:
            answer = stream.read()
        os.waitpid(child, 0)
        print("RESULT " + json.dumps([name, skip, json.loads(answer) if answer else "died"]), flush=True)
        return
    try:
        scope = {"folder": folder, "torch": torch}
        if skip is not None:
            audiocraft_compat.install(skip=skip)
        exec(code, scope)
        answer = scope.get("result", "")
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    with os.fdopen(write, "w") as stream:
        stream.write(json.dumps(answer))
    os._exit(0)


early, late = json.load(sys.stdin)
for one in early:
    case(*one)
for stub in ("xformers", "spacy", "librosa"):
    audiocraft_compat.PATCHES[stub]()
os.environ["AUDIOCRAFT_CONFIG"] = str(audiocraft_compat.HYDRA_TREE / "teams.yaml")
os.environ["AUDIOCRAFT_CLUSTER"] = "default"
import audiocraft.models, audiocraft.solvers
for one in late:
    case(*one)
"""

MODELS = """
from audiocraft.models import builders
from music_training.musicgen.models import save_weights
from music_training.musicgen.train import compose
torch.manual_seed(0)
codec = compose(["model=codec_tiny", "device=cpu"])
save_weights(files.outputs_root() / "codec", builders.get_compression_model(codec).state_dict(), codec)
overrides = ["solver=musicgen", "model=lm_tiny", "conditioner=lut", "compression_model_checkpoint=codec"]
speaker = compose([*overrides, "device=cpu", "dataset.segment_duration=2"])
save_weights(files.outputs_root() / "lm", builders.get_lm_model(speaker).state_dict(), speaker)

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
words = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581drum", -2.0)], unk_id=2))
words.pre_tokenizer = pre_tokenizers.Metaspace()
special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder + "/t5")
sizes = dict(vocab_size=128, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
T5EncoderModel(T5Config(**sizes)).save_pretrained(folder + "/t5")
"""

CHECKPOINTS = """
import os
from omegaconf import OmegaConf
class Foreign:
    def __reduce__(self):
        return os.mkdir, (folder + "/ran",)
config = OmegaConf.create({"name": "x", "sizes": [1, 2.5, None], "nested": {"on": True}})
torch.save({"xp.cfg": config, "weights": torch.arange(3)}, folder + "/ours.th")
torch.save({"weights": torch.arange(3), "more": Foreign()}, folder + "/foreign.th")
"""

# What each patch mends; ``result`` is what is to come out.
USES = {
    "xformers": "import audiocraft.models; result = 'imported'",
    "spacy": "import audiocraft.models; result = 'imported'",
    "librosa": "import audiocraft.models; result = 'imported'",
    "omegaconf": """
        from audiocraft.utils import checkpoint
        from omegaconf import OmegaConf
        state = checkpoint.load_checkpoint(folder + "/ours.th")
        result = [OmegaConf.to_container(state["xp.cfg"]), state["weights"].tolist()]
        """,
    "soundfile": """
        import os, pathlib, soundfile
        from audiocraft.data.audio import audio_write
        os.environ["PATH"] = folder
        ramp = torch.linspace(-0.5, 0.5, 320)[None]
        result = []
        for form in ("wav", "flac"):
            path = audio_write(folder + "/ramp", ramp, 32000, format=form, strategy="clip")
            audio, rate = soundfile.read(path)
            result.append([rate, pathlib.Path(path).suffix, bool(abs(torch.from_numpy(audio) - ramp[0]).max() < 1e-4)])
        """,
    "run_folders": """
        from audiocraft.utils import checkpoint
        run = files.outputs_root() / "training" / "run_x" / "ckpt"
        run.mkdir(parents=True, exist_ok=True)
        (run / "last.th").touch()
        names = ("run_x", "//sig/run_x", "training/run_x/ckpt/last.th", str(run.parent), "run_y")
        found = [checkpoint.resolve_checkpoint_path(name) for name in names]
        result = [path and files.relative(path) for path in found]
        """,
    "safetensors_codec": """
        from audiocraft.solvers.compression import CompressionSolver
        model = CompressionSolver.model_from_checkpoint("codec")
        result = list(model.decode(model.encode(torch.zeros(1, 1, 32000))[0]).shape)
        """,
    "local_t5": """
        from audiocraft.modules.conditioners import T5Conditioner
        conditioner = T5Conditioner(folder + "/t5", 8, finetune=False, device="cpu")
        embedded, mask = conditioner(conditioner.tokenize(["a drum", None]))
        result = [embedded.shape[0], embedded.shape[2], mask.any(1).tolist()]
        """,
    "stride": """
        from music_training.musicgen.models import load_musicgen
        model = load_musicgen("lm")
        model.set_generation_params(duration=3, top_k=4)
        result = [model.extend_stride, list(model.generate([None]).shape)]
        """,
}
WORKS = {
    "xformers": "imported",
    "spacy": "imported",
    "librosa": "imported",
    "omegaconf": [{"name": "x", "sizes": [1, 2.5, None], "nested": {"on": True}}, [0, 1, 2]],
    "soundfile": [[32000, ".wav", True], [32000, ".flac", True]],
    "run_folders": ["training/run_x/ckpt/last.th"] * 4 + [None],
    "safetensors_codec": [1, 1, 32000],
    "local_t5": [2, 8, [True, False]],
    "stride": [1.2, [1, 1, 96000]],
}
FAILS = {
    "xformers": "No module named 'xformers'",
    "spacy": "No module named 'spacy'",
    "librosa": "No module named 'librosa'",
    "omegaconf": "Weights only load failed",
    "soundfile": "No such file or directory: 'ffmpeg'",
    "run_folders": "Primary config directory not found",
    "safetensors_codec": "",
    "local_t5": "Unrecognized t5 model name",
    "stride": "Cannot stride by more than max generation duration",
}
STUBS = ("xformers", "spacy", "librosa")
REAL_PACKAGE = """
import sys
from pathlib import Path
root = Path(folder) / "packages"
for package in ("xformers", "spacy", "librosa"):
    (root / package).mkdir(parents=True)
    (root / package / "__init__.py").write_text("real = True")
sys.path.insert(0, str(root))
applied = audiocraft_compat.install(skip=[name for name in audiocraft_compat.PATCHES if name not in ("xformers", "spacy", "librosa")])
import librosa, spacy, xformers
result = [applied, xformers.real, spacy.real, librosa.real]
"""
FOREIGN = "from audiocraft.utils import checkpoint; checkpoint.load_checkpoint(folder + '/foreign.th')"
BEGIN = "from music_training import files\nfrom music_training.musicgen import audiocraft_compat\n"


def source(code: str) -> str:
    return BEGIN + textwrap.dedent(code)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, object]:
    """What came of every case: ``NAME with``, ``NAME without`` and a few more."""
    folder = tmp_path_factory.mktemp("compat")
    early = [["real packages", None, source(REAL_PACKAGE)]]
    early += [[f"{name} {how}", skip, source(USES[name])] for name in STUBS for how, skip in (("with", []), ("without", [name]))]
    late = [["checkpoints", None, source(CHECKPOINTS)], ["models", [], source(MODELS)]]
    for name in set(USES) - set(STUBS):
        late += [[f"{name} with", [], source(USES[name])], [f"{name} without", [name], source(USES[name])]]
    late += [["foreign with", [], source(FOREIGN)], ["foreign without", ["omegaconf"], source(FOREIGN)]]
    late += [["twice", [], source("result = [audiocraft_compat.install(), audiocraft_compat.install()]")]]
    environment = {
        **os.environ,
        "PYTHONPATH": str(files.REPOSITORY),
        "PYTHONWARNINGS": "ignore",
        "MUSIC_OUTPUTS": str(folder / "outputs"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    ended = subprocess.run(
        [sys.executable, "-c", SERVER, str(folder)], input=json.dumps([early, late]), capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [json.loads(line.removeprefix("RESULT ")) for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    found = {name: answer for name, _, answer in lines}
    assert found["checkpoints"] == "" and found["models"] == ""
    return found | {"ran": (folder / "ran").exists()}


def test_every_patch_is_tried():
    assert set(USES) == set(audiocraft_compat.PATCHES)


@pytest.mark.parametrize("name", USES)
def test_without_the_patch_it_fails_and_with_it_it_works(results, name):
    assert results[f"{name} with"] == WORKS[name]
    if name in STUBS and importlib.machinery.PathFinder.find_spec(name):
        pytest.skip(f"{name} itself is installed: nothing fails without its stand-in")
    failure = results[f"{name} without"]
    assert isinstance(failure, str) and re.match(rf"\w+(Error|Exception): .*{re.escape(FAILS[name])}", failure, re.DOTALL), failure


def test_a_checkpoint_with_a_foreign_object_is_refused_either_way(results):
    assert "Weights only load failed" in results["foreign with"]
    assert "Weights only load failed" in results["foreign without"]
    assert not results["ran"]


def test_real_packages_are_left_alone(results):
    assert results["real packages"] == [[], True, True, True]


def test_patches_are_applied_once(results):
    first, second = results["twice"]
    assert first == second and len(set(first)) == len(first)
    assert {"omegaconf", "soundfile", "stride"} <= set(first)
