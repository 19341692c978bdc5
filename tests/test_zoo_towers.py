"""Two-tower models by name, with sentences about the classes of a folder, and boxes in COCO's form: by the command."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stillroom import _compat, zoo
from stillroom.cli import main
from stillroom.errors import Refused

pytest.importorskip("transformers")
transformers = _compat.package("transformers")
LETTERS = "abcdefghijklmnopqrstuvwxyz."
SIGNS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
WORDS = {sign: n for n, sign in enumerate(SIGNS)}
TWO = "template=a photo of a {}.|a sketch of a {}."
START, END = len(WORDS) - 2, len(WORDS) - 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two CLIPs of one tokenizer, the teacher wider, with their scale; a folder of coloured images."""
    home = tmp_path_factory.mktemp("towers")
    for name, dim in (("student", 16), ("teacher", 32)):
        torch.manual_seed(dim)
        about = {"hidden_size": dim, "intermediate_size": dim, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.CLIPConfig(
            text_config={**about, "vocab_size": len(WORDS), "max_position_embeddings": 24, "pad_token_id": END,
                         "bos_token_id": START, "eos_token_id": END},
            vision_config={**about, "image_size": 16, "patch_size": 8}, projection_dim=8)
        transformers.CLIPModel(config).save_pretrained(home / name)
        transformers.CLIPTokenizer(vocab=WORDS, merges=[]).save_pretrained(home / name)
        (home / name / "preprocessor_config.json").write_text(json.dumps(
            {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"shortest_edge": 16}}))
    for at, name in enumerate(("red", "green", "big_cat")):
        (home / "own" / name).mkdir(parents=True)
        for n in range(8):
            array = np.random.default_rng(8 * at + n).integers(0, 60, (16, 16, 3), dtype=np.uint8)
            array[..., at] += 190
            Image.fromarray(array).save(home / "own" / name / f"{n}.png")
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


# --- towers and sentences ----------------------------------------------------------------------------------------------

def test_both_towers_say_what_the_saved_model_says(home):
    own = transformers.CLIPModel.from_pretrained(home / "student").eval()
    net = zoo.model("clip:student", classes=3, size=16).eval()
    x, ids = torch.rand(2, 3, 16, 16), torch.tensor([[START, 1, 2, END], [START, 5, END, END]])
    scaled = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        seen = own(input_ids=ids, pixel_values=scaled)
        torch.testing.assert_close(net(x, ids), seen.logits_per_image)
        torch.testing.assert_close(zoo.model("clip:student?half=image").eval()(x), net.image(x))
        again = zoo.models.rebuild(net.origin)
        again.load_state_dict(net.state_dict())
        torch.testing.assert_close(again.eval()(x, ids), net(x, ids))
    assert net.expects == (3, 16, 16) and net.drawn is None and zoo.model("clip:student?fresh=yes").drawn


def test_sentences_name_the_classes_of_the_data():
    found = zoo.actor("Tensor", f"sentences?{TWO}", classes=["red", "big_cat"], speaks="student")
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in ("a", "sketch", "of", "a", "big", "cat", ".")]
    assert found.shape == (2, 2, 19) and found[1, 1].tolist() == [START, *(WORDS[s] for word in words for s in word), END]
    assert found[1, 0].tolist()[-2:] == [END, END]
    vectors = zoo.actor("Tensor", "sentences:student?embedded=yes&classes=red, green")
    tower = zoo.model("clip:student").eval()
    with torch.no_grad():
        ids = zoo.actor("Tensor", "sentences:student?classes=red,green")[:, 0]
        torch.testing.assert_close(vectors, F.normalize(tower.text(ids), dim=-1))


@pytest.mark.parametrize(("spec", "context", "wrong", "remedy"), [
    ("sentences:student", {}, "knows no classes", "?classes="), ("sentences", {"classes": ["a"]}, "two-tower", "clip:FOLDER"),
    ("sentences:student?template=a cat", {"classes": ["a"]}, "no one place", "{}"),
    ("sentences:student?template=a very long template with a {} in it", {"classes": ["a"]}, "student reads 24", "shorter"),
    ("sentences:student?temp=1", {"classes": ["a"]}, "no option 'temp'", "template")])
def test_sentences_that_will_not_do_are_refused(spec, context, wrong, remedy):
    with pytest.raises(Refused) as error:
        zoo.actor("Tensor", spec, **context)
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


def test_two_towers_of_another_size_are_refused_with_the_size():
    with pytest.raises(Refused, match="take images of 16 × 16") as error:
        zoo.model("clip:student", size=24)
    assert "size=16" in str(error.value)


