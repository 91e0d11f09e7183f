"""Judges that are asked in words: families, traps, interruption, and what is said when something is wrong."""

import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from maga.data import ImageSet, MagaError
from maga.device import out_of_memory, seeded
from maga.judges import scorers, toy
from maga.judges.__main__ import main
from maga.judges.answers import AnswerFile, Question, Stored
from maga.judges.chat import chat_lengths, load_chat_model
from maga.judges.contract import Answers, Block, FeatureJudge, LabelJudge, ask_all, draw_exemplars, image_hashes
from maga.judges.families import FAMILIES, SHOWN_EXACT, tiny_vlm
from maga.judges.mmicl import MMICL, PLACEHOLDER_ID, load_mmicl_judge, mmicl_text, tiny_mmicl
from maga.judges.named import KINDS, JudgeOptions, judge_forms, judging_cost, local_weights, make_judge, weights_of
from maga.judges.prompt import PROMPT, AnswerWords, ExampleChoice, read_answers, upsized
from maga.judges.quality import nearest, superclasses
from maga.judges.scorers import SharedPrefixScorer
from maga.judges.tiny import SIDE, redrawn, text_sizes, tiny_tokenizer, tower_sizes
from maga.judges.transition import TransitionMatrix, estimate_transition
from maga.judges.vllm import load_vllm_judge
from maga.judges.vlm import VLMJudge, load_vlm_judge
from maga.judges.weights import Source, folder_revision
from maga.judges.words import in_halves
from maga.models import ModelSpec, evaluating, features_and_logits, save_checkpoint, small_network
from maga.sources import digits

from .conftest import raising
from .forked import Forked

pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability on True or False.*")


@pytest.fixture(scope="module")
def exemplars():
    return draw_exemplars(digits()[0], 3, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Where the tiny model of each family is, made at its first use."
    made = {}

    def folder(family):
        if family not in made:
            made[family] = str(tiny_vlm(family, tmp_path_factory.mktemp(family), torch.Generator().manual_seed(3)))
        return made[family]

    return folder


@pytest.fixture
def judge(folders, exemplars):
    def make(family, **given):
        return load_vlm_judge(folders(family), exemplars, size=SIDE, **given)

    return make


def logits_of(judge, queries, concept, monkeypatch):
    "The last logits behind the prompt, [n, vocabulary], in the order of the judge's blocks."
    seen = []
    read = scorers.read_answers
    with monkeypatch.context() as m:
        m.setattr(scorers, "read_answers", lambda words, after: seen.append(after(())[:, -1]) or read(words, after))
        for block in judge.blocks(queries, [concept]):
            judge.ask(queries, block)
    return torch.cat(seen)


# ---- the shared-prefix scorer, family by family


@pytest.mark.parametrize("family", SHOWN_EXACT)
def test_shared_prefix_equals_naive(judge, exemplars, monkeypatch, family):
    slow, fast = (logits_of(judge(family, scorer=s, batch_size=8), exemplars, 4, monkeypatch) for s in ("naive", "shared"))
    assert slow.dtype == torch.float32
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)
    assert slow.std() > 0.3  # of a size at which 1e-5 means something


