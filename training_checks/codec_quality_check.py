"""How well a codec reconstructs audio it never saw: ``python -m training_checks.codec_quality_check --num-samples 10``

Signal-to-noise figures are in dB, higher is better; distances are lower-is-better. Beside the codec stand the same
codec untrained and silence, measured on the same clips. Clips whose reference is silent are excluded and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import config, files, profiles, runs, stages
from music_training.errors import UserError, run_command
from music_training.library import catalogue
from training_checks.codec_metrics import BANDS, CodebookUsage, band_sdr, bandwidth, mel_distance, sdr, si_snr
from training_checks.listening_page import Card, Clip, Picture, write_card
from training_checks.report import Report

if TYPE_CHECKING:
    import torch
    from audiocraft.models import CompressionModel

WORST = 3  # clips that are named
SILENT_RMS = 1e-4  # -80 dBFS: below it a ratio to the reference says nothing


def check(
    codec: CompressionModel | Path | str,
    manifest: Path,
    num_samples: int = 10,
    out: Path | None = None,
    device: str = "cpu",
    baseline: str = "",
    name: str = "",
) -> Report:
    """Reconstruct ``num_samples`` clips spread over a manifest and measure how well.

    Beside the codec stand silence, the codec untrained (where its configuration is known) and a ``baseline``: the path
    or hub name of another codec. With ``out``, original/reconstructed WAV pairs and a picture of the worst clip go there.
    """
    import torch

    from music_training.musicgen.models import load_codec

    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise UserError(f"{manifest}: no clips in it")
    chosen = [lines[index * len(lines) // min(num_samples, len(lines))] for index in range(min(num_samples, len(lines)))]
    with _one_thread(), torch.no_grad():
        given = isinstance(codec, torch.nn.Module)
        model = codec if given else load_codec(codec, device)
        others = {} if given else {"untrained": _untrained(codec, chosen[0]["path"], device)}
        others |= {"baseline": load_codec(baseline, device)} if baseline else {}
        usage = CodebookUsage(model.num_codebooks, model.cardinality)
        report = Report(f"codec quality: {name or codec} on {len(chosen)} clips of {files.relative(manifest)}")
        silent = 0
        for line in chosen:
            audio = _read(line["path"], model.sample_rate).to(next(model.parameters()).device)
            if audio.square().mean().sqrt() < SILENT_RMS:
                silent += 1
                continue
            codes = model.encode(audio)[0]
            usage.update(codes)
            rebuilt = model.decode(codes)[..., : audio.shape[-1]]
            row = {"clip": Path(line["path"]).stem, "track": Path(line["path"]).stem.rpartition("_")[0]}
            row |= _figures(rebuilt, audio, model.sample_rate)
            row["mel_silence"] = mel_distance(torch.zeros_like(audio), audio, model.sample_rate).item()
            for which, other in others.items():
                if other is not None:
                    row |= _compared(which, _rebuild(other, audio, model.sample_rate), audio, model.sample_rate)
            report.rows.append(row)
            if out is not None:
                for version, signal in (("original", audio), ("reconstructed", rebuilt)):
                    _write(out / f"{row['clip']}_{version}.wav", signal, model.sample_rate)
    if not report.rows:
        raise UserError(f"{manifest}: all {silent} clips are silent")
    _summarise(report, model, usage, silent, baseline)
    if out is not None:
        _draw(out, report.figures["worst"][0]["clip"], model.sample_rate)
    return report


def _figures(estimate: torch.Tensor, reference: torch.Tensor, sample_rate: int) -> dict[str, float]:
    """What is measured of a clip; a band in which the original is silent is left out."""
    bands = band_sdr(estimate, reference, sample_rate).mean((0, 1)).tolist()
    return {
        "si_snr": si_snr(estimate, reference).mean().item(),
        "si_snr_audiocraft": si_snr(estimate, reference, "audiocraft", sample_rate).mean().item(),
        "sdr": sdr(estimate, reference).mean().item(),
        "mel": mel_distance(estimate, reference, sample_rate).mean().item(),
        "l1": (estimate - reference).abs().mean().item(),
        "mse": (estimate - reference).square().mean().item(),
        **{f"sdr_{low}_hz": value for low, value in zip(BANDS, bands, strict=False) if math.isfinite(value)},
        "bandwidth": bandwidth(estimate, sample_rate).mean().item(),
        "bandwidth_original": bandwidth(reference, sample_rate).mean().item(),
    }


def _compared(which: str, estimate: torch.Tensor, reference: torch.Tensor, sample_rate: int) -> dict[str, float]:
    return {
        f"mel_{which}": mel_distance(estimate, reference, sample_rate).mean().item(),
        f"sdr_{which}": sdr(estimate, reference).mean().item(),
        f"si_snr_{which}": si_snr(estimate, reference).mean().item(),
    }


def _rebuild(codec: CompressionModel, audio: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Audio ``[B, 1, T]`` through another codec, whose sample rate and number of channels may differ."""
    from audiocraft.data.audio_utils import convert_audio

    given = convert_audio(audio, sample_rate, codec.sample_rate, codec.channels)
    codes, scale = codec.encode(given)
    rebuilt = convert_audio(codec.decode(codes, scale), codec.sample_rate, sample_rate, 1)[..., : audio.shape[-1]]
    import torch

    return torch.nn.functional.pad(rebuilt, (0, audio.shape[-1] - rebuilt.shape[-1]))


