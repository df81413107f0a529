"""What is written about an exported model holds: every snippet of docs/using_with_huggingface.md and of
the two published pages runs on an export, and the model card says what the run did and scored."""

import dataclasses
import json
import random
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.identity import identity
from megatron_yuyuan.checkpoint.manifest import CHECKSUMS
from megatron_yuyuan.checkpoint.model import open_model
from megatron_yuyuan.checkpoint.model_card import model_card
from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

PUBLISHED = [
    """\
from transformers import GPT2Tokenizer, GPT2Model
tokenizer = GPT2Tokenizer.from_pretrained('IDEA-CCNL/Yuyuan-GPT2-3.5B')
model = GPT2Model.from_pretrained('IDEA-CCNL/Yuyuan-GPT2-3.5B')
text = "Replace me by any text you'd like."
encoded_input = tokenizer(text, return_tensors='pt')
output = model(**encoded_input)
""",
    """\
from transformers import pipeline, set_seed
set_seed(55)
generator = pipeline('text-generation', model='IDEA-CCNL/Yuyuan-GPT2-3.5B')
generator("Diabetics should not eat", max_length=30, num_return_sequences=1)

""",
]
"""The usage of Yuyuan-GPT2-3.5B's page, as it stands there."""
PUBLISHED_PROMPT = "Question:your question about medical? answer:"
"""The snippet of YuyuanQA's page, which is no program: how a question is asked."""
SCORES = {
    "signatures": {"corpus_bleu": {"smoothed": "BLEU|smooth:exp"}, "exact_match": "normalised"},
    "systems": {"qa, greedy": {"corpus_bleu": {"smoothed": [0.4, 0.3]}, "exact_match": 0.25}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "qa"
    tokenizer = train_bpe(iter(["Question:What is gout? answer: Gout is a disease."] * 4), 280)
    config = Config().replace(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=512,  # a pipeline of transformers 5.17 writes 256 tokens, whatever max_length says
        seq_length=256,
        global_batch_size=4,
        data_path=("somewhere/pubmed_text_document",),
        tensor_model_parallel_size=2,
    )
    model = GPT2(config.model)
    init_weights(model, seed=1)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = describe_run(config, tokenizer, 28, None, TEMPLATE) | {"ranks": 6}
    save_checkpoint(directory, 7, tensors, state)
    tokenizer.save(directory / "tokenizer")
    lines = [
        {"event": "step", "iteration": i, "seconds": 360.0, "lm_loss": 9 - i} for i in range(1, 9)
    ]
    lines.append({"event": "evaluation", "iteration": 7, "validation_loss": 2.5})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = {"scored": identity(directory / "iter_0000007")}
    (directory / "scores.json").write_text(json.dumps(scored | SCORES))
    return directory


@pytest.fixture
def export(run, tmp_path, monkeypatch) -> Path:
    """export/qa, seen from the directory where the snippets run."""
    monkeypatch.chdir(tmp_path)
    return export_directory(open_model(run), Path("export/qa"))


def snippets(repository: Path) -> list[str]:
    text = (repository / "docs" / "using_with_huggingface.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_every_snippet_of_the_page_runs(export, repository, capsys):
    found = snippets(repository)
    assert len(found) == 5
    for snippet in found:
        exec(compile(snippet, "using_with_huggingface.md", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.count("Question:What is gout? answer:") == 3
    assert shown.count("Question:What causes lupus? answer:") == 1


def test_the_published_snippets_run_with_the_name_replaced(export):
    spaces = []
    for snippet in PUBLISHED:
        spaces.append({})
        exec(snippet.replace("IDEA-CCNL/Yuyuan-GPT2-3.5B", str(export)), spaces[-1])
    assert spaces[0]["output"].last_hidden_state.shape[-1] == 32
    assert (
        spaces[0]["tokenizer"].decode(spaces[0]["encoded_input"]["input_ids"][0])
        == spaces[0]["text"]
    )
    generator = spaces[1]["generator"]
    [written] = generator("Diabetics should not eat", max_length=30, num_return_sequences=1)
    assert written["generated_text"].startswith("Diabetics should not eat")
    [written] = generator(PUBLISHED_PROMPT, max_new_tokens=5)
    assert written["generated_text"].startswith(PUBLISHED_PROMPT)
    assert TEMPLATE.prompt_text("your question about medical?") == PUBLISHED_PROMPT


def test_the_card_says_what_the_run_did_and_scored(run):
    card = model_card(open_model(run), "qa", "bfloat16")
    for text in (
        "the weights are bfloat16",
        "- data: pubmed_text_document",
        "- 7 iterations, 28 samples",
        "each of 256 tokens with its padding (7,168 tokens at most)",
        "- layout: pipeline 1 x data 3 x tensor 2, 6 ranks in all\n",
        "- training steps took 0:42:00; loss of the last 2.0000",
        "- validation loss 2.5000",
        "| qa, greedy | corpus_bleu, smoothed | 0.4000 / 0.3000 | `BLEU\\|smooth:exp` |",
        "| qa, greedy | exact_match | 0.2500 | `normalised` |",
        "**Not medical advice.**",
    ):
        assert text in card
    assert "somewhere" not in card


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (None, "- start: not known\n"),
        ("", "- start: fresh weights\n"),
        ("hf:/home/me/gpt2", "- start: the weights of the Hugging Face directory gpt2\n"),
        ("megatron:me/gpt.pt", "- start: the weights of the Megatron-core checkpoint gpt.pt\n"),
        ("me/pubmed", "- start: the weights of the run pubmed\n"),
    ],
)
def test_the_card_names_what_a_run_began_with(run, load, said):
    source = open_model(run)
    state = source.state | ({} if load is None else {"began_with": load})
    card = model_card(dataclasses.replace(source, state=state), "qa")
    assert said in card and "me/" not in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_path": ("0.7", "me/a", "0.3", "me/b")}, "data: a (weight 0.7), b (weight 0.3)\n"),
        ({"data_path": (), "train_data_path": ("me/a", "me/b")}, "- data: a, b\n"),
        ({"data_path": ()}, "- data: not known\n"),
    ],
    ids=str,
)
def test_the_card_names_what_a_run_read(run, changes, said):
    source = open_model(run)
    config = from_dict(source.state["config"]).replace(**changes).to_dict()
    state = {**source.state, "config": config}
    del state["ranks"]  # as an older checkpoint
    card = model_card(dataclasses.replace(source, state=state), "qa")
    assert said in card and "/me" not in card and "me/" not in card
    assert "- layout: pipeline 1 x tensor 2\n" in card


def test_a_card_without_measurements_says_so(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "metrics.jsonl").unlink()
    (copy / "scores.json").unlink()
    card = model_card(open_model(copy), "qa")
    assert "None: not measured" in card and "hours" not in card
    (copy / "scores.json").write_text("[]")
    with pytest.raises(DataError, match=r"scores\.json cannot be read"):
        model_card(open_model(copy), "qa")


def test_scores_of_other_weights_are_left_out_and_why_is_said(run, tmp_path, capsys, repository):
    """Of another iteration, of weights changed since, and of answers that say nothing of weights."""
    export = runpy.run_path(str(repository / "tools" / "convert_checkpoint.py"))["main"]
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    ours, tensors = identity(copy / "iter_0000007"), {"model.a": torch.ones(1)}
    assert ours == identity(run / "iter_0000007")  # a copy is the same weights
    save_checkpoint(copy, 8, tensors, {})
    other = identity(copy / "iter_0000008")
    assert other["name"] == "iter_0000008" and other["sha256"] != ours["sha256"]
    again = ours | {"sha256": other["sha256"]}
    for number, (scored, why) in enumerate(
        (
            (
                other,
                f"scored other weights, iter_0000008 ({other['sha256'][:12]}); these are iter_0000007",
            ),
            (
                again,
                f"scored other weights, iter_0000007 ({other['sha256'][:12]}); these are iter_0000007",
            ),
            (None, "does not say which weights it scored"),
        )
    ):
        (copy / "scores.json").write_text(json.dumps({"scored": scored} | SCORES))
        target = tmp_path / f"export{number}"
        export(["--to", "hf", "--load", str(copy), "--ckpt-step", "7", "--save", str(target)])
        card = (target / "README.md").read_text()
        assert why in card and why in capsys.readouterr().out and "0.4000" not in card
    (copy / "scores.json").write_text(json.dumps({"scored": ours} | SCORES))
    export(
        ["--to", "hf", "--load", str(copy), "--ckpt-step", "7", "--save", str(tmp_path / "with")]
    )
    assert "0.4000" in (tmp_path / "with" / "README.md").read_text()
    assert "scores in README.md: scores.json" in capsys.readouterr().out


def test_scores_of_a_hugging_face_directory_are_of_its_own_weights(export, tmp_path):
    """They lie in it, and not beside it."""
    (export / "scores.json").write_text(json.dumps({"scored": identity(export)} | SCORES))
    (export.parent / "scores.json").write_text("[]")
    assert "0.4000" in model_card(open_model(export), "again")
    index = Path(shutil.copytree(export, tmp_path / "shards"))
    (index / CHECKSUMS).unlink()
    [weights] = index.glob("*.safetensors")
    changed = load_file(weights)
    changed["transformer.ln_f.bias"] += 1
    save_file(changed, weights)
    assert "scored other weights, qa (" in model_card(open_model(index), "again")


def test_a_thousand_strings_have_the_same_ids_and_come_back(export, run):
    from transformers import AutoTokenizer

    ours = open_model(run).tokenizer
    theirs = AutoTokenizer.from_pretrained(export, local_files_only=True)
    characters = " \n\t.,'?0123456789aegimostuQß€βнж中🙂e\u0301"
    drawn = random.Random(0)
    for _ in range(1000):
        text = "".join(drawn.choices(characters, k=drawn.randrange(1, 40)))
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text) and theirs.decode(ids) == text, text


def test_no_token_is_generated_that_the_tokenizer_does_not_know(export):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(export)
    torch.manual_seed(0)
    ids = model.generate(
        torch.zeros(200, 1, dtype=torch.int64), do_sample=True, temperature=5.0, max_new_tokens=4,
        attention_mask=torch.ones(200, 1), pad_token_id=0,
    )  # fmt: skip
    known = model.config.vocab_size
    assert model.transformer.wte.weight.shape[0] == known < 384 and int(ids.max()) < known
    assert len(ids[:, 1:].unique()) > known / 2