@pytest.mark.parametrize("family", SHOWN_EXACT)
def test_it_also_does_where_transformers_takes_no_features(judge, exemplars, monkeypatch, family):
    fast = judge(family, scorer="shared")
    fast.bank.takes_features = False
    torch.testing.assert_close(
        logits_of(fast, exemplars, 4, monkeypatch), logits_of(judge(family, scorer="naive"), exemplars, 4, monkeypatch), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", SHOWN_EXACT)
def test_every_image_of_the_prompt_matters(judge, exemplars, family):
    asked = judge(family)
    pictures = upsized(exemplars.images[:4], SIDE)

    def q(shown, other, query):
        return asked.naive.answers("four", (pictures[shown], pictures[other]), [pictures[query]])[0]

    reference = q(0, 1, 2)
    for changed in (q(3, 1, 2), q(0, 3, 2), q(0, 1, 3)):
        assert (changed - reference).abs() > 1e-4


def test_qwen2_5_vl_is_wrong_without_explicit_positions(judge, exemplars, monkeypatch):
    slow = logits_of(judge("qwen2_5_vl", scorer="naive"), exemplars, 4, monkeypatch)
    monkeypatch.setattr(SharedPrefixScorer, "positions", lambda self, inputs: None)
    fast = logits_of(judge("qwen2_5_vl", scorer="shared"), exemplars, 4, monkeypatch)
    assert (fast - slow).abs().max() > 0.01  # no error, just wrong


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_words_of_several_pieces_are_read_alike(judge, exemplars, family):
    both = [judge(family, scorer=s) for s in ("naive", "shared")]
    assert max(map(len, both[0].naive.words.stems)) > 0
    slow, fast = (ask_all(j, exemplars, [7]) for j in both)
    torch.testing.assert_close(fast.confidence, slow.confidence, atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.mass, slow.mass, atol=0, rtol=1e-4)


def test_batches_do_not_change_the_answers(judge, exemplars):
    one, many = (ask_all(judge("qwen3_vl", batch_size=b), exemplars, [0, 9]).confidence for b in (1, 64))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_transition_matrix_of_a_vision_language_model(judge, exemplars, tmp_path):
    made = estimate_transition(judge("internvl"), exemplars)
    again = TransitionMatrix.load(made.save(tmp_path / "T.safetensors"))
    assert again.about["prompt"] == PROMPT and again.about["judge"].startswith("vlm:") and "float32 32px" in again.about["revision"]
    assert torch.equal(again.T, made.T)


# ---- traps and mistakes


def test_a_family_that_was_not_shown_exact_is_asked_naively_or_refused(folders, exemplars):
    parts = load_chat_model(folders("internvl"), size=SIDE)
    expected = ask_all(VLMJudge(parts, exemplars, "vlm:x", "1", scorer="naive"), exemplars, [2]).confidence
    parts.model.config.model_type = "somebody_elses_vlm"
    with pytest.raises(MagaError, match="not shown to be exact for the family somebody_elses_vlm"):
        VLMJudge(parts, exemplars, "vlm:x", "1", scorer="shared")
    with pytest.warns(UserWarning, match="Only the naive scorer is exact"):
        judge = VLMJudge(parts, exemplars, "vlm:x", "1")
    assert judge.shared is None
    torch.testing.assert_close(ask_all(judge, exemplars, [2]).confidence, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", SHOWN_EXACT)
@pytest.mark.parametrize("scorer", ["naive", "shared"])
def test_a_processor_that_drops_images(judge, exemplars, family, scorer):
    asked = judge(family, scorer=scorer)
    template = asked.parts.processor.chat_template
    asked.parts.processor.chat_template = template.replace("c['type'] == 'image' %}", "c['type'] == 'image' and loop.index < 5 %}").replace(
        "{{ c['text'] }}", "{{ c.get('text', '') }}"
    )
    with pytest.raises(MagaError, match="drops images"):
        asked.scores(exemplars, [0])


def test_a_tokenizer_without_the_placeholder(folders, exemplars):
    parts = load_chat_model(folders("qwen3_vl"), size=SIDE)
    parts.processor.image_token = "<no such token>"
    with pytest.raises(MagaError, match="no token for images"):
        VLMJudge(parts, exemplars, "vlm:x", "1")
    parts.processor.image_token = "<video>"
    with pytest.raises(MagaError, match="the model expects"):
        VLMJudge(parts, exemplars, "vlm:x", "1")


def test_true_and_false_that_cannot_be_told_apart(folders, exemplars):
    parts = load_chat_model(folders("qwen3_vl"), size=SIDE)
    object.__setattr__(parts, "encode", None)
    encode = parts.processor.tokenizer.encode
    object.__setattr__(parts, "encode", lambda text: encode(text.replace("True", "?").replace("False", "?"), add_special_tokens=False))
    with pytest.raises(MagaError, match="does not tell True"):
        VLMJudge(parts, exemplars, "vlm:x", "1")


@pytest.mark.parametrize("scorer", ["naive", "shared"])
def test_logits_that_are_not_numbers(judge, exemplars, scorer):
    asked = judge("internvl", scorer=scorer)
    with torch.no_grad():
        asked.parts.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(MagaError, match="not numbers"):
        asked.scores(exemplars, [0])


def test_concepts_named_twice_or_unknown(judge, exemplars):
    with pytest.raises(MagaError, match="four more than once"):
        judge("internvl").scores(exemplars, [4, 4])
    with pytest.raises(MagaError, match="no class 10"):
        judge("internvl").scores(exemplars, [10])


def test_a_model_that_cannot_see(tmp_path):
    from maga.judges.tiny import tiny_encoder

    folder = tiny_encoder(tmp_path, torch.Generator().manual_seed(0))
    with pytest.raises(MagaError, match=r"holds no model|no image processor"):
        load_chat_model(str(folder))


def test_weights_that_are_not_there(exemplars, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MagaError) as told:
        load_vlm_judge("some-org/some-model@abc", exemplars)
    for words in ("some-org/some-model", str(tmp_path.cwd()), "hf download some-org/some-model", "judge `features`"):
        assert words in str(told.value)
    assert "\n" not in str(told.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MagaError, match="holds no model"):
        load_vlm_judge(str(tmp_path), exemplars)


def test_a_device_out_of_memory(judge, exemplars):
    asked = judge("internvl", batch_size=16)
    expected = ask_all(asked, exemplars, [5]).confidence
    answer = asked.shared.answers

    def small(prefix, names):
        if len(names) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer(prefix, names)

    asked.shared.answers = small
    with pytest.warns(UserWarning, match="out of memory: asking 4 prompts at once"):
        halved = ask_all(asked, exemplars, [5]).confidence
    torch.testing.assert_close(halved, expected, atol=1e-5, rtol=0)
    with warnings.catch_warnings():  # it remembers: nothing fails a second time
        warnings.filterwarnings("error", message=".*out of memory.*")
        ask_all(asked, exemplars, [6])


def test_no_memory_for_a_single_prompt_is_a_lack_of_memory():
    "A batch of runs asks for the cause, and tries such a run again when the device is free."
    with pytest.raises(MagaError, match="no memory for a single prompt") as told, pytest.warns(UserWarning, match="asking 1 prompt at once"):
        in_halves(raising(torch.OutOfMemoryError("CUDA out of memory.")), torch.arange(3), 2)
    assert out_of_memory(told.value) and told.value.__cause__ is not None


# ---- MMICL


def test_mmicl_through_save_and_load(exemplars, tmp_path):
    first = load_mmicl_judge(exemplars, str(tiny_mmicl(tmp_path / "a", torch.Generator().manual_seed(0))), dtype="float32")
    first.model.save_pretrained(tmp_path / "b")
    first.tokenizer.save_pretrained(tmp_path / "b")
    second = load_mmicl_judge(exemplars, str(tmp_path / "b"), dtype="float32")
    before, after = (ask_all(j, exemplars, [1, 6]) for j in (first, second))
    assert torch.equal(before.confidence, after.confidence) and torch.equal(before.mass, after.mass)
    assert before.mass.log().std(0).min() > 0.01  # the image matters
    plain = MMICL.from_pretrained(tmp_path / "b")  # as upstream's class, whose parameters it has
    assert {k for k, _ in plain.named_parameters()} == {k for k, _ in MMICL.__mro__[1].from_pretrained(tmp_path / "b").named_parameters()}


def test_mmicl_puts_three_images_where_they_belong(exemplars, tmp_path):
    judge = load_mmicl_judge(exemplars, str(tiny_mmicl(tmp_path, torch.Generator().manual_seed(0))), dtype="float32")
    ids = judge.tokenizer([mmicl_text(PROMPT, c, 4) for c in ("one", "two")], return_tensors="pt").input_ids
    features = torch.randn(6, 4, 32)
    embedded, words = judge.model.embed(ids, features), judge.model.get_input_embeddings()(ids)
    for b in range(2):
        rows = iter(features[3 * b : 3 * b + 3].flatten(0, 1))
        for p, token in enumerate(ids[b].tolist()):
            expected = next(rows) if token == PLACEHOLDER_ID else words[b, p]
            assert torch.equal(embedded[b, p], expected)
        assert next(rows, None) is None


# ---- kill -9

def logged(log: Path, pause: float, arguments: list[str]) -> int:
    "The command, which writes down what it asks before it asks it."
    ask = VLMJudge.ask

    def noted(self, queries, block):
        hashes = self.hashes(queries)
        with log.open("a") as file:
            file.writelines(json.dumps([hashes[i], block.concepts[0]]) + "\n" for i in block.rows.tolist())
        time.sleep(pause)
        return ask(self, queries, block)

    VLMJudge.ask = noted
    return main(arguments)


class Saying:
    "A judge with a matrix of answers, of any shape."

    name, revision, prompt = "saying", "1", ""

    def __init__(self, said):
        self.said = said

    def scores(self, queries, concepts):
        return self.said


def test_a_judge_that_says_the_wrong_thing_is_named(exemplars):
    "Not by torch, and never by a cut."
    n, k = len(exemplars), len(exemplars.classes)
    for said in (torch.zeros(n, k).numpy(), torch.rand(n, k - 1), torch.rand(n - 1, k), torch.rand(n, k + 1)):
        with pytest.raises(MagaError, match=rf"What the judge saying says is .*\[{n}, {k}\]"):
            estimate_transition(Saying(said), exemplars)
    for table in (torch.rand(k, k + 2), torch.rand(k, k).numpy()):
        with pytest.raises(MagaError, match="The table of similarities is"):
            LabelJudge(table, exemplars, "mine", "1")
    S = torch.eye(k, dtype=torch.float64)
    assert TransitionMatrix(S, S, exemplars.classes).T.dtype == torch.float32


def test_a_transition_matrix_in_another_order_says_the_same_of_each_pair():
    "The new order is a cycle of three, whose inverse is another order."
    made = TransitionMatrix.from_similarity(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), ("a", "b", "c"))
    moved = made.in_order(("b", "c", "a"))
    for ours, theirs in ((moved.T, made.T), (moved.S, made.S)):
        assert all(ours[i, j] == theirs["abc".index(k), "abc".index(m)] for i, k in enumerate(moved.classes) for j, m in enumerate(moved.classes))


@pytest.mark.parametrize("bad", [float("nan"), 1.5, None])
def test_unusable_answers_are_not_kept(bad, exemplars, tmp_path):
    "Not a number, outside [0, 1], of another shape: said, and asked again."
    told = Told()
    plain = told.ask
    told.ask = lambda queries, block: Answers(*(torch.full((len(block.rows), 1), bad) if bad else torch.zeros(1, 3),) * 2)
    with pytest.raises(MagaError, match=r"[Tt]he judge told"):
        Stored(told, exemplars, tmp_path).scores(exemplars, [0])
    told.ask = plain
    assert torch.equal(Stored(told, exemplars, tmp_path).scores(exemplars, [0]), Told().scores(exemplars, [0]))


def test_one_tensor_is_both_s_and_t(tmp_path):
    "Whatever device torch makes tensors on by default."
    with torch.device("meta"):
        made = TransitionMatrix(one := torch.eye(3, device="cpu"), one, ("a", "b", "c"))
    assert torch.equal(TransitionMatrix.load(made.save(tmp_path / "T.safetensors")).S, made.T)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_similarities_on_a_gpu_are_kept_on_the_cpu():
    S = torch.eye(3) + 0.5
    made = TransitionMatrix.from_similarity(S.cuda(), "abc")
    assert made.T.device.type == "cpu" and made.digest == TransitionMatrix.from_similarity(S, "abc").digest


def test_nearest_classes_are_others():
    assert nearest(torch.rand(3, 3), "abc", 1, 5) in (["a", "c"], ["c", "a"]) and nearest(torch.rand(2, 2), "ab", 0) == ["b"]


def test_a_class_without_an_image_has_no_superclass(digit_sets):
    train = digit_sets[0]
    with pytest.raises(MagaError, match="no image of three, so nothing says the superclass"):
        superclasses(train.subset((train.labels != 3).nonzero().flatten()))


def test_a_picture_of_two_classes_is_no_example_beside_itself(exemplars):
    images = exemplars.images.clone()
    images[15:17] = images[0]  # class five has this picture of class zero, and another one
    choice = ExampleChoice(replace(exemplars, images=images))
    with pytest.raises(MagaError, match="'five' has no exemplar that is neither the query nor the other example"):
        choice.pair(0, choice.hashes[17])


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_queries_may_have_another_shape_than_the_exemplars(judge, exemplars, shape):
    "Also one that takes another number of tokens, and one whose tokens lie otherwise."
    few = exemplars.subset(torch.arange(2))
    queries = replace(few, images=nn.functional.interpolate(few.images.float(), shape).to(torch.uint8))
    slow, fast = (judge("qwen2_5_vl", scorer=s) for s in ("naive", "shared"))
    fast.scores(few, [4])  # a beginning for the exemplars' shape is there
    torch.testing.assert_close(fast.scores(queries, [4]), slow.scores(queries, [4]), atol=1e-5, rtol=0)


def test_judges_of_a_folder_speak_of_no_normalisation(tmp_path, monkeypatch):
    "They look at pixels."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))
    for n, name in enumerate(f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in range(2)):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "own" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = ["--data", str(tmp_path / "own"), "--judge", "identity", "--exemplars", "2", "--out", str(tmp_path / "T.safetensors")]
        assert main([*line, "--device", "cpu"]) == 0


