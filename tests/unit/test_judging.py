"""Judges: order, ties, replies, the cache, and a real server on this machine that misbehaves in every way."""

import base64
import json
import math

import pytest

from girsanov.cli import main
from girsanov.errors import GirsanovError
from girsanov.jsonl import read_rows, write_rows
from girsanov.judging import READERS, Answer, BothOrders, Comparison, ScoreJudge, ServerJudge, Verdict, position_bias
from girsanov.judging.base import PairJudge
from girsanov.judging.parsing import Brackets, Json, Scores
from girsanov.judging.tournament import Answers, against, elo_ratings, play, ranking, read_answers, read_games
from tests.completions import completions, said

PNG = b"\x89PNG\r\n\x1a\n picture"


def pair(a: str, b: str, prompt: str = "say it") -> Comparison:
    return Comparison(prompt, Answer(a), Answer(b))


# ---- readers


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        (Brackets(), "A is good. [[A]]", 1.0),
        (Brackets(), "First I thought [[A]], but no: [[b]]", 0.0),
        (Brackets(), "[[C]]", 0.5),
        (Brackets(), "it is a [[ tie ]]", 0.5),
        (Brackets(), "A is better", None),
        (Brackets(), "[[D]]", None),
        (Json(), 'Because {"x": 1}. {"winner": "B"}', 0.0),
        (Json(), '```json\n{"winner": "tie", "why": "{"}\n```', 0.5),
        (Json(), '{"winner": "nobody"}', None),
        (Json(), '{"winner": ', None),
        (Scores(), "[[7]] [[4]]", 1.0),
        (Scores(), "Ratings: [[7.5]] [[7.5]]", 0.5),
        (Scores(), "Because.\n8, 9", 0.0),
        (Scores(), "A: 9/10, B: 3/10", 1.0),
        (Scores(), '{"A": 2, "B": 6}', 0.0),
        (Scores(tie=1.0), "[[7]] [[8]]", 0.5),
        (Scores(), "-1 -2", 1.0),
        (Scores(), "there are 2 answers", None),
    ],
)
def test_replies_are_read(reader, text, value) -> None:
    assert reader(text) == value


# ---- both orders


class First(PairJudge):
    """Prefers longer answers, and whatever is shown first by ``lean``."""

    def __init__(self, lean: float) -> None:
        self.lean = lean

    def __call__(self, comparisons):
        gap = [len(c.a.text) - len(c.b.text) for c in comparisons]
        return [Verdict(0.5 + 0.1 * g + self.lean) for g in gap]


def test_both_orders_take_a_preference_for_a_place_away() -> None:
    pairs = [pair("long", "no"), pair("no", "long"), pair("same", "same")]
    plain = [v.value for v in First(0.0)(pairs)]
    assert plain == [0.7, 0.3, 0.5]
    both = BothOrders(First(0.2))(pairs)
    assert [v.value for v in both] == pytest.approx(plain)
    assert position_bias(both).value == pytest.approx(0.2)
    assert [v.value for v in BothOrders(First(0.25), agree=True)(pairs)] == pytest.approx([0.5, 0.5, 0.5])
    with pytest.raises(GirsanovError, match="wrap the judge in BothOrders"):
        position_bias(First(0.2)(pairs))


def test_an_unusable_order_makes_the_pair_unusable() -> None:
    class Half(PairJudge):
        def __call__(self, comparisons):
            return [Verdict(None, reason="?") if c.a.text == "no" else Verdict(1.0) for c in comparisons]

    verdict = BothOrders(Half())([pair("yes", "no")])[0]
    assert (verdict.value, verdict.first, verdict.second, verdict.reason) == (None, 1.0, None, "?")


def test_scores_are_a_judge_without_an_order() -> None:
    judge = ScoreJudge(lambda prompt, answer: float(len(answer.text)))
    assert [v.value for v in judge([pair("aaa", "b"), pair("a", "bbb"), pair("a", "b")])] == [1.0, 0.0, 0.5]
    soft = ScoreJudge(lambda prompt, answer: float(len(answer.text)), temperature=2.0, tie=1.0)
    assert soft([pair("aaa", "b")])[0].value == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert soft([pair("aa", "b")])[0].value == 0.5
    assert ScoreJudge(lambda p, a: math.nan)([pair("a", "b")])[0].value is None
    with pytest.raises(GirsanovError, match=r"the judge's score raised ZeroDivisionError"):
        ScoreJudge(lambda p, a: 1 / 0)([pair("a", "b")])


# ---- a server


def by_e(body: dict, count: int) -> tuple[int, dict, dict]:
    content = body["messages"][1]["content"]
    a, b = (content.partition(f"[Answer {x}]")[2].partition("[End")[0].count("e") for x in "AB")
    return said("[[A]]" if a > b else "[[B]]" if b > a else "[[C]]")


@pytest.fixture
def served():
    with completions() as start:
        yield start


PAIRS = [pair("bee", "ant"), pair("ant", "bee"), pair("ox", "ant")]


