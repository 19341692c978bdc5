"""Folders of wav files, cut or filled with silence to one length: one folder a class, or clips alone."""

import wave
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.zoo import folders
from stillroom.zoo.sets import Given, Lazy
from stillroom.zoo.specs import Spec, take

SUFFIXES = (".wav", ".wave")


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """Clips [samples] in [−1, 1], one channel, their mean where files have more. `?seconds=` is the length of all, `?rate=` what
    every file must have; without them all files must be alike. Raises `Refused`."""
    options = take(asked.options, {"seconds": 0.0, "rate": 0, "labels": 0, "noise": 0.0}, asked)
    root = folders.there(asked, "name a folder of wav files")

    def read(folder: Path, classes: list[str] | None, _: Any, length: int | None) -> Lazy:
        return _clips(folder, classes, length, options["seconds"], options["rate"], skip)
    return folders.by_split(root, read, None, None)


def _clips(root: Path, classes: list[str] | None, length: int | None, seconds: float, rate: int, skip: bool) -> Lazy:
    """The clips below one folder. `classes`, `length`: those of the training data."""
    files, targets, names = folders.listed(root, classes, SUFFIXES, "wav files")
    heads = [_head(file) for file in files]
    bad = [f"{f.relative_to(root)} ({head[2]})" for f, head in zip(files, heads, strict=True) if head[2]]
    if bad and not skip:
        raise Refused(f"{len(bad)} of {len(files)} wav files of {root} cannot be read: {'; '.join(bad[:5])}",
                      "save them as PCM of 8, 16, 24 or 32 bits, or leave them out: skip_corrupt=True, --skip-corrupt")
    good = [i for i, head in enumerate(heads) if not head[2]]
    rates, lengths = sorted({heads[i][0] for i in good}), sorted({heads[i][1] for i in good})
    if not good or rates != [rate or rates[0]]:
        raise Refused(f"the wav files of {root} have {' and '.join(map(str, rates)) or 'no'} samples a second"
                      + (f", not {rate}" if rate else ""), "bring them to one rate: ffmpeg -i IN.wav -ar 16000 OUT.wav")
    if not seconds and length is None and len(lengths) > 1:
        least, most = (n / rates[0] for n in (lengths[0], lengths[-1]))
        raise Refused(f"the wav files of {root} differ in length, from {least:.3g} to {most:.3g} s",
                      f"say one: ?seconds={most:.3g}; longer ones are cut, shorter ones filled with silence")
    length = round(seconds * rates[0]) if seconds else length or lengths[0]
    if length < 1:
        raise Refused(f"seconds={seconds}", "above 0")
    content = repr([(files[i].relative_to(root).as_posix(), blake2b(files[i].read_bytes(), digest_size=8).digest())
                    for i in good])
    return Lazy(partial(_clip, [str(files[i]) for i in good], length), torch.tensor(targets)[good],
                names, f"{root.name}, {rates[0]:,} samples a second", (length,), content, "clips",
                left_out=len(files) - len(good))


def _head(file: Path) -> tuple[int, int, str]:
    """Samples a second, samples, and what is wrong."""
    try:
        with wave.open(str(file)) as found:
            whole = found.getnframes() * found.getnchannels() * found.getsampwidth() <= file.stat().st_size
            return found.getframerate(), found.getnframes(), "" if found.getnframes() and whole else "empty or truncated"
    except (wave.Error, EOFError, OSError) as error:
        return 0, 0, str(error) or "truncated"


def _clip(files: list[str], length: int, i: int) -> Tensor:
    """The beginning of a file, [length]."""
    with wave.open(files[i]) as found:
        raw, channels, width = found.readframes(length), found.getnchannels(), found.getsampwidth()
    if width == 1:
        values = np.frombuffer(raw, np.uint8).astype(np.float32) / 128 - 1
    else:                                                  # little-endian, brought to 32 bits from the top
        padded = np.zeros((len(raw) // width, 4), np.uint8)
        padded[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
        values = (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)
    x = torch.from_numpy(values.reshape(-1, channels).mean(1))
    return torch.nn.functional.pad(x, (0, length - len(x)))
