"""The teacher's store: the same pairs as with the live teacher, whole or refused, and as small as it says."""

import copy
import json
import linecache
import math
import os
import pickle
import signal
import statistics
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from stillroom import Run, arenas, store, zoo
from stillroom.batches import batches, ids, joined, tagged
from stillroom.comparison.judge import fingerprint
from stillroom.errors import Refused
from stillroom.measure.classification import agreement, answers
from stillroom.models.small import cnn, mlp
from stillroom.parts import views
from stillroom.parts.pairs import by_label, pairs
from stillroom.parts.pool import images as images_of
from stillroom.parts.teachers import Batched, Cached, Ensemble, Frozen
from stillroom.recipes.classification.dho import DHO
from stillroom.recipes.classification.kd import KD
from stillroom.recipes.classification.nkd_uskd import NKD
from stillroom.recipes.classification.ssld import SSLD
from stillroom.store import bits, codecs, origin, prints
from stillroom.store.augments import NAMED
from stillroom.zoo.from_files import callable_in
from stillroom.zoo.specs import parse


class OneByOne(nn.Module):
    """A teacher whose answer to a sample does not depend, in the last bit, on the size of the batch around it."""

    def __init__(self, net):
        super().__init__()
        self.net = net.eval()

    def forward(self, x):
        return torch.cat([self.net(one[None]) for one in x])


def augment(x):
    return views.jitter(views.flip(views.crops(x[None], 1, (0.5, 1.0))[0, 0]))


def images(n=40):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


def teacher(seed=0):
    torch.manual_seed(seed)
    return OneByOne(cnn(4))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- views -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mix", [{}, {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_view_follows_from_seed_sample_and_view_alone(mix):
    data = store.Views(images(), augment, 3, seed=5, **mix)
    first = [data[i][0] for i in range(len(data))]
    torch.manual_seed(99)
    assert all(torch.equal(data[i][0], first[i]) for i in reversed(range(len(data))))
    assert not torch.equal(first[0], first[40]) and not torch.equal(first[0], store.Views(images(), augment, 3, seed=6)[0][0])
    part = store.Views(Subset(images(), [7, 3]), augment, 3, seed=5)
    if not mix:                                                  # a partner comes from the data at hand
        assert torch.equal(part[0][0], first[7]) and torch.equal(part[5][0], first[83])
    assert len(data.targets) == 120 and bool((data.targets == -100).all()) == bool(mix) == (int(data[0][1]) == -100)


def test_cutmix_puts_a_box_of_one_sample_into_another_and_mixup_a_share():
    data = TensorDataset(torch.arange(1.0, 41.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), torch.zeros(40, dtype=torch.long))
    kinds = []
    for i in range(len(data)):
        seen = store.Views(data, cutmix=1.0, seed=3)[i][0]
        values = seen.unique().tolist()
        assert set(values) <= set(range(1, 41)) and len(values) <= 2 and (i + 1 in values or len(values) == 1)
        inside = (seen[0] != i + 1).nonzero()
        if len(inside):                                          # a whole box
            (top, left), (bottom, right) = inside.amin(0).tolist(), inside.amax(0).tolist()
            assert len(inside) == (bottom - top + 1) * (right - left + 1)
        both = store.Views(data, mixup=1.0, cutmix=1.0, seed=3)[i][0]
        kinds.append(bool((both == both.round()).all()))
    assert 8 < sum(kinds) < 32


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_augmentation_is_drawn_from_the_sample_s_own_seed(name):
    data = TensorDataset(torch.rand(30, 3, 8, 8), torch.zeros(30))
    views = store.Views(data, store.augment(name), 2, seed=1)
    first = [views[i][0] for i in range(60)]
    assert all(torch.equal(views[i][0], first[i]) for i in reversed(range(60)))
    assert any(not torch.equal(a, data[i % 30][0]) for i, a in enumerate(first))
    assert any(not torch.equal(a, b) for a, b in zip(first[:30], first[30:], strict=True))
    assert all(a.shape == (3, 8, 8) and a.dtype == torch.float32 for a in first)
    assert pickle.loads(pickle.dumps(store.augment(name))).steps[0].args == store.augment(name).steps[0].args