def test_a_file_with_t_has_its_ending(tmp_path, capsys):
    assert main(["--data", "digits", "--judge", "random", "--out", str(tmp_path / "T")]) == 1
    assert f"--out {tmp_path / 'T'}.safetensors" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_killed_and_resumed(folders, tmp_path):
    batch = 8
    given = ["--data", "digits", "--judge", f"vlm:{folders('qwen2_5_vl')}", "--exemplars", "3", "--size", str(SIDE), "--device", "cpu"]
    given += ["--batch-size", str(batch)]

    def start(out, log, pause):
        return Forked(logged, tmp_path / log, pause, [*given, "--out", str(tmp_path / out)], TRANSFORMERS_VERBOSITY="error")

    process = start("T.safetensors", "asked", 0.2)
    answers = tmp_path / "T.safetensors.answers"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.alive():
        files = list(answers.glob("*.jsonl"))
        if files and files[0].read_bytes().count(b"\n") > 12:
            break
        time.sleep(0.02)
    assert process.alive(), "it ended before it could be killed"
    process.kill()
    assert not (tmp_path / "T.safetensors").exists()
    before = len((tmp_path / "asked").read_text().splitlines())
    assert 0 < before < 300

    assert start("T.safetensors", "asked", 0).ended().returncode == 0
    assert main([*given, "--out", str(tmp_path / "whole.safetensors")]) == 0
    killed, whole = (TransitionMatrix.load(tmp_path / f"{name}.safetensors") for name in ("T", "whole"))
    assert torch.equal(killed.S, whole.S) and torch.equal(killed.T, whole.T)
    asked = Counter((tmp_path / "asked").read_text().splitlines())
    assert len(asked) == 300 and max(asked.values()) <= 2
    assert sum(n - 1 for n in asked.values()) <= batch

    kept = next(answers.glob("*.jsonl")).read_text().splitlines()
    pairs = Counter((q, c) for line in kept[1:] for record in [json.loads(line[9:])] for q in record["queries"] for c in record["concepts"])
    assert len(pairs) == 300 and set(pairs.values()) == {1}


