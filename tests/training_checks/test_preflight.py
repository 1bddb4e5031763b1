"""Every finding of the preflight provoked, and a healthy set-up that provokes none."""

import json
import os
import shutil
import subprocess
import sys

import numpy
import pytest
import soundfile
from omegaconf import OmegaConf

from music_training import files, runs
from music_training.config import ConfigError
from music_training.errors import UserError
from music_training.musicgen.training import CodecSettings, LanguageModelSettings
from training_checks import preflight, preflight_config, preflight_data, preflight_machine

RATE = 32000
SIDECAR = dict(title="", artist="", key="", bpm=120, genre="tones", moods=[], description="four tones", name="", instrument="")


def subjects(findings) -> dict[str, str]:
    return {finding.subject: finding.severity for finding in findings if finding.severity != "ok"}


# The machine


def broken_module(tmp_path, monkeypatch, name: str, message: str, error: str = "ImportError"):
    files.write_text(tmp_path / f"{name}.py", f"raise {error}({message!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("message", "error", "todo"),
    [
        ("numpy.dtype size changed, may indicate binary incompatibility", "ValueError", "delete the virtual environment"),
        ("xFormers can't load C++/CUDA extensions", "RuntimeError", "pip uninstall xformers"),
        ("Could not load libtorchcodec. Likely causes:", "RuntimeError", "pip uninstall torchcodec"),
        ("libc10_cuda.so: cannot open shared object file", "OSError", "startup_script.sh"),
        ("No module named 'einops'", "ModuleNotFoundError", "startup_script.sh"),
    ],
)
def test_a_package_that_does_not_import_is_explained(tmp_path, monkeypatch, message, error, todo):
    broken_module(tmp_path, monkeypatch, "brokenly", message, error)
    (finding,) = preflight_machine.packages(("json", "brokenly"), ())
    assert finding.severity == "fault" and message[:20] in finding.message and todo in finding.todo
    (finding,) = preflight_machine.packages(("json",), ("brokenly", "not_there_at_all"))
    assert finding.severity == "warning"


