"""What a judge's model lacks is said when it is loaded: weights, a place for the images, a tokenizer, a chat template."""

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from maga.data import MagaError
from maga.device import seeded
from maga.judges import llm, mmicl, scorers
from maga.judges.chat import chat_lengths
from maga.judges.clip import load_clip_judge
from maga.judges.contract import ask_all, draw_exemplars
from maga.judges.families import tiny_vlm
from maga.judges.llm import load_language_judge
from maga.judges.mmicl import PLACEHOLDER, PLACEHOLDER_ID, load_mmicl_judge, mmicl_tokenizer, tiny_mmicl
from maga.judges.names import load_name_judge
from maga.judges.prompt import PROMPT, AnswerWords, exact_words
from maga.judges.tiny import SIDE, text_sizes, tiny_clip, tiny_encoder, tiny_llama, tiny_tokenizer
from maga.judges.vllm import load_vllm_judge
from maga.judges.vlm import VLMJudge, load_vlm_judge
from maga.judges.weights import Source, folder_revision
from maga.sources import digits

pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability on True or False.*")


@pytest.fixture(scope="module")
def exemplars():
    return draw_exemplars(digits()[0], 2, torch.Generator().manual_seed(0))


def drawn():
    return torch.Generator().manual_seed(0)


LOADERS = {  # a tiny model in a folder, its judge, a weight of it
    "vlm": (lambda f: tiny_vlm("internvl", f, drawn()), lambda f, x, **more: load_vlm_judge(f, x, size=SIDE, **more), "layers.1.mlp.up_proj"),
    "mmicl": (lambda f: tiny_mmicl(f, drawn()), lambda f, x, **more: load_mmicl_judge(x, f, **more), "layer.0.intermediate_query.dense.weight"),
    "llm": (lambda f: tiny_llama(f, drawn()), lambda f, x, **more: load_language_judge(x, f, **more), "lm_head"),
    "clip": (lambda f: tiny_clip("clip", f, drawn()), lambda f, x, **more: load_clip_judge(f, x, **more), "visual_projection"),
    "names": (lambda f: tiny_encoder(f, drawn()), lambda f, x, **more: load_name_judge(x, f, **more), "layer.1.output.dense.weight"),
}


def without(folder, part):
    "Takes the weights with this in their name out of the folder."
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if part not in k}
    assert len(weights) - len(kept) > 0
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", LOADERS)
def test_a_model_that_lacks_a_weight_is_refused(kind, exemplars, tmp_path):
    make, load, part = LOADERS[kind]
    make(tmp_path)
    assert load(str(tmp_path), exemplars).name == f"{kind}:{tmp_path}"
    without(tmp_path, part)
    with pytest.raises(MagaError, match=rf"does not hold a whole \w+: \d+ of its weights .* first \S*{re.escape(part)}.*; on a machine with a network"):
        load(str(tmp_path), exemplars)


@pytest.mark.parametrize("kind, part", [("names", "pooler"), ("mmicl", "qformer.embeddings.word_embeddings"), ("mmicl", ".intermediate.")])
def test_what_plays_no_part_may_be_missing(kind, part, exemplars, tmp_path):
    make, load, _ = LOADERS[kind]
    make(tmp_path)
    before = load(str(tmp_path), exemplars).scores(exemplars, [1])
    without(tmp_path, part)
    assert torch.equal(load(str(tmp_path), exemplars).scores(exemplars, [1]), before)


IMAGES_FIRST = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)  # as that of llava-1.5
TEMPLATES = {IMAGES_FIRST: "drops images or moves them", None: "has no chat template for text with images"}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_without_a_place_for_the_images(template, exemplars, tmp_path, monkeypatch):
    "The question is never asked without them: by transformers, by vLLM, or to count its tokens."
    folder = tiny_vlm("internvl", tmp_path, drawn(), ["True", "False"])
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    engine = ModuleType("vllm")
    engine.LLM, engine.SamplingParams = (lambda **given: SimpleNamespace(**given) for _ in range(2))
    monkeypatch.setitem(sys.modules, "vllm", engine)
    for ask in (load_vlm_judge, load_vllm_judge):
        with pytest.raises(MagaError, match=f"{tmp_path}.*{TEMPLATES[template]}|{TEMPLATES[template]}.*{tmp_path}"):
            ask(str(folder), exemplars, size=SIDE)
    with pytest.raises(MagaError, match="use a model that was trained to chat about several images"):
        chat_lengths(str(folder), exemplars, PROMPT, SIDE)


