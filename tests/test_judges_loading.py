"""What a judge's model lacks is said when it is loaded: weights, a place for the images, a tokenizer, a chat template."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from maga.data import MagaError
from maga.judges.clip import load_clip_judge
from maga.judges.contract import draw_exemplars
from maga.judges.families import tiny_vlm
from maga.judges.llm import load_language_judge
from maga.judges.mmicl import load_mmicl_judge, tiny_mmicl
from maga.judges.names import load_name_judge
from maga.judges.tiny import SIDE, tiny_clip, tiny_encoder, tiny_llama
from maga.judges.vlm import load_vlm_judge
from maga.sources import digits


pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability on True or False.*")


@pytest.fixture(scope="module")
def exemplars():
    return draw_exemplars(digits()[0], 2, torch.Generator().manual_seed(0))


def drawn():
    return torch.Generator().manual_seed(0)


LOADERS = {  # a tiny model in a folder, its judge, a weight of it
    "vlm": (lambda f: tiny_vlm("internvl", f, drawn()), lambda f, x: load_vlm_judge(f, x, size=SIDE), "layers.1.mlp.up_proj"),
    "mmicl": (lambda f: tiny_mmicl(f, drawn()), lambda f, x: load_mmicl_judge(x, f), "layer.0.intermediate_query.dense.weight"),
    "llm": (lambda f: tiny_llama(f, drawn()), lambda f, x: load_language_judge(x, f), "lm_head"),
    "clip": (lambda f: tiny_clip("clip", f, drawn()), lambda f, x: load_clip_judge(f, x), "visual_projection"),
    "names": (lambda f: tiny_encoder(f, drawn()), lambda f, x: load_name_judge(x, f), "layer.1.output.dense.weight"),
}


def without(folder, part):
    "Takes the weights with this in their name out of the folder."
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if part not in k}
    assert 0 < len(weights) - len(kept)
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
