"""Clips of one's own as wav files, and encoders of speech from transformers' folders: by the command."""

import math
import wave

import numpy as np
import pytest
import torch

from stillroom import _compat, zoo
from stillroom.cli import main
from stillroom.errors import Refused
from stillroom.models.hubert import Hubert


def clip(file, values, rate=1000, width=2, channels=1):
    """Values in [−1, 1), [samples, channels], as PCM."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(np.asarray(values, np.float64) * 2 ** (8 * width - 1)).astype(np.int64)
    raw = (whole + 128).astype(np.uint8).tobytes() if width == 1 else b"".join(
        int(v).to_bytes(width, "little", signed=True) for v in whole.ravel())
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(raw)


def tone(pitch, samples=400, rate=1000):
    return 0.5 * np.sin(2 * math.pi * pitch * np.arange(samples) / rate)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_waves_are_read_as_they_were_written(tmp_path, width):
    values = np.array([-1, -0.5, 0, 0.25, 0.5])
    clip(tmp_path / "a.wav", values, width=width)
    assert zoo.data(f"wavs:{tmp_path}")[0][0].tolist() == values.tolist()


def test_waves_are_cut_filled_and_mixed_to_one_channel(tmp_path):
    clip(tmp_path / "low" / "a.wav", tone(50))
    clip(tmp_path / "low" / "b.wav", np.stack([tone(50, 100), 0 * tone(50, 100)], 1), channels=2)
    clip(tmp_path / "high" / "c.wav", tone(200, 300))
    data = zoo.data(f"wavs:{tmp_path}?seconds=0.2")
    assert data.classes == ["high", "low"] and data.targets.tolist() == [0, 1, 1] and data.shape == (200,)
    assert data.words.endswith("1,000 samples a second: 3 clips of 200, 2 classes")
    torch.testing.assert_close(data[1][0], torch.tensor(tone(50)[:200], dtype=torch.float32), atol=1e-4, rtol=0)
    mixed = torch.tensor([*tone(50, 100) / 2, *[0.0] * 100], dtype=torch.float32)
    torch.testing.assert_close(data[2][0], mixed, atol=1e-4, rtol=0)


def test_splits_of_waves_have_the_length_of_the_training_data(tmp_path):
    for n in range(4):
        clip(tmp_path / "train" / f"{n}.wav", tone(50 + n))
    clip(tmp_path / "test" / "long.wav", tone(50, 900))
    split = zoo.splits(f"wavs:{tmp_path}")
    assert split.test[0][0].shape == split.train[0][0].shape == (400,)


@pytest.mark.parametrize(("spoil", "option", "wrong", "remedy"), [
    (lambda root: clip(root / "1.wav", tone(50, 100)), "", "from 0.1 to 0.4 s", "?seconds=0.4"),
    (lambda root: clip(root / "1.wav", tone(50), rate=2000), "", "1000 and 2000 samples a second", "ffmpeg"),
    (lambda root: None, "?rate=16000", "1000 samples a second, not 16000", "16000"),
    (lambda root: (root / "1.wav").write_bytes(b"RIFF"), "", "1.wav", "--skip-corrupt"),
    (lambda root: (root / "1.wav").write_bytes((root / "0.wav").read_bytes()[:300]), "", "truncated", "PCM"),
    (lambda root: None, "?length=3", "no option 'length'", "seconds")])
def test_waves_that_will_not_do_are_refused(tmp_path, spoil, option, wrong, remedy):
    for n in range(3):
        clip(tmp_path / f"{n}.wav", tone(50))
    spoil(tmp_path)
    with pytest.raises(Refused) as error:
        zoo.splits(f"wavs:{tmp_path}{option}")
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small HuBERT in a folder, and tones as wav files."""
    pytest.importorskip("transformers")
    transformers, home = _compat.package("transformers"), tmp_path_factory.mktemp("speech")
    torch.manual_seed(0)
    transformers.HubertModel(transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8), conv_kernel=(10, 4),
        conv_stride=(5, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    ).save_pretrained(home / "hubert")
    for n in range(10):
        clip(home / "own" / f"{n}.wav", tone(40 + 10 * n))
    return home


def test_an_encoder_of_speech_is_the_one_that_was_saved(home):
    own = _compat.package("transformers").HubertModel.from_pretrained(home / "hubert").eval()
    x, spec = torch.randn(2, 400), f"speech:{home / 'hubert'}"
    with torch.no_grad():
        said = own(x, output_hidden_states=True)
        torch.testing.assert_close(zoo.model(spec).eval()(x).last_hidden_state, said.last_hidden_state)
        torch.testing.assert_close(zoo.model(f"{spec}?as=mean").eval()(x), torch.stack(said.hidden_states).mean(0))
        sliced = zoo.model(f"{spec}?as=slices").eval()
        torch.testing.assert_close(sliced(x), said.last_hidden_state, atol=1e-5, rtol=1e-4)
    assert isinstance(zoo.models.rebuild(sliced.origin), Hubert) and zoo.model(f"{spec}?fresh=yes").drawn
    with pytest.raises(Refused, match="as=slices or as=mean"):
        zoo.model(f"{spec}?as=some")


@pytest.mark.slow
def test_a_supernet_learns_by_the_command_from_clips(home, tmp_path, capsys):
    hubert = f"speech:{home / 'hubert'}"
    assert main(["run", "lighthubert", "--student", f"{hubert}?as=slices", "--teacher", hubert, "--data", f"wavs:{home / 'own'}",
                 "--dims", "8", "16", "--heads", "1", "2", "--ratios", "2.0", "--depths", "2", "--layers", "1", "--mask", "0.3",
                 "--span", "1", "--batch", "4", "--steps-whole", "2", "--steps", "2", "--quiet", "--folder",
                 str(tmp_path / "run")]) == 0
    assert "8 clips of 400, no labels" in capsys.readouterr().out
    assert isinstance(zoo.model(f"run:{tmp_path / 'run'}"), Hubert)


def test_a_codec_learns_by_the_command_from_clips(home, tmp_path):
    codec = "small:codec?filters=4&strides=(5,4)&dim=8&codes=4&quantisers=2&layers=1"
    assert main(["run", "dm_codec", "--student", codec, "--speech", f"speech:{home / 'hubert'}?as=mean", "--judge",
                 "small:judges?width=2&periods=(2,3)&scales=0&sizes=(64,)", "--data", f"wavs:{home / 'own'}", "--rate", "1000",
                 "--window", "64", "--hop", "20", "--bands", "8", "--mel", "1.0", "--batch", "4", "--steps", "2", "--quiet",
                 "--folder", str(tmp_path / "run")]) == 0
    assert zoo.model(f"run:{tmp_path / 'run'}").encode(torch.randn(1, 400)).shape[0] == 1