def test_augmentations_come_in_order_with_their_numbers_or_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def dim(x, by=0.5):\n    return by * x\n")
    x = torch.rand(1, 4, 4)
    assert torch.equal(store.augment("flip?p=1", f"file:{tmp_path}/mine.py:dim?by=0.25")(x), 0.25 * x.flip(-1))
    assert torch.equal(store.augment("flip?p=0")(x), x)
    for word, said in (("flipp", "'flip'"), ("flip?q=1", "no option 'q'"), ("flip?p=2", "p=2"), ("crops?least=0", "least=0")):
        with pytest.raises(Refused, match=said):
            store.augment(word)
    with pytest.raises(Refused, match="changes images"):
        store.augment("flip")(torch.rand(7))


def test_batches_carry_the_numbers_of_their_samples_in_every_process():
    data = store.Views(images(), augment, 2)
    for given in (data, Subset(data, range(70, 10, -1))):
        for workers in (0, 2):
            for x, _ in batches(given, 16, start=1, count=4, seed=(0,), workers=workers):
                assert all(torch.equal(one, data[i][0]) for one, i in zip(x, x.sample_ids.tolist(), strict=True))
                assert not hasattr(x[:4], "sample_ids") and not hasattr(x + 0, "sample_ids")


def test_subsets_know_where_their_samples_come_from():
    data = images()
    data.tensors[1][::2] = -100
    labelled, rest = by_label(data)
    assert ids(labelled).tolist() == list(range(1, 40, 2)) and ids(Subset(rest, [3, 0])).tolist() == [6, 0]
    x, _ = next(iter(batches(labelled, 8, start=0, count=1, seed=(0,))))
    assert torch.equal(x, data.tensors[0][x.sample_ids])


def lazily(data):
    """The same samples, read one by one."""
    return Subset(data, range(len(data)))


@pytest.mark.parametrize("held", [lambda data: data, lazily])
def test_both_inputs_of_a_pair_and_images_of_a_pool_carry_their_numbers(held):
    data = images()
    data.tensors[1][::3] = -100
    data.targets = data.tensors[1]
    for x, y, other in batches(pairs(held(data)), 9, start=0, count=5, seed=(0,)):
        assert torch.equal(x, data.tensors[0][x.sample_ids]) and torch.equal(y, data.tensors[1][x.sample_ids])
        assert torch.equal(other, data.tensors[0][other.sample_ids]) and (other.sample_ids % 3 == 0).all()
        both = joined(x, other)
        assert torch.equal(both, data.tensors[0][both.sample_ids]) and not hasattr(joined(x, other + 0), "sample_ids")
    whole = torch.cat([data.tensors[0], 1 - data.tensors[0]])
    pool = Subset(TensorDataset(1 - data.tensors[0], data.tensors[1]), [4, 9, 30])
    for (x,) in batches(images_of(held(data), pool), 9, start=0, count=5, seed=(0,)):
        assert torch.equal(x, whole[x.sample_ids])


def test_batches_of_named_tensors_are_tagged_too():
    class Texts(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, i):
            return {"ids": torch.full((4,), i), "mask": torch.ones(4)}, 0

    x, _ = next(iter(batches(Texts(), 5, start=0, count=1, seed=(0,))))
    assert x["ids"].sample_ids.tolist() == x["ids"][:, 0].tolist()


# --- in place of the live teacher ------------------------------------------------------------------------------------

class Stop(Exception):
    pass


def test_a_student_is_the_same_bit_for_bit_with_the_store_as_with_the_live_teacher(tmp_path):
    data, live = store.Views(images(), augment, 2), teacher()
    stored = Cached(store.write(tmp_path / "store", live, data, batch=7, rows=33), live, data)

    def distilled(who, **run):
        torch.manual_seed(1)
        return KD(steps=12, batch=16)(Run(**run), student=mlp(hidden=8), teacher=who, data=data)

    expected = distilled(live)
    assert same(distilled(stored), expected)
    assert same(distilled(stored, workers=2), expected)
    assert same(distilled(stored, accumulate=2), distilled(live, accumulate=2))
    assert not same(distilled(teacher(1)), expected)