@pytest.mark.slow
def test_prompts_are_distilled_by_the_command(tmp_path, capsys):
    assert main(["run", "prompt_kd", "--student", "clip:student", "--teacher", "clip:teacher", "--data", "folder:own", "--texts",
                 "sentences", "--count", "2", "--depth", "2", "--steps", "3", "--batch", "4", "--quiet", "--folder",
                 str(tmp_path / "run")]) == 0
    assert "% of 3 test samples right" in capsys.readouterr().out
    made = zoo.model(f"run:{tmp_path / 'run'}").eval()
    assert made(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert main(["measure", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_prompts_of_both_towers_are_tuned_by_the_command_and_teach(tmp_path):
    assert main(["run", "prompt_src", "--student", "clip:student", "--data", "folder:own", "--texts",
                 f"sentences?{TWO}", "--count", "2", "--depth", "2", "--steps", "3", "--batch", "4", "--quiet", "--folder",
                 str(tmp_path / "run")]) == 0
    made, x, ids = zoo.model(f"run:{tmp_path / 'run'}"), torch.rand(2, 3, 16, 16), torch.randint(4, 20, (2, 19))
    began = zoo.model("clip:student").eval()
    with torch.no_grad():
        assert not torch.equal(made(x, ids), began(x, ids))
        torch.testing.assert_close(made.image.tower(x), began.image(x))
    assert main(["run", "prompt_kd", "--student", "clip:student", "--teacher", f"run:{tmp_path / 'run'}", "--data", "folder:own",
                 "--texts", "sentences", "--count", "1", "--depth", "1", "--steps", "1", "--batch", "4", "--quiet", "--folder",
                 str(tmp_path / "kd")]) == 0


# --- boxes -------------------------------------------------------------------------------------------------------------

def boxed(root, count=5, **more):
    """Images of a bright square on dark ground, with its box in COCO's form; `more` changes what the file says."""
    told = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "green"}, {"id": 3, "name": "red"}]}
    root.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        array = np.random.default_rng(n).integers(0, 60, (48, 64, 3), dtype=np.uint8)
        array[8:28, 4 + 4 * n : 28 + 4 * n, n % 2] = 250
        Image.fromarray(array).save(root / f"{n}.png")
        told["images"].append({"id": 10 + n, "file_name": f"{n}.png", "width": 64, "height": 48})
        told["annotations"].append({"image_id": 10 + n, "category_id": (3, 7)[n % 2], "bbox": [4 + 4 * n, 8, 24, 20],
                                    "segmentation": [[4 + 4 * n, 8, 27 + 4 * n, 8, 27 + 4 * n, 27, 4 + 4 * n, 27]]})
    told["annotations"] += [{"image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 9], "segmentation": [[5, 5, 5, 14, 5, 9]]},
                            {"image_id": 11, "category_id": 3, "bbox": [70, 5, 9, 9], "segmentation": [[70, 5, 79, 5, 79, 14]]},
                            {"image_id": 12, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 1, "segmentation": {}}]
    (root / "boxes.json").write_text(json.dumps(told | more))
    return root


def test_boxes_are_read_as_coco_says_them(tmp_path):
    data = zoo.data(f"boxes:{boxed(tmp_path)}")
    x, found = data[1]
    assert x.shape == (3, 48, 64) and found.boxes.tolist() == [[8, 8, 32, 28]] and found.labels.tolist() == [1]
    assert data.classes == ["red", "green"]                                  # in the order of their ids
    x1, y1, x2, y2 = found.boxes[0].int().tolist()
    assert x[1, y1:y2, x1:x2].min() > 0.9 and x[1, y1 - 1].max() < 0.5 and x[1, :, x2].max() < 0.5
    assert data.words == ("boxes.json: 5 images with boxes of 3 × 48 × 64, 2 classes, 2 boxes without area there left out, "
                          "1 of crowds left out")
    assert len(zoo.data(f"boxes:{tmp_path / 'boxes.json'}?images={tmp_path}")) == 5


def test_boxes_go_with_their_images(tmp_path):
    x, found = zoo.data(f"boxes:{boxed(tmp_path)}?size=24")[2]               # the middle 48 × 48 at a half
    assert found.boxes.tolist() == [[(12 - 8) / 2, 4, (36 - 8) / 2, 14]] and x.shape == (3, 24, 24)
    assert x[0, 5:13, 3:13].min() > 0.8 and x[0, 16:].max() < 0.5


def test_polygons_are_masks_where_that_is_asked(tmp_path):
    boxed(tmp_path)
    x, found = zoo.data(f"boxes:{tmp_path}?masks=yes")[1]
    assert found.masks.dtype == torch.bool and found.masks.shape == (1, 48, 64)
    assert torch.equal(found.masks[0], x[1] > 0.9) and found.masks.sum() == 20 * 24
    x, found = zoo.data(f"boxes:{tmp_path}?masks=yes&size=24")[2]
    assert torch.equal(found.masks[0].nonzero().amin(0), torch.tensor([4, 2])) and found.masks.sum() == 10 * 12
    boxed(tmp_path, annotations=[{"image_id": 10, "category_id": 3, "bbox": [1, 1, 9, 9], "segmentation": {"counts": "abc"}}])
    with pytest.raises(Refused, match="no list of polygons"):
        zoo.data(f"boxes:{tmp_path}?masks=yes")


def test_splits_of_boxes_have_the_classes_of_the_training_data(tmp_path):
    boxed(tmp_path / "train")
    boxed(tmp_path / "valid", 2, categories=[{"id": 3, "name": "green"}, {"id": 7, "name": "red"}])
    split = zoo.splits(f"boxes:{tmp_path}")
    assert split.test.classes == ["red", "green"] and split.test[0][1].labels.tolist() == [1]
    boxed(tmp_path / "valid", 2, categories=[{"id": 3, "name": "blue"}, {"id": 7, "name": "red"}])
    with pytest.raises(Refused, match="category 'blue', which the training data have not"):
        zoo.splits(f"boxes:{tmp_path}")


@pytest.mark.parametrize(("more", "wrong", "remedy"), [
    ({"images": []}, "has no images", "COCO's form"), ({"annotations": [{"image_id": 10}]}, "has no category_id", "COCO's form"),
    ({"annotations": [{"image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]}]}, "the image 99", "COCO's form"),
    ({"annotations": [{"image_id": 10, "category_id": 4, "bbox": [1, 1, 2, 2]}]}, "category 4", "red"),
    ({"annotations": [{"image_id": 10, "category_id": 3, "bbox": [1, 1, 2]}]}, "the box [1, 1, 2]", "[x, y, width, height]"),
    ({"annotations": []}, "no box with an area", "COCO's form"),
    ({"images": [{"id": 10, "file_name": "no.png"}], "annotations": []}, "such as no.png", "?images=FOLDER"),
    ({"images": [{"id": 10, "file_name": "0.png", "width": 48, "height": 64}], "annotations": []}, "it is 48 × 64", "upright"),
    ({"categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "red"}]}, "the name of another one", "its own")])
def test_boxes_that_will_not_do_are_refused(tmp_path, more, wrong, remedy):
    boxed(tmp_path, **more)
    with pytest.raises(Refused) as error:
        zoo.splits(f"boxes:{tmp_path}")
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


def test_a_detector_learns_by_the_command_from_boxes_and_towers(tmp_path, capsys):
    pytest.importorskip("torchvision")
    boxed(tmp_path / "own", 6)
    small = "small:detector?dim=8&widths=(4,8,8)&width=8&anchors=(16,24)&side=3&hidden=16&keep=(50,12)&sample=16&mask=4"
    run = ["run", "vild", "--student", small, "--tower", "clip:student?half=image", "--texts", "sentences?embedded=yes",
           "--data", f"boxes:{tmp_path / 'own'}?masks=yes", "--side", "16", "--regions", "8", "--batch", "2", "--steps-propose",
           "2", "--steps-embed", "3", "--steps", "3", "--quiet", "--folder", str(tmp_path / "run")]
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "4 images with boxes of 3 × 48 × 64" in out and '"masks":' in (tmp_path / "run/log.jsonl").read_text()
    assert len(zoo.model(f"run:{tmp_path / 'run'}").embeds) == 2


@pytest.mark.slow
def test_detectors_and_segmenters_stand_on_backbones_by_name():
    pytest.importorskip("timm")
    x, net = torch.rand(1, 3, 64, 64), zoo.model("small:detector?backbone=resnet18&dim=8&hidden=16&keep=(20,5)").eval()
    with torch.no_grad():
        maps, boxes, _ = net.propose(x)
        regions, moves = net.regions(maps, boxes, (64, 64))
        assert len(maps) == 5 and len(regions) == 2 and regions[0].shape == (len(boxes[0]), 8) and moves.shape[1] == 4
        assert zoo.model("small:segmenter?backbone=resnet18", classes=3).eval()(x).shape == (1, 3, 64, 64)
