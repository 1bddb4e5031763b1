"""A rerun over 300,000 catalogued segments looks at a few hundred names, not at every file."""

import json
import os

import pytest

from music_training import files, stages
from music_training.library import catalogue, manifests, segments

COUNT = 300_000


@pytest.mark.long
def test_nothing_is_done_and_few_files_are_looked_at(monkeypatch):
    tracks = [catalogue.Track(f"t{n:06d}", f"a/{n}.mp3", "s", f"a{n % 5000}", duration=30) for n in range(COUNT // 3)]
    catalogue.write(catalogue.path_of("big"), tracks)

    def made(*_, **__):
        folder, rows = manifests.index_of("big").parent / "audio", []
        for n in range(COUNT):
            path = folder / f"{n // 1000:03d}" / f"{n:06d}.wav"
            if n % 1000 == 0:
                path.parent.mkdir(parents=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            row = {"path": files.relative(path), "track": f"t{n // 3:06d}", "artist": f"a{n // 3 % 5000}", "sha256": f"{n:064x}"}
            rows.append(json.dumps({**row, "duration": 10.0, "sample_rate": 32000, "peak": 1.0, "source": "x"}) + "\n")
        outputs = [
            files.write_text(manifests.index_of("big"), "".join(rows)),
            files.write_text(segments.rejects_of("big"), "reason\n"),
            files.write_json(segments.summary_of("big"), {}),
        ]
        return stages.Made(outputs, {}, sorted(folder.iterdir()))

    monkeypatch.setattr(segments, "_make", made)
    settings = segments.SegmentSettings()
    segments.segment("big", "s", settings)
    manifests.build("big", "s", settings.split)
    looked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **more: looked.append(given) or stat(*given, **more))
    assert segments.segment("big", "s", settings).skipped and manifests.build("big", "s", settings.split).skipped
    assert len(looked) < 5000
