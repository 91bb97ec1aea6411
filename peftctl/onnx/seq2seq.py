"""A model that reads one text and writes another: a graph that reads, one for the first token, one for every other.

What the decoder makes of the text that was read is made with the first token, and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftctl.onnx import cache
from peftctl.onnx.contract import BATCH, ROWS, Case, Graph
from peftctl.onnx.session import Sessions
from peftctl.tasks import Task

READER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
READ = {0: BATCH, 1: "encoder_sequence_length"}
WRITING, READING = "decoder", "encoder"  # the decoder's two kinds of attention: to what it writes, to what was read
KEPT = {WRITING: {0: BATCH, 2: "past_sequence_length"}, READING: {0: BATCH, 2: "encoder_sequence_length"}}
SHIFT = 3  # what the rows that are written differ by from those that are read


class Seq2Seq:
    copies: int = 2

    def graphs(self, model: Any, task: Task, case: Case) -> Sequence[Graph]:
        import torch

        read = {name: torch.from_numpy(values) for name, values in case.inputs.items()}
        written = torch.from_numpy(_written(case)[:, :7])  # no axis is as long as another
        with torch.no_grad():
            (hidden,) = _read(model, read)
            mask = read["attention_mask"]
            first = {"input_ids": written, "encoder_hidden_states": hidden, "encoder_attention_mask": mask}
            said = _first(model, first)
        layers = (len(said) - 1) // 4
        made = {part: cache.names(cache.PAST, layers, part) for part in (WRITING, READING)}
        split = 1 + 2 * layers
        past = dict(zip(made[WRITING], said[1:split], strict=True)) | dict(
            zip(made[READING], said[split:], strict=True)
        )
        axes = {name: KEPT[part] for part in made for name in made[part]}
        present = {part: cache.names(cache.PRESENT, layers, part) for part in made}
        of_first = {"input_ids": ROWS, "encoder_hidden_states": READ, "encoder_attention_mask": READ}
        after = {"input_ids": written[:, :2], "encoder_attention_mask": mask, **past}
        of_after = {"input_ids": ROWS, "encoder_attention_mask": READ, **axes}
        return (
            Graph(READER, _read, read, dict.fromkeys(read, ROWS), ("last_hidden_state",)),
            Graph(FIRST, _first, first, of_first, ("logits", *present[WRITING], *present[READING])),
            Graph(NEXT, _next, after, of_after, ("logits", *present[WRITING])),
        )

    def wanted(self, model: Any, task: Task, case: Case) -> Mapping[str, Any]:
        import torch

        inputs = {name: torch.from_numpy(values) for name, values in case.inputs.items()}
        said = model(**inputs, decoder_input_ids=torch.from_numpy(_written(case)), use_cache=False)
        return {"last_hidden_state": said.encoder_last_hidden_state.numpy(), "logits": said.logits.numpy()}

    def found(self, files: Sessions, case: Case) -> Mapping[str, Any]:
        """In two passes of the decoder, the second by way of the cache."""
        import numpy as np

        written = _written(case)
        half = written.shape[1] // 2
        hidden = files(READER, case.inputs)["last_hidden_state"]
        read = {"encoder_hidden_states": hidden, "encoder_attention_mask": case.mask}
        first = files(FIRST, {"input_ids": written[:, :half], **read})
        rest = files(NEXT, {"input_ids": written[:, half:], **read, **cache.grown(first)})
        return {
            "last_hidden_state": hidden,
            "logits": np.concatenate([first["logits"], rest["logits"]], axis=1),
        }

    def by_token(self, files: Sessions) -> Sequence[str]:
        return ("last_hidden_state",)

    def greedy(self, files: Sessions, prompt: Sequence[int], start: int, stops: Sequence[int], most: int) -> list[int]:
        import numpy as np

        inputs = {"input_ids": np.array([prompt]), "attention_mask": np.ones((1, len(prompt)), np.int64)}
        hidden = files(READER, inputs)["last_hidden_state"]
        given = {"encoder_hidden_states": hidden, "encoder_attention_mask": inputs["attention_mask"]}
        file, ids, written = FIRST, start, [0][:0]
        while len(written) < most and not (written and written[-1] in stops):
            said = files(file, {**given, "input_ids": np.array([[ids]])})
            given, file = given | cache.grown(said), NEXT
            ids = int(said["logits"][0, -1].argmax())
            written.append(ids)
        return written


def start_id(model: Any) -> int:
    """What a decoder that reads another text begins with."""
    own = model.generation_config
    told = (own.decoder_start_token_id, getattr(model.config, "decoder_start_token_id", None), own.bos_token_id)
    return next((int(each) for each in told if each is not None), 0)


def _written(case: Case) -> Any:
    """Some ids to be written, [rows, at least 4]."""
    import numpy as np

    ids = np.roll(case.ids, SHIFT, axis=1)
    return np.tile(ids, (1, -(-4 // ids.shape[1])))


def _read(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    return (model.get_encoder()(**inputs).last_hidden_state,)


def _first(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Logits, then what attention to what is written keeps, then what attention to what was read does."""
    from transformers import EncoderDecoderCache

    both = EncoderDecoderCache(cache.of(()), cache.of(()))
    said = _decode(model, inputs, inputs["encoder_hidden_states"], both)
    kept = said.past_key_values
    return (said.logits, *cache.tensors(kept.self_attention_cache), *cache.tensors(kept.cross_attention_cache))


def _next(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    from transformers import EncoderDecoderCache

    past = [
        [values for name, values in inputs.items() if name.startswith(cache.PAST) and f".{part}." in name]
        for part in (WRITING, READING)
    ]
    mask = inputs["encoder_attention_mask"]
    # Of what was read the kept keys and values count, and of this the shape alone.
    hidden = past[1][0].new_zeros(mask.shape[0], mask.shape[1], model.config.hidden_size)
    said = _decode(model, inputs, hidden, EncoderDecoderCache(cache.of(past[0]), cache.of(past[1])))
    return (said.logits, *cache.tensors(said.past_key_values.self_attention_cache))


def _decode(model: Any, inputs: Mapping[str, Any], hidden: Any, past: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return model(
        decoder_input_ids=inputs["input_ids"],
        attention_mask=inputs["encoder_attention_mask"],
        encoder_outputs=BaseModelOutput(hidden),
        past_key_values=past,
        use_cache=True,
    )