def test_a_module_that_kills_the_interpreter_and_one_that_is_missing(tmp_path, monkeypatch):
    files.write_text(tmp_path / "deadly.py", "import os; os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ended with 3" in preflight_machine.packages(("deadly",), ())[0].message
    assert preflight_machine.packages(("nowhere_to_be_found",), ())[0].severity == "fault"


def test_a_package_that_works_but_complains_is_explained(tmp_path, monkeypatch):
    line = "WARNING: xFormers can't load C++/CUDA extensions."
    files.write_text(tmp_path / "noisy.py", f"import sys\nprint({line!r}, file=sys.stderr)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = preflight_machine.packages(("noisy",), ())
    assert (finding.severity, finding.subject) == ("warning", "packages") and "pip uninstall xformers" in finding.todo
    files.write_text(tmp_path / "noisy.py", "")
    assert preflight_machine.packages(("noisy",), ()) == []


def test_versions_are_compared_with_what_was_tried(tmp_path):
    wanted = files.write_text(tmp_path / "requirements.txt", "# what\nnumpy>=99 # new\nnothing-like-it>=1\npyyaml>=6\n")
    found = subjects(preflight_machine.versions(wanted, torch="2.4.0"))
    assert found == {"package numpy": "warning", "package nothing-like-it": "fault", "package torch": "fault"}
    assert preflight_machine.versions(torch="2.6.0+cu124") == []


@pytest.mark.parametrize(
    ("log", "meaning"),
    [
        ("  ERROR: Failed building wheel for av", "no ready-made PyAV"),
        ("pkg-config is required for building PyAV", "no ready-made PyAV"),
        ("building xformers\nModuleNotFoundError: No module named 'torch' while building xformers", "before torch was there"),
        ("_pickle.UnpicklingError: Weights only load failed. Unsupported global: omegaconf.DictConfig", "configuration objects"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "too small for the batch"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("RuntimeError: DataLoader worker is killed by signal: Bus error.", "shared memory"),
    ],
)
def test_known_messages_of_a_log_are_explained(tmp_path, log, meaning):
    report = preflight.explain(files.write_text(tmp_path / "train.log", f"step 1\n{log}\nthe end\n"))
    assert meaning in report.findings[0].subject and not report.passed
    assert report.findings[0].message in log
    assert preflight.explain(files.write_text(tmp_path / "good.log", "all well\n")).passed


def test_programs_and_gpus(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert subjects(preflight_machine.programs()) == {"ffmpeg": "warning"}
    look = preflight_machine.gpu
    assert look(False, names=[], cuda=0) == [] == look(True, 4, names=["NVIDIA H200"] * 4, cuda=4)
    assert subjects(look(True, names=[], cuda=0)) == {"CUDA": "fault"}
    assert subjects(look(True, names=["NVIDIA A40"], cuda=0)) == {"CUDA": "fault"}
    assert subjects(look(False, names=["NVIDIA A40"], cuda=0)) == {"CUDA": "warning"}
    assert "processes=2" in look(True, 4, names=["NVIDIA A40"] * 2, cuda=2)[0].todo


def test_disk_inodes_shared_memory_and_where_the_outputs_lie(tmp_path):
    look = preflight_machine.disk
    assert look(10**9, 100, free=10**10, inodes=1000) == []
    assert subjects(look(10**9, 100, free=10**8, inodes=10)) == {"disk": "fault", "inodes": "fault"}
    assert look(1, 1, root=tmp_path / "not" / "there") == []
    assert subjects(preflight_machine.shared_memory(4, free=64 * 10**6)) == {"shared memory": "warning"}
    assert preflight_machine.shared_memory(4, free=10**9) == [] == preflight_machine.shared_memory(0, free=0)
    place = preflight_machine.place
    assert place(False, files.absolute("/tmp/x"), {}) == [] == place(True, files.absolute("/workspace/outputs"), {})
    assert "lost when the machine stops" in place(True, files.absolute("/tmp/x"), {})[0].message
    assert "container's own disk" in place(True, files.absolute("/no-such-mount/outputs"), {"RUNPOD_POD_ID": "abc"})[0].message


def test_what_killed_runs_left_is_swept_only_when_asked(outputs):
    run = runs.create("codec", run_name="a")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, left = (files.write_text(run / "ckpt" / f".last.th.{number}.tmp", "x") for number in (os.getpid(), dead.pid))
    (runs.folder() / f"forecast-x.{dead.pid}").mkdir()
    assert subjects(preflight_machine.leftovers()) == {"leftovers": "note"} and left.exists()
    assert "removed 2" in preflight_machine.leftovers(fix=True)[0].message
    assert ours.exists() and not left.exists() and preflight_machine.leftovers() == []


# The data


@pytest.fixture
def dataset(outputs):
    """Six clips of 2 s (synthetic tones) by three artists, divided, with sidecars, an index and the decision."""
    random = numpy.random.default_rng(0)
    time = numpy.arange(2 * RATE) / RATE
    index, places = [], {"train": [], "valid": []}
    for number in range(6):
        split, artist = ("valid", "c") if number > 3 else ("train", "ab"[number % 2])
        path = outputs / "segments" / "tones" / f"{artist}{number}_0000.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        tones = sum(numpy.sin(2 * numpy.pi * pitch * time) for pitch in random.uniform(100, 2000, 4))
        soundfile.write(path, 0.1 * tones, RATE, subtype="FLOAT")
        files.write_json(path.with_suffix(".json"), SIDECAR)
        known = {"path": files.relative(path), "duration": 2.0, "sample_rate": RATE}
        index.append({**known, "artist": artist, "track": f"{artist}{number}", "sha256": str(number)})
        places[split].append({**known, "amplitude": None, "weight": None, "info_path": None})
    write_lines(outputs / "segments" / "tones" / "segments.jsonl", index)
    for split, rows in places.items():
        write_lines(outputs / "egs" / "tones" / split / "data.jsonl", rows)
    files.write_json(outputs / "egs" / "tones" / "split.json", {"index": "segments/tones/segments.jsonl", "rule": "artist"})
    return "tones"


def write_lines(path, rows):
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


CODEC = {"model": "codec_tiny", "epochs": 3, "updates_per_epoch": 8, "batch_size": 2, "segment_seconds": 0.5, "workers": 0}
CODEC |= {"hydra": ["optim.ema.decay=0.9"]}
MODEL = {
    "model": "lm_tiny",
    "conditioning": "lut",
    "epochs": 3,
    "updates_per_epoch": 8,
    "batch_size": 2,
    "segment_seconds": 2,
    "workers": 0,
}


def look(dataset, fix=False, model=False, **changes) -> dict[str, str]:
    settings = LanguageModelSettings(**{**MODEL, **changes}) if model else CodecSettings(**{**CODEC, **changes})
    return subjects(preflight.check_training(settings, dataset, fix=fix).findings)


def rewrite(dataset, name, samples, rate=RATE, subtype="FLOAT"):
    path = files.outputs_root() / "segments" / dataset / name
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_a_healthy_data_set_has_no_findings(dataset):
    assert look(dataset) == {} == look(dataset, model=True)


def tone(seconds=2.0, level=0.3):
    return level * numpy.sin(2 * numpy.pi * 220 * numpy.arange(int(seconds * RATE)) / RATE)


@pytest.mark.parametrize(
    ("samples", "rate", "subject", "severity"),
    [
        (numpy.where(numpy.arange(2 * RATE) == 777, numpy.nan, tone()), RATE, "audio: not finite", "fault"),
        (numpy.zeros(2 * RATE), RATE, "audio: silent", "warning"),
        (numpy.clip(tone(level=4), -1, 1), RATE, "audio: clipped", "note"),
        (tone() + 0.2, RATE, "audio: DC offset", "warning"),
        (tone()[: 2 * 22050], 22050, "audio: wrong sample rate", "fault"),
        (numpy.stack([tone(), tone()], 1), RATE, "audio: wrong channels", "fault"),
        (tone(1.5), RATE, "audio: truncated", "warning"),
    ],
)
def test_bad_audio_is_found(dataset, samples, rate, subject, severity):
    rewrite(dataset, "a0_0000.wav", samples, rate)
    report = preflight.check_training(CodecSettings(**CODEC), dataset)
    assert subjects(report.findings) == {subject: severity}
    assert "1 of 6 files" in next(str(item) for item in report.findings if item.subject == subject)


def test_missing_and_undecodable_files_are_found_and_moved_aside(dataset, outputs):
    (outputs / "segments/tones/a0_0000.wav").unlink()
    (outputs / "segments/tones/b1_0000.wav").write_bytes(b"RIFF no audio")
    assert look(dataset) == {"audio: missing": "fault", "audio: undecodable": "fault"}
    manifest = outputs / "egs/tones/train/data.jsonl"
    assert len(manifest.read_text().splitlines()) == 4
    assert look(dataset, fix=True) == {}
    assert len(manifest.read_text().splitlines()) == 2
    assert len((manifest.parent / "data.removed.jsonl").read_text().splitlines()) == 2
    assert look(dataset) == {}


def test_every_clip_is_looked_for_even_where_few_are_decoded(dataset, outputs):
    (outputs / "segments/tones/a2_0000.wav").unlink()
    found = preflight.check_training(CodecSettings(**CODEC), dataset, sample=1).findings
    assert subjects(found) == {"audio: missing": "fault"}


def test_many_silent_clips_are_a_fault(dataset):
    for name in ("a0", "a2", "b1"):
        rewrite(dataset, f"{name}_0000.wav", numpy.zeros(2 * RATE))
    assert look(dataset) == {"audio: silent": "fault"}


def test_manifests_that_are_missing_empty_or_broken(dataset, outputs):
    manifest = outputs / "egs/tones/valid/data.jsonl"
    for content, subject in (('{"path": "x"', "valid manifest"), ("", "valid manifest")):
        manifest.write_text(content)
        splits, found = preflight_data.read_splits(dataset)
        assert subjects(found) == {subject: "fault"}
    manifest.unlink()
    assert subjects(preflight_data.read_splits(dataset)[1]) == {"valid manifest": "fault"}


def test_lengths_against_the_example(dataset):
    splits, _ = preflight_data.read_splits(dataset)

    def lengths(seconds):
        return subjects(preflight_data.lengths(splits[0], preflight_data.Limits(segment_seconds=seconds)))

    assert lengths(2.0) == {} == lengths(2.005)
    assert lengths(10.0) == {"train lengths": "fault"}
    assert lengths(2.1) == {"train lengths": "warning"}
    splits[0].rows[0]["duration"] = 1.95
    assert lengths(2.0) == {"train lengths": "note"}
    for row in splits[0].rows:
        row["duration"] = 29.977
    assert lengths(30) == {}


def test_sidecars_are_needed_by_the_language_model_only_and_mended(dataset, outputs):
    sidecar = outputs / "segments/tones/a0_0000.json"
    files.write_json(sidecar, {"title": "kept", "description": "tones"})
    (outputs / "segments/tones/b1_0000.json").unlink()
    assert look(dataset) == {"sidecars": "note"}
    assert look(dataset, model=True) == {"sidecars": "fault"}
    files.write_json(outputs / "segments/tones/b1_0000.json", SIDECAR)
    assert look(dataset, model=True, fix=True) == {}
    mended = files.read_json(sidecar)
    assert set(mended) >= set(preflight_data.FIELDS) and mended["title"] == "kept"


def test_whoever_stands_on_both_sides_is_found(dataset, outputs):
    index = outputs / "segments/tones/segments.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows[4].update(artist="a", track="a0", sha256="0")
    write_lines(index, rows)
    messages = " ".join(finding.message for finding in preflight_data.leakage(dataset))
    assert "1 artists" in messages and "1 tracks" in messages and "1 clips of identical audio" in messages
    assert {finding.severity for finding in preflight_data.leakage(dataset)} == {"fault"}
    files.write_json(outputs / "egs/tones/split.json", {"index": "segments/tones/segments.jsonl", "rule": "segment"})
    severities = [finding.severity for finding in preflight_data.leakage(dataset)]
    assert severities == ["warning", "warning", "fault"]  # known to be so, except for equal audio
    write_lines(index, rows[:3])
    assert "do not belong together" in preflight_data.leakage(dataset)[0].message
    (outputs / "egs/tones/split.json").unlink()
    assert "no split.json" in preflight_data.leakage(dataset)[0].message


# The configuration


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hydra": ["rvq.bins=2048", "rvq.threshold_ema_dead_code=2"]}, {"codebook": "fault", "averaging": "warning"}),
        ({"hydra": ["rvq.bins=2048", "rvq.threshold_ema_dead_code=0", "optim.ema.use=false"]}, {"codebook": "warning"}),
        ({"hydra": ["autocast=true", "optim.ema.decay=0.9"]}, {"precision": "warning"}),
        ({"batch_size": 4, "processes": 4, "segment_seconds": 0.1}, {}),
        ({"batch_size": 3, "processes": 2}, {"batch": "fault"}),
        ({"batch_size": 16}, {"batch": "warning"}),
        ({"workers": 4096}, {"workers": "warning", "shared memory": "warning"}),
        ({"learning_rate": 0.5}, {"learning rate": "warning"}),
    ],
)
def test_a_codec_configuration_that_is_worth_nothing(dataset, changes, expected):
    found = look(dataset, **changes)
    found.pop("shared memory", None) if "shared memory" not in expected else found.setdefault("shared memory", "warning")
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_steps": 24}, {"schedule": "fault"}),
        ({"warmup_steps": 13}, {"schedule": "warning"}),
        ({"conditioning": "none"}, {"conditioning": "note"}),
        ({"hydra": ["autocast=true", "autocast_dtype=float16"]}, {"precision": "warning"}),
        ({"codec": "facebook/encodec_32khz"}, {}),
        ({"hydra": ["optim.optimizer=dadam"], "learning_rate": 1}, {}),
        ({"hydra": ["optim.optimizer=dadam"], "learning_rate": 1e-4}, {"learning rate": "warning"}),
    ],
)
def test_a_language_model_configuration_that_is_worth_nothing(dataset, changes, expected):
    assert look(dataset, model=True, **changes) == expected


