"""HPSv3 on a tiny Qwen2-VL of the real classes, its checkpoint in the published names.

Against transformers' own image processor and a forward pass put together here.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.rewards import HPSv3, Reward
from girsanov.rewards.hpsv3 import from_published, read_question
from girsanov.rewards.pixels import MEAN, STD
from girsanov.rewards.qwen_pixels import patches, sides, standardised
from girsanov.types import Cond, Prompts
from tests.pipelines import qwen_tokenizer, shaken

LINES = ["a photo of a red fox", "three blue cubes on a wooden table in the rain"]
QUESTION = "\nRate the image. \nTextual prompt - {text_prompt}\n\nThe rating: <|Reward|>\n\nEND\n"
AUTHORS = (
    'import nothing_of_that_name\nINSTRUCTION = """\nRate the image. \nTextual prompt - {text_prompt}\n"""\n'
    'prompt_with_special_token = """\nThe rating: <|Reward|>\n\nEND\n"""\nraise SystemExit\n'
)
TALKS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


def images(seed=0, dtype=torch.float32):
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.6 - 0.8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(the model of transformers, its head, options of the reward)."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("hpsv3")
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(TALKS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 40,  # padded, as the published base is; cut when the token is added
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    config.save_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer) + 1
    torch.manual_seed(2)
    model = shaken(Qwen2VLForConditionalGeneration(config), 0.2)
    head = nn.Sequential(*(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))
    old = {}
    for name, value in model.state_dict().items():  # the names of the transformers that it was published with
        for new, before in (
            ("model.visual.", "visual."),
            ("model.language_model.", "model."),
            ("lm_head.", "lm_head."),
        ):
            if name.startswith(new):
                old[before + name.removeprefix(new)] = value.clone()
    assert len(old) == len(model.state_dict())
    save_file(old | {f"rm_head.{k}": v for k, v in head.state_dict().items()}, folder / "HPSv3.safetensors")
    (folder / "data_collator_qwen.py").write_text(AUTHORS)
    options = {
        "question": str(folder / "data_collator_qwen.py"),
        "weights": str(folder / "HPSv3.safetensors"),
        "base": str(folder),
    }
    return model, head.eval(), options


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (448, 448)),
        ((1024, 768), (504, 364)),  # floor(18.47) and floor(13.86) times 28
        ((448, 448), (448, 448)),
        ((40, 56), (392, 532)),  # ceil(13.52) and ceil(18.93) times 28
    ],
)
def test_sides_are_multiples_near_the_number_of_tokens(size, expected) -> None:
    assert sides(*size, 28, 256) == expected


def test_patches_are_those_of_transformers() -> None:
    """Its own processor (Pillow and numpy) on pictures that need no resizing; 8-bit levels, so nothing is rounded."""
    import numpy as np
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    levels = torch.randint(0, 256, (2, 3, 56, 84), generator=torch.Generator().manual_seed(0))
    seen = standardised(levels / 127.5 - 1, 28, 6)
    found, grid = patches(seen, 14, 2, 2)
    theirs = Qwen2VLImageProcessorPil(image_mean=list(MEAN), image_std=list(STD))(
        [v.permute(1, 2, 0).numpy().astype(np.uint8) for v in levels], return_tensors="pt", do_resize=False
    )
    torch.testing.assert_close(found, theirs["pixel_values"], rtol=1e-5, atol=1e-5)
    assert torch.equal(grid, theirs["image_grid_thw"])


def test_the_score_is_the_head_at_its_token(tiny) -> None:
    """One question at a time through transformers, unpadded, positions counting on; both outputs of the head."""
    model, head, options = tiny
    x, reward = images(), make(Reward, Part("hpsv3", options))
    found = reward(x, ask([{"text": line} for line in LINES]))
    tokenizer, core = reward.rater().tokenizer, model.model
    for i, line in enumerate(LINES):
        seen, grid = patches(standardised(x[i : i + 1], 28, 256), 14, 2, 2)
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (14 * 19)
            + "<|vision_end|>\nRate the image. \nTextual prompt - "
            + line
            + "\n\nThe rating: <|Reward|>\n\nEND\n<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            h = core.language_model.embed_tokens(ids)
            h[ids == core.config.image_token_id] = core.visual(seen, grid_thw=grid).pooler_output
            positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
            states = core.language_model(inputs_embeds=h, position_ids=positions).last_hidden_state
            both = head(states[0, ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))])
        torch.testing.assert_close(found[i], both[0], rtol=1e-4, atol=1e-5)
        assert (both[0] - both[1]).abs() > 1e-3
    assert (reward(x, ask(LINES[::-1])) - found).abs().min() > 1e-5


def test_gradients_are_those_of_finite_differences(tiny) -> None:
    """Central differences of 1e-2 along a random direction. transformers keeps the norms in float32 whatever the dtype:
    about 1e-7 / 2e-2 of noise on slopes of about 1e-2, so 2 percent is far above it."""
    reward = HPSv3(**tiny[2])
    reward.rater().model.double(), reward.rater().head.double()
    x, direction = images(dtype=torch.float64).requires_grad_(True), images(1, torch.float64)
    (gradient,) = torch.autograd.grad(reward(x, ask(LINES)).sum(), x)
    with torch.no_grad():
        up, down = (reward(x + h * direction, ask(LINES)) for h in (1e-2, -1e-2))
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-2, rtol=2e-2, atol=1e-6)
    assert slope.abs().min() > 1e-4 and reward.differentiable
    assert not any(p.requires_grad for p in reward.rater().model.parameters())


def test_old_and_new_names_are_the_same_model() -> None:
    old = {
        "model.norm.weight": torch.zeros(1),
        "visual.merger.ln_q.bias": torch.ones(1),
        "lm_head.weight": torch.ones(1),
    }
    new = {"model.language_model.norm.weight": torch.zeros(1), "model.visual.merger.ln_q.bias": torch.ones(1)}
    assert from_published(old) == from_published(new)
    assert set(from_published(old)) == {"language_model.norm.weight", "visual.merger.ln_q.bias"}


def test_the_question_is_read_and_the_authors_code_is_not_run(tiny, tmp_path) -> None:
    (tmp_path / "question.txt").write_text(QUESTION)
    assert read_question(tiny[2]["question"]) == read_question(str(tmp_path / "question.txt")) == QUESTION


def test_other_files_and_prompts_give_one_sentence(tiny, tmp_path) -> None:
    options = tiny[2]
    (tmp_path / "other.py").write_text("INSTRUCTION = 3\n")
    (tmp_path / "broken.py").write_text("def\n")
    (tmp_path / "short.txt").write_text("{text_prompt}?")
    save_file({"model.norm.weight": torch.zeros(16)}, tmp_path / "short.safetensors")
    for change, sentence in (
        ({"question": str(tmp_path / "no.py")}, "the question of hpsv3 cannot be read from"),
        (
            {"question": str(tmp_path / "other.py")},
            "holds no INSTRUCTION and prompt_with_special_token: give data_coll",
        ),
        ({"question": str(tmp_path / "broken.py")}, "holds no INSTRUCTION"),
        ({"question": str(tmp_path / "short.txt")}, "must hold {text_prompt} and <|Reward|> once each"),
        ({"weights": str(tmp_path / "no.safetensors")}, "there is no file"),
        ({"weights": str(tmp_path / "short.safetensors")}, "these weights belong to another model"),
    ):
        with pytest.raises(GirsanovError) as error:
            HPSv3(**options | change).prepare()
        assert sentence in str(error.value) and "\n" not in str(error.value)
    reward = HPSv3(**options)
    for words in ("rate it <|Reward|>", "see <|image_pad|>"):
        with pytest.raises(GirsanovError, match="which are the judge's own: leave them out"):
            reward(images(), ask(["fox", words]))