def test_a_model_behind_a_server_is_asked_both_ways(served, monkeypatch) -> None:
    monkeypatch.setenv("GIRSANOV_JUDGE_TOKEN", "open sesame")
    server = served(by_e)
    verdicts = BothOrders(ServerJudge(server.url, "small"))(PAIRS)
    assert [v.value for v in verdicts] == [1.0, 0.0, 0.5]
    assert position_bias(verdicts).value == 0.0
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer open sesame"
    assert body["model"] == "small" and body["temperature"] == 0.0 and len(server.requests) == 6
    assert "open sesame" not in repr(ServerJudge(server.url, "small", token="open sesame"))


def test_replies_are_cached_and_a_damaged_file_is_asked_again(served, tmp_path) -> None:
    server = served(by_e)
    judge = ServerJudge(server.url, "small", cache=str(tmp_path / "replies"))
    first = judge(PAIRS)
    assert judge(PAIRS) == first and len(server.requests) == 3
    next((tmp_path / "replies").rglob("*.json")).write_text("{")
    assert judge(PAIRS) == first and len(server.requests) == 4
    ServerJudge(server.url, "large", cache=str(tmp_path / "replies"))(PAIRS)
    assert len(server.requests) == 7


def test_a_reply_without_a_verdict_is_asked_for_again_with_another_seed(served) -> None:
    server = served(lambda body, count: said("[[A]]" if body["seed"] == 2 else "well, it depends"))
    assert ServerJudge(server.url, "m", workers=1)([PAIRS[0]])[0].value == 1.0
    assert [body["seed"] for _, _, body in server.requests] == [0, 1, 2]
    verdict = ServerJudge(server.url, "m", attempts=2)([PAIRS[0]])[0]
    assert verdict.value is None and verdict.reason == "well, it depends"


def test_a_busy_server_is_waited_for(served) -> None:
    def busy(body, count):
        return (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"}) if count < 3 else by_e(body, count)

    server = served(busy)
    assert ServerJudge(server.url, "m", pause=0.01)([PAIRS[0]])[0].value == 1.0
    assert len(server.requests) == 3
    refusing = served(lambda body, count: (429, {"error": {"message": "slow down"}}, {}))
    with pytest.raises(GirsanovError, match=r"^the judge http://127.0.0.1:\d+/v1 answered 429: slow down$"):
        ServerJudge(refusing.url, "m", pause=0.01, retries=1)([PAIRS[0]])


def test_soft_verdicts_are_probabilities(served) -> None:
    """P(A) = .6 and P(" B") = .2 of the first token: .75."""
    top = [{"token": "A", "logprob": math.log(0.6)}, {"token": " B", "logprob": math.log(0.2)}]
    server = served(lambda body, count: said("A", logprobs={"content": [{"top_logprobs": top}]}))
    assert ServerJudge(server.url, "m", soft=True)([PAIRS[0]])[0].value == pytest.approx(0.75)
    body = server.requests[0][2]
    assert body["logprobs"] is True and body["max_tokens"] == 1
    plain = served(by_e)
    assert ServerJudge(plain.url, "m", soft=True, attempts=1)([PAIRS[0]])[0].value is None


def test_pictures_travel_as_data(served) -> None:
    server = served(lambda body, count: said("[[B]]"))
    question = Comparison("a bee", Answer(image=PNG), Answer(image=b"\xff\xd8 jpeg"))
    assert ServerJudge(server.url, "m")([question])[0].value == 0.0
    parts = server.requests[0][2]["messages"][1]["content"]
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    assert urls[0] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert urls[1].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("answer", "said_"),
    [
        (lambda b, c: (200, {"no": 1}, {}), "answered with something that is no chat completion"),
        (lambda b, c: (401, {}, {}), "refused the token: set GIRSANOV_JUDGE_TOKEN"),
        (lambda b, c: (404, {"error": {"message": "no model m"}}, {}), "answered 404: no model m"),
    ],
)
def test_what_a_server_says_wrong_is_one_sentence(served, answer, said_) -> None:
    server = served(answer)
    with pytest.raises(GirsanovError) as error:
        ServerJudge(server.url, "m", workers=2)(PAIRS)
    assert said_ in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said_"),
    [
        (lambda: ServerJudge("localhost", "m"), "'localhost' is not the address of a judge"),
        (lambda: ServerJudge("http://127.0.0.1:1", ""), "a judge needs a model's name"),
        (lambda: ServerJudge("http://127.0.0.1:1", "m", timeout=0), "a judge needs a positive timeout"),
        (lambda: ScoreJudge(len, temperature=-1), "must be at least 0"),
        (lambda: Answer("  "), "an answer is empty"),
    ],
)
def test_wrong_settings(make, said_) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert said_ in str(error.value)


# ---- files and the command line


def answers(path, model, words, key="prompt"):
    write_rows(path, [{key: f"p{i}", "answer": w, "model": model} for i, w in enumerate(words)])
    return str(path)