def test_a_stopped_run_goes_on_with_the_store_to_the_same_student(tmp_path):
    data, live = store.Views(images(), augment, 2), teacher()
    folder = store.write(tmp_path / "store", live, data)
    torch.manual_seed(1)
    expected = KD(steps=12, batch=16)(Run(), student=mlp(hidden=8), teacher=live, data=data)

    class Dying(Cached):
        def forward(self, x):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == 7:
                raise Stop
            return super().forward(x)

    torch.manual_seed(1)
    with pytest.raises(Stop):
        KD(steps=12, batch=16)(Run(tmp_path / "run", save_every=-1), student=mlp(hidden=8), teacher=Dying(folder), data=data)
    torch.manual_seed(2)
    on = KD(steps=12, batch=16)(Run(tmp_path / "run", resume=True), student=mlp(hidden=8), teacher=Cached(folder), data=data)
    assert same(on, expected)


@pytest.mark.parametrize("recipe", [DHO(steps=6, batch=8), SSLD(steps=6, steps_finetune=4, batch=8), NKD(steps=6, batch=8)])
@pytest.mark.parametrize("held", [lambda data: data, lazily])
def test_recipes_that_read_pairs_or_images_alone_learn_the_same_from_a_store(recipe, held, tmp_path):
    data, live = images(), teacher()
    data.tensors[1][::2] = -100
    data.targets = data.tensors[1]
    stored = Cached(store.write(tmp_path, live, data))

    def distilled(who):
        torch.manual_seed(1)
        return recipe(Run(), student=cnn(2), teacher=who, data=held(data))

    assert same(distilled(stored), distilled(live))


def test_images_of_a_pool_that_the_teacher_never_saw_are_refused(tmp_path):
    data = images()
    stored = Cached(store.write(tmp_path, teacher(), data))
    pool = TensorDataset(1 - data.tensors[0], data.tensors[1])
    with pytest.raises(Refused, match="holds 40"):
        for (x,) in batches(images_of(data, pool), 16, start=0, count=5, seed=(0,)):
            stored(x)


def test_several_stores_teach_as_several_teachers_do(tmp_path):
    data, live = images(), [teacher(0), teacher(1)]
    for name, who in zip("ab", live, strict=True):
        store.write(tmp_path / name, who, data)
    store.write(tmp_path / "c", live[0], store.Views(data, augment))
    spec = f"store:{tmp_path}/a,store:{tmp_path}/b"
    stored = Ensemble(zoo.actor("list[Module]", spec))
    x, _ = next(iter(batches(data, 8, start=0, count=1, seed=(0,))))
    assert torch.equal(stored(x), Ensemble(live)(x))
    assert origin.of_teachers(["small:cnn", spec]) == (f"{tmp_path}/a", {}) and origin.of_teachers(["small:cnn"]) == ("", {})
    with pytest.raises(Refused, match="different data"):
        origin.of_teachers([f"store:{tmp_path}/a,store:{tmp_path}/c"])


def test_what_a_store_holds_of_the_test_split_is_what_the_teacher_says(tmp_path):
    data, test, live = images(), images(30), teacher()
    stored = Cached(store.write(tmp_path, live, data))
    with pytest.raises(Refused, match="holds nothing on the test split"):
        answers(stored, test)
    store.write(tmp_path / "test", live, test)
    logits, y = answers(stored, test)
    assert torch.equal(logits, live(test.tensors[0])) and torch.equal(y, test.tensors[1])
    assert agreement(live, stored, test) == 100
    with pytest.raises(Refused, match="not about these data"):
        stored.told(images(20))
    store.write(tmp_path / "other", teacher(1), data)
    store.write(tmp_path / "other" / "test", live, test)
    with pytest.raises(Refused, match="of another teacher"):
        Cached(tmp_path / "other").told(test)
    assert fingerprint(stored) != fingerprint(Cached(tmp_path / "other"))


def test_frozen_hands_the_tag_on(tmp_path):
    data, live = images(), teacher()
    stored = Frozen(Cached(store.write(tmp_path, live, data)))
    x, _ = next(iter(batches(data, 8, start=0, count=1, seed=(0,))))
    assert torch.equal(stored(x), live(x))


def test_a_filtered_data_set_is_looked_up_by_its_original_numbers(tmp_path):
    data = images()
    data.tensors[1][::3] = -100
    live = teacher()
    stored = Cached(store.write(tmp_path, live, data))
    for part in by_label(data):
        x, _ = next(iter(batches(part, 8, start=0, count=1, seed=(0,))))
        assert torch.equal(stored(x), live(x))


