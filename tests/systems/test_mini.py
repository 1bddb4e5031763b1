"""Profile mini end to end: the codec beats itself untrained on artists it never heard, the language model beats counting."""

import json

import pytest
from whole_runs import pipeline, states

from music_training import files, profiles, stages


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mini_learns_something(outputs):
    ended = pipeline(outputs, profile="mini")
    assert ended.returncode == 0, ended.stderr
    assert set(states(ended.stdout).values()) == {"ran"}
    scope = profiles.scope("mini")

    report = stages.latest("codec_quality", scope, "04_train_codec")
    figures = report["figures"]
    print({name: value for name, value in figures.items() if isinstance(value, float)})
    assert figures["mel"] <= 0.75 * figures["mel_untrained"]
    assert figures["mel"] <= 0.5 * figures["mel_silence"]
    assert figures["sdr"] > 1.5
    assert figures["bitrate_kbps"] > 0 and figures["tracks"] >= 2

    entropies = stages.latest("against_unigram", scope, "05_train_musicgen")
    print(entropies)
    assert entropies["language model"] < entropies["unigram model"] < entropies["guessing"]

    scores = {name: row["nsdr"] for name, row in stages.latest("lora_demucs_evaluation", scope, "07_lora_demucs")["summary"].items()}
    print(scores)
    adapted, unadapted, split = scores["adapted"], scores["unadapted"], scores["split"]
    assert adapted["hihat"] > max(0.0, split["hihat"], unadapted["hihat"] + 8.0)
    assert adapted["kick"] > max(0.0, split["kick"], unadapted["kick"])
    assert all(adapted[source] > unadapted[source] - 0.3 for source in ("other", "vocals", "bass"))

    # Held out means other artists: none of the clips that were judged is by an artist of the training clips.
    tracks = {}
    for split in ("train", "valid", "test"):
        lines = (outputs / "egs" / profiles.dataset("mini") / split / "data.jsonl").read_text().splitlines()
        tracks[split] = {files.absolute(json.loads(line)["path"]).stem.partition("_track_")[0] for line in lines}
    judged = {row["track"].partition("_track_")[0] for row in report["rows"]}
    assert judged <= tracks["test"] and not judged & (tracks["train"] | tracks["valid"])