def test_vllm_makes_room_for_the_prompts_and_no_more(exemplars, tmp_path, monkeypatch):
    "It does not start where its cache cannot hold one prompt of the greatest length; a length of the user's counts."
    folder, engine = str(tiny_vlm("qwen3_vl", tmp_path, drawn(), ["True", "False"])), ModuleType("vllm")
    engine.LLM, engine.SamplingParams = (lambda **given: SimpleNamespace(given=given) for _ in range(2))
    monkeypatch.setitem(sys.modules, "vllm", engine)
    longest = max(x.before + x.after for x in chat_lengths(folder, exemplars, PROMPT, SIDE))
    judge = load_vllm_judge(folder, exemplars, size=SIDE)
    assert longest < judge.engine.given["max_model_len"] <= longest + 64
    assert judge.engine.given["limit_mm_per_prompt"] == {"image": 3, "video": 0} and "max_model_len" not in judge.revision
    assert judge.engine.given["hf_overrides"] == {"head_dtype": "float32"} and "float32" in judge.revision  # rounded answers have another key
    own = {"max_model_len": 9000, "limit_mm_per_prompt": {"image": 4}}
    assert load_vllm_judge(folder, exemplars, size=SIDE, **own).engine.given.items() >= own.items()


def test_mmicls_tokenizer(exemplars, tmp_path, monkeypatch):
    "A folder without one is told where it comes from; T5's is taken where no file says which it is."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tiny_mmicl(tmp_path, drawn())
    (folder / "tokenizer_config.json").unlink()
    words = json.loads((folder / "tokenizer.json").read_text())
    for i, token in enumerate(words["model"]["vocab"][-100:]):
        token[0] = f"<extra_id_{99 - i}>"  # as T5 names them
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert mmicl_tokenizer(str(folder)).convert_tokens_to_ids(PLACEHOLDER) == PLACEHOLDER_ID
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MagaError) as told:
        load_mmicl_judge(exemplars, str(folder))
    for said in (f"neither the model {folder} nor", 'hf download google/flan-t5-xxl --include "tokenizer*"', "into the model's folder"):
        assert said in str(told.value)
    asked = []
    monkeypatch.setattr(Source, "load", lambda source, kind: asked.append(source.where))
    monkeypatch.setattr("maga.judges.mmicl.with_image_tokens", lambda tokenizer: tokenizer)
    (folder / "spiece.model").write_bytes(b"")
    mmicl_tokenizer(str(folder))
    assert asked == [str(folder)]


def test_a_large_file_with_a_small_head(tmp_path, monkeypatch):
    "The sample of its first tensor begins with the file."
    monkeypatch.setattr("maga.judges.weights.IN_FULL", 1 << 10)
    save_file({"w": torch.zeros(512)}, tmp_path / "model.safetensors")
    before = folder_revision(tmp_path)
    save_file({"w": torch.ones(512)}, tmp_path / "model.safetensors")
    assert folder_revision(tmp_path) != before


def test_words_logits_are_not_rounded_to_bfloat16(exemplars, tmp_path):
    "What a model does to its logits afterwards, it does to these as well; other logits stay as they are."
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {**text_sizes(tiny_tokenizer()), "head_dim": 16, "final_logit_softcapping": 30.0}
    with seeded(drawn()):
        model = Gemma2ForCausalLM(Gemma2Config(**sizes)).to(torch.bfloat16).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(150)
        ids, words = torch.randint(0, 300, (3, 7), generator=drawn()), AnswerWords(((1, 2),), ((5,),))
        rounded, last = model(input_ids=ids).logits, model.model(input_ids=ids).last_hidden_state
        with exact_words(model, words):
            found = model(input_ids=ids).logits
        expected = 30 * torch.tanh(last.float() @ model.lm_head.weight.float().T / 30)
    torch.testing.assert_close(found[..., [1, 2, 5]], expected[..., [1, 2, 5]], atol=1e-4, rtol=0)
    assert (rounded.float() - expected)[..., [1, 2, 5]].abs().max() > 0.02
    assert (found - rounded)[..., 6:].abs().max() < 0.2 and torch.equal(model(input_ids=ids).logits, rounded)


