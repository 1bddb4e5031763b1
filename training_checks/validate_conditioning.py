"""Whether text can steer a model: ``python training_checks/validate_conditioning.py --num-samples 100 [--effect RUN]``

Looks at the captions of a data set (share, lengths, vocabulary, doubles, boiler-plate) and at the conditioner that is
configured for them. ``--effect`` asks a trained model: does another text change the music beyond what another seed does?
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import config, files, profiles, stages
from music_training.errors import UserError, run_command
from music_training.library import manifests
from music_training.musicgen.training import LanguageModelSettings
from training_checks.report import Report

if TYPE_CHECKING:
    import numpy
    import torch

T5_TOKENS = 512  # what T5 was trained on; longer texts are cut
EMPTY_WORDS = {"unknown", "untitled", "none", "null", "nan", "n/a", "na", "music", "song", "track", "audio", "test", "todo", "description"}
NOTEBOOK = "05_train_musicgen"


def check(dataset: str, settings: LanguageModelSettings | None = None, num_samples: int = 100, split: str = "train") -> Report:
    """Look at ``num_samples`` captions of a split (0: all), and at the conditioner that ``settings`` ask for.

    Captions belong to tracks, so doubles and boiler-plate are counted over tracks. ``rows`` hold one caption of each kind.
    """
    lines = manifests.read_lines(manifests.egs_of(dataset) / split / "data.jsonl")
    count = min(num_samples, len(lines)) if num_samples else len(lines)
    if not count:
        raise UserError(f"{dataset}: no clips in {split}; run 03_segment_audio again")
    paths = [lines[number * len(lines) // count]["path"] for number in range(count)]
    captions = [_caption(path) for path in paths]
    report = Report(f"conditioning: {count} of {len(lines)} clips of {dataset}/{split}")
    text = settings is None or settings.conditioning != "none"
    tracks = {Path(path).stem.rpartition("_")[0]: caption for path, caption in zip(paths, captions, strict=True)}
    _look_at_share(report, captions, text)
    if any(captions):
        _look_at_texts(report, tracks, settings)
    if settings is not None:
        _look_at_conditioner(report, settings, tracks, dataset)
    return report


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W_]+(?:'\w+)?", text.casefold())


def _caption(path: str) -> str:
    sidecar = files.read_json(files.absolute(path).with_suffix(".json"))
    return " ".join(str((sidecar or {}).get("description") or "").split())


def _look_at_share(report: Report, captions: list[str], text: bool) -> None:
    share = sum(map(bool, captions)) / len(captions)
    report.figures |= {"clips": len(captions), "described": share}
    if not text:
        severity = "note" if share > 0.5 else "ok"
        todo = "conditioning=lut (offline) or t5, if prompts are wanted" if share > 0.5 else ""
        report.add(severity, "unconditional", f"the model takes no text; {share:.0%} of the clips have a description", todo)
    elif share == 0:
        report.add("fault", "descriptions", "not one clip has a description", "conditioning=none, or give the tracks captions")
    elif share < 0.9:
        todo = "captions for the others (a sidecar's description), or conditioning=none"
        report.add("warning" if share < 0.5 else "note", "descriptions", f"{share:.0%} of the clips have one", todo)
    else:
        report.add("ok", "descriptions", f"{share:.0%} of the clips have one")


def _look_at_texts(report: Report, tracks: dict[str, str], settings: LanguageModelSettings | None) -> None:
    texts = [text for text in tracks.values() if text]
    lengths = sorted(len(words(text)) for text in texts)
    vocabulary = Counter(word for text in texts for word in set(words(text)))
    counts = Counter(texts)
    doubles = sum(count for count in counts.values() if count > 1)
    commonest, times = counts.most_common(1)[0]
    empty = [text for text in texts if set(words(text)) <= EMPTY_WORDS or re.search(r"https?://|www\.|\.(?:mp3|wav|flac)\b", text)]
    report.figures |= {
        "tracks": len(tracks),
        "words_median": statistics.median(lengths),
        "words_most": lengths[-1],
        "vocabulary": len(vocabulary),
        "distinct": len(counts),
        "doubles": doubles / len(texts),
    }
    report.rows = [
        {"caption": "shortest", "words": lengths[0], "text": min(texts, key=lambda text: len(words(text)))},
        {"caption": "longest", "words": lengths[-1], "text": max(texts, key=lambda text: len(words(text)))},
        {"caption": f"commonest ({times} tracks)", "words": len(words(commonest)), "text": commonest},
    ]
    said = f"{lengths[0]} to {lengths[-1]} words, median {statistics.median(lengths):g}; {len(vocabulary)} different words"
    if lengths[-1] > T5_TOKENS / 1.5:
        report.add("warning", "lengths", f"{said}; a T5 encoder reads {T5_TOKENS} tokens", "shorten the longest captions")
    elif statistics.median(lengths) < 3:
        report.add("warning", "lengths", f"{said}: hardly anything to steer by", "richer captions: genre, mood, instruments, tempo")
    else:
        report.add("ok", "lengths", said)
    if empty:
        todo = "leave the description empty instead: an empty one counts as none"
        report.add("warning", "empty phrases", f"{len(empty)} of {len(texts)} tracks, such as {empty[0][:60]!r}", todo)
    if times > max(2, 0.2 * len(texts)):
        message = f"{times} of {len(texts)} tracks say {commonest[:60]!r}"
        report.add("warning", "boiler-plate", message, "a text that stands everywhere steers nothing: say what differs")
    elif doubles > 0.5 * len(texts):
        report.add("note", "doubles", f"{doubles / len(texts):.0%} of the tracks share their caption with another", "say what differs")
    everywhere = [word for word, number in vocabulary.items() if number == len(texts)] if len(texts) > 4 else []
    if everywhere and len(everywhere) > 0.8 * len(vocabulary):
        report.add("warning", "vocabulary", f"{len(everywhere)} of {len(vocabulary)} words stand in every caption", "say what differs")


def _look_at_conditioner(report: Report, settings: LanguageModelSettings, tracks: dict[str, str], dataset: str) -> None:
    from omegaconf import OmegaConf

    from music_training.musicgen.train import compose

    cfg = compose(settings.overrides(dataset))
    wanted = {name for names in ("sum", "prepend", "cross", "input_interpolate") for name in cfg.fuser[names]}
    configured = set(cfg.conditioners or {})
    if wanted != configured:
        report.add("fault", "fuser", f"feeds {sorted(wanted)}, configured are {sorted(configured)}", "the names have to be the same")
    if not configured:
        return
    if cfg.classifier_free_guidance.training_dropout >= 1 or cfg.dataset.train.drop_desc_p >= 1:
        report.add("fault", "dropout", "every text is dropped in training", "classifier_free_guidance.training_dropout between 0.1 and 0.3")
    elif cfg.classifier_free_guidance.training_dropout == 0:
        message = "no text is ever dropped: guidance has no unconditional model to compare with"
        report.add("warning", "dropout", message, "hydra: [classifier_free_guidance.training_dropout=0.2]")
    known = OmegaConf.to_container(cfg.conditioners.description) if "description" in configured else {}
    if known.get("model") == "lut":
        bins = known["lut"]["n_bins"]
        vocabulary = {word for text in tracks.values() for word in words(text)}
        report.figures["lut_bins"] = bins
        if len(vocabulary) > bins / 2:
            message = f"{len(vocabulary)} words are hashed into {bins} vectors: many share one"
            report.add(
                "warning", "vocabulary", message, f"hydra: [conditioners.description.lut.n_bins={2 ** (2 * len(vocabulary)).bit_length()}]"
            )
        else:
            report.add("ok", "conditioner", f"learnt vectors for {bins} words")
    elif known.get("model") == "t5":
        name = known["t5"]["name"]
        report.add("ok", "conditioner", f"T5 encoder {name}" + ("" if not Path(name).exists() else " (local folder)"))


# Does it work?


def permutation_test(features: numpy.ndarray, permutations: int = 999, seed: int = 0) -> tuple[float, float]:
    """Whether clips of one text are more alike than clips of different texts: ``(statistic, p)``.

    ``features`` ``[texts, seeds, F]``: a vector for each clip. The statistic is the mean distance between clips of
    different texts less that of the same text, over pairs of different seeds, in units of the latter. Were the text
    without effect, the clips of one seed could be swapped among the texts; so they are, ``permutations`` times (Good
    2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses", blocked designs). A model that ignores the text
    gives equal clips for a seed, and p = 1.
    """
    import numpy

    texts, seeds, _ = features.shape
    if texts < 2 or seeds < 2:
        raise ValueError(f"{texts} texts and {seeds} seeds: at least two of each")
    flat = features.reshape(texts * seeds, -1)
    spread = flat.std(0)
    flat = (flat - flat.mean(0)) / numpy.where(spread > 1e-12, spread, 1.0)
    distance = numpy.sqrt(numpy.maximum(((flat[:, None] - flat[None]) ** 2).sum(-1), 0)).reshape(texts, seeds, texts, seeds)
    others = ~numpy.eye(seeds, dtype=bool)

    def statistic(order: numpy.ndarray) -> float:  # order [texts, seeds]: which clip of a seed stands for a text
        total = same = 0.0
        for one in range(seeds):
            for other in numpy.flatnonzero(others[one]):
                pairs = distance[order[:, one], one][:, order[:, other], other]
                total += pairs.sum()
                same += numpy.trace(pairs)
        mean_same = same / (texts * seeds * (seeds - 1))
        mean_other = (total - same) / (texts * (texts - 1) * seeds * (seeds - 1))
        return (mean_other - mean_same) / mean_same if mean_same > 0 else 0.0

    identity = numpy.tile(numpy.arange(texts)[:, None], (1, seeds))
    seen = statistic(identity)
    random = numpy.random.default_rng(seed)
    as_large = sum(statistic(random.permuted(identity, axis=0)) >= seen - 1e-9 for _ in range(permutations))
    return float(seen), float((1 + as_large) / (1 + permutations))


def timbre(audio: torch.Tensor, sample_rate: int) -> numpy.ndarray:
    """What a clip ``[C, T]`` sounds like on the whole: mean and spread over time of 32 log mel bands, and of the level."""
    import torch
    from torchaudio.functional import melscale_fbanks

    signal = audio.float().mean(0)
    window = torch.hann_window(1024)
    power = torch.stft(signal, 1024, 512, window=window, return_complex=True).abs().square()
    bank = melscale_fbanks(513, 30.0, sample_rate / 2, 32, sample_rate)
    mels = torch.log10(bank.T @ power + 1e-6)
    level = torch.log10(power.sum(0) + 1e-6)
    return torch.cat([mels.mean(1), mels.std(1), level.mean()[None], level.std()[None]]).numpy()


def effect(
    generate: Callable[[str, int], numpy.ndarray], texts: list[str], seeds: int = 6, permutations: int = 999, alpha: float = 0.05
) -> Report:
    """Ask a model: ``generate(text, seed)`` returns the features of a clip; a fault where the text has no effect to be seen."""
    import numpy

    features = numpy.stack([[generate(text, seed) for seed in range(seeds)] for text in texts])
    statistic, p = permutation_test(features, permutations)
    report = Report(f"effect of the text: {len(texts)} texts x {seeds} seeds, {permutations} permutations")
    report.figures = {"statistic": statistic, "p": p, "texts": len(texts), "seeds": seeds}
    said = f"clips of different texts are {statistic:+.1%} further apart than clips of one text with another seed (p = {p:.3g})"
    if p <= alpha:
        report.add("ok", "effect", said)
    else:
        todo = "train longer, raise the guidance, or look at the captions above; more seeds see smaller effects"
        report.add("fault", "effect", f"none to be seen: {said}", todo)
    return report


def effect_of(model: str, texts: list[str] | None = None, seeds: int = 6, seconds: float = 3.0, permutations: int = 999) -> Report:
    """:func:`effect` for a trained model: a run, or a weights folder. The texts default to the listening page's prompts."""
    from music_training.musicgen.generate import generate_all, weights_of
    from music_training.musicgen.models import load_musicgen
    from music_training.musicgen.prompts import Prompt, Sampling

    loaded = load_musicgen(weights_of(model))
    if "description" not in loaded.lm.condition_provider.conditioners:
        raise UserError(f"{model}: was trained without text; there is no effect to look for")
    if not texts:
        prompts = config.parse_yaml((files.REPOSITORY / "model_config" / "prompts.yaml").read_text(encoding="utf-8"), "prompts.yaml")
        texts = [prompt["text"] for prompt in prompts if prompt.get("text")][:4]
    if len(set(texts)) < 2 or seeds < 2:
        raise UserError(f"{len(set(texts))} texts, {seeds} seeds: at least two different ones of each are compared")
    asked = [Prompt("", text, seed) for text in texts for seed in range(seeds)]
    clips = generate_all(loaded, asked, Sampling(duration=seconds), "clips")
    features = {(prompt.text, prompt.seed): timbre(clip, loaded.sample_rate) for prompt, clip in zip(asked, clips, strict=True)}
    return effect(lambda text, seed: features[text, seed], texts, seeds, permutations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini", help="whose data and settings are meant (default: %(default)s)")
    parser.add_argument("--audio-dir", default="", help="the folder the pipeline was run on, if it was")
    parser.add_argument("--num-samples", type=int, default=100, help="clips to look at; 0: all (default: %(default)s)")
    parser.add_argument("--effect", nargs="?", const="", metavar="RUN", help="also test a trained model (default: the last one)")
    parser.add_argument("--text", action="append", help="a text for --effect; give several (default: model_config/prompts.yaml)")
    parser.add_argument("--seeds", type=int, default=6, help="clips of each text (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a clip (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settings = profiles.settings(LanguageModelSettings, NOTEBOOK, args.profile)
    report = check(profiles.dataset(args.profile, args.audio_dir), settings, args.num_samples)
    if args.effect is not None:
        model = args.effect or stages.latest("train_musicgen", profiles.scope(args.profile, args.audio_dir), NOTEBOOK)["model"]
        tested = effect_of(model, args.text, args.seeds, args.seconds)
        report.findings += tested.findings
        report.figures |= {f"effect_{name}": value for name, value in tested.figures.items()}
    return report.print(args.json)


if __name__ == "__main__":
    run_command(main)