def test_conditioning_without_captions(dataset, outputs):
    sidecars = sorted((outputs / "segments/tones").glob("*.json"))
    for path in sidecars[:4]:
        files.write_json(path, {**SIDECAR, "description": ""})
    assert look(dataset, model=True) == {"conditioning": "warning"}
    for path in sidecars:
        files.write_json(path, {**SIDECAR, "description": ""})
    assert look(dataset, model=True) == {"conditioning": "fault"}
    assert look(dataset, model=True, conditioning="none") == {}


def test_references_to_checkpoints(dataset, monkeypatch, tmp_path):
    def references(**changes):
        return preflight_config.checkpoints(
            OmegaConf.create({"solver": "musicgen", "compression_model_checkpoint": None, "continue_from": None, **changes})
        )

    hub = references(compression_model_checkpoint="facebook/encodec_32khz")
    assert "write //pretrained/facebook/encodec_32khz" in hub[0].todo
    assert subjects(references(continue_from="no_such_run")) == {"checkpoint": "fault"}
    runs.create("codec", run_name="there")
    assert references(continue_from="//sig/there", compression_model_checkpoint="training/there") == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in references(compression_model_checkpoint="//pretrained/facebook/encodec_32khz")[0].message
    (tmp_path / "models--facebook--encodec_32khz").mkdir()
    assert references(compression_model_checkpoint="//pretrained/facebook/encodec_32khz") == []