def _summarise(report: Report, model: CompressionModel, usage: CodebookUsage, silent: int, baseline: str) -> None:
    rows = report.rows
    tracks = {row["track"] for row in rows}
    by_track = [statistics.fmean(row["si_snr"] for row in rows if row["track"] == track) for track in sorted(tracks)]
    bitrate = model.num_codebooks * math.log2(model.cardinality) * model.frame_rate / 1000
    names = dict.fromkeys(name for row in rows for name in row if name not in ("clip", "track"))
    worst = sorted(rows, key=lambda row: -row["mel"])[:WORST]
    figures = {name: statistics.fmean(row[name] for row in rows if name in row) for name in names} | {
        "si_snr_track_mean": statistics.fmean(by_track),
        "si_snr_track_median": statistics.median(by_track),
        "tracks": len(tracks),
        "bitrate_kbps": bitrate,
        "codes_used": usage.used(),
        "perplexity": usage.perplexity(),
        "silent_clips_left_out": silent,
        "worst": [{name: row[name] for name in ("clip", "mel", "si_snr")} for row in worst],
    }
    report.figures = figures
    report.add(
        "ok", "bit rate", f"{bitrate:.2f} kbit/s ({model.num_codebooks} codebooks of {model.cardinality} at {model.frame_rate:g} Hz)"
    )
    report.add(
        "ok" if figures["si_snr_track_median"] > 0 else "note",
        "SI-SNR",
        f"mean {figures['si_snr_track_mean']:.2f} dB, median {figures['si_snr_track_median']:.2f} dB over {len(tracks)} tracks"
        f" ({figures['si_snr_audiocraft']:.2f} dB in AudioCraft's convention)",
    )
    report.add("ok" if figures["sdr"] > 0 else "warning", "SDR", f"{figures['sdr']:.2f} dB", "" if figures["sdr"] > 0 else "train longer")
    bands = [f"{low} Hz up: {figures[f'sdr_{low}_hz']:.1f}" for low in BANDS if f"sdr_{low}_hz" in figures]
    report.add("ok", "SDR by band, dB", ", ".join(bands))
    narrow = figures["bandwidth"] < 0.7 * figures["bandwidth_original"]
    report.add(
        "note" if narrow else "ok",
        "bandwidth",
        f"{figures['bandwidth'] / 1000:.1f} kHz of the originals' {figures['bandwidth_original'] / 1000:.1f} kHz",
        "highs are missing: train longer, or give the codec more bits" if narrow else "",
    )
    _compare(report, baseline)
    share = [used / model.cardinality for used in figures["codes_used"]]
    report.add(
        "ok" if min(share) > 0.5 else "note",
        "codebook usage",
        ", ".join(
            f"q{k + 1} {part:.0%} (perplexity {value:.0f})"
            for k, (part, value) in enumerate(zip(share, figures["perplexity"], strict=True))
        ),
    )
    report.add("ok", "worst clips", ", ".join(f"{row['clip']} (mel {row['mel']:.3f}, SI-SNR {row['si_snr']:.1f} dB)" for row in worst))
    if silent:
        report.add("note", "silent clips", f"{silent} left out")