def files(tmp_path):
    base = ["an ox", "a cat", "a dog", "a rat"] * 3
    return [
        answers(tmp_path / "one.jsonl", "one", [w + " here" for w in base]),
        answers(tmp_path / "two.jsonl", "two", [w + (" eee" if i % 3 == 0 else "") for i, w in enumerate(base)]),
        answers(tmp_path / "three.jsonl", "three", base),
    ]


def test_judged_files_become_a_ranking_on_the_command_line(served, tmp_path, capsys) -> None:
    """The server counts letters e: one has two everywhere, two has three in a third of its answers, three has none."""
    server, out = served(by_e), tmp_path / "verdicts.jsonl"
    paths = files(tmp_path)
    arguments = ["judge", *paths, "--url", server.url, "--model", "m", "--out", str(out)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "36 pairs judged" in first and "shown first" in first
    games = read_games(out)
    assert len(games) == 36 and {g.verdict.value for g in games} == {0.0, 0.5, 1.0}
    found = against(games, "one", "two")
    assert found.rate.value == pytest.approx(8 / 12) and found.controlled is not None
    assert against(games, "two", "one").rate.value == pytest.approx(4 / 12)
    asked = len(server.requests)
    assert main(["rank", str(out), "--prior", "0.1", "--baseline", "three"]) == 0
    text = capsys.readouterr().out
    assert len(server.requests) == asked
    lines = [line.split()[:2] for line in text.splitlines()]
    assert [["1", "one"], ["2", "two"], ["3", "three"]] == [l for l in lines if l and l[0] in "123"]
    assert "one over three" in text and "Elo" in text
    assert elo_ratings(games)["one"] > elo_ratings(games)["three"]


def test_a_function_can_judge_on_the_command_line(tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text("def shorter(prompt, answer):\n    return -len(answer.text)\n")
    paths = files(tmp_path)[::2]
    out = str(tmp_path / "v.jsonl")
    assert main(["judge", *paths, "--score", f"{tmp_path / 'mine.py'}:shorter", "--out", out]) == 0
    assert "one over three: 0.0% [0.0%, " in capsys.readouterr().out
    assert [row["value"] for _, row in read_rows(out)] == [0.0] * 12
    with pytest.raises(GirsanovError, match="three never lost to the others"):
        ranking(read_games(out))
    assert main(["rank", out]) == 2 and "give a prior" in capsys.readouterr().err
    assert main(["rank", out, "--prior", "0.1", "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["win_rates"][0]["rate"]["value"] == 1.0
    assert main(["judge", *paths]) == 2 and "name one judge" in capsys.readouterr().err


def test_what_is_wrong_with_a_file_is_told_with_its_row(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    for text, message in {
        '{"prompt": "p", "answer": "a"}\n{"prompt"': "row 2 is no JSON",
        "[1]": "row 1 must be an object, not list",
        '{"prompt": "p", "answer": ""}': "row 1: an answer is empty",
        '{"answer": "a"}': "row 1 has no 'prompt'",
        '{"prompt": 3, "answer": "a"}': "'prompt' is 3, not text",
        '{"prompt": "p", "answer": "a"}\n\n{"prompt": "p", "answer": "b"}': "row 3 answers a prompt for the second",
        '{"prompt": "p", "image": "no.png"}': "row 1: there is no picture",
        '{"prompt":"p","answer":"a","model":"m"}\n{"prompt":"q","answer":"a","model":"n"}': "answers of m, n",
        "": "holds no answers",
    }.items():
        path.write_text(text)
        with pytest.raises(GirsanovError, match=message):
            read_answers(path)
    for text, message in {
        '{"a": "x", "b": "y", "value": 2}': "row 1: the value is 2",
        '{"a": "x", "b": "x", "value": 1}': "row 1 sets 'x' against itself",
        '{"a": "x", "b": "y", "value": "won"}': "'value' is 'won', not a number",
        '{"a": "x", "value": 1}': "row 1 has no 'b'",
    }.items():
        path.write_text(text)
        with pytest.raises(GirsanovError, match=message):
            read_games(path)
    with pytest.raises(GirsanovError, match="there is no file"):
        read_answers(tmp_path / "nothing.jsonl")
    path.write_text('{"a": "x", "b": "y", "value": null}')
    with pytest.raises(GirsanovError, match="no game has a usable verdict"):
        against(read_games(path), "x", "y")


def test_models_that_share_nothing_are_refused(tmp_path) -> None:
    judge = ScoreJudge(lambda p, a: 0.0)
    one, two = (read_answers(answers(tmp_path / f"{n}.jsonl", n, ["a"])) for n in ("one", "two"))
    with pytest.raises(GirsanovError, match="a comparison needs two models or more"):
        play([one, one], judge)
    other = Answers("o", {"elsewhere": Answer("b")})
    with pytest.raises(GirsanovError, match="one and o have no prompt in common"):
        play([one, other], judge)
    assert [g.verdict.value for g in play([one, two], judge)] == [0.5]
    assert set(READERS) == {"brackets", "json", "scores"}
