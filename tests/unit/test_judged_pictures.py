"""A user's judged pictures: what each kind of method reads in a row, and pictures as states of a pipeline."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters import Adapter
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.pictures import PictureEncoder, read_picture
from girsanov.data.judged import KINDS, usable
from girsanov.errors import GirsanovError
from girsanov.recipes.pipeline_preferences import JudgedPictures
from girsanov.types import Cond
from tests.pipelines import autoencoder, folder_of, sit_checkpoint

Image = pytest.importorskip("PIL.Image")


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def items(*names: str, **each: list[Any]) -> list[dict[str, Any]]:
    return [{"image": n, **{k: v[i] for k, v in each.items()}} for i, n in enumerate(names)]


ROWS = [
    {"prompt": "a", "chosen": {"image": "1.png"}, "rejected": {"image": "2.png"}},
    {"prompt": "a", "chosen": {"image": "2.png"}, "rejected": {"image": "3.png"}, "split": "test"},
    {"prompt": "b", "items": items("4.png", "5.png", "6.png", "7.png", rank=[2, 1, 3, 4])},
    {"prompt": "c", "items": items("8.png", "9.png", label=[True, False])},
    {"prompt": "d", "items": items("1.png", "4.png", "8.png", score=[0.1, 0.7, 0.4])},
    {"prompt": "e", "chosen": "a text", "rejected": "another"},
    {"prompt": "f", "chosen": {"image": "1.png"}, "rejected": {"image": "1.png"}},
    {"prompt": "g", "items": items("1.png", "2.png")},
]


def read(folder: Path, kind: str, size: int | None = None) -> tuple[list[Any], list[str]]:
    rated, left_out = usable(written(folder, ROWS))
    found, more = KINDS[kind](rated, size)
    return found, [*left_out, *more]


def named(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(j.prompt, *(p.stem for p in j.pictures)) for j in found]


def test_pairs_are_every_better_picture_with_every_worse_one(tmp_path: Path) -> None:
    found, left_out = read(tmp_path, "pairs")
    ranked = [("b", *pair) for pair in ("54", "56", "57", "46", "47", "67")]
    scored = [("d", *pair) for pair in ("48", "41", "81")]
    assert sorted(named(found)) == sorted([("a", "1", "2"), ("a", "2", "3"), *ranked, *scored])
    assert found[0].pictures[0] == tmp_path / "1.png"
    assert left_out == [
        "rows.jsonl, row 6: a pipeline learns from pictures, and an item is a text",
        "rows.jsonl, row 7: chosen equals rejected",
        "rows.jsonl, row 4: nothing says which picture is better",
        "rows.jsonl, row 8: nothing says which picture is better",
    ]
    assert [j.held_out(0.0) for j in found[:2]] == [False, True] and all(j.held_out(1.0) for j in found)


def test_a_picture_is_good_if_it_was_ever_better(tmp_path: Path) -> None:
    found, left_out = read(tmp_path, "labels")
    good = {(j.prompt, j.pictures[0].stem): j.good for j in found}
    assert good == {
        **{("a", "1"): True, ("a", "2"): True, ("a", "3"): False},
        **{("b", "5"): True, ("b", "4"): True, ("b", "6"): True, ("b", "7"): False},
        **{("c", "8"): True, ("c", "9"): False, ("d", "4"): True, ("d", "8"): True, ("d", "1"): False},
    }
    assert len(found) == 12 and left_out[-1] == "rows.jsonl, row 8: nothing says which picture is good"


def test_lists_have_one_length(tmp_path: Path) -> None:
    found, left_out = read(tmp_path, "lists", 3)
    assert named(found) == [("b", "5", "6", "7"), ("d", "4", "8", "1")]  # best, between, worst
    assert [j.score for j in found] == [(2.0, 1.0, 0.0)] * 2  # one row has no scores: places stand for all
    assert "rows.jsonl, row 1: ranks 2 pictures, and lists here have 3" in left_out
    pairs, _ = read(tmp_path, "lists")
    assert named(pairs) == [("a", "1", "2"), ("a", "2", "3"), ("b", "5", "7"), ("d", "4", "1")]  # two is most frequent
    rated, _ = usable(written(tmp_path, ROWS[4:5]))
    assert KINDS["lists"](rated, None)[0][0].score == (0.7, 0.4, 0.1)
    against = [{"prompt": "d", "items": items("1.png", "4.png", rank=[1, 2], score=[0.1, 0.7])}]
    assert KINDS["lists"](usable(written(tmp_path, against))[0], None)[0][0].score == (1.0, 0.0)


def test_a_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GirsanovError, match="rows.jsonl has no row to learn from: rows.jsonl, row 1: a pipe"):
        usable(written(tmp_path, ROWS[5:6]))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_the_iteration(kind: str, tmp_path: Path) -> None:
    """Two processes share a batch; every row is served once an epoch; states and conditions are those of the rows."""
    rows, _ = read(tmp_path, kind, 3)

    def states(paths: Any) -> Tensor:
        return torch.tensor([[float(p.stem)] for p in paths])

    def conditions(texts: Any) -> Cond:
        return Cond({"c": torch.tensor([float(ord(t)) for t in texts])}, torch.arange(len(texts)))

    source = JudgedPictures(kind, rows, states, conditions, 2)
    whole, (one, two) = source.batch(3), (source.batch(3, r, 2) for r in (0, 1))
    assert torch.equal(whole.group, torch.cat([one.group, two.group])) and len(source) == len(rows)
    epoch = torch.cat([source.batch(i).group for i in range(len(rows) // 2)])
    assert len(epoch.unique()) == len(epoch)
    mine = [rows[i] for i in whole.group]
    assert whole.cond["c"].tolist() == [ord(r.prompt) for r in mine] and whole.meta[0] == {"text": mine[0].prompt}
    x = torch.stack([whole.chosen, whole.rejected], 1) if kind == "pairs" else whole.items
    assert x.squeeze(2).tolist() == [[float(p.stem) for p in r.pictures] for r in mine]
    if kind == "labels":
        assert whole.sign.tolist() == [[1.0 if r.good else -1.0] for r in mine]
    if kind == "lists":
        assert whole.score.tolist() == [list(r.score) for r in mine]


# ---- pictures as states


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


SLOW = ("flux2-klein", "sdxl", "flux", "qwen-image", "sana", "dit")


@pytest.mark.parametrize("name", ["sd15", "sd3", "sit", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_encoding_is_the_inverse_of_decoding(name: str, root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder is handed for a state is the code that the encoder gave for its picture, to 1e-5."""
    pytest.importorskip("diffusers")
    if name == "sit":
        autoencoder(scaling_factor=0.18215).save_pretrained(root / "sit-vae")
        adapter: Adapter = load_pipeline(f"{sit_checkpoint(root / 'picture-sit.pt')},{root / 'sit-vae'}")
    else:
        adapter = load_pipeline(folder_of(name, root))
    vae, codes, handed = adapter.pipe.vae, [], []
    encode, decode = vae.encode, vae.decode

    def watched(x: Tensor) -> Any:
        found = encode(x)
        law = getattr(found, "latent_dist", None)
        codes.append(found.latent if law is None else law.mean)
        return found

    def stopped(z: Tensor, **rest: Any) -> Any:
        handed.append(z)
        return decode(z, **rest)

    side = adapter.decoder()(torch.zeros(1, *adapter.shape)).shape[2:]
    monkeypatch.setattr(vae, "encode", watched)
    monkeypatch.setattr(vae, "decode", stopped)
    with torch.no_grad():
        x = adapter.encoder()(torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        assert x.shape == (2, *adapter.shape) and x.dtype == torch.float32 and float(x.std()) > 1e-3
        adapter.decoder()(x)
    torch.testing.assert_close(handed[-1], codes[-1], rtol=1e-5, atol=1e-5)


def test_a_family_that_decodes_on_its_own_must_say_how_it_encodes(root: Any) -> None:
    pytest.importorskip("diffusers")
    adapter = load_pipeline(folder_of("sd15", root))

    class Own(type(adapter)):
        def to_data(self, x: Tensor) -> Tensor:
            return super().to_data(x)

    with pytest.raises(GirsanovError, match="Own does not say how pictures become its latents: give it a to_latents"):
        Own(adapter.pipe, adapter.config).encoder()(torch.zeros(1, 3, 16, 16))


def test_pictures_are_encoded_once_by_their_content(root: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A copy, another process and a damaged file; the state is that of the picture; other weights are another cache."""
    pytest.importorskip("diffusers")
    adapter = load_pipeline(folder_of("sd15", root))
    colours, calls = [(200, 10, 30), (10, 200, 30)], []
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, colour in zip(paths, [*colours, colours[0]], strict=True):
        Image.new("RGB", (20, 20), colour).save(path)
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:40])
    (tmp_path / "no.jpg").write_text("words")
    to_latents = adapter.to_latents
    monkeypatch.setattr(adapter, "to_latents", lambda x: calls.append(len(x)) or to_latents(x))
    encode = PictureEncoder(adapter, folder=tmp_path / "cache")
    wrong = encode.prepare([*paths, tmp_path / "gone.png", tmp_path / "cut.png", tmp_path / "no.jpg"])
    assert sum(calls) == 2 and len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    said = {p.name: what.removeprefix(f"{p} ") for p, what in wrong.items()}
    assert said["gone.png"] == f"there is no picture {tmp_path / 'gone.png'}" and len(said) == 3
    assert said["no.jpg"] == "is no readable picture (of no known format)" and "is no readable" in said["cut.png"]
    x = encode(paths)
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
    with torch.no_grad():
        alone = to_latents(read_picture(paths[1], encode.side).unsqueeze(0))[0]
    torch.testing.assert_close(x[1], alone, rtol=1e-5, atol=1e-5)
    again = PictureEncoder(adapter, folder=tmp_path / "cache")
    assert torch.equal(again(paths), x) and sum(calls) == 2
    place = again._place(again._name(paths[0]))
    place.write_bytes(place.read_bytes()[:50])
    torch.testing.assert_close(again(paths), x, rtol=1e-5, atol=1e-5)
    assert sum(calls) == 3
    with pytest.raises(GirsanovError, match="there is no picture"):
        again([tmp_path / "gone.png"])
    with torch.no_grad():
        adapter.pipe.vae.encoder.conv_in.weight.add_(0.1)
    assert PictureEncoder(adapter, folder=tmp_path / "cache").folder != again.folder


def test_a_picture_covers_the_size_and_is_cut_around_its_centre(tmp_path: Path) -> None:
    """Upright by its own mark, white where it is transparent, half of a wide one's sides lost."""
    wide = Image.new("RGB", (40, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 30, 10))  # the middle half
    wide.save(tmp_path / "wide.png")
    assert float(read_picture(tmp_path / "wide.png", (10, 20)).min()) == 1.0
    seen = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    seen.save(tmp_path / "clear.png")
    assert bool((read_picture(tmp_path / "clear.png", (4, 4)) == 1).all())
    turned = Image.new("RGB", (8, 4), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 4, 4))
    mark = Image.Exif()
    mark[0x0112] = 6  # the camera was held upright: the left half is the top
    turned.save(tmp_path / "turned.png", exif=mark)
    x = read_picture(tmp_path / "turned.png", (8, 4))
    assert float(x[:, :3].min()) > 0.9 and float(x[:, 5:].max()) < -0.9
    assert read_picture(tmp_path / "turned.png", (4, 4)).dtype == torch.float32


def test_a_pipeline_without_pictures_learns_from_none() -> None:
    still = SimpleNamespace(
        shape=(2, 4),
        decoder=lambda: lambda x: torch.zeros(1, 1, 8),
        pipe=SimpleNamespace(vae=torch.nn.Linear(1, 1)),
        config=SimpleNamespace(chunk=2),
    )
    with pytest.raises(GirsanovError, match="SimpleNamespace draws no pictures, so it learns from none"):
        _ = PictureEncoder(still, folder=Path("unused")).side