def _compare(report: Report, baseline: str) -> None:
    """The mel distance beside those of silence, of the untrained codec and of the baseline."""
    figures = report.figures
    compared = f"{figures['mel']:.3f}; silence {figures['mel_silence']:.3f}"
    better = figures["mel"] < figures["mel_silence"]
    if "mel_untrained" in figures:
        compared += f", untrained codec {figures['mel_untrained']:.3f} (ratio {figures['mel'] / figures['mel_untrained']:.2f})"
        better = better and figures["mel"] < figures["mel_untrained"]
    report.add(
        "ok" if better else "fault", "mel distance", compared, "" if better else "it has learnt nothing: train longer, look at the loss"
    )
    if baseline:
        distances = f"mel distance {figures['mel']:.3f} against {figures['mel_baseline']:.3f}"
        ratios = f"SI-SNR {figures['si_snr']:.2f} dB against {figures['si_snr_baseline']:.2f} dB"
        report.add("ok" if figures["mel"] <= figures["mel_baseline"] else "note", f"beside {baseline}", f"{distances}, {ratios}")


def _write(path: Path, signal: torch.Tensor, sample_rate: int) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as temporary:
        soundfile.write(temporary, signal[0, 0].clamp(-1, 1).cpu().numpy(), sample_rate, format="WAV")


def _draw(folder: Path, clip: str, sample_rate: int) -> None:
    """The picture of a pair in ``folder``: waveforms, spectrograms and their difference; older pictures go."""
    from music_training.musicgen.pictures import reconstruction

    figure = reconstruction(*(folder / f"{clip}_{version}.wav" for version in ("original", "reconstructed")), sample_rate)
    path = folder / f"{clip}_worst.png"
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png", metadata={"Software": None})
    for old in folder.glob("*_worst.png"):
        if old != path:
            old.unlink()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A clip at a time: more threads only wait for each other. The caller's number comes back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _untrained(codec: Path | str, path: str, device: str):
    """The codec of the same configuration before its first step: random weights, codebooks started on one clip.

    None for a published codec, whose configuration is not here.
    """
    import torch
    from audiocraft.models import builders

    from music_training.musicgen.models import is_weights_folder, read_config

    folder = files.absolute(str(codec))
    if not is_weights_folder(folder):
        return None
    trained_as = read_config(folder)
    trained_as.device = device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = builders.get_compression_model(trained_as).eval()
        with torch.no_grad():
            model(_read(path, model.sample_rate).to(device))
    return model


def _read(path: str, sample_rate: int) -> torch.Tensor:
    """A clip of a manifest as ``[1, 1, T]``."""
    import soundfile
    import torch

    audio, rate = soundfile.read(files.absolute(path), dtype="float32", always_2d=True)
    if rate != sample_rate:
        raise UserError(f"{path}: {rate} Hz, but the codec works at {sample_rate} Hz; segment the audio again (03_segment_audio)")
    return torch.from_numpy(audio.T[None]).mean(1, keepdim=True)


def check_trained(dataset: str, scope: str, num_samples: int = 10, baseline: str = "", force: bool = False) -> Report:
    """Check the codec that 04_train_codec trained last in ``scope``, as a stage; its pairs and figures go to the samples."""
    trained = stages.latest("train_codec", scope, "04_train_codec")
    codec, manifest = trained["codec"], held_out(dataset)
    name = trained["run"] or re.sub(r"[^\w.-]+", "-", codec)
    folder = files.outputs_root() / "samples" / name / "reconstruction"

    def make(_draft: stages.Draft) -> stages.Made:
        report = check(codec, manifest, num_samples, folder, baseline=baseline)
        write_card(folder, _card(report, name, catalogue.is_synthetic(dataset)))
        report.figures["pairs"] = files.relative(folder)
        return stages.Made(sorted(folder.glob("*.*")), json.loads(report.json()))

    weights = files.absolute(codec) / "model.safetensors"
    inputs = [manifest, *([weights] if weights.is_file() else [])]
    params = {"codec": codec, "num_samples": num_samples, "baseline": baseline}
    done = stages.run("codec_quality", make, scope=scope, params=params, inputs=inputs, version=2, force=force)
    return Report.from_json(done.result)


