"""DM-Codec: Distilling Multimodal Representations for Speech Tokenization

Ahasan, Fahim, Mohiuddin, Rahman, Chadha, Iqbal, Amin, Islam, Ali — arXiv 2024 — https://arxiv.org/abs/2410.15017

    teacher   frozen encoder of speech, frozen encoder of its transcript; either may be left out
    reads     mean of all hidden states: of frames, and of tokens, which nothing aligns with the frames
    adapter   linear layer on the first codebook's vectors; teachers of one width share it
    compares  −log σ(cosine over time) of each feature, as far as the shorter of the two goes; beside it the codec's own terms:
              the wave, its log-mel spectra at several scales, commitment, and judges with the features they see
    views     one clip
    data      clips of one length [samples], of 3 s, each with what the text teacher takes: tokens, or the number of a transcript
    learns    codec and linear layer; judges; codebooks follow as moving averages
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.spelled import spelled
from stillroom.batches import whole
from stillroom.measure import Proof
from stillroom.models.codec import coder
from stillroom.parts import optim
from stillroom.parts.losses import scores
from stillroom.parts.mel import log_mel
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DMCodec(Recipe):
    share: float = 0.5        # of the speech teacher in the distillation, where there are two
    distil: float = 120.0     # weight of the distillation
    wave: float = 500.0       # weight of |wave − decoded|
    mel: tuple[float, ...] = (45.0, 1.0, 1.0, 1.0)     # weights of the log-mel spectra, windows halved from each to the next
    commit: float = 10.0      # weight of the commitment to the code vectors
    realism: float = 1.0      # weight of what the judges say
    features: float = 2.0     # weight of the features that they see
    rate: int = 16_000        # samples a second
    window: int = 1024        # samples of the largest window
    hop: int = 240            # samples from one to the next
    bands: int = 80           # of a log-mel spectrum
    lr: float = 1e-4          # of AdamW, codec and judges alike, cosine to 0
    decay: float = 0.0        # weight decay
    batch: int = 6            # clips per step: 3 s each
    steps: int = 47_565       # updates: 10 passes over LibriSpeech's 28,539 clean clips

    def distill(self, run: Run, student: Module, data: Dataset, speech: Module | None = None, text: Module | None = None,
                judge: Module | None = None) -> Module:
        """`student`: a `models.codec.Codec`; `speech`: waves → [batch, frames, dim]; `text`: what a sample has beside its wave →
        [batch, tokens, dim]; `judge`: as `models.codec.judges()`; without one nothing is adversarial."""
        student, teachers = coder(student), {n: Frozen(net) for n, net in (("speech", speech), ("text", text)) if net is not None}
        share = {"speech": self.share, "text": 1 - self.share} if len(teachers) > 1 else dict.fromkeys(teachers, 1.0)
        x, y = (run.place(part) for part in whole(data, self.batch)[:2])
        widths = {teacher(y if name == "text" else x).shape[-1] for name, teacher in teachers.items()}
        align = nn.ModuleDict({str(width): nn.Linear(student.dim, width) for width in sorted(widths)})
        with torch.no_grad():
            student.quantiser.begin(student.vectors(x))
        slow = optim.adamw(student, *align.values(), lr=cosine(self.lr), decay=self.decay, betas=(0.9, 0.99))
        run.keep(student=student, align=align, slow=slow)
        if judge is not None:
            fast = optim.adamw(judge, lr=cosine(self.lr), decay=self.decay, betas=(0.9, 0.99))
            run.keep(judge=judge, fast=fast)

        for x, y in run.loop(data, batch=self.batch, steps=self.steps, whole=True):
            made, said = student(x)
            terms = {"wave": self.wave * F.l1_loss(made, x), "mel": self.spectra(made, x), "commit": self.commit * said.commit}
            for name, teacher in teachers.items():
                taught = teacher(y if name == "text" else x)                                  # [batch, frames or tokens, width]
                terms[name] = self.distil * share[name] * d_axis(align[str(taught.shape[-1])](said.first), taught)
            if judge is not None:
                run.update(fast, telling=scores.least_squares_telling(judge(x), judge(made.detach())))
                with torch.no_grad():
                    real = judge(x)
                fake = judge(made)
                terms["realism"] = self.realism * scores.least_squares_realism(fake)
                terms["features"] = self.features * scores.alike(real, fake)
            if run.update(slow, **terms):
                student.quantiser.follow(said, run.mean)

        return student

    def spectra(self, made: Tensor, x: Tensor) -> Tensor:
        """Σ_k λ_k mean |log-mel_k(made) − log-mel_k(x)|."""
        away = []
        for k, weight in enumerate(self.mel):
            heard, true = (log_mel(wave, self.rate, self.window >> k, self.hop >> k, self.bands) for wave in (made, x))
            away.append(weight * F.l1_loss(heard, true))
        return torch.stack(away).sum()


def d_axis(said: Tensor, taught: Tensor) -> Tensor:
    """Mean over features of −log σ(cos over time). [batch, frames, dim] each; the longer is cut to the shorter."""
    n = min(said.shape[1], taught.shape[1])
    return -F.logsigmoid(F.cosine_similarity(said[:, :n].float(), taught[:, :n].float(), dim=1)).mean()


def trial(seed=0):
    """Spoken digits through a codec of 50 frames a second and four codebooks of 32 vectors; the teachers are a small HuBERT that
    knows the digits and a sentence encoder that reads the word. Settings chosen on the validation takes."""
    return DMCodec(rate=8000, window=512, hop=120, bands=40, wave=3.0, mel=(4.0,), lr=1.2e-2, batch=4, steps=160), spelled(seed)


def proof(codec, cast):
    """The first codebook tells more of the digit than that of the same codec without teachers, and the sound is no worse. Text
    adds nothing here: with the speech teacher alone the codebook tells a little more still."""
    none, speech = cast.without(), cast.speech()
    return Proof(cast.tells(codec), beats=cast.tells(none), unit="probe accuracy", baseline="the codec without teachers",
                 also={"speech teacher alone": cast.tells(speech), "log-mel error": cast.mel(codec),
                       "log-mel error, speech teacher alone": cast.mel(speech), "log-mel error without teachers": cast.mel(none)})
