"""One video in, uniform frames out: which frames, by both decoders, and every bad file refused by name."""

from __future__ import annotations

import copy
from fractions import Fraction

import av
import numpy as np
import pytest

from qualivision.settings import FrameSpec
from qualivision.video import VideoError, VideoInfo, frame_indices, probe, read_frames, resize, sample

FASTSTART = {"movflags": "faststart"}  # the index comes first, so that a file that was cut off still opens


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (10, 3, [0, 4, 9]),  # 4.5 is rounded down
        # fewer frames than asked for: some come more than once
        (3, 5, [0, 0, 1, 1, 2]),
        (2, 4, [0, 0, 0, 1]),
        (1, 3, [0, 0, 0]),
        (7, 1, [0]),
    ],
)
def test_frames_are_taken_evenly_from_the_first_to_the_last(total, count, indices):
    assert frame_indices(total, count).tolist() == indices


@pytest.mark.parametrize("total", [2, 23, 64, 65, 1000])
def test_the_first_and_the_last_frame_are_always_among_them(total):
    indices = frame_indices(total, 64)
    assert (indices[0], indices[-1]) == (0, total - 1)
    assert (np.diff(indices) >= 0).all()


@pytest.mark.parametrize(("frames", "count"), [(12, 4), (12, 12), (3, 7), (1, 5)])
def test_the_frames_that_come_are_those_of_the_rule(tmp_path, make_clip, frames, count):
    clip = make_clip(tmp_path / "clip.mp4", frames=frames)
    greys = sample(clip, count)[:, -8:, :].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, 10 * frame_indices(frames, count), atol=2)


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path):
    def pictures(side: int) -> bytes:
        coder = av.CodecContext.create("libx264", "w")
        coder.width = coder.height = side
        coder.pix_fmt, coder.time_base, coder.framerate = "yuv420p", Fraction(1, 8), Fraction(8)
        frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), side, np.uint8), format="rgb24")
        coded = [*coder.encode(frame.reformat(format="yuv420p")), *coder.encode(None)]
        return b"".join(bytes(packet) for packet in coded)

    clip = tmp_path / "clip.h264"
    clip.write_bytes(pictures(64) + pictures(96))
    frames = sample(clip, 2)
    assert frames.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [64, 96], atol=3)


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, make_clip, monkeypatch):
    make_clip(tmp_path / "clip.mp4").rename(tmp_path / "take2:final.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(sample(type(tmp_path)("take2:final.mp4"), 4)) == 4


LISTS = {
    "list.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "list.txt": "ffconcat version 1.0\nfile 'clip.mp4'\n",
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "text.txt": "what FFmpeg would draw, letter by letter\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file_can_not_make_us_read_others_or_draw_text(tmp_path, make_clip, name, decoder):
    make_clip(tmp_path / "clip.mp4")
    (tmp_path / name).write_text(LISTS[name])
    with pytest.raises(VideoError, match=r"is no video, or a list of other files|can't be decoded"):
        sample(tmp_path / name, 4, decoder=decoder)


def broken(folder, make_clip, fault):
    """A path that can't be read as a video."""
    path = folder / f"{fault}.mp4"
    whole = make_clip(folder / "whole.mp4", frames=60, container_options=FASTSTART).read_bytes()
    match fault:
        case "missing":
            return path
        case "folder":
            path.mkdir()
        case "long name":
            return folder / ("x" * 300 + ".mp4")
        case "empty":
            path.touch()
        case "text":
            path.write_text("not a video\n" * 100)
        case "garbage":
            path.write_bytes(np.random.default_rng(0).bytes(5000))
        case "no index":  # the index of a plain MP4 comes last
            plain = make_clip(folder / "plain.mp4", frames=60).read_bytes()
            path.write_bytes(plain[: len(plain) // 2])
        case "cut in the middle":
            path.write_bytes(whole[: len(whole) // 2])
        case "cut near the end":
            path.write_bytes(whole[:-20])
        case "cut between frames":
            with av.open(str(folder / "whole.mp4")) as container:
                start = container.streams.video[0].index_entries[30].pos
            path.write_bytes(whole[:start])
        case "cut matroska":
            path = path.with_suffix(".mkv")
            content = make_clip(folder / "whole.mkv", frames=60).read_bytes()
            path.write_bytes(content[: len(content) // 2])
        case "cut flash":
            path = path.with_suffix(".flv")
            content = make_clip(folder / "whole.flv", frames=60, codec="flv1").read_bytes()
            path.write_bytes(content[:-100])
        case "damaged":
            path.write_bytes(whole[:3000] + np.random.default_rng(0).bytes(len(whole) - 3000))
        case "audio only":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("aac", rate=16000, layout="mono")
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate = 16000
                container.mux([*stream.encode(silence), *stream.encode(None)])
    return path


BROKEN = {
    "missing": "no such file",
    "folder": "is not a file",
    "long name": "can't be read: File name too long",
    "empty": r"is empty \(0 bytes\)",
    "text": "can't be decoded: invalid data found",
    "garbage": "can't be decoded: invalid data found",
    "no index": r"can't be decoded: invalid data found .*\(moov atom not found\)",
    "cut in the middle": "is cut off",
    "cut near the end": "is cut off",
    "cut between frames": "is cut off",
    "cut matroska": "is cut off",
    "cut flash": "is cut off",
    "damaged": "is damaged",
    "audio only": "has no video stream",
}


@pytest.mark.parametrize(("fault", "cause"), BROKEN.items(), ids=BROKEN)
def test_a_bad_file_is_refused_in_one_line_with_its_name_and_the_cause(tmp_path, make_clip, fault, cause):
    path = broken(tmp_path, make_clip, fault)
    with pytest.raises(VideoError, match=cause) as refused:
        read_frames(path, FrameSpec(count=8, height=32, width=32))
    assert str(refused.value) == f"{path}: {refused.value.cause}"
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("fault", [fault for fault in BROKEN if fault != "damaged"])
def test_probing_refuses_what_reading_refuses(tmp_path, make_clip, fault):
    with pytest.raises(VideoError, match=BROKEN[fault]):
        probe(broken(tmp_path, make_clip, fault))


def test_two_files_broken_in_the_same_way_both_get_the_reason(tmp_path, make_clip):
    first = broken(tmp_path, make_clip, "no index")
    second = first.rename(tmp_path / "second.mp4")
    first.write_bytes(second.read_bytes())
    for path in (first, second, first):
        with pytest.raises(VideoError, match="moov atom not found"):
            sample(path, 4)


def test_a_video_error_keeps_file_and_cause_when_it_is_copied_between_processes(tmp_path):
    error = VideoError(tmp_path / "clip.mp4", "is cut off")
    again = copy.copy(error)  # by the same protocol as a worker's answer; test_cache.py has real workers
    assert (type(again), str(again), again.path, again.cause) == (VideoError, str(error), error.path, error.cause)


def test_frames_come_at_the_size_of_the_spec(tmp_path, make_clip):
    frames = read_frames(make_clip(tmp_path / "clip.mp4"), FrameSpec(count=5, height=40, width=32))
    assert frames.shape == (5, 40, 32, 3)
    assert frames.dtype == np.uint8
    assert frames.flags.c_contiguous


@pytest.mark.parametrize(("height", "width"), [(24, 32), (31, 47), (96, 128), (48, 16)])
def test_resizing_agrees_with_torch_on_floats(height, width):
    import torch

    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=True
    )
    expected = plain.permute(0, 2, 3, 1).numpy()
    assert np.abs(resize(frames, height, width) - expected).max() <= 1.0  # torch's uint8 kernel has integer weights


def test_frames_of_the_right_size_are_not_touched():
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    assert resize(frames, 48, 64) is frames


@pytest.mark.parametrize(
    ("name", "codec", "known_as", "container"),
    [
        ("clip.mp4", "libx264", "h264", "mov,mp4,m4a,3gp,3g2,mj2"),
        ("clip.mkv", "libx264", "h264", "matroska,webm"),
        ("clip.webm", "libvpx-vp9", "vp9", "matroska,webm"),
    ],
)
def test_probe_tells_codec_size_rate_and_length(tmp_path, make_clip, name, codec, known_as, container):
    info = probe(make_clip(tmp_path / name, codec=codec, frames=10, rate=5))
    assert info == VideoInfo(
        codec=known_as, frames=10, width=64, height=48, fps=5.0, container=container, pixels="yuv420p"
    )
    assert info.seconds == 2.0
