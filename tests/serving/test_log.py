"""The log of predictions: what is written is read back, whatever was killed, and the folder never grows beyond its bound."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of
from pipeline.pictures.inspection import inspect
from pipeline.serving import log
from pipeline.serving.log import LOG_FILES, Logged, LogWriter, is_sampled, read_log, repair

PROBS = np.array([0.25, 0.75], np.float32)


def draw(seed=0, form="PNG", size=(12, 10)):
    """The bytes of a picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, form)
        return file.getvalue()


def answer(seed=0, request_id="r", content=None, features=None, **form):
    content = content or draw(seed, **form)
    return Logged(request_id, content, sha256_of(content), "m" * 64, PROBS, 1.5, features)


def write(folder, answers, share=1.0, keeps_pictures=False, megabytes=500, say=pytest.fail):
    """Log answers, wait until all are written, and return the writer's counts."""
    writer = LogWriter(folder, share, keeps_pictures, megabytes, say)
    for one in answers:
        give(writer, one)
    writer.close()
    return writer.counts


def give(writer, one):
    """Offer an answer when the one before is being written: on a slow machine, others may be dropped."""
    while writer._waiting:
        time.sleep(0.0005)
    writer.offer(one)


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore")


def test_a_record_has_what_the_model_answered_and_what_the_picture_is(tmp_path):
    features = np.array([0.5, -2.0], np.float32)
    content = draw(3, "JPEG", (40, 30))
    assert write(tmp_path / "log", [answer(content=content, features=features)]) == log.Counts(written=1)
    (record,) = read_log(tmp_path / "log")
    info = inspect(content).info
    assert (record.request_id, record.sha256, record.model_sha256) == ("r", sha256_of(content), "m" * 64)
    assert (record.width, record.height, record.brightness, record.sharpness) == (40, 30, info.brightness, info.sharpness)
    assert (record.probs.tolist(), record.unfamiliarity, record.features.tolist()) == ([0.25, 0.75], 1.5, [0.5, -2.0])
    assert record.picture is None
    assert abs(time.time() - time.mktime(time.strptime(record.time, "%Y-%m-%dT%H:%M:%S." + record.time[20:])) + time.timezone) < 60


def test_a_model_without_features_has_a_record_with_none(tmp_path):
    write(tmp_path, [answer()])
    assert next(read_log(tmp_path)).features.shape == (0,)


def test_pictures_are_kept_once_under_their_sha256_if_that_is_wanted(tmp_path):
    write(tmp_path, [answer(0), answer(0, "other"), answer(1, form="JPEG")], keeps_pictures=True)
    records = list(read_log(tmp_path))
    assert [(tmp_path / record.picture).read_bytes() for record in records] == [draw(0), draw(0), draw(1, "JPEG")]
    assert [path.name for path in sorted((tmp_path / "pictures").rglob("*.*"))] == sorted(
        {f"{sha256_of(draw(0))}.png", f"{sha256_of(draw(1, 'JPEG'))}.jpg"}
    )


def test_others_cannot_read_the_log_and_git_does_not_keep_it(tmp_path):
    write(tmp_path / "log", [answer()], keeps_pictures=True)
    files = list((tmp_path / "log").glob(LOG_FILES))
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "log", *files)] == [0, 0]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert subprocess.run(["git", "status", "--short"], cwd=tmp_path, check=True, capture_output=True).stdout == b""


def test_the_sample_has_the_stated_share_and_depends_on_the_request_and_the_picture_alone():
    sampled = [is_sampled(str(number), "a" * 64, 0.1) for number in range(10_000)]
    assert 900 < sum(sampled) < 1100  # binomial: 1,000 with a standard deviation of 30
    assert sampled == [is_sampled(str(number), "a" * 64, 0.1) for number in range(10_000)]
    assert 900 < sum(is_sampled("always the same", str(number), 0.1) for number in range(10_000)) < 1100
    assert all(is_sampled(str(number), "", 1.0) for number in range(100))
    assert not any(is_sampled(str(number), "", 0.0) for number in range(100))


def test_only_the_sample_is_written(tmp_path):
    content = draw()
    ids = [str(number) for number in range(60)]
    write(tmp_path, [answer(request_id=one, content=content) for one in ids], share=0.3)
    assert [record.request_id for record in read_log(tmp_path)] == [one for one in ids if is_sampled(one, sha256_of(content), 0.3)]


