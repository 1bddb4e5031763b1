"""How well a codec reconstructs audio it never saw: ``python -m training_checks.codec_quality_check --num-samples 10``

Signal-to-noise figures are in dB, higher is better; distances are lower-is-better. Beside the codec stand the same
codec untrained and silence, measured on the same clips. Clips whose reference is silent are excluded and counted.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, profiles, runs, stages
from music_training.errors import UserError, run_command
from music_training.library import catalogue
from training_checks.listening_page import Card, Clip, write_card
from training_checks.report import Report

if TYPE_CHECKING:
    import torch

SILENT_RMS = 1e-4  # -80 dBFS: below it a ratio to the reference says nothing


def si_snr(
    estimate: torch.Tensor,
    reference: torch.Tensor,
    convention: Literal["standard", "audiocraft"] = "standard",
    sample_rate: int = 32000,
    segment: float = 5.0,
) -> torch.Tensor:
    """Scale-invariant signal-to-noise ratio in dB of ``[..., T]`` signals, higher is better; returns ``[...]``.

    standard: the whole signal made zero-mean, as in torchmetrics (Le Roux et al. 2019, "SDR - half-baked or well
    done?"). audiocraft: frames of ``segment`` seconds with half overlap, the last zero-padded, each made zero-mean,
    the mean of their ratios (AudioCraft's ``losses.SISNR`` with its sign turned).
    """
    import torch
    from torch.nn import functional as F

    if estimate.shape != reference.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and reference {tuple(reference.shape)} differ in shape")
    if convention == "standard":
        eps = torch.finfo(reference.dtype).eps
        e = estimate - estimate.mean(-1, keepdim=True)
        s = reference - reference.mean(-1, keepdim=True)
        scaled = (((e * s).sum(-1, keepdim=True) + eps) / (s.square().sum(-1, keepdim=True) + eps)) * s
        return 10 * torch.log10((scaled.square().sum(-1) + eps) / ((scaled - e).square().sum(-1) + eps))
    if convention != "audiocraft":
        raise ValueError(f"convention {convention!r}: 'standard' or 'audiocraft'")
    frame = int(segment * sample_rate)
    stride = frame // 2
    eps = 1.1920929e-07 * frame  # float32's epsilon, summed over the frame
    count = math.ceil(reference.shape[-1] / stride)
    pad = (count - 1) * stride + frame - reference.shape[-1]
    e, s = (F.pad(x, (0, max(pad, 0))).unfold(-1, frame, stride) for x in (estimate, reference))
    e, s = e - e.mean(-1, keepdim=True), s - s.mean(-1, keepdim=True)
    projected = (e * s).sum(-1, keepdim=True) * s / (eps + s.square().sum(-1, keepdim=True))
    ratio = 10 * torch.log10(eps + projected.square().sum(-1)) - 10 * torch.log10(eps + (e - projected).square().sum(-1))
    return ratio.mean(-1)


def sdr(estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Plain signal-to-distortion ratio in dB of ``[..., T]`` signals: energy of the reference over that of the error."""
    import torch

    eps = torch.finfo(reference.dtype).tiny
    return 10 * torch.log10((reference.square().sum(-1) + eps) / ((reference - estimate).square().sum(-1) + eps))


def mel_distance(estimate: torch.Tensor, reference: torch.Tensor, sample_rate: int = 32000) -> torch.Tensor:
    """Multi-resolution mel distance of ``[..., T]`` signals: mean |difference| of log10 mel magnitudes; returns ``[...]``.

    Windows of 512, 1024 and 2048 samples (a quarter hop), 64 mel bands, magnitudes floored at 1e-5.
    """
    import torch
    from torchaudio.functional import melscale_fbanks

    distances = []
    for window in (512, 1024, 2048):
        bank = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, 64, sample_rate, norm=None, mel_scale="htk").to(reference)
        bank = bank / bank.sum(0).clamp(min=1e-9)
        spectra = [
            torch.stft(x.reshape(-1, x.shape[-1]), window, window // 4, window=torch.hann_window(window).to(x), return_complex=True).abs()
            for x in (estimate, reference)
        ]
        log_mels = [torch.log10((bank.T @ (2 * spectrum / window)).clamp(min=1e-5)) for spectrum in spectra]
        distances.append((log_mels[0] - log_mels[1]).abs().mean((-1, -2)))
    return torch.stack(distances).mean(0).reshape(reference.shape[:-1])


class CodebookUsage:
    """Counts how often each code of each quantiser is used, over any number of batches."""

    def __init__(self, quantisers: int, bins: int):
        import torch

        self.counts = torch.zeros(quantisers, bins, dtype=torch.long)

    def update(self, codes: torch.Tensor) -> None:
        """Count codes ``[B, K, T]``."""
        for k in range(self.counts.shape[0]):
            self.counts[k] += codes[:, k].flatten().bincount(minlength=self.counts.shape[1]).cpu()

    def used(self) -> list[int]:
        """How many codes of each quantiser were used at all."""
        return (self.counts > 0).sum(1).tolist()

    def perplexity(self) -> list[float]:
        """exp(entropy in nats) of each quantiser's code distribution: the number of codes in effective use."""
        shares = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        return (-(shares * shares.clamp(min=1e-12).log()).sum(1)).exp().tolist()


def check(codec: Path | str, manifest: Path, num_samples: int = 10, out: Path | None = None, device: str = "cpu") -> Report:
    """Reconstruct ``num_samples`` clips spread over a manifest; with ``out``, write original/reconstructed WAV pairs there."""
    import soundfile
    import torch

    from music_training.musicgen.models import load_codec

    torch.set_num_threads(1)  # a clip at a time: more threads only wait for each other
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise UserError(f"{manifest}: no clips in it")
    chosen = [lines[index * len(lines) // min(num_samples, len(lines))] for index in range(min(num_samples, len(lines)))]
    model = load_codec(codec, device)
    untrained = _untrained(codec, chosen[0]["path"], device)
    usage = CodebookUsage(model.num_codebooks, model.cardinality)
    report = Report(f"codec quality: {codec} on {len(chosen)} clips of {files.relative(manifest)}")
    silent = 0
    with torch.no_grad():
        for line in chosen:
            audio = _read(line["path"], model.sample_rate).to(device)
            if audio.square().mean().sqrt() < SILENT_RMS:
                silent += 1
                continue
            codes, _ = model.encode(audio)
            usage.update(codes)
            rebuilt = model.decode(codes)[..., : audio.shape[-1]]
            row = {"clip": Path(line["path"]).stem, "track": Path(line["path"]).stem.rpartition("_")[0]}
            row |= _figures(rebuilt, audio, model.sample_rate)
            row["mel_silence"] = mel_distance(torch.zeros_like(audio), audio, model.sample_rate).item()
            if untrained is not None:
                plain = untrained.decode(untrained.encode(audio)[0])[..., : audio.shape[-1]]
                row["mel_untrained"] = mel_distance(plain, audio, model.sample_rate).item()
                row["sdr_untrained"] = sdr(plain, audio).item()
            report.rows.append(row)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                for name, signal in (("original", audio), ("reconstructed", rebuilt)):
                    with files.atomic(out / f"{row['clip']}_{name}.wav") as temporary:
                        soundfile.write(temporary, signal[0, 0].clamp(-1, 1).cpu().numpy(), model.sample_rate, format="WAV")
    if not report.rows:
        raise UserError(f"{manifest}: all {silent} clips are silent")
    _summarise(report, model, usage, silent)
    return report


def _figures(estimate: torch.Tensor, reference: torch.Tensor, sample_rate: int) -> dict[str, float]:
    return {
        "si_snr": si_snr(estimate, reference).mean().item(),
        "si_snr_audiocraft": si_snr(estimate, reference, "audiocraft", sample_rate).mean().item(),
        "sdr": sdr(estimate, reference).mean().item(),
        "mel": mel_distance(estimate, reference, sample_rate).mean().item(),
        "l1": (estimate - reference).abs().mean().item(),
        "mse": (estimate - reference).square().mean().item(),
    }


def _summarise(report: Report, model, usage: CodebookUsage, silent: int) -> None:
    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in report.rows)

    tracks = {row["track"] for row in report.rows}
    by_track = [statistics.fmean(row["si_snr"] for row in report.rows if row["track"] == track) for track in sorted(tracks)]
    bitrate = model.num_codebooks * math.log2(model.cardinality) * model.frame_rate / 1000
    report.figures = {name: mean(name) for name in report.rows[0] if name not in ("clip", "track")} | {
        "si_snr_track_mean": statistics.fmean(by_track),
        "si_snr_track_median": statistics.median(by_track),
        "tracks": len(tracks),
        "bitrate_kbps": bitrate,
        "codes_used": usage.used(),
        "perplexity": usage.perplexity(),
        "silent_clips_left_out": silent,
    }
    figures = report.figures
    report.add(
        "ok", "bit rate", f"{bitrate:.2f} kbit/s ({model.num_codebooks} codebooks of {model.cardinality} at {model.frame_rate:g} Hz)"
    )
    report.add(
        "ok" if figures["si_snr_track_median"] > 0 else "note",
        "SI-SNR",
        f"mean {figures['si_snr_track_mean']:.2f} dB, median {figures['si_snr_track_median']:.2f} dB over {len(tracks)} tracks",
    )
    report.add("ok" if figures["sdr"] > 0 else "warning", "SDR", f"{figures['sdr']:.2f} dB", "" if figures["sdr"] > 0 else "train longer")
    compared = f"{figures['mel']:.3f}; silence {figures['mel_silence']:.3f}"
    better = figures["mel"] < figures["mel_silence"]
    if "mel_untrained" in figures:
        compared += f", untrained codec {figures['mel_untrained']:.3f} (ratio {figures['mel'] / figures['mel_untrained']:.2f})"
        better = better and figures["mel"] < figures["mel_untrained"]
    report.add(
        "ok" if better else "fault", "mel distance", compared, "" if better else "it has learnt nothing: train longer, look at the loss"
    )
    share = [used / model.cardinality for used in figures["codes_used"]]
    report.add(
        "ok" if min(share) > 0.5 else "note",
        "codebook usage",
        ", ".join(
            f"q{k + 1} {part:.0%} (perplexity {value:.0f})"
            for k, (part, value) in enumerate(zip(share, figures["perplexity"], strict=True))
        ),
    )
    if silent:
        report.add("note", "silent clips", f"{silent} left out")


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
    config = read_config(folder)
    config.device = device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = builders.get_compression_model(config).eval()
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


def check_trained(dataset: str, scope: str, num_samples: int = 10, force: bool = False) -> Report:
    """Check the codec that 04_train_codec trained last in ``scope``, as a stage; its pairs and figures go to the samples."""
    trained = stages.latest("train_codec", scope, "04_train_codec")
    codec, manifest = trained["codec"], held_out(dataset)
    name = trained["run"] or re.sub(r"[^\w.-]+", "-", codec)
    folder = files.outputs_root() / "samples" / name / "reconstruction"

    def make(_draft: stages.Draft) -> stages.Made:
        report = check(codec, manifest, num_samples, folder)
        write_card(folder, _card(report, name, catalogue.is_synthetic(dataset)))
        report.figures["pairs"] = files.relative(folder)
        return stages.Made(sorted(folder.glob("*.*")), json.loads(report.json()))

    weights = files.absolute(codec) / "model.safetensors"
    inputs = [manifest, *([weights] if weights.is_file() else [])]
    done = stages.run("codec_quality", make, scope=scope, params={"codec": codec, "num_samples": num_samples}, inputs=inputs, force=force)
    return Report.from_json(done.result)


def show_pair(report: Report):
    """The first clip of a report of :func:`check_trained` for a notebook: its picture and two players."""
    from IPython.display import Audio, display

    from music_training.musicgen.pictures import reconstruction

    folder, clip = files.absolute(report.figures["pairs"]), report.rows[0]["clip"]
    original, rebuilt = (folder / f"{clip}_{version}.wav" for version in ("original", "reconstructed"))
    display(reconstruction(original, rebuilt), "original", Audio(str(original)), "reconstructed", Audio(str(rebuilt)))


def _card(report: Report, name: str, synthetic: bool) -> Card:
    figures = report.figures
    clips = [
        Clip(row["clip"], f"{row['clip']}_{version}.wav", version, figures={} if version == "original" else {"SI-SNR dB": row["si_snr"]})
        for row in report.rows
        for version in ("original", "reconstructed")
    ]
    metrics = {"SI-SNR dB": figures["si_snr_track_median"], "SDR dB": figures["sdr"], "mel distance": figures["mel"]}
    baseline = {"mel distance": figures["mel_untrained"], "SDR dB": figures["sdr_untrained"]} if "mel_untrained" in figures else {}
    about = f"{figures['bitrate_kbps']:.2f} kbit/s; music the codec never saw; the baseline is the untrained codec"
    return Card("Codec", name, "Reconstruction", about, None, synthetic, tuple(clips), metrics=metrics, baseline=baseline)


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
    parser.add_argument("--out", type=Path, help="folder for original/reconstructed WAV pairs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples}: at least 1")
    codec = args.checkpoint or stages.latest("train_codec", profiles.scope(args.profile, args.audio_dir), "04_train_codec")["codec"]
    if (runs.folder() / codec / "ckpt").is_dir():
        codec = files.relative(runs.folder() / codec / "ckpt" / "best")
    out = args.out or files.outputs_root() / "codec_quality_check"
    return check(codec, held_out(profiles.dataset(args.profile, args.audio_dir)), args.num_samples, out).print(args.json)


if __name__ == "__main__":
    run_command(main)