# --- refused, never wrong --------------------------------------------------------------------------------------------

def test_inputs_without_a_number_are_refused_with_the_remedy(tmp_path):
    data = images()
    stored = Cached(store.write(tmp_path, teacher(), data))
    x, _ = next(iter(batches(data, 8, start=0, count=1, seed=(0,))))
    for made in (x[:4], x.flip(-1), torch.cat([x, x])):
        with pytest.raises(Refused, match=r"store\.Views"):
            stored(made)
    with pytest.raises(Refused, match="running statistics"):
        Batched(stored)


def test_other_rows_are_refused(tmp_path):
    data, live = images(), teacher()
    stored = Cached(store.write(tmp_path, live, data))
    other = TensorDataset(data.tensors[0].flip(0), data.tensors[1])
    for wrong in (other, store.Views(data, augment), TensorDataset(*(t[1:] for t in data.tensors))):
        with pytest.raises(Refused, match="not those that the teacher"):
            KD(steps=2, batch=8)(Run(), student=mlp(hidden=8), teacher=stored, data=wrong)
    with pytest.raises(Refused, match="holds 40"):
        KD(steps=9, batch=32)(Run(), student=mlp(hidden=8), teacher=stored, data=store.Views(data, None, 2))
    x, _ = next(iter(batches(data, 8, start=0, count=1, seed=(0,))))
    stored(x)
    late, _ = next(iter(batches(other, 8, start=0, count=1, seed=(0,))))
    with pytest.raises(Refused, match="8 of 8"):
        stored(late)
    with pytest.raises(Refused, match="1 of 8"):                 # a single input, by a single pixel
        stored(tagged(x.clone().index_put_((torch.tensor(3), torch.tensor(0), torch.tensor(5), torch.tensor(2)),
                                           torch.tensor(0.123)), x.sample_ids))


def test_a_changed_teacher_or_data_set_is_refused(tmp_path):
    data, live = store.Views(images(), augment, 2), teacher()
    store.write(tmp_path, live, data)
    for other, given, what in ((teacher(1), data, "teacher"), (live, store.Views(images(), views.flip, 2), "data"),
                               (live, store.Views(images(), augment, 2, seed=1), "data")):
        with pytest.raises(Refused, match=f"another {what}"):
            store.write(tmp_path, other, given)
        with pytest.raises(Refused, match=f"another {what}"):
            Cached(tmp_path, other, given)
    assert prints.of_teacher(Frozen(live, mean=[0.5], std=[1.0])) != prints.of_teacher(Frozen(live, mean=[0.4], std=[1.0]))


SOURCE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
    def forward(self, x):{note}
        return self.flat(x)[:, :10] * {scale}
