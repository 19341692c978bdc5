"""Images with masks and with boxes, by name: from a user's files to what a recipe makes of them, by the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom import _compat, zoo
from stillroom.cli import main
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED


def picture(file, height, width, seed=0):
    """An image whose pixels are drawn, and its array."""
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return array


def mask(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file)


def scene(root, count=4, height=16, width=24, top=2):
    """Images of a bright half and a dark one, with masks of 0, 1 and 255."""
    for n in range(count):
        array = picture(root / "images" / f"{n}.png", height, width, n)
        dark = np.arange(width) < width // 2
        array[:, dark] //= 4
        Image.fromarray(array).save(root / "images" / f"{n}.png")
        y = np.broadcast_to(np.where(dark, 0, top), (height, width)).copy()
        y[0] = 255
        mask(root / "masks" / f"{n}.png", y)
    return root


# --- masks -------------------------------------------------------------------------------------------------------------

def test_masks_are_read_as_they_lie(tmp_path):
    scene(tmp_path)
    data = zoo.data(f"masks:{tmp_path}")
    x, y = data[1]
    assert x.shape == (3, 16, 24) and y.shape == (16, 24) and y.dtype == torch.long
    assert (y[0] == UNLABELLED).all() and (y[1:, :12] == 0).all() and (y[1:, 12:] == 2).all()
    assert data.classes == ["0", "1", "2"] and data.shape == (3, 16, 24) and data.targets is None
    assert torch.equal((x * 255).round().byte().permute(1, 2, 0), torch.tensor(np.asarray(Image.open(tmp_path / "images/1.png"))))
    assert data.words.endswith("4 images with masks of 3 × 16 × 24, 3 classes")
    before = data.fingerprint
    mask(tmp_path / "masks/1.png", np.zeros((16, 24)))
    assert zoo.data(f"masks:{tmp_path}").fingerprint != before == data.fingerprint


def test_masks_are_cut_and_resized_as_their_images_and_no_class_is_invented(tmp_path):
    array = picture(tmp_path / "images/a.png", 20, 40)
    array[:] = np.where(np.arange(40) < 15, 0, 255)[None, :, None]
    Image.fromarray(array).save(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", np.broadcast_to(np.where(np.arange(40) < 15, 0, 7), (20, 40)))
    x, y = zoo.data(f"masks:{tmp_path}?size=10")[0]
    assert set(y.unique().tolist()) == {0, 7}                              # the middle 20 × 20, every second pixel
    assert (y[:, :2] == 0).all() and (y[:, 3:] == 7).all() and x[0, :, 0].max() < 0.1 and x[0, :, 4:].min() > 0.9
    x, y = zoo.data(f"masks:{tmp_path}?size=(10,20)")[0]
    assert x.shape == (3, 10, 20) and y.shape == (10, 20) and torch.equal(y, y[:1].expand(10, 20))


def test_splits_classes_by_name_and_images_without_a_mask(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        scene(tmp_path / split, count, top=1)
    (tmp_path / "classes.txt").write_text("ground\nroad\nsky\n")
    picture(tmp_path / "train/unlabelled/free.png", 16, 24)
    data = zoo.data(f"masks:{tmp_path}")
    assert data.classes == ["ground", "road", "sky"] and len(data) == 5 and (data[4][1] == UNLABELLED).all()
    assert data.words.endswith("3 classes, 1 of them without a mask")
    split = zoo.splits(f"masks:{tmp_path}")
    assert len(split.test) == 2 and len(split.train) + len(split.valid) == 5 and split.test.classes == data.classes


def colours(root):
    Image.new("RGB", (24, 16)).save(root / "masks/1.png")


@pytest.mark.parametrize(("spoil", "option", "wrong", "remedy"), [
    (lambda root: mask(root / "masks/1.png", np.zeros((8, 24))), "", "1.png is 8 × 24, its image 16 × 24", "pixel by pixel"),
    (lambda root: (root / "masks/1.png").unlink(), "", "1 images of", "`unlabelled`"),
    (lambda root: None, "?classes=2", "4 masks of", "?classes="),
    (lambda root: picture(root / "images/0.png", 9, 9) is mask(root / "masks/0.png", np.zeros((9, 9))), "", "differ in size",
     "size=224"),
    (lambda root: (root / "masks").rename(root / "other"), "", "no folder masks", "images/ and masks/"),
    (colours, "", "1.png (RGB pixels, no class numbers)", "PNGs of class numbers"),
    (lambda root: (root / "masks/2.png").write_bytes(b"x"), "", "2.png", "--skip-corrupt"),
    (lambda root: (root / "masks/2.png").rename(root / "masks/2.jpg"), "", "is a JPEG", "PNG"),
    (lambda root: [mask(root / f"masks/{n}.png", 255 * (np.indices((16, 24))[1] > 9)) for n in range(4)], "",
     "they hold 0 and 255", "as 1"),
    (lambda root: None, "?size=x", "size='x'", "?size=(240,320)"),
    (lambda root: None, "?labels=3", "no option 'labels'", "classes"),
])
def test_masks_that_will_not_do_are_refused_before_any_work(tmp_path, spoil, option, wrong, remedy):
    scene(tmp_path)
    spoil(tmp_path)
    with pytest.raises(Refused) as error:
        zoo.splits(f"masks:{tmp_path}{option}")
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


def test_a_damaged_mask_is_left_out_where_that_is_asked(tmp_path):
    scene(tmp_path)
    (tmp_path / "masks/2.png").write_bytes(b"x")
    data = zoo.data(f"masks:{tmp_path}", skip_corrupt=True)
    assert len(data) == 3 and data.words.endswith("1 corrupt left out")


@pytest.mark.slow
def test_a_segmenter_is_taught_then_teaches_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene(tmp_path / "own", 10, top=1)
    data = ["--data", "masks:own", "--quiet", "--batch", "4"]
    assert main(["teach", "--student", "small:segmenter?widths=(4,8)&width=4", *data, "--steps", "30",
                 "--folder", "teacher"]) == 0
    assert "% mIoU of 1 test images" in capsys.readouterr().out
    assert main(["run", "acam_kd", "--teacher", "run:teacher", "--student", "small:segmenter?widths=(4,)&width=4", *data,
                 "--steps", "3", "--folder", "small"]) == 0
    said = json.loads((tmp_path / "small/run.json").read_text())
    assert "8 images with masks of 3 × 16 × 24, 2 classes" in said["data"]["words"] and 0 <= said["result"]["mIoU"] <= 100
    assert zoo.model("run:small")(torch.rand(1, 3, 16, 24)).shape == (1, 2, 16, 24)
    capsys.readouterr()
    assert main(["measure", "small"]) == 0 and "mIoU" in capsys.readouterr().out
    words = ["--teacher", "run:teacher", "--student", "small:segmenter"]
    assert main(["compare", "kd", *words, *data[:2]]) == 2 and "no classes" in capsys.readouterr().err
    assert main(["run", "kd", *words, *data[:2]]) == 2 and "acam_kd for masks" in capsys.readouterr().err
    assert main(["run", "acam_kd", *words, "--data", "folder:own"]) == 2 and "masks:PATH" in capsys.readouterr().err


def test_a_segmenter_of_transformers_tells_pixels_apart(tmp_path):
    pytest.importorskip("transformers")
    transformers = _compat.package("transformers")
    torch.manual_seed(0)
    made = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3)).eval()
    made.save_pretrained(tmp_path)
    net, x = zoo.model(f"hf:{tmp_path}?mean=0.5&std=0.5", classes=3).eval(), torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        own = made((x - 0.5) / 0.5).logits
        assert own.shape == (2, 3, 8, 12) and net.drawn is None
        torch.testing.assert_close(net(x), torch.nn.functional.interpolate(own, size=(16, 24), mode="bilinear"))
        assert zoo.models.rebuild(net.origin)(x).shape == (2, 3, 16, 24)
    assert zoo.model(f"hf:{tmp_path}?mean=0.5&std=0.5", classes=5).drawn