class Moving(torch.nn.Linear):
    "A last layer on another device than the one before it, as where a model is spread over several: its input is moved on the way in."

    def forward(self, x):
        return super().forward(x.to(self.weight.device))


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_words_logits_of_a_last_layer_on_another_device():
    head, words = Moving(16, 20).to("cuda:0", torch.bfloat16), AnswerWords(((1, 2),), ((5,),))
    x = torch.randn(3, 16, generator=drawn()).to("cuda:1", torch.bfloat16)
    with torch.no_grad(), exact_words(SimpleNamespace(get_output_embeddings=lambda: head), words):
        found = head(x)
    expected = torch.nn.functional.linear(x.to("cuda:0").float(), head.weight.float(), head.bias.float())
    torch.testing.assert_close(found[:, [1, 2, 5]], expected[:, [1, 2, 5]])


@pytest.mark.parametrize("module, load", [(mmicl, LOADERS["mmicl"]), (llm, LOADERS["llm"]), (scorers, LOADERS["vlm"])])
def test_every_judge_in_words_reads_such_logits(module, load, exemplars, tmp_path, monkeypatch):
    load[0](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    seen, read = [], module.read_answers
    monkeypatch.setattr(module, "read_answers", lambda words, after: seen.append(after(words.stems[0]).dtype) or read(words, after))
    judge = load[1](str(tmp_path), exemplars)
    kinds = [judge]
    if module is scorers:
        kinds = [VLMJudge(judge.parts, exemplars, "vlm:x", "1", scorer=s) for s in ("naive", "shared")]
    for one in kinds:
        assert "bfloat16" in one.revision
        one.scores(exemplars.subset(torch.arange(2)), [1])
    assert set(seen) == {torch.float32}


def untrained(config, **sizes):
    "An untrained language model of two layers with its tokenizer."
    tokenizer = tiny_tokenizer([])
    with seeded(drawn(), "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(vocab_size=len(tokenizer), **sizes)).eval()
        for weight in (p for p in model.parameters() if p.ndim > 1):
            weight.data.normal_(0, 0.3)
    return model, tokenizer


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
UNSHARED = {  # attention that reaches back less far than a prompt, distances that count padding, a state without positions
    "MistralConfig": SIZES | {"sliding_window": 64},
    "MptConfig": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "Lfm2Config": SIZES | {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("config", UNSHARED)
def test_a_language_model_that_cannot_share_a_beginning_reads_each_prompt_whole(config, exemplars):
    with pytest.warns(UserWarning, match="each prompt is asked alone"):
        judge = llm.LanguageJudge(*untrained(config, **UNSHARED[config]), exemplars, "llm:x", "1")
    prompts = [judge.tokens(pair) for pair in ((1, 1), (7, 7))]
    assert len({*map(len, prompts)}) == 2
    together = judge.answer(prompts)[0]
    torch.testing.assert_close(together, torch.cat([judge.answer([p])[0] for p in prompts]), atol=1e-5, rtol=0)


def test_a_language_model_that_answers_no_prompt_is_refused(exemplars, monkeypatch):
    model, tokenizer = untrained("LlamaConfig", **SIZES)

    def fails(*args, **given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(model.model, "forward", fails)
    with pytest.raises(MagaError, match=r"llm:x cannot be asked .*no such kernel"):
        llm.LanguageJudge(model, tokenizer, exemplars, "llm:x", "1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", LOADERS)
def test_a_gpu_answers_as_the_cpu(kind, exemplars, tmp_path):
    make, load, _ = LOADERS[kind]
    make(tmp_path)
    single = {"dtype": "float32"} if kind == "mmicl" else {}
    there, here = (ask_all(load(str(tmp_path), exemplars, device=device, **single), exemplars, [0, 3]) for device in ("cuda", "cpu"))
    torch.testing.assert_close(there.confidence, here.confidence, atol=1e-3, rtol=0)
    torch.testing.assert_close(there.mass.log(), here.mass.log(), atol=1e-2, rtol=0, equal_nan=True)
    differ = here.confidence if here.mass.isnan().any() else here.mass.log()
    assert differ.std() > 1e-3  # the images or names matter