"""


def test_the_fingerprint_of_a_teacher_sees_what_it_does_and_not_what_is_said_of_it(tmp_path):
    def marked(scale, note=""):
        (tmp_path / "net.py").write_text(SOURCE.format(scale=scale, note=note))
        linecache.clearcache()
        prints._deed.cache_clear()
        return prints.of_teacher(callable_in(parse(f"file:{tmp_path}/net.py:Net"))[1]())

    assert marked(2) == marked(2, "      # twice as sure") != marked(3)
    strided = [nn.Conv2d(1, 4, 3, stride=s) for s in (1, 2)]
    strided[1].load_state_dict(strided[0].state_dict())
    assert prints.of_teacher(strided[0]) != prints.of_teacher(strided[1])
    assert prints.of_teacher(nn.Sequential(nn.ReLU())) != prints.of_teacher(nn.Sequential(nn.GELU()))


def test_the_check_of_an_input_is_that_of_its_batch_and_sees_all_of_a_small_one():
    x = torch.rand(6, 3, 8, 8)
    assert prints.of_samples(x) == [prints.of_sample(one) for one in x] and len(set(prints.of_samples(x))) == 6
    for at in range(0, 192, 7):
        other = x[0].clone()
        other.view(-1)[at] += 1e-3
        assert prints.of_sample(other) != prints.of_sample(x[0])
    words = {"ids": torch.arange(12).view(3, 4), "mask": torch.ones(3, 4, dtype=torch.bool)}
    assert prints.of_samples(words) == [prints.of_sample({k: v[i] for k, v in words.items()}) for i in range(3)]
    large = torch.zeros(1, 3, 224, 224)
    seen = sum(prints.of_samples(large.clone().index_fill_(-1, torch.tensor(column), 1.0)) != prints.of_samples(large)
               for column in range(224))
    assert seen == 224                                           # every column is looked at somewhere


@pytest.mark.slow
def test_on_the_digits_a_store_teaches_what_the_live_teacher_teaches(tmp_path):
    right = {"live": [], "fp32": [], "fp16": [], "top5": []}
    for seed in range(3):
        cast = arenas.digits("few", seed)
        live, data = cast.actors["teacher"], cast.actors["data"]

        def distilled(who, cast=cast, seed=seed):
            student = copy.deepcopy(cast.actors["student"])
            made = KD(steps=400)(Run(seed=seed), student=student, teacher=who, data=cast.actors["data"])
            return made, cast.accuracy(made)

        expected, accuracy = distilled(live)
        right["live"].append(accuracy)
        for codec in ("fp32", "fp16", "top5"):
            stored = Cached(store.write(tmp_path / f"{codec}{seed}", live, data, codec=codec, batch=64), live, data)
            made, accuracy = distilled(stored)
            right[codec].append(accuracy)
            assert same(made, expected) == (codec == "fp32")
    spread = statistics.stdev(right["live"])                     # 0.9 points
    assert right["fp32"] == right["live"] and 0.2 < spread < 3
    for codec in ("fp16", "top5"):
        assert abs(statistics.mean(right[codec]) - statistics.mean(right["live"])) < spread


# --- files -----------------------------------------------------------------------------------------------------------

def test_a_damaged_shard_is_named_and_only_it_is_written_again(tmp_path):
    data, live = images(), teacher()
    store.write(tmp_path, live, data, rows=16)
    files = sorted(tmp_path.glob("*.rows"))
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    assert len(files) == 3
    spoilt = bytearray(before[files[1]][0])
    spoilt[40] ^= 1
    for content in (bytes(spoilt), bytes(spoilt[:-1]), None):
        files[1].unlink() if content is None else files[1].write_bytes(content)
        with pytest.raises(Refused, match=r"000001\.rows(.|\n)*rewrites only this shard"):
            Cached(tmp_path).rows[torch.arange(40)]
        store.write(tmp_path, live, data, rows=16)
        assert all(f.read_bytes() == old for f, (old, _) in before.items())
    assert all(files[i].stat().st_mtime_ns == before[files[i]][1] for i in (0, 2))


def test_two_ranks_write_what_one_writes(tmp_path):
    data, live = images(), teacher()
    store.write(tmp_path / "one", live, data, rows=8)
    store.write(tmp_path / "two", live, data, rows=8, rank=1, ranks=2)
    with pytest.raises(Refused, match="not finished"):
        Cached(tmp_path / "two")
    store.write(tmp_path / "two", live, data, rows=8, rank=0, ranks=2)
    for file in (tmp_path / "one").glob("*.rows"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_workers_write_what_one_process_writes(tmp_path):
    data, live = store.Views(images(), augment, 2), teacher()
    store.write(tmp_path / "one", live, data, rows=30, batch=8)
    store.write(tmp_path / "two", live, data, rows=30, batch=8, workers=2)
    for file in (tmp_path / "one").glob("*.rows"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_part_of_other_data_is_refused_before_the_teacher_is_asked(tmp_path):
    part = Subset(images(), [7, 3, 5])
    with pytest.raises(Refused, match=r"store\.Views"):
        store.write(tmp_path / "part", teacher(), part)
    assert not (tmp_path / "part").exists()
    live, seen = teacher(), store.Views(part)
    stored = Cached(store.write(tmp_path / "part", live, seen))
    x, _ = next(iter(batches(seen, 3, start=0, count=1, seed=(0,))))
    assert torch.equal(stored(x), live(x))


@pytest.mark.slow
def test_a_killed_write_goes_on_and_a_second_writer_is_refused(tmp_path):
    code = textwrap.dedent(f"""
        import sys, time; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_store import images, store, teacher
        live = teacher()
        slow = live.forward
        live.forward = lambda x: time.sleep(0.05) or slow(x)
        store.write({str(tmp_path / "killed")!r}, live, images(), rows=4, batch=2)
    """)
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "killed" / "000002.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(Refused, match="another process"):
        store.write(tmp_path / "killed", teacher(), images(), rows=4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "killed").glob("*.json")}
    with pytest.raises(Refused, match="not finished"):
        Cached(tmp_path / "killed")
    store.write(tmp_path / "killed", teacher(), images(), rows=4)
    assert all(f.stat().st_mtime_ns == old for f, old in done.items())
    store.write(tmp_path / "whole", teacher(), images(), rows=4)
    for file in (tmp_path / "whole").glob("*.rows"):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


def test_an_unknown_format_is_refused(tmp_path):
    store.write(tmp_path, teacher(), images())
    told = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**told, "format": 99}))
    with pytest.raises(Refused, match="format 99"):
        Cached(tmp_path)


def test_a_letter_changed_in_what_a_store_says_of_itself_is_refused(tmp_path):
    store.write(tmp_path, teacher(), images())
    file = tmp_path / "store.json"
    whole = file.read_text()
    for at in range(0, len(whole), 7):
        file.write_text(whole[:at] + chr(ord(whole[at]) ^ 1) + whole[at + 1 :])
        with pytest.raises(Refused, match=r"store.json|holds no store"):
            Cached(tmp_path)
    file.unlink()
    shards = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.rows")}
    store.write(tmp_path, teacher(), images())
    assert file.read_text() == whole and all(f.stat().st_mtime_ns == then for f, then in shards.items())


# --- codecs ----------------------------------------------------------------------------------------------------------

def logits(rows=64, classes=1000, scale=3.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


def back(z, codec):
    return codecs.find(codec).decode(codecs.find(codec).encode(z), len(z), tuple(z.shape[1:]))


@pytest.mark.parametrize("codec,bytes_each", [("fp32", 4000), ("fp16", 2000), ("bf16", 2000), ("int8", 1032), ("top10", 29),
                                              ("top5", 18)])
def test_a_row_is_as_long_as_it_says(codec, bytes_each):
    rows = codecs.find(codec).encode(logits())
    assert rows.shape == (64, bytes_each) and rows.dtype == np.uint8 and codecs.size(codec, (1000,)) == bytes_each


def test_a_view_of_a_thousand_classes_takes_at_most_32_bytes_on_disk(tmp_path):
    live = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))
    store.write(tmp_path, live, images(), codec="top10")
    assert (tmp_path / "000000.rows").stat().st_size == 40 * 31


@pytest.mark.parametrize("width", [1, 3, 10, 17])
def test_packing_is_undone_by_unpacking(width):
    numbers = np.random.default_rng(0).integers(0, 2**width, (50, 7))
    packed = bits.pack(numbers, width)
    assert packed.shape == (50, math.ceil(7 * width / 8)) and (bits.unpack(packed, 7, width) == numbers).all()


def test_dense_rows_come_back():
    z = logits()
    for codec, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        assert torch.equal(back(z, codec), z.to(dtype))


@pytest.mark.parametrize("scale", [1.0, 3.0, 20.0])
def test_top_k_keeps_the_largest_and_the_mass_of_the_tail(scale):
    z = logits(scale=scale)
    p, q = z.double().softmax(-1), back(z, "top10").dense().double().softmax(-1)
    top, at = p.topk(10)
    tail = p.scatter(1, at, 0).sum(-1, keepdim=True)
    ideal = (tail / 990).expand_as(p).scatter(1, at, top)                        # the same, nothing quantised
    step = (top[:, :1].log() - top[:, -1:].log()).max().item() / 255
    assert (q.gather(1, at).log() - top.log()).abs().max() < step + 0.02         # half a step, and fp16 of the ends
    assert torch.allclose(q.scatter(1, at, 0).sum(-1, keepdim=True), tail, atol=1e-4, rtol=0.03)
    assert (q > 0).all() and (ideal * (ideal / q).log()).sum(-1).max() < 1e-3    # nats


def test_a_k_without_a_tail_and_unknown_codecs_are_refused():
    for codec, what in (("top10", "no tail"), ("zip", "unknown"), ("top0", "unknown"), ("top5@0", "unknown"),
                        ("top5@101", "unknown")):
        with pytest.raises(Refused, match=what):
            codecs.size(codec, (10,))
    with pytest.raises(Refused, match="fp32"):
        codecs.find("fp16").encode(torch.full((1, 4), 1e6))