def after_epoch(run: Path) -> Callable[[int, CompressionModel], None]:
    """What a codec's training calls after each epoch: a check every $CODEC_CHECK_EVERY epochs on $CODEC_CHECK_SAMPLES clips.

    On validation clips, with the weights as they are then. The figures go to ``logs/codec_check.jsonl`` of the run, the
    pairs to ``outputs/samples/<run>/reconstruction_epoch_<n>``. The training's random state is left as it was.
    """
    every, samples = (_whole_number(name, least, default) for name, least, default in (("EVERY", 0, 0), ("SAMPLES", 1, 5)))
    validation = config.read_yaml(run / "config.yaml")["datasource"]["valid"]
    manifest, dataset = files.absolute(validation) / "data.jsonl", Path(validation).parent.name

    def check_now(epoch: int, codec: CompressionModel) -> None:
        if not every or epoch % every:
            return
        import torch

        folder = files.outputs_root() / "samples" / run.name / f"reconstruction_epoch_{epoch}"
        was_training = codec.training
        with torch.random.fork_rng():
            try:
                report = check(codec.eval(), manifest, samples, folder, name=f"{run.name}, epoch {epoch}")
            except UserError as error:  # nothing to stop a training for
                print(f"codec check: {error}", flush=True)
                return
            finally:
                codec.train(was_training)
        write_card(folder, _card(report, run.name, _is_synthetic(dataset), epoch))
        with open(run / "logs" / "codec_check.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"epoch": epoch, **report.figures}) + "\n")
        print("\n".join([report.title, *map(str, report.findings)]), flush=True)

    return check_now


def _whole_number(name: str, least: int, default: int) -> int:
    text = os.environ.get(f"CODEC_CHECK_{name}") or str(default)
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"CODEC_CHECK_{name}={text}: a whole number from {least} up")
    return int(text)


def _is_synthetic(dataset: str) -> bool:
    return catalogue.path_of(dataset).is_file() and catalogue.is_synthetic(dataset)


def show_pair(report: Report):
    """The first clip of a report of :func:`check_trained` for a notebook: its picture and two players."""
    from IPython.display import Audio, display

    from music_training.musicgen.pictures import reconstruction

    folder, clip = files.absolute(report.figures["pairs"]), report.rows[0]["clip"]
    original, rebuilt = (folder / f"{clip}_{version}.wav" for version in ("original", "reconstructed"))
    display(reconstruction(original, rebuilt), "original", Audio(str(original)), "reconstructed", Audio(str(rebuilt)))


def _card(report: Report, name: str, synthetic: bool, epoch: int | None = None) -> Card:
    figures, worst = report.figures, report.figures["worst"][0]["clip"]
    clips = []
    for row in report.rows:
        rebuilt = {"SI-SNR dB": row["si_snr"], "mel distance": row["mel"]}
        clips.append(Clip(row["clip"], f"{row['clip']}_original.wav", "original", role="reference"))
        clips.append(Clip(row["clip"], f"{row['clip']}_reconstructed.wav", "reconstructed", figures=rebuilt))
    metrics = {"SI-SNR dB": figures["si_snr_track_median"], "SDR dB": figures["sdr"], "mel distance": figures["mel"]}
    baseline = {"mel distance": figures["mel_untrained"], "SDR dB": figures["sdr_untrained"]} if "mel_untrained" in figures else {}
    about = f"{figures['bitrate_kbps']:.2f} kbit/s; music the codec never saw" + (
        "; the baseline is the untrained codec" if baseline else ""
    )
    pictures = (Picture(f"{worst}, the worst clip: original, reconstructed and difference", f"{worst}_worst.png"),)
    return Card("Codec", name, "Reconstruction", about, epoch, synthetic, tuple(clips), pictures, metrics, baseline)


def held_out(dataset: str) -> Path:
    """The manifest of a data set that training never touched: the test split where there is one, else the validation split."""
    for split in ("test", "valid"):
        manifest = files.outputs_root() / "egs" / dataset / split / "data.jsonl"
        if manifest.is_file() and manifest.stat().st_size:
            return manifest
    raise UserError(f"{dataset}: no test or valid manifest; run 03_segment_audio first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="codec: a run, a weights folder, a file or a hub name (default: the last one trained)")
    parser.add_argument("--profile", default="mini", help="whose data and codec are meant (default: %(default)s)")
    parser.add_argument("--audio-dir", default="", help="the folder the pipeline was run on, if it was")
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument(
        "--baseline", default="", help="another codec to compare with: a path, or a hub name such as facebook/encodec_32khz"
    )
    parser.add_argument("--out", type=Path, help="folder for WAV pairs and the picture (default: outputs/codec_quality_check)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples}: at least 1")
    codec = args.checkpoint or stages.latest("train_codec", profiles.scope(args.profile, args.audio_dir), "04_train_codec")["codec"]
    if (runs.folder() / codec / "ckpt").is_dir():
        codec = files.relative(runs.folder() / codec / "ckpt" / "best")
    out = args.out or files.outputs_root() / "codec_quality_check"
    return check(codec, held_out(profiles.dataset(args.profile, args.audio_dir)), args.num_samples, out, baseline=args.baseline).print(
        args.json
    )


if __name__ == "__main__":
    run_command(main)
