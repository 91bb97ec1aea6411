"""How graphs are used: what their inputs and outputs hold, and Python that runs them, by what goes in and comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peftctl.generate import stop_ids
from peftctl.onnx.cache import PAST, PRESENT
from peftctl.onnx.contract import Graph
from peftctl.onnx.seq2seq import start_id
from peftctl.text.tokens import prompt_ids

TEXT, QUESTION = '"The old red cat"', '"Which cat is it?"'
TOKENS = 20  # that the code writes
ARRAYS = 'return_tensors="np"'
EMBEDDING, ANSWER = "sentence_embedding", "start_logits"

MASK = "attention_mask is 1 for tokens and 0 for padding"
NOTES = {
    "token_type_ids": "token_type_ids are 0 in a text, and 1 in the second of two that are read at once: "
    f"`tokenizer(first, second, {ARRAYS})`.",
    "position_ids": "position_ids are the place of each new token in its text, from 0, counted without padding: with "
    "padding on the left `(attention_mask.cumsum(-1) - 1).clip(0)`, of which the last sequence_length.",
    "encoder_attention_mask": "encoder_attention_mask is the attention_mask of the text that was read.",
    "encoder_hidden_states": "encoder_hidden_states are the last_hidden_state of the text that was read.",
    ANSWER: "start_logits and end_logits say how likely the answer begins, and ends, at each token.",
    EMBEDDING: "sentence_embedding is pooled from the tokens of each row, and of length 1. Rows are padded on the "
    f'right: `tokenizer(texts, padding=True, padding_side="right", {ARRAYS})`.',
}

HEAD = """
from transformers import AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)


def load(name):
    return onnxruntime.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])


def run(graph, given):
    names = [each.name for each in graph.get_outputs()]
    return dict(zip(names, graph.run(names, {each.name: given[each.name] for each in graph.get_inputs()})))

"""
POSITIONS = """
        "position_ids": np.arange(length - ids.shape[1], length)[None],"""


def notes(graph: Graph) -> Iterator[str]:
    """Sentences on those inputs and outputs whose names do not say all."""
    if "attention_mask" in graph.inputs:
        past = ", over past and new tokens: total_sequence_length is past_sequence_length + sequence_length"
        yield f"{MASK}{past if _takes(graph) else ''}."
    for name, note in NOTES.items():
        if name in graph.inputs or name in graph.outputs:
            yield note


def code(graphs: Sequence[Graph], model: Any, tokenizer: Any) -> str:
    """Python that runs the graphs of ``model`` on a text: once, or where they have a past, to write."""
    if not any(map(_takes, graphs)):
        return f"import onnxruntime{HEAD}{_once(graphs[0])}"
    stops = ", ".join(map(str, stop_ids(model.generation_config, tokenizer)))
    ends = f"\n    if ids.item() in {{{stops}}}:  # what ends a text\n        break" if stops else ""
    body = _decoder(graphs[0], tokenizer) if len(graphs) == 1 else _seq2seq(graphs, start_id(model))
    return f"""import numpy as np
import onnxruntime{HEAD}{body}
    ids = said["logits"][:, -1:].argmax(-1)  # the likeliest{ends}
    written.append(ids.item())
print(tokenizer.decode(written, skip_special_tokens=True))"""


def _once(graph: Graph) -> str:
    shown = EMBEDDING if EMBEDDING in graph.outputs else graph.outputs[0]
    texts = f"{QUESTION}, {TEXT}" if ANSWER in graph.outputs else TEXT
    return f"""
said = run(load("{graph.name}"), tokenizer({texts}, {ARRAYS}))
print(said["{shown}"])"""


def _decoder(graph: Graph, tokenizer: Any) -> str:
    return f"""
graph = load("{graph.name}")
{_prompt(tokenizer)}
past = {{
    each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
    for each in graph.get_inputs()
    if each.name.startswith("{PAST}.")
}}
length, written = 0, []
for _ in range({TOKENS}):
    length += ids.shape[1]
    given = {{
        "input_ids": ids,
        "attention_mask": np.ones((1, length), np.int64),{POSITIONS if "position_ids" in graph.inputs else ""}
    }}
    said = run(graph, given | past)
    past = {{name: said[name.replace("{PAST}", "{PRESENT}")] for name in past}}"""


def _prompt(tokenizer: Any) -> str:
    """A message where there is a template for it, else a text to go on with; either as training saw it."""
    plain = f"ids = {_plain(tokenizer)}"
    if not tokenizer.chat_template:
        return plain
    return f"""messages = [{{"role": "user", "content": {TEXT}}}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, add_special_tokens=False, {ARRAYS})["input_ids"]
# Where a text is to be gone on with, not answered:
# {plain}"""


def _plain(tokenizer: Any) -> str:
    """The ids of a text that has a beginning, if texts have one, and no end, which some tokenizers give every text."""
    prompt, whole = prompt_ids("a", tokenizer, whole=True), tokenizer("a")["input_ids"]
    begins = prompt == whole[: len(prompt)]
    ends = len(whole) - len(prompt) if begins else 0
    options = "" if begins else "add_special_tokens=False, "
    return f'tokenizer({TEXT}, {options}{ARRAYS})["input_ids"]{f"[:, :-{ends}]" if ends else ""}'


def _seq2seq(graphs: Sequence[Graph], start: int) -> str:
    (reader,) = (each for each in graphs if not _makes(each))
    (first,) = (each for each in graphs if _makes(each) and not _takes(each))
    (after,) = filter(_takes, graphs)
    return f"""
text = tokenizer({TEXT}, {ARRAYS})
given = {{
    "encoder_hidden_states": run(load("{reader.name}"), text)["{reader.outputs[0]}"],
    "encoder_attention_mask": text["attention_mask"],
}}
graph, after = load("{first.name}"), load("{after.name}")
ids, written = np.array([[{start}]]), []
for _ in range({TOKENS}):
    said = run(graph, given | {{"input_ids": ids}})
    given |= {{name.replace("{PRESENT}", "{PAST}"): values for name, values in said.items()}}
    graph = after"""


def _takes(graph: Graph) -> bool:
    return any(name.startswith(PAST) for name in graph.inputs)


def _makes(graph: Graph) -> bool:
    return any(name.startswith(PRESENT) for name in graph.outputs)