def test_a_store_of_another_version_or_cut_off(judge, exemplars, tmp_path):
    some = exemplars.subset(torch.arange(4))
    first = Stored(judge("internvl"), exemplars, tmp_path)
    q = first.scores(some, [0, 1])
    path, whole = first.file.path, first.file.path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.warns(UserWarning, match="was cut off"):
        again = Stored(judge("internvl"), exemplars, tmp_path)
    assert torch.equal(again.scores(some, [0, 1]), q)
    path.write_bytes(whole[:50])
    with pytest.raises(MagaError, match="first line is damaged or cut off"):
        Stored(judge("internvl"), exemplars, tmp_path)
    path.write_bytes(whole.replace(b'"queries": ["', b'"queries": ["0', 1))
    with pytest.raises(MagaError, match=r"Line 2 of .* is damaged"):
        Stored(judge("internvl"), exemplars, tmp_path)


def test_a_changed_prompt_is_never_answered_from_old_answers(judge, exemplars, tmp_path):
    some = exemplars.subset(torch.arange(2))
    plain, changed = judge("internvl"), judge("internvl", prompt=PROMPT.replace("shows a photo", "is a photo"))
    first = Stored(plain, exemplars, tmp_path).scores(some, [0])
    second = Stored(changed, exemplars, tmp_path).scores(some, [0])
    assert not torch.equal(first, second)
    assert torch.equal(second, changed.scores(some, [0]))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


# ---- the examples in a prompt


def test_no_query_stands_in_its_own_prompt(judge, exemplars):
    asked = judge("internvl")
    hashes = image_hashes(exemplars.images)
    for block in asked.blocks(exemplars, range(10)):
        (k,) = block.concepts
        for row in block.rows.tolist():
            pair = asked.choice.pair(k, hashes[row])
            assert hashes[row] not in (hashes[pair.shown], hashes[pair.other])
            assert exemplars.labels[pair.shown] == k != exemplars.labels[pair.other]


def test_dry_run_loads_no_weights(folders, capsys, tmp_path):
    import shutil

    folder = tmp_path / "processor only"
    shutil.copytree(folders("qwen3_vl"), folder)
    (folder / "model.safetensors").unlink()
    status = main(
        ["--data", "digits", "--judge", f"vlm:{folder}", "--exemplars", "2", "--size", str(SIDE), "--device", "cpu", "--dry-run", "--rate", "100"]
    )
    told = capsys.readouterr().out
    assert status == 0 and "200 prompts" in told and "tokens" in told and "about" not in told and "at 100 a second" in told


class Replacement:
    "vLLM's interface without a model: True and False are equally likely; `calls` holds the number of prompts of each call."

    calls: ClassVar[list[int]] = []

    def __init__(self, model, **given):
        self.given = given

    def generate(self, requests, sampling, use_tqdm):
        self.calls.append(len(requests))
        likely = {token: SimpleNamespace(logprob=-1.0) for token in sampling.allowed_token_ids}
        return [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[likely])]) for _ in requests]


def test_vllm_honours_the_batch_size(monkeypatch, tmp_path):
    engine = ModuleType("vllm")
    engine.LLM, engine.SamplingParams = Replacement, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", engine)
    folder = tiny_vlm("qwen3_vl", tmp_path / "model", torch.Generator().manual_seed(0), ["True", "False"])
    given = ["--data", "digits", "--judge", f"vllm:{folder}", "--exemplars", "2", "--size", str(SIDE)]
    assert main([*given, "--batch-size", "7", "--out", str(tmp_path / "T.safetensors")]) == 0
    assert max(Replacement.calls) == 7 and sum(Replacement.calls) == 200


