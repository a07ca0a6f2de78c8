"""Any video: each row of the table of formats is made here, decoded by us, and held against what was put in.

Every clip shows grey `10 * i` in its lower half at frame i and a bright square in its upper left corner, so that a
wrong frame, a wrong turn and a wrong colour show.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from qualivision import video
from qualivision.settings import FrameSpec
from qualivision.video import VideoError, frame_indices, probe, read_frames, sample

COUNT = 64
SPEC = FrameSpec(count=COUNT, height=64, width=64)


def picture(index, width, height, channels=3):
    shown = np.full((height, width, channels), 10 * index % 250, np.uint8)
    shown[: height // 2] = 60
    shown[: height // 2, : width // 2] = 200
    if channels == 4:
        shown[..., 3] = 255
        shown[: height // 2, width // 2 :, 3] = 0  # the upper right is transparent
    return shown


def make(path, codec="libx264", pixels="yuv420p", *, frames=20, width=96, height=64, **more):
    """Write a clip; `options` of the encoder, `container` options, `times` of the frames in tenths, `sound` first."""
    coloured = "rgba" if more.get("alpha") else "rgb24"
    with av.open(str(path), "w", options=more.get("container") or {}) as out:
        sound = out.add_stream("aac", rate=16000, layout="mono") if more.get("sound") else None
        stream = out.add_stream(codec, rate=10, options=more.get("options") or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        if more.get("rotation"):
            stream.set_display_rotation(more["rotation"])
        for name, value in (more.get("tags") or {}).items():
            setattr(stream.codec_context, name, value)
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * frames // 10), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            out.mux(sound.encode(silence))
            out.mux(sound.encode(None))
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, width, height, len(coloured.rstrip("24"))), format=coloured)
            frame.pts = more["times"](i) if more.get("times") else i
            frame.time_base = Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


TEN_BIT = {"pixels": "yuv420p10le"}
TABLE = {
    "h264.mp4": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.webm": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "moving.gif": {"codec": "gif", "pixels": "rgb8"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "h264.mkv": {},
    "h264.mov": {},
    "variable-rate.mp4": {"times": lambda i: i * i},
    "variable-rate.mkv": {"times": lambda i: i * i},
    "odd-size.webm": {"codec": "libvpx-vp9", "width": 97, "height": 65},
    "odd-size.mp4": {"pixels": "yuv444p", "width": 97, "height": 65},
    "odd-size.gif": {"codec": "gif", "pixels": "rgb8", "width": 97, "height": 65},
    "10-bit-h264.mp4": TEN_BIT,
    "10-bit-hevc.mp4": {**TEN_BIT, "codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "10-bit-av1.mp4": {**TEN_BIT, "codec": "libsvtav1"},
    "full-range.mp4": {"pixels": "yuvj420p"},
    "bt709.mp4": {"tags": {"colorspace": 1, "color_range": 1}},
    "one-frame.mp4": {"frames": 1},
    "one-frame.gif": {"codec": "gif", "pixels": "rgb8", "frames": 1},
    "three-frames.mp4": {"frames": 3},
    "many-frames.mp4": {"frames": 150},
    "b-frames.mp4": {"frames": 60, "options": {"bf": "3", "g": "20"}},
    "open-gop.mp4": {"frames": 60, "options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
    "sound-first.mp4": {"sound": True},
    "sound-first.mkv": {"sound": True},
    "fragmented.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "no-index.ts": {"frames": 60, "options": {"g": "10"}},
    "no-index.h264": {},
    "8k.mp4": {"width": 7680, "height": 4320, "frames": 2, "options": {"preset": "ultrafast"}},
}
# GIF has 256 colours; alone AV1 and VP8 are coarse at their default quality.
TOLERANCE = {"gif": 20, "libsvtav1": 6, "libvpx": 8}


@pytest.mark.parametrize("name", TABLE)
def test_any_video_gives_its_uniform_frames(tmp_path, name):
    made = TABLE[name]
    clip = make(tmp_path / name, **made)
    total = made.get("frames", 20)
    frames = read_frames(clip, SPEC)
    assert frames.shape == (COUNT, 64, 64, 3)
    near = TOLERANCE.get(made.get("codec"), 4)
    greys = frames[:, 40:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, 10 * frame_indices(total, COUNT) % 250, atol=near)
    assert abs(frames[:, 4:24, 4:24].mean() - 200) <= near
    assert abs(frames[:, 4:24, 40:60].mean() - 60) <= near
    found = probe(clip)
    assert (found.frames, found.width, found.height) == (total, made.get("width", 96), made.get("height", 64))


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("8k")])
def test_leaving_out_what_no_frame_needs_changes_nothing(tmp_path, name):
    clip = make(tmp_path / name, **TABLE[name])
    track = video._survey(clip)
    indices = frame_indices(track.packets, 16)
    found: dict[int, np.ndarray] = {}
    quick = video._put_by_time(clip, track, indices, lambda places, shown: found.update({places.start: shown}))
    assert quick == (name not in LEFT_TO_DECODING_ALL)
    whole: dict[int, np.ndarray] = {}
    video._put_in_order(clip, indices, lambda places, shown: whole.update({places.start: shown}))
    if quick:
        assert found.keys() == whole.keys()
        assert all((found[place] == whole[place]).all() for place in whole)


LEFT_TO_DECODING_ALL = {"no-index.h264"}
"""Formats whose packets do not say when their frames are shown."""


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("8k")])
def test_decord_gives_the_same_frames_where_it_is_used(tmp_path, name):
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    clip = make(tmp_path / name, **TABLE[name])
    np.testing.assert_array_equal(sample(clip, 16, decoder="decord"), sample(clip, 16))


def test_decord_is_used_for_plain_videos_and_not_where_it_colours_otherwise(tmp_path):
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    used = {}
    for name in ("h264.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi", "10-bit-h264.mp4", "av1.mp4", "full-range.mp4"):
        clip = make(tmp_path / name, **TABLE[name])
        used[name] = video._survey(clip).suits_decord and video._put_with_decord(clip, 4, lambda places, shown: None)
    assert [name for name, by_decord in used.items() if by_decord] == ["h264.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi"]


@pytest.mark.parametrize(("rotation", "corner"), [(90, "lower left"), (180, "lower right"), (270, "upper right")])
def test_a_rotated_video_is_turned_as_players_show_it(tmp_path, rotation, corner):
    clip = make(tmp_path / "turned.mp4", rotation=rotation)
    turned = rotation % 180 != 0
    frames = sample(clip, 4)
    height, width = (96, 64) if turned else (64, 96)
    assert frames.shape == (4, height, width, 3)
    assert (probe(clip).width, probe(clip).height) == (width, height)
    first = frames[0].mean(axis=2)
    halves = {
        f"{row} {column}": first[ys, xs].mean()
        for row, ys in (("upper", slice(4, height // 2 - 4)), ("lower", slice(height // 2 + 4, -4)))
        for column, xs in (("left", slice(4, width // 2 - 4)), ("right", slice(width // 2 + 4, -4)))
    }
    assert max(halves, key=halves.get) == corner
    np.testing.assert_array_equal(sample(clip, 4, decoder="decord"), frames)


@pytest.mark.parametrize(("name", "codec", "pixels"), [("alpha.mov", "qtrle", "argb"), ("alpha.mkv", "ffv1", "bgra")])
def test_transparent_parts_are_black(tmp_path, name, codec, pixels):
    frames = sample(make(tmp_path / name, codec, pixels, alpha=True), 4)
    assert frames[:, :30, 52:].max() == 0
    assert frames[:, :30, :44].min() >= 199


def test_a_wrong_frame_count_in_the_header_is_not_believed(tmp_path):
    clip = make(tmp_path / "clip.avi", "mpeg4")
    content = bytearray(clip.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(tag) + offset
        assert struct.unpack_from("<I", content, at)[0] == 20
        struct.pack_into("<I", content, at, 5000)
    clip.write_bytes(content)
    greys = sample(clip, 20)[:, 40:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, 10 * np.arange(20), atol=4)


def test_an_avi_without_its_index_is_read(tmp_path):
    clip = make(tmp_path / "clip.avi", "mpeg4")
    content = clip.read_bytes()
    clip.write_bytes(content[: content.rindex(b"idx1")])
    assert probe(clip).frames == 20
    greys = sample(clip, 20)[:, 40:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, 10 * np.arange(20), atol=4)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.webm"])
def test_a_long_video_is_read_from_key_frame_to_key_frame(tmp_path, name, monkeypatch):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    clip = make(tmp_path / name, codec, frames=400, options={"g": "10"})
    whole = sample(clip, 400)
    decoded = []
    with monkeypatch.context() as only:
        only.setattr(video, "_put_in_order", lambda *_: pytest.fail("decoded from the start"))
        shown = video._shown
        only.setattr(video, "_shown", lambda frames: shown(decoded.append(frame.pts) or frame for frame in frames))
        some = sample(clip, 8)
    assert len(decoded) < 100
    np.testing.assert_array_equal(some, whole[frame_indices(400, 8)])


@pytest.mark.parametrize("look", [probe, lambda clip: sample(clip, 4)])
def test_frames_too_large_for_any_video_are_refused_before_they_are_decoded(tmp_path, monkeypatch, look):
    monkeypatch.setattr(video, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(VideoError, match="has frames of 96 x 64, more than 6143 pixels"):
        look(make(tmp_path / "clip.mp4"))


@pytest.mark.parametrize(
    ("shades", "constant"), [([90] * 6, "one colour"), ([10, 60, 110, 160], "one colour"), (None, "same picture")]
)
def test_a_clip_in_which_nothing_happens_is_told(tmp_path, make_clip, shades, constant):
    clip = tmp_path / "still.mp4"
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shade in shades or range(6):
            shown = picture(3, 96, 64) if shades is None else np.full((64, 96, 3), shade, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode(None))
    assert probe(clip).constant == constant
    assert probe(make_clip(tmp_path / "moving.mp4")).constant == ""


def test_sound_that_was_cut_off_behind_the_last_frame_harms_nothing(tmp_path):
    clip = make(tmp_path / "clip.mp4", container={"movflags": "faststart"})
    content = clip.read_bytes()
    clip.write_bytes(content + b"\0" * 100)
    whole = sample(clip, 8)
    with av.open(str(clip)) as container:
        last = max(entry.pos + entry.size for entry in container.streams.video[0].index_entries)
    clip.write_bytes(content[:last])
    np.testing.assert_array_equal(sample(clip, 8), whole)
    clip.write_bytes(content[: last - 1])
    with pytest.raises(VideoError, match="cut off"):
        sample(clip, 8)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "prores.mov", "h264.mkv"])
def test_damage_that_a_decoder_could_paint_over_is_an_error(tmp_path, make_clip, name):
    made = {name: value for name, value in TABLE[name].items() if name in ("codec", "pixels", "options")}
    clip = make_clip(tmp_path / name, width=192, height=128, frames=30, **made)
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size and p.pos]
    at, size = max(packets, key=lambda packet: packet[1])
    content[at + size // 2 : at + size // 2 + size // 4] = b"\xa5" * (size // 4)
    clip.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged|can't be decoded"):
        sample(clip, 30)
