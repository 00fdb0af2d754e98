"""The shared parts of adapters without any pipeline: packing, the decoder, schedulers' clocks, guidance."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from girsanov.adapters.latents import Decoder, pack, unpack
from girsanov.adapters.qwen_image import norm_kept
from girsanov.adapters.schedule import linear_mu, noising_of
from girsanov.errors import GirsanovError


def test_packing_puts_two_by_two_pixels_into_a_token() -> None:
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    tokens = pack(x)
    assert tokens.shape == (2, 6, 12) and torch.equal(unpack(tokens, 4, 6), x)
    assert torch.equal(tokens[1, 4], x[1, :, 2:4, 2:4].flatten())  # the second row of patches, the second of three


class Blur(nn.Module):
    """A decoder with weights, which counts how many samples it has seen at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.widths = nn.Conv2d(2, 3, 3, padding=1), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.widths.append(len(x))
        return self.layer(x).tanh()


def test_the_decoder_takes_a_few_samples_at_a_time() -> None:
    """The same data and the same gradient as at once, to 1e-6; its weights are frozen; data is float32."""
    torch.manual_seed(0)
    net, x = Blur(), torch.randn(5, 2, 4, 4)
    whole = net(x)
    (expected,) = torch.autograd.grad(net(y := x.clone().requires_grad_()).square().sum(), y)
    net.widths.clear()
    decode = Decoder(net, net, chunk=2)
    assert torch.allclose(decode(x), whole, atol=1e-6) and net.widths == [2, 2, 1]
    (found,) = torch.autograd.grad(decode(z := x.clone().requires_grad_()).square().sum(), z)
    assert torch.allclose(found, expected, atol=1e-6)
    assert sorted(net.widths) == sorted([2, 2, 1] * 3)  # once more in the backward pass
    assert not any(p.requires_grad for p in net.parameters())
    assert Decoder(net.bfloat16(), lambda v: net(v.bfloat16()), chunk=2)(x).dtype == torch.float32


def test_qwen_image_keeps_the_norm_of_every_token() -> None:
    """The direction is that of ordinary guidance, the length that of the conditional prediction: 1e-6."""
    g = torch.Generator().manual_seed(0)
    cond, null = (torch.randn(2, 4, 4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    kept, plain = pack(norm_kept(cond, null, 3.0)), pack(null + 3.0 * (cond - null))
    assert torch.allclose(kept.norm(dim=-1), pack(cond).norm(dim=-1), atol=1e-6)
    assert torch.allclose(nn.functional.cosine_similarity(kept, plain, dim=-1), torch.ones(2, 6).double(), atol=1e-6)


class Config(SimpleNamespace):
    """A scheduler's configuration, readable both ways."""

    def get(self, name: str, default: object = None) -> object:
        return getattr(self, name, default)


def _of(name: str, config: dict[str, object]) -> object:
    """An object of a class with that name: what is read of a scheduler that cannot be imported everywhere."""
    made = type(name, (), {})()
    made.config = Config(**config)  # type: ignore[attr-defined]
    return made


def test_the_clocks_of_edm_and_of_the_cosine_scheduler() -> None:
    """At sigma = tan(pi t / 2): log(sigma) / 4, and 2 atan(sigma) / pi."""
    config = {"sigma_data": 1.0, "prediction_type": "v_prediction"}
    sigma = torch.tensor([0.3, 2.0, 500.0], dtype=torch.float64)
    t = torch.atan(sigma) * 2 / torch.pi
    edm = noising_of(_of("EDMDPMSolverMultistepScheduler", config))
    cosine = noising_of(_of("CosineDPMSolverMultistepScheduler", config))
    assert torch.allclose(edm.time(t), sigma.log() / 4, atol=1e-9) and torch.allclose(cosine.time(t), t)
    assert torch.allclose(edm.process.rho(t), sigma, rtol=1e-9) and edm.prediction == cosine.prediction == "v"
    with pytest.raises(GirsanovError, match="is understood for data of std 1"):
        noising_of(_of("EDMEulerScheduler", {"sigma_data": 0.5, "prediction_type": "v_prediction"}))


def test_a_scheduler_that_is_not_understood_is_told() -> None:
    with pytest.raises(GirsanovError, match="the scheduler LCMScheduler .* is not understood: put DDIMScheduler"):
        noising_of(_of("LCMScheduler", {"prediction_type": "epsilon"}))


def test_the_shift_is_linear_in_the_tokens() -> None:
    """base_shift at base_image_seq_len, max_shift at max_image_seq_len."""
    config = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    assert linear_mu(256, config) == pytest.approx(0.5) and linear_mu(4096, config) == pytest.approx(1.15)
    assert linear_mu(2176, {}) == pytest.approx(0.825)