def test_every_family_and_every_kind_of_judge_is_one_record():
    assert tuple(name for name, family in FAMILIES.items() if family.exact and family.tiny) == SHOWN_EXACT  # each of them is tested above
    assert all(name == record.name for registry in (FAMILIES, KINDS) for name, record in registry.items())
    asked = "features, names[:model], clip:<model>, vlm:<model>, vllm:<model>, mmicl[:model], vision:<weights>, llm:<model>"
    assert judge_forms() == f"{asked}, random[:seed], superclasses, identity or toy-vlm"


def test_the_toy_is_loaded_where_it_is_asked_for(exemplars, monkeypatch):
    "`--device` reaches the model."
    asked = []
    monkeypatch.setattr(toy, "toy_folder", lambda config, progress: Path("taught"))
    monkeypatch.setattr(toy, "folder_revision", lambda folder: "0")
    monkeypatch.setattr(toy, "load_chat_model", lambda folder, **more: asked.append(more["device"]))
    monkeypatch.setattr(toy, "VLMJudge", lambda *parts, **more: None)
    make_judge("toy-vlm", exemplars, options=JudgeOptions(device="cuda:1"))
    assert asked == ["cuda:1"]


@pytest.mark.parametrize(("left", "stays"), [("taught", "theirs"), ("begun", "mine"), (None, "mine")])
def test_a_toy_that_another_process_has_taught_stays(left, stays, tmp_path, monkeypatch):
    "It is in use; what a killed process left is replaced. Nothing else is there in the end."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path))
    folder, config = tmp_path / f"toy-vlm-{toy.TOY_VERSION}-1-1-1-64-0.002-0", toy.ToyConfig(1, 1, 1)

    def teach(*parts):
        if left:
            folder.mkdir()
            (folder / left).touch()
            (folder / "weights").write_text("theirs")

    model = SimpleNamespace(save_pretrained=lambda place: Path(place, "weights").write_text("mine"))
    for name, made in (("untrained", None), ("load_chat_model", SimpleNamespace(model=model)), ("lesson", None)):
        monkeypatch.setattr(toy, name, lambda *given, made=made, **more: made)
    monkeypatch.setattr(toy, "teach", teach)
    assert toy.toy_folder(config) == folder and (folder / "weights").read_text() == stays
    assert list(tmp_path.iterdir()) == [folder] and (folder / "taught").exists()


def test_weights_on_this_machine_are_found_in_paths_with_equals_signs(tmp_path, monkeypatch):
    "As trainers name them; changed weights are another judge. What stands before the first sign names a vision judge's network."
    monkeypatch.chdir(tmp_path)
    folder, file = Path("runs/lr=0.1/model"), Path("ckpt/epoch=3-step=100.ckpt")
    for place in (folder, file.parent, Path("resnet18")):
        place.mkdir(parents=True)
    named = {f"vision:resnet18={file}": file, f"llm:{folder}": folder, f"vlm:{folder}": folder, "vision:resnet18": None, "llm:org/a=b": None}
    revisions = []
    for content in ("old", "new!"):
        file.write_text(content)
        (folder / "config.json").write_text(content)
        assert {name: local_weights(name) for name in named} == named
        revisions.append({name: weights_of(name) for name in named})
    assert [name for name in named if revisions[0][name] != revisions[1][name]] == [name for name, place in named.items() if place]