def test_another_codec_than_the_models(dataset, outputs):
    from music_training.musicgen.train import compose

    codec = outputs / "training" / "c" / "ckpt" / "best"
    cfg = compose(["model=codec_mini"])
    files.write_text(codec / "config.yaml", OmegaConf.to_yaml(cfg))
    assert look(dataset, model=True, codec=files.relative(codec)) == {"codec": "fault"}
    assert preflight_config.codec_of(files.relative(codec)) == {"n_q": 8, "bins": 256, "frame_rate": 50.0, "sample_rate": 32000}
    assert look(dataset, model=True, codec=files.relative(codec), hydra=["transformer_lm.n_q=8", "transformer_lm.card=256"]) == {}
    files.write_text(codec / "config.yaml", OmegaConf.to_yaml(compose(["model=codec_tiny", "sample_rate=16000"])))
    assert look(dataset, model=True, codec=files.relative(codec)) == {"codec": "fault"}
    assert preflight_config.codec_of("facebook/encodec_32khz") is None


def test_a_finished_cosine_schedule(dataset):
    from music_training.musicgen.train import compose

    run = runs.create("codec", run_name="old")
    before = compose(["solver=musicgen", "model=lm_tiny", "optim.epochs=2", "optim.updates_per_epoch=5"])
    files.write_text(run / "config.yaml", OmegaConf.to_yaml(before))
    more = compose(["solver=musicgen", "model=lm_tiny", "optim.epochs=4", "optim.updates_per_epoch=5"])
    assert preflight_config.finished(run, more) == []
    runs.write_metadata(run, steps=10)
    assert subjects(preflight_config.finished(run, more)) == {"schedule": "fault"}
    assert preflight_config.finished(run, before) == []
    assert look(dataset, model=True, run_name="old") == {"schedule": "fault"}