def test_the_folder_stays_within_its_bound_and_the_oldest_go_with_their_pictures(tmp_path):
    sizes = []
    contents = [draw(seed, "BMP", (60, 60)) for seed in range(4)]  # 10,854 bytes each
    for start in range(0, 400, 40):
        write(tmp_path, [answer(request_id=str(n), content=contents[n % 4] + bytes([n % 256, n // 256])) for n in range(start, start + 40)],
              keeps_pictures=True, megabytes=1)  # fmt: skip
        sizes.append(bytes_of(tmp_path))
    records = list(read_log(tmp_path))
    assert 600_000 < sizes[-1] <= max(sizes) <= 1_000_000
    assert [int(record.request_id) for record in records] == list(range(400 - len(records), 400))
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "pictures").rglob("*.bmp")} == {record.picture for record in records}
    assert {path.stem for path in tmp_path.glob(LOG_FILES)} == {path.name for path in (tmp_path / "pictures").iterdir()}


def test_a_picture_larger_than_its_share_of_the_folder_is_not_kept(tmp_path):
    write(tmp_path, [answer(size=(200, 200), form="BMP")], keeps_pictures=True, megabytes=1)
    (record,) = read_log(tmp_path)
    assert (record.width, record.picture) == (200, None)


def test_two_servers_write_to_files_of_their_own_at_the_same_time(tmp_path):
    say = pytest.fail
    writers = [LogWriter(tmp_path, 1.0, True, 500, say) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda writer=writer, name=name: [give(writer, answer(0, f"{name}{number}")) for number in range(50)])
        for name, writer in zip("ab", writers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while sum(writer.counts.written for writer in writers) < 100:
        time.sleep(0.01)
    assert repair(tmp_path) == []  # both are locked
    for writer in writers:
        writer.close()
    found = [[record.request_id for record in read_log(part)] for part in split_parts(tmp_path)]
    assert sorted(found) == [[f"{name}{number}" for number in range(50)] for name in "ab"]


def split_parts(folder):
    """Each file of a log as a log of its own."""
    for path in sorted(folder.glob(LOG_FILES)):
        part = folder / "parts" / path.stem
        part.mkdir(parents=True)
        (part / path.name).write_bytes(path.read_bytes())
        yield part


def test_a_server_that_starts_does_not_remove_what_another_one_writes(tmp_path):
    contents = [draw(seed, "BMP", (60, 60)) for seed in range(200)]
    writer = LogWriter(tmp_path, 1.0, True, 1, pytest.fail)
    writer.offer(answer(request_id="first", content=contents[0]))
    while writer.counts.written < 1:
        time.sleep(0.01)
    write(
        tmp_path,
        [answer(request_id=str(number), content=content) for number, content in enumerate(contents)],
        keeps_pictures=True,
        megabytes=1,
    )
    assert next(read_log(tmp_path)).request_id == "first"
    writer.close()


def test_a_torn_last_line_is_removed_at_the_next_start(tmp_path):
    write(tmp_path, [answer(request_id="whole"), answer(request_id="torn")])
    (path,) = tmp_path.glob(LOG_FILES)
    path.write_bytes(path.read_bytes()[:-20])
    assert [record.request_id for record in read_log(tmp_path)] == ["whole"]
    write(tmp_path, [answer(request_id="next")])
    assert path.read_bytes().endswith(b"}\n")
    assert [record.request_id for record in read_log(tmp_path)] == ["whole", "next"]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "20260101.jsonl"
    path.write_bytes(b'{"time": ')
    assert repair(tmp_path) == [path]
    assert (path.read_bytes(), repair(tmp_path)) == (b"", [])


def test_answers_are_dropped_and_counted_if_the_disk_is_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_PATIENCE_SECONDS", 0.5)
    going = threading.Event()
    monkeypatch.setattr(log._Parts, "write", lambda *_: going.wait(10))
    writer = LogWriter(tmp_path, 1.0, False, 500, pytest.fail)
    assert [writer.offer(answer(request_id=str(number))) for number in range(3)] == [True] * 3
    time.sleep(0.6)
    start = time.monotonic()
    assert [writer.offer(answer(request_id="late")) for _ in range(5)] == [False] * 5
    assert time.monotonic() - start < 0.4
    going.set()
    writer.close()
    assert writer.counts == log.Counts(written=3, dropped=5)


def test_a_full_disk_is_said_once_and_leaves_whole_lines(tmp_path, monkeypatch):
    said, write_bytes = [], os.write
    state = {"full": False}

    def short(descriptor, line):
        return write_bytes(descriptor, line[:10] if state["full"] else line)

    writer = LogWriter(tmp_path, 1.0, False, 500, said.append)
    writer.offer(answer(request_id="before"))
    while writer.counts.written < 1:
        time.sleep(0.01)
    monkeypatch.setattr(log.os, "write", short)
    state["full"] = True
    for number in range(3):
        give(writer, answer(request_id=f"lost {number}"))
    while writer.counts.failed < 3:
        time.sleep(0.01)
    state["full"] = False
    give(writer, answer(request_id="after"))
    writer.close()
    assert [record.request_id for record in read_log(tmp_path)] == ["before", "after"]
    assert (len(said), "the disk is full" in said[0], writer.counts) == (1, True, log.Counts(written=2, failed=3))


def test_a_full_disk_is_said_once_about_many_pictures_and_leaves_no_part_of_one(tmp_path, monkeypatch):
    said = []

    def fill(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    writer = LogWriter(tmp_path / "log", 1.0, True, 500, said.append)
    for seed in range(3):
        give(writer, answer(seed))
    writer.close()
    assert (len(said), writer.counts) == (1, log.Counts(failed=3))
    assert list((tmp_path / "log").glob("pictures/*/*")) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="file: cannot be written"):
        LogWriter(tmp_path / "file", 1.0, False, 500, pytest.fail)


KILLED = """
import sys
from pathlib import Path
from pipeline.core.files import sha256_of
from pipeline.serving.log import Logged, LogWriter
import numpy as np
content = Path(sys.argv[2]).read_bytes()
writer = LogWriter(Path(sys.argv[1]), 1.0, True, 500, print)
number = 0
while True:
    if writer.offer(Logged(str(number), content, sha256_of(content), "m", np.array([1.0]), None, np.zeros(1280))):
        number += 1
    print(number - len(writer._waiting), flush=True)
"""


def test_a_kill_loses_no_line_that_was_written(tmp_path):
    (tmp_path / "a.png").write_bytes(draw())
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "log", tmp_path / "a.png"], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout)
        taken = next(int(line) for line in lines if int(line) >= 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    repair(tmp_path / "log")
    records = list(read_log(tmp_path / "log"))
    assert [record.request_id for record in records] == [str(number) for number in range(len(records))]
    assert len(records) >= taken - 1  # the one that was being written
    assert all((tmp_path / "log" / record.picture).read_bytes() == draw() for record in records)