def test_a_judge_of_images_of_different_sizes(tmp_path, capsys):
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "mine" / part / label).mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (9 + k, 12)).save(tmp_path / "mine" / part / label / f"{k}.png")
    given = ["--data", f"folder:{tmp_path}/mine", "--judge", "identity", "--exemplars", "2", "--device", "cpu", "--out", f"{tmp_path}/T.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(given) == 1 and "maga judge --resize" in capsys.readouterr().err
        assert main([*given, "--resize", "8"]) == 0
        assert main([*given, "--data", f"{tmp_path}/mine", "--resize", "8"]) == 0  # a folder as in maga forget
    assert TransitionMatrix.load(tmp_path / "T.safetensors").classes == ("a", "b")
    assert main([*given, "--data", "digits", "--resize", "8"]) == 1 and "leave out --resize" in capsys.readouterr().err


def test_the_feature_judge_takes_a_network_whatever_the_order_of_its_classes(tmp_path):
    "Features are compared, not logits: T is the same, in the order of the data."
    train, _ = digits()
    tables = []
    for name, classes in {"same": train.classes, "turned": train.classes[::-1]}.items():
        spec = replace(ModelSpec.of("small_cnn", train), classes=classes)
        save_checkpoint(tmp_path / f"{name}.safetensors", spec.make(torch.Generator().manual_seed(0)), spec)
        out = tmp_path / f"{name}.T.safetensors"
        assert main(["--data", "digits", "--judge", "features", "--checkpoint", f"{tmp_path}/{name}.safetensors", "--device", "cpu", "--out", f"{out}"]) == 0
        tables.append(TransitionMatrix.load(out))
    assert tables[1].classes == train.classes and torch.equal(tables[0].S, tables[1].S)


def test_a_vision_judge_of_a_network_that_takes_one_size():
    "Exemplars of 32 pixels are asked for at the side that a ViT of 224 was trained at, from the first pass on."
    from maga.judges.vision import VisionJudge, VisionNetwork
    from maga.models import from_timm

    net = from_timm("vit_tiny_patch16_224", None, None, pretrained=False).eval()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exemplars = ImageSet(pixels, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    judge = VisionJudge(VisionNetwork(net, 224, (0.5,) * 3, (0.5,) * 3, "r"), exemplars, "vision:x")
    assert judge.scores(exemplars, [0, 1]).shape == (4, 2)


def test_a_store_keeps_one_answer_a_class_for_a_judge_of_names(tmp_path):
    "Pictures that are alike, here all black, are no reason to give every class the answers of one."
    train = digits()[0]
    black = ImageSet(torch.zeros(10, 3, 1, 1, dtype=torch.uint8), torch.arange(10), train.classes)
    judge = LabelJudge(torch.rand(10, 10, generator=torch.Generator().manual_seed(0)), black, "table", "1")
    for _ in range(2):  # asked, and read
        assert torch.equal(Stored(judge, black, tmp_path).scores(black, range(10)), judge.table)


def test_a_judges_own_error_is_not_the_disks(exemplars, tmp_path):
    class Busy:
        name, revision, prompt = "busy", "1", ""

        def blocks(self, queries, concepts):
            return [Block(torch.arange(len(queries)), (k,)) for k in concepts]

        def ask(self, queries, block):
            raise ConnectionError("the service is overloaded")

    with pytest.raises(ConnectionError, match="overloaded"):
        Stored(Busy(), exemplars, tmp_path).scores(exemplars, [0])


def test_a_second_start_does_not_cut_a_file_that_is_being_written(exemplars, tmp_path):
    "It reads a line that is half there; the first one ends it."
    question = Question("a judge", "1", "", exemplars.digest, exemplars.classes)
    first, one = AnswerFile(tmp_path, question), Answers(torch.tensor([[0.5]]), torch.tensor([[1.0]]))
    with first.writing() as add:
        add(["x"], [0], one)
        whole = first.path.read_bytes()
        with first.path.open("ab") as f:  # the beginning of the next line
            f.write(b"0123")
        with pytest.warns(UserWarning, match="was cut off"):
            second = AnswerFile(tmp_path, question)
        assert first.path.read_bytes() == whole + b"0123" and second.known.keys() == {("x", 0)}
        with pytest.raises(MagaError, match="Another process"), second.writing():
            pass
    with second.writing() as add:  # now it is cut, and goes on
        assert first.path.read_bytes() == whole
        add(["y"], [0], one)
    assert AnswerFile(tmp_path, question).known.keys() == {("x", 0), ("y", 0)}


def test_the_feature_judge_shows_queries_as_its_exemplars_were_shown(exemplars):
    network = small_network(torch.Generator().manual_seed(0))
    judge = FeatureJudge(network, replace(exemplars, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert torch.equal(judge.scores(exemplars, range(10)), judge.scores(judge.exemplars, range(10)))


def test_words_of_several_tokens_are_read_in_one_pass():
    "A stem that another begins with is read along with it, and the answers are those of reading each by itself."
    logits = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(0))
    asked = []

    def logits_after(stem):
        asked.append(stem)
        return logits[:, : len(stem) + 1]

    words = AnswerWords(true=((1,), (4, 2)), false=((3,),))
    confidence, mass = read_answers(words, logits_after)
    p = logits.softmax(-1)
    true, false = p[:, 0, 1] + p[:, 0, 4] * p[:, 1, 2], p[:, 0, 3]
    assert asked == [(4,)] and torch.allclose(confidence, true / (true + false)) and torch.allclose(mass, true + false)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    "A tiny Gemma 3, whose processor marks where an image begins with another token than its pieces have."
    from transformers import AutoModelForImageTextToText, Gemma3Config, Gemma3ImageProcessor, Gemma3Processor, PreTrainedTokenizerFast

    from maga.judges.families import TEMPLATE

    tokenizer, marks = tiny_tokenizer(), {"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer.add_tokens([*marks.values()], special_tokens=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, padding_side="left", pad_token="<pad>", unk_token="<unk>", bos_token="<|im_start|>",
        eos_token="<|im_end|>", extra_special_tokens=marks,
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Gemma3Processor(images, tokenizer, chat_template=TEMPLATE.replace("IMAGE", "<boi>"), image_seq_length=4)
    soft, begin, end = tokenizer.convert_tokens_to_ids([*marks.values()])
    config = Gemma3Config(
        text_config={**text_sizes(tokenizer), "head_dim": 16, "model_type": "gemma3_text"}, mm_tokens_per_image=4,
        vision_config={**tower_sizes(), "image_size": SIDE, "patch_size": SIDE // 4},
        image_token_index=soft, boi_token_index=begin, eoi_token_index=end,
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_config(config)
    return str(redrawn(model, processor, tmp_path_factory.mktemp("gemma"), torch.Generator().manual_seed(0)))


def test_gemma_is_asked_naively(gemma, exemplars):
    "Also where True and False are several tokens; a dry run counts what is read."
    with pytest.warns(UserWarning, match="Only the naive scorer"):
        judge = load_vlm_judge(gemma, exemplars, size=SIDE)
    alone = torch.cat([judge.scores(exemplars.subset(torch.tensor([i])), [3]) for i in range(4)])
    assert torch.allclose(judge.scores(exemplars.subset(torch.arange(4)), [3]), alone, atol=1e-5)
    assert any(judge.naive.words.stems[0])
    lengths, n = chat_lengths(gemma, exemplars, PROMPT, SIDE), len(exemplars)
    cost = judging_cost(f"vlm:{gemma}", exemplars, JudgeOptions(size=SIDE))
    assert cost.tokens == cost.tokens_naive == sum(n * (x.before + x.after) for x in lengths) and not cost.estimated
    text = judge.parts.text(PROMPT, exemplars.classes[3])
    whole = judge.parts.inputs(text, [upsized(exemplars.images[:3], SIDE)])["input_ids"]
    assert lengths[3].before + lengths[3].after == whole.shape[1]


def test_what_decides_a_vllm_answer_is_in_its_key(folders, exemplars, monkeypatch):
    "Precision and quantisation, not where the work is done; and a text's beginning is left to an engine that writes it."
    engine = ModuleType("vllm")
    engine.LLM, engine.SamplingParams = lambda **given: SimpleNamespace(**given), lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", engine)

    def key(**given):
        return Question.of(load_vllm_judge(folders("smolvlm"), exemplars, size=SIDE, **given), exemplars).key

    keys = [key(), key(dtype="float16"), key(dtype="bfloat16"), key(quantization="fp8")]
    assert len(set(keys)) == 4 and key(tensor_parallel_size=2, gpu_memory_utilization=0.5) == keys[0]
    judge, heard = load_vllm_judge(folders("smolvlm"), exemplars, size=SIDE), []
    judge.engine.generate = lambda requests, *_, **__: heard.extend(requests) or [
        SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{t: SimpleNamespace(logprob=-1.0) for t in (*judge.true, *judge.false)}])])
    ] * len(requests)
    text = judge.parts.text(PROMPT, exemplars.classes[0])
    for begin in ("", text[:3]):  # "": the engine writes none
        judge.begin = begin
        judge.scores(exemplars.subset(torch.arange(1)), [0])
        assert heard.pop()["prompt"] == text[len(begin) :]


def test_options_without_effect_are_refused(capsys):
    line = ["--data", "digits", "--exemplars", "2", "--dry-run", "--device", "cpu"]
    for judge, option, word in (("mmicl", "--quantisation 4bit", "vlm"), ("clip:x", "--dtype float32", "vlm, vllm"), ("names", "--size 64", "vlm, vllm.")):
        assert main([*line, "--judge", judge, *option.split()]) == 1
        assert f"takes no {option.split()[0][2:]}: leave it out, or take one of {word}" in capsys.readouterr().err
    for judge, option in (("random", "checkpoint x"), ("vlm:x", "arch x"), ("identity", "batch-size 3"), ("clip:x", "batch-size 3"), ("vllm:x", "device cpu")):
        assert main([*line, "--judge", judge, *f"--{option}".split()]) == 1
        assert f"The judge {judge.split(':')[0]} takes no {option.split()[0]}: leave it out, or take one of " in capsys.readouterr().err
    assert main([*line, "--judge", "vlm:x", "--prompt", "no slots"]) == 1 and "needs {label}" in capsys.readouterr().err


def test_no_memory_for_the_weights_is_said():
    def load():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(MagaError, match="no memory for the model org/name"):
        Source("org/name", "vllm", "org/name", {}).fetched(load)


VLLM_SAYS = {
    "Free memory on device cuda:0 (3.2/4.0 GiB) on startup is less than desired GPU memory utilization (0.9, 3.6 GiB).": "no memory for the model",
    "No available memory for the cache blocks.": "no memory for the model",
    "Engine core initialization failed. See root cause above.": "vLLM did not start with the model .* its own lines above say why",
    "no such thing": "holds no model that can be loaded",
}


@pytest.mark.parametrize("says", VLLM_SAYS)
def test_why_vllm_did_not_start(says, folders, exemplars, monkeypatch):
    "Memory that torch no longer uses is given back before, because the engine lives in another process."
    done, engine = [], ModuleType("vllm")

    def start(**given):
        done.append("start")
        raise (ValueError if "Free" in says else RuntimeError)(says)

    engine.LLM, engine.SamplingParams = start, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", engine)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    with pytest.raises(MagaError, match=VLLM_SAYS[says]):
        load_vllm_judge(folders("smolvlm"), exemplars, size=SIDE)
    assert done == ["empty", "start"]


def test_vllm_takes_the_first_gpu(exemplars):
    with pytest.raises(MagaError, match="not cuda:2: set CUDA_VISIBLE_DEVICES=2"):
        make_judge("vllm:org/name", exemplars, options=JudgeOptions(device="cuda:2"))


def test_a_judge_in_an_experiment_goes_on_where_it_was_killed(folders, tmp_path, monkeypatch):
    "Each prompt is asked once, and the answers go when T is there."
    from maga.experiments.session import Session, transition_of
    from maga.experiments.store import Spec, Store

    spec = Spec("digits", "class", "nine", "small_cnn", "maga", "digits", recipe="smoke", judge=f"vlm:{folders('qwen3_vl')}", exemplars=2)
    asked, plain, last = [], VLMJudge.answer, [4]

    def answer(judge, queries, concept, pair, rows):
        if len(asked) == last[0]:
            raise KeyboardInterrupt
        asked.append((concept, *rows.tolist()))
        return plain(judge, queries, concept, pair, rows)

    monkeypatch.setattr(VLMJudge, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        transition_of(Session(Store(tmp_path), "cpu"), spec)
    last[0] = -1
    assert transition_of(Session(Store(tmp_path), "cpu"), spec).about["judge"] == spec.judge
    prompts = [(concept, row) for concept, *rows in asked for row in rows]
    assert len(prompts) == len(set(prompts)) == 10 * 20 and not list((tmp_path / "answers").iterdir())


def test_one_trained_layer_is_another_revision(tmp_path, monkeypatch):
    "In files that are too large to be read whole, every tensor is looked at."
    from safetensors.torch import save_file

    monkeypatch.setattr("maga.judges.weights.IN_FULL", 1 << 10)
    weights = {f"layers.{i}": torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(24)}
    (tmp_path / "config.json").write_text("{}")
    save_file(weights, tmp_path / "model.safetensors")
    seen = {folder_revision(tmp_path)}
    for name in weights:
        save_file(weights | {name: torch.randn(64, 64, generator=torch.Generator().manual_seed(99))}, tmp_path / "model.safetensors")
        seen.add(folder_revision(tmp_path))
    assert len(seen) == 1 + len(weights)


def test_similarities_in_double_precision_are_taken():
    S = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TransitionMatrix.from_similarity(S, "abcd").T, (S / S.sum(1, keepdim=True)).T.float())


def test_pictures_that_are_not_square_are_not_squeezed():
    "Whether they are asked about together or one by one."
    pixels = torch.randint(0, 256, (8, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exemplars = ImageSet(pixels[:4], torch.tensor([0, 0, 1, 1]), ("a", "b"))
    with seeded(torch.Generator().manual_seed(0)):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    judge = FeatureJudge(network, exemplars)
    asked = ImageSet(pixels[4:], torch.tensor([0, 0, 1, 1]), ("a", "b"))
    together = judge.scores(asked, [0, 1])
    alone = torch.cat([judge.scores(asked.subset(torch.tensor([i])), [0, 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    with pytest.raises(MagaError, match="The exemplars have 8 × 12 pixels and the queries 9 × 9: give both the same size"):
        judge.scores(ImageSet(torch.zeros(1, 3, 9, 9, dtype=torch.uint8), torch.tensor([0]), ("a", "b")), [0])


class Told:
    "A judge that counts what it is asked; its answers spend `mass` on True and False."

    name, revision, prompt = "told", "1", ""

    def __init__(self, mass=1.0):
        self.asked, self.mass = [], mass

    def blocks(self, queries, concepts):
        return [Block(rows, (k,)) for k in concepts for rows in torch.arange(len(queries)).split(8)]

    def scores(self, queries, concepts):
        return ask_all(self, queries, concepts).confidence

    def ask(self, queries, block):
        self.asked += [(h, k) for h in image_hashes(queries.images[block.rows]) for k in block.concepts]
        q = queries.images[block.rows].float().mean((1, 2, 3))[:, None] / 255
        return Answers(q, torch.full_like(q, self.mass))


def test_what_another_start_has_answered_is_not_asked_again(exemplars, tmp_path):
    first, second = Told(), Told()
    both = [Stored(judge, exemplars, tmp_path) for judge in (first, second)]  # the second reads before the first writes
    assert torch.equal(both[0].scores(exemplars, [0, 1]), both[1].scores(exemplars, [0, 1]))
    assert len(first.asked) == 2 * len(exemplars) and not second.asked


def test_an_image_that_is_there_twice_is_asked_once(exemplars, tmp_path):
    "In one block or in two; progress counts it twice."
    twice, told, seen = exemplars.subset(torch.tensor([0, 1, 0, *range(2, 12), 1])), Told(), []
    q = Stored(told, exemplars, tmp_path, lambda report: seen.append((report.done, report.total))).scores(twice, [3])
    assert len(told.asked) == len(set(told.asked)) == 12 and seen[-1] == (14, 14)
    assert torch.equal(q, Told().ask(twice, Block(torch.arange(14), (3,))).confidence)


def test_an_ignored_question_is_named_after_a_few_blocks(exemplars, tmp_path):
    "Once, and not at the end of all."
    told, heard = Told(mass=0.01), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Stored(told, exemplars, tmp_path, lambda report: heard.append(len(said))).scores(exemplars, range(10))
    assert [str(w.message)[:24] for w in said] == ["told spends only 1.0% of"] and heard.index(1) < len(heard) / 4


def test_labels_do_not_depend_on_the_precision_of_training(split, original, transition):
    "The ranked overlap is small numbers, so the original's probabilities are never rounded to bfloat16."
    from maga.methods.maga import overlap_of
    from maga.methods.maga_soft import judge_probabilities

    for said in (overlap_of, judge_probabilities):
        with torch.autocast("cpu", torch.bfloat16):
            inside = said(original, split, transition)
        assert torch.equal(inside, said(original, split, transition))


def test_an_architecture_is_said_of_a_checkpoint_that_does_not_say_it(original, digit_sets, tmp_path, capsys):
    "A file that describes itself is read by its own normalisation; another architecture than its own is refused."
    train = replace(digit_sets[0], mean=(0.5,) * 3, std=(0.25,) * 3, classes=digit_sets[0].classes[::-1])
    path = save_checkpoint(tmp_path / "own.safetensors", original, ModelSpec.of("resnet10", train))
    line = ["--data", "digits", "--judge", "features", "--exemplars", "2", "--device", "cpu", "--checkpoint", str(path)]
    for name, more in (("a", []), ("b", ["--arch", "resnet10"])):
        assert main([*line, "--out", str(tmp_path / f"{name}.safetensors"), *more]) == 0
    a, b = (TransitionMatrix.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert torch.equal(a.T, b.T)
    assert main([*line, "--out", str(tmp_path / "c.safetensors"), "--arch", "resnet18"]) == 1
    assert "own.safetensors has the arch resnet10, not resnet18" in capsys.readouterr().err


def test_names_of_classes_that_are_no_utf8_are_kept_with_the_answers(exemplars, tmp_path):
    strange = replace(exemplars, classes=(b"caf\xe9".decode(errors="surrogateescape"), *exemplars.classes[1:]))
    judge = Told()
    first = Stored(judge, strange, tmp_path).scores(strange, [0, 1])
    asked = len(judge.asked)
    assert torch.equal(Stored(judge, strange, tmp_path).scores(strange, [0, 1]), first) and len(judge.asked) == asked
    assert [b"caf\xe9" in p.read_bytes() for p in tmp_path.iterdir()] == [True]


def test_an_exemplar_is_left_out_of_every_class_that_it_stands_in(original, exemplars):
    "Its pixels are the first ones of two classes: it is compared with the second ones alone, in both."
    a, b = ((exemplars.labels == k).nonzero().flatten()[0].item() for k in (0, 1))
    images = exemplars.images.clone()
    images[b] = images[a]
    both = replace(exemplars, images=images)
    judge = FeatureJudge(original, both)
    got = judge.scores(both, range(10))
    with evaluating(original):
        phi = features_and_logits(original, both.batch(torch.arange(len(both))))[0]
    cosines = torch.stack([
        torch.stack([
            torch.cosine_similarity(x, phi[[j for j in range(len(both)) if both.labels[j] == k and not torch.equal(images[i], images[j])]].mean(0), dim=0)
            for k in range(10)
        ])
        for i, x in enumerate(phi)
    ])  # fmt: skip
    torch.testing.assert_close(got, torch.sigmoid((cosines - cosines.mean()) / cosines.std()), atol=1e-4, rtol=0)
    same = torch.zeros(len(both), dtype=torch.int64).index_fill(0, (both.labels != 0).nonzero().flatten(), 1).cumsum(0)  # those of class 0 are one picture
    with pytest.raises(MagaError, match="at least 2 different exemplars of every class"):
        FeatureJudge(original, replace(exemplars, images=exemplars.images[same]))
