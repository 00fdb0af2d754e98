"""JPEG sizes against Pillow's own files, and aesthetic heads against a stack of linear layers."""

import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from girsanov.errors import GirsanovError
from girsanov.rewards.aesthetic import Aesthetic, Head, load_head
from girsanov.rewards.jpeg import Compressible, Incompressible, jpeg_kilobytes, to_bytes
from girsanov.types import Cond, Prompts


def ask(n):
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 95])
def test_the_score_is_the_size_of_the_file_in_kB(channels, quality):
    x = noise(3, channels, 40, 24)
    for image, size in zip(x, jpeg_kilobytes(x, quality).tolist(), strict=True):
        file = io.BytesIO()
        pixels = ((image.clamp(-1, 1) + 1) / 2 * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels.squeeze()).save(file, format="JPEG", quality=quality)
        assert size == pytest.approx(len(file.getvalue()) / 1000, rel=1e-6)
    assert torch.equal(jpeg_kilobytes(x, quality), jpeg_kilobytes(x.clone(), quality))


def test_smooth_images_are_compressible_and_noise_is_not():
    x = torch.cat([torch.zeros(1, 3, 64, 64), noise(1, 3, 64, 64)])
    flat, busy = Compressible()(x, ask(2)).tolist()
    assert 0 > flat > busy
    assert Incompressible()(x, ask(2)).tolist() == [-flat, -busy]
    assert busy < 5 * flat  # beyond the header, which both have
    assert not Compressible().differentiable


def test_bytes_are_rounded_and_clamped():
    x = torch.tensor([-3.0, -1.0, -0.999, 0.0, 1.0, 7.0]).view(1, 1, 1, 6)
    assert to_bytes(x).flatten().tolist() == [0, 0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (
            lambda: Compressible()(noise(2, 4, 8, 8), ask(2)),
            "an image is grey or RGB, [B, 1 or 3, H, W], and these samples are [2, 4, 8, 8]",
        ),
        (lambda: Compressible(100), "the quality of a JPEG file lies between 1 and 95, not 100"),
    ],
)
def test_bad_images_give_one_sentence(wrong, sentence):
    with pytest.raises(GirsanovError) as error:
        wrong()
    assert str(error.value) == sentence


def test_a_saved_head_loads_and_scores_normalised_features(tmp_path):
    torch.manual_seed(0)
    head = Head((6, 5, 4))
    head.save(tmp_path / "head.safetensors")
    weight = noise(12, 6)

    def features(x):
        return x.flatten(1) @ weight

    reward = Aesthetic(features, tmp_path / "head.safetensors")
    x = noise(3, 3, 2, 2).requires_grad_(True)
    r = reward(x, ask(3))
    phi = F.normalize(features(x), dim=1)
    for layer in head.layers:
        phi = phi @ layer.weight.T + layer.bias
    torch.testing.assert_close(r, phi[:, 0])
    (found,) = torch.autograd.grad(r.sum(), x)
    (expected,) = torch.autograd.grad(phi.sum(), x)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0 and not any(p.requires_grad for p in reward.layers().parameters())
    assert not Aesthetic(features, head, differentiable=False)(x, ask(3)).requires_grad


def test_the_public_layout_and_an_activation(tmp_path):
    """A Sequential with dropout between its layers numbers them 0, 2, 4, 6, 7."""
    layers = {i: torch.nn.Linear(a, b) for i, a, b in [(0, 8, 7), (2, 7, 6), (10, 6, 1)]}
    path = tmp_path / "sac.safetensors"
    save_file({f"layers.{i}.{n}": p.detach() for i, m in layers.items() for n, p in m.named_parameters()}, path)
    phi = noise(4, 8)
    expected = layers[10](layers[2](layers[0](phi)))[:, 0]
    torch.testing.assert_close(load_head(path)(phi), expected)
    expected = layers[10](torch.relu(layers[2](torch.relu(layers[0](phi)))))[:, 0]
    torch.testing.assert_close(load_head(path, torch.relu)(phi), expected)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_a_wrong_head_gives_one_sentence(tmp_path):
    path = tmp_path / "head.pth"
    with pytest.raises(GirsanovError) as error:
        load_head(path)
    assert str(error.value) == f"there is no file {path}: give the head's weights as a safetensors file"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(GirsanovError) as error:
        load_head(path)
    assert str(error.value) == (
        f"{path} is not a safetensors file, and nothing else is opened because pickles can run code: convert it with "
        "safetensors.torch.save_file"
    )
    save_file({"layers.0.weight": torch.zeros(4, 8), "layers.0.bias": torch.zeros(4)}, path)
    with pytest.raises(GirsanovError) as error:
        load_head(path)
    assert str(error.value) == (
        f"{path} holds no chain of linear layers that ends in one score, but weights of shapes [[4, 8]]: every layer "
        "has a weight [out, in] and a bias [out]"
    )
    save_file({"logit_scale": torch.zeros(1)}, path)
    with pytest.raises(GirsanovError) as error:
        load_head(path)
    assert str(error.value) == (
        f"{path} holds 'logit_scale', which is no layer: name the tensors layers.0.weight, layers.0.bias, ..."
    )


def test_features_that_do_not_fit_give_one_sentence():
    head = Head((6,))
    with pytest.raises(GirsanovError) as error:
        Aesthetic(lambda x: x.flatten(1)[:, :5], head)(noise(2, 3, 2, 2), ask(2))
    assert str(error.value) == (
        "the head reads 6 features and the feature function returns 5: they do not belong together"
    )
    with pytest.raises(GirsanovError) as error:
        Aesthetic(lambda x: x, head)(noise(2, 3, 2, 2), ask(2))
    assert str(error.value) == ("the feature function returned shape [2, 3, 2, 2] for 2 images: it must return [2, F]")