def test_generation_beyond_what_was_seen(dataset):
    cfg = OmegaConf.create({"dataset": {"segment_duration": 10}, "transformer_lm": {"card": 256}})
    assert preflight_config.generation(cfg, 10, 250) == []
    assert subjects(preflight_config.generation(cfg, 30, None)) == {"generation": "note"}
    assert subjects(preflight_config.generation(cfg, 5, 1000)) == {"generation": "fault"}


# All of it


def test_a_whole_profile_before_anything_is_made(outputs, monkeypatch):
    monkeypatch.setattr(preflight.machine, "packages", lambda: [])
    assert subjects(preflight.check("mini").findings) == {}
    serious = subjects(preflight.check("fma_large").findings)
    assert serious["CUDA"] == "fault" and serious["outputs"] == "fault"  # the outputs of a test lie under /tmp
    assert "codebook" not in serious
    with pytest.raises(UserError, match="write it as 04.key=value"):
        preflight.check("mini", overrides=["epochs=3"])
    with pytest.raises(ConfigError, match="epoks: unknown key; did you mean 'epochs'"):
        preflight.check("mini", overrides=["04.epoks=3"])


def test_a_folder_of_ones_own_is_looked_at_before_it_is_segmented(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.machine, "packages", lambda: [])
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "stereo 44k.wav", numpy.stack([tone(), tone()], 1), 44100)
    assert subjects(preflight.check("mini", str(folder)).findings) == {}
    soundfile.write(folder / "quiet.wav", numpy.zeros(RATE), RATE)
    (folder / "broken.flac").write_bytes(b"fLaC nothing")
    soundfile.write(folder / "cut.wav", numpy.clip(tone(level=4), -1, 1), RATE)
    found = {item.subject: item for item in preflight.check("mini", str(folder)).findings if item.severity != "ok"}
    assert {name: item.severity for name, item in found.items()} == dict.fromkeys(
        ("source: silent", "source: undecodable", "source: clipped"), "note"
    )
    assert found["source: silent"].todo == "03_segment_audio leaves it out" and "trained on as it is" in found["source: clipped"].todo


def test_real_recordings_raise_no_false_alarm(real_data, outputs):
    """Whatever is said about a real file is so by other means; of published music nothing is said."""
    from music_training.library.sources import folder

    paths = list(folder.find(real_data))
    assert len(paths) >= 20
    found = preflight_data.listen([(str(path), 0.0) for path in paths], preflight_data.Limits(), raw=True).by_kind
    assert set(found) <= {"silent", "DC offset", "clipped"}
    for kind, items in found.items():
        for name, _ in items:
            if not name.endswith((".mp3", ".sph")):
                samples, _ = soundfile.read(name, always_2d=True)
                cut = numpy.mean(numpy.abs(samples) > 0.998) > 0.01
                truth = {"silent": samples.std() < 1e-3, "DC offset": abs(samples.mean()) > 0.05, "clipped": cut}
                assert truth[kind], name
    music = ("fma", "librosa_data", "mtg_jamendo", "audiocraft")
    assert [name for items in found.values() for name, _ in items if os.path.relpath(name, real_data).split("/")[0] in music] == []


@pytest.mark.parametrize("form", [["training_checks/preflight.py"], ["-m", "training_checks.preflight"]])
def test_both_ways_to_call_it(tmp_path, form):
    log = files.write_text(tmp_path / "a.log", "CUDA out of memory\n")
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    ended = subprocess.run([sys.executable, *form, "--explain", str(log), "--json"], cwd=files.REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1 and not json.loads(ended.stdout)["passed"]
